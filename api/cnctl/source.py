"""Source of the state for cnctl: the api, over its Unix socket; the state files if the api does not answer.

Only root and the api's user can write to the socket's directory, so no other local user can answer.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cloud_network.api.cnctl.output import Exit, Failure, note, safe
from cloud_network.fetcher.state import Claim, Document, Doubt, StateDirectory, StateError
from cloud_network.fetcher.status import ShapeError, Status, parse_status

if TYPE_CHECKING:
    from cloud_network.fetcher.config import Config

SOCKET = Path("/run/cloud-network-api/api.sock")
TIMEOUT_S = 2.0
"""Time limit in seconds for one answer of the api."""
MAX_ANSWER_BYTES = 16 << 20
UNIT = "cloud-network-fetcher"
API_UNIT = "cloud-network-api"
RESTART = f"sudo systemctl restart {UNIT}"
FETCHER_RUNNING = "running"
"""The api's value of `fetcher` for a current state."""
CLAIM_MEMBERS = frozenset({"stale", "fetcher"})
"""Members that the api adds to status.json."""


def read_configuration(path: Path) -> Config:
    """Return the configuration. Raises Failure if the file is invalid. Imports its reader only when called."""
    from cloud_network.fetcher.config import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        raise Failure(Exit.CONFIG, str(error)) from error


class ApiDown(Exception):
    """The api does not answer; str() gives the reason."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


class Source:
    """The state of one fetcher. Methods raise Failure, with the next command to run, if there is no state."""

    def __init__(self, path: Path, directory: Path) -> None:
        self.directory = directory
        self.files = StateDirectory(directory)
        self._socket = path
        self._down = False

    def claim(self) -> Claim:
        """Return the status, with the reason to doubt it."""
        answer = self._ask("/api/v1/status")
        if answer is None:
            claim = self._read_claim()
        else:
            try:
                status = parse_status({key: value for key, value in answer.items() if key not in CLAIM_MEMBERS})
            except ShapeError as error:
                raise Failure(Exit.NO_STATE, f"the api's answer: {safe(error)}") from error
            claim = Claim(status, _doubt(answer.get("fetcher")))
        if claim.status is None:
            raise Failure(Exit.NO_STATE, no_state_message(claim))
        return claim

    def find_claim(self) -> tuple[Claim, str | None]:
        """Return the status; a claim without a status if it does not exist, or cannot be read, and then the reason."""
        try:
            return self.claim(), None
        except Failure as failure:
            try:
                return self.files.read_claim(), None
            except StateError:
                return Claim(None, None), str(failure)

    def find_api_error(self) -> str | None:
        """Return the reason why the api does not answer; None if it does. Without the api, the state files are read."""
        try:
            request(self._socket, "/api/v1/health")
        except ApiDown as error:
            self._down = True
            return f"the api at {self._socket} does not answer ({error})"
        return None

    @staticmethod
    def status_of(claim: Claim) -> Status:
        """Return the status of a claim. Raises Failure if it has none."""
        if claim.status is None:
            raise Failure(Exit.NO_STATE, no_state_message(claim))
        return claim.status

    def links(self) -> dict[str, Document]:
        """Return the metadata of each link by MAC address; empty before it is read."""
        answer = self._ask("/api/cloud/network")
        if answer is not None:
            return {mac: document for mac, document in answer.items() if isinstance(document, dict)}
        try:
            return {str(document.get("mac")): document for document in self.files.read_links().values()}
        except StateError as error:
            raise Failure(Exit.NO_STATE, safe(error)) from error

    def system(self) -> Document:
        """Return the metadata of the instance."""
        answer = self._ask("/api/cloud/system")
        if answer is not None:
            return cast(Document, answer)
        try:
            document = self.files.read_system()
        except StateError as error:
            raise Failure(Exit.NO_STATE, safe(error)) from error
        if document is None:
            raise Failure(Exit.NO_STATE, no_state_message(self._read_claim()))
        return document

    def _read_claim(self) -> Claim:
        try:
            return self.files.read_claim()
        except StateError as error:
            raise Failure(Exit.NO_STATE, safe(error)) from error

    def _ask(self, route: str) -> dict[str, Any] | None:
        """Return the api's answer. If the api is down, print a note once and return None."""
        if self._down:
            return None
        try:
            status, answer = request(self._socket, route)
        except ApiDown as error:
            self._down = True
            note(f"the api at {self._socket} does not answer ({error}); reading {self.files.path} instead")
            if failure := service_failure(API_UNIT):
                note(failure)
            return None
        if status == http.HTTPStatus.OK:
            return answer
        code = Exit.NO_STATE if status == http.HTTPStatus.SERVICE_UNAVAILABLE else Exit.FAILED
        raise Failure(code, safe(answer.get("detail", f"the api answers with status {status}")))


def request(path: Path, route: str) -> tuple[int, dict[str, Any]]:
    """GET a route; return the status and the JSON object. Raises ApiDown."""
    until = time.monotonic() + TIMEOUT_S
    connection = UnixConnection(path)
    try:
        connection.request("GET", route)
        answer = connection.getresponse()
        body = bytearray()
        while chunk := answer.read1(1 << 16):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES or time.monotonic() > until:
                raise ApiDown("its answer is too large or too slow")
        if answer.length:  # announced bytes that did not arrive
            raise ApiDown("its answer was cut off")
        content = json.loads(bytes(body))
    except OSError as error:
        raise ApiDown(error.strerror or str(error)) from error
    except (http.client.HTTPException, ValueError, RecursionError) as error:
        raise ApiDown(f"not an answer of cloud-network-api: {error}") from error
    finally:
        connection.close()
    if not isinstance(content, dict):
        raise ApiDown("not an answer of cloud-network-api")
    return answer.status, content


def service_failure(unit: str) -> str | None:
    """Return systemd's result of a service; None if it is running, did not fail, or systemd is absent."""
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        return None
    import subprocess

    command = ["systemctl", "show", "--property=ActiveState,Result,ExecMainStatus", unit]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = dict(line.partition("=")[::2] for line in answer.stdout.splitlines())
    if found.get("ActiveState") == "active" or found.get("Result") in (None, "", "success"):
        return None
    code = found.get("ExecMainStatus")
    hint = "; see: cloud-network-fetcher --check-config" if code == str(int(Exit.CONFIG)) else ""
    return f"{unit}: {found.get('ActiveState')}, result {found['Result']}, exit status {code}{hint}"


def no_state_message(claim: Claim) -> str:
    """Return the message for a host without any state."""
    doubt = claim.explain_doubt(time.time())
    reason = f": {doubt}" if doubt else ""
    return f"the metadata has never been read{reason}\nSee: systemctl status {UNIT}; journalctl -u {UNIT}"


def never_read(status: Status) -> str:
    """Return the reason why there is nothing to show."""
    if status["fetched_at"] is not None:
        return "the metadata names no link of this host"
    error = status["last_error"]
    reason = f": {error['message']}" if error else ""
    return f"the metadata has never been read{reason}"


def warn_if_stale(claim: Claim) -> None:
    """Print a note if the state is out of date."""
    now = time.time()
    if doubt := claim.explain_doubt(now):
        note(f"out of date: {doubt}. See: systemctl status {UNIT}")
    elif claim.status is not None and claim.stale(now):
        note(f"out of date: the metadata was last read {claim.status['fetched_at'] or 'never'}. See: cnctl status")


def _doubt(text: object) -> Doubt | None:
    if text == FETCHER_RUNNING:
        return None
    return next((doubt for doubt in Doubt if doubt == text), Doubt.NOT_RUNNING)
