"""The state files in /run/cloud-network: written by the fetcher, readable by every user.

    system                     the metadata of the instance, nested by key, in the cloud's own format
    links/<ifindex>            the same for one interface
    status.json                status.Status (docs/status.schema.json)
    provider/<name>/<part>     signed identity: document, pkcs7, signature, rsa2048, byte for byte
    fetcher.lock               locked by the running fetcher; holds the id of its run

A file is written under a temporary name and renamed into place, so a reader never sees a partial file. Files are 0644
and directories 0755 with any umask. No secrets are written here.

The fetcher reads from a hostile network, so readers of its files do not trust it: they follow no symbolic link, open
only regular files, do not block, and read a bounded number of bytes.

A state file is a claim with a date. `read_claim` detects whether the fetcher that wrote status.json is still running:
it holds a write lock (fcntl(2), F_OFD_SETLK), for which the file must be open for writing, so no reader can hold it.
The kernel releases the lock when the process ends for any reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import math
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cloud_network.fetcher.status import RENEWAL_GRACE_S, LinkStatus, ShapeError, Status, age, parse_status, uptime

PATH = Path("/run/cloud-network")
IDENTITY_PARTS = ("document", "pkcs7", "signature", "rsa2048")
MAX_STATUS_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 4 << 20
MAX_IDENTITY_BYTES = 1 << 20
"""Largest accepted size of each kind of file, in bytes; no larger status is written."""
_MAX_SHORTENED = 16  # entries of each list in a status that would be too large

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Document = dict[str, Json]
"""One object of a provider's metadata, in the provider's own format."""

RUN_LENGTH = 16
"""Length of a run's id, in characters."""

_FLOCK = struct.Struct("hhqqi0q")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StateError(Exception):
    """A state file cannot be read or is invalid; str() names the file and the command to run."""


class AlreadyRunning(Exception):
    """Another fetcher holds the lock of the state directory."""


class Doubt(StrEnum):
    """A reason why status.json may not be the present state."""

    NOT_RUNNING = "not running"  # the fetcher that wrote it has ended
    EARLIER_RUN = "earlier run"  # a fetcher is running, but has not compared the kernel yet
    EARLIER_BOOT = "earlier boot"
    NOT_RENEWED = "not renewed"  # the fetcher is running, but has not renewed the file in time: it hangs


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of status.json and the reason to doubt it. `status` is None if there is no file."""

    status: Status | None
    doubt: Doubt | None

    def stale(self, now: float) -> bool:
        """Return True if there is a doubt, or two refreshes and 30 s passed without metadata (`now`: Unix time)."""
        status = self.status
        if status is None or self.doubt is not None or status["fetched_at"] is None:
            return True
        fetched = status["fetched_uptime"]
        elapsed = age(status["fetched_at"], now) if fetched is None else uptime() - fetched
        return elapsed > 2 * status["refresh_timer"] + 30

    def is_stale(self) -> bool:
        """Return True if the state is out of date now."""
        return self.stale(time.time())

    def explain_doubt(self, now: float) -> str | None:
        """Return the doubt as text, or None."""
        if self.doubt is None:
            return None
        written = f"; last state written {age(self.status['written_at'], now):.0f} s ago" if self.status else ""
        return _DOUBTS[self.doubt] + written


_DOUBTS = {
    Doubt.NOT_RUNNING: "the fetcher is not running",
    Doubt.EARLIER_RUN: "the fetcher has not compared the kernel since it started",
    Doubt.EARLIER_BOOT: "the state is from an earlier boot",
    Doubt.NOT_RENEWED: "the fetcher hangs, or cannot write its state (df /run): it has not renewed it in time",
}


@functools.cache  # constant for the lifetime of a process
def boot_id() -> str:
    """Return the id of this boot, 32 hexadecimal digits; "" if unknown.

    The units set BOOT_ID=%b, because ProcSubset=pid hides the kernel's file.
    """
    if given := os.environ.get("BOOT_ID"):
        return given.replace("-", "")
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    return ""


class RunLock:
    """The lock of the running fetcher. Held until the process ends; `run` is the id of the run."""

    def __init__(self, state: StateDirectory) -> None:
        """Take the lock. Raises AlreadyRunning if another process holds it.

        The lock is taken on a new file, which is then renamed into place: every user may open the file for reading and
        hold a read lock on it, and that must not keep a fetcher from starting.
        """
        if state.running_id() is not None:
            raise AlreadyRunning(f"{state.lock_path} is locked: another fetcher is running")
        self.run = secrets.token_hex(RUN_LENGTH // 2)
        new = f"{state.path}/.fetcher.lock.{os.getpid()}.tmp"
        self._descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        os.write(self._descriptor, self.run.encode())
        os.fchmod(self._descriptor, 0o644)
        Path(new).rename(state.lock_path)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


class StateDirectory:
    """The files below one directory. A missing file reads as None."""

    def __init__(self, path: str | os.PathLike[str] = PATH):
        self.path = os.fspath(path)

    # Paths

    @property
    def system_path(self) -> str:
        """The file of the system document."""
        return f"{self.path}/system"

    @property
    def status_path(self) -> str:
        """The file of the status."""
        return f"{self.path}/status.json"

    @property
    def lock_path(self) -> str:
        """The file that the running fetcher locks."""
        return f"{self.path}/fetcher.lock"

    @property
    def links_path(self) -> str:
        """The directory of the link documents."""
        return f"{self.path}/links"

    def link_path(self, ifindex: int) -> str:
        """The file of one link's document."""
        if ifindex < 1:
            raise ValueError(f"ifindex {ifindex} is not above 0")
        return f"{self.links_path}/{ifindex}"

    def identity_path(self, provider: str, name: str) -> str:
        """The file of one part of a provider's signed identity."""
        return f"{self.path}/provider/{_component(provider)}/{_component(name)}"

    def link_indexes(self) -> list[int]:
        """Return the ifindexes that have a document, ascending."""
        try:
            with opened_below(self.path, ("links",), os.O_DIRECTORY) as descriptor:
                names = os.listdir(descriptor)  # noqa: PTH208  # of the open directory
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.links_path, error) from error
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 11)

    # Writing: only by the fetcher

    def prepare(self) -> None:
        """Make the directories, and remove temporary files left by a killed writer. Call at start."""
        for directory in (self.path, self.links_path, f"{self.path}/provider"):
            _make_directory(Path(directory))
        for left in Path(self.path).rglob(".*.tmp"):
            left.unlink()

    def write_system(self, document: Mapping[str, object]) -> None:
        """Write the metadata of the instance."""
        _write(self.system_path, _encode(document))

    def write_link(self, ifindex: int, document: Mapping[str, object]) -> None:
        """Write the metadata of one interface."""
        _write(self.link_path(ifindex), _encode(document))

    def remove_link(self, ifindex: int) -> None:
        """Remove the document of a link, if there is one."""
        Path(self.link_path(ifindex)).unlink(missing_ok=True)

    def write_status(self, status: Status) -> None:
        """Write status.json; if it would exceed MAX_STATUS_BYTES, with shortened lists."""
        content = _encode(status)
        if len(content) > MAX_STATUS_BYTES:
            content = _encode(_shortened(status, len(content)))
        _write(self.status_path, content)

    def write_identity(self, provider: str, name: str, content: bytes) -> None:
        """Write one part of the signed identity, byte for byte."""
        _write(self.identity_path(provider, name), content)

    # Reading

    def read_system(self) -> Document | None:
        """Return the metadata of the instance."""
        return self._read_object(("system",), MAX_DOCUMENT_BYTES)

    def read_link(self, ifindex: int) -> Document | None:
        """Return the metadata of one interface."""
        return self._read_object(("links", str(ifindex)), MAX_DOCUMENT_BYTES)

    def read_links(self) -> dict[int, Document]:
        """Return every link's document by ifindex, ascending. Together they are at most MAX_DOCUMENT_BYTES."""
        documents, left = dict[int, Document](), MAX_DOCUMENT_BYTES
        for ifindex in self.link_indexes():
            content = self._read(("links", str(ifindex)), MAX_DOCUMENT_BYTES)
            if content is not None:
                left -= len(content)
                if left < 0:
                    raise StateError(f"{self.links_path}: larger than {MAX_DOCUMENT_BYTES} bytes in total")
                documents[ifindex] = _decode(content, self.link_path(ifindex))
        return documents

    def read_status(self) -> Status | None:
        """Return status.json, from any fetcher and any time. Do not change it: another read may return it, too."""
        content = self._read(("status.json",), MAX_STATUS_BYTES)
        return None if content is None else _decode_status(content, self.status_path)

    def read_identity(self, provider: str, name: str) -> bytes | None:
        """Return one part of the signed identity."""
        try:
            parts = ("provider", _component(provider), _component(name))
        except ValueError as error:
            raise StateError(f"{self.path}/provider: {error}") from error
        return self._read(parts, MAX_IDENTITY_BYTES)

    def running_id(self) -> str | None:
        """Return the id of the running fetcher; None if none is running."""
        try:
            with opened_below(self.path, ("fetcher.lock",)) as descriptor:
                asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
                kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
                return os.read(descriptor, RUN_LENGTH).decode("ascii", "replace") if kind == fcntl.F_WRLCK else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.lock_path, error) from error

    def read_claim(self) -> Claim:
        """Return status.json with the reason to doubt it, if there is one."""
        run = self.running_id()  # before the file, which the fetcher may write in between
        status = self.read_status()
        if run is None:
            return Claim(status, Doubt.NOT_RUNNING)
        if status is None:
            return Claim(status, Doubt.EARLIER_RUN)
        if status["boot_id"] != boot_id():
            return Claim(status, Doubt.EARLIER_BOOT)
        if status["run"] != run:
            return Claim(status, Doubt.EARLIER_RUN)
        if uptime() > status["renew_by"] + RENEWAL_GRACE_S:
            return Claim(status, Doubt.NOT_RENEWED)
        if status["fetched_at"] is not None and status["compared_at"] is None:  # the links are of an earlier run
            return Claim(status, Doubt.EARLIER_RUN)
        return Claim(status, None)

    def _read(self, parts: tuple[str, ...], limit: int) -> bytes | None:
        try:
            with opened_below(self.path, parts) as descriptor:
                size = os.fstat(descriptor).st_size
                content = os.read(descriptor, min(size, limit))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable("/".join((self.path, *parts)), error) from error
        if size > limit:
            raise StateError(f"{'/'.join((self.path, *parts))}: larger than {limit} bytes")
        return content

    def _read_object(self, parts: tuple[str, ...], limit: int) -> Document | None:
        content = self._read(parts, limit)
        return None if content is None else _decode(content, "/".join((self.path, *parts)))


@functools.lru_cache(maxsize=1)  # the api reads the same content again and again
def _decode_status(content: bytes, path: str) -> Status:
    try:
        return parse_status(_decode(content, path))
    except ShapeError as error:
        raise StateError(f"{path}: {error}") from error


def _decode(content: bytes, path: str) -> Document:
    try:
        document = json.loads(content, parse_constant=_not_json, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path}: not JSON ({error}); `sudo cnctl refresh` writes it again") from error
    if not isinstance(document, dict):
        raise StateError(f"{path}: not a JSON object; `sudo cnctl refresh` writes it again")
    return document


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # it would be written as Infinity, which is not JSON
        raise ValueError(f"{text:.20} is too large")
    return number


@contextlib.contextmanager
def opened_below(directory: str, parts: tuple[str, ...], kind: int = 0) -> Iterator[int]:
    """Open a file below a directory for reading. No symbolic link below it is followed, and only `kind` is opened.

    `kind` is O_DIRECTORY, or 0 for a regular file. Raises OSError.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for position, part in enumerate(parts, 1):
            flags = _READ_FLAGS | (kind if position == len(parts) else os.O_DIRECTORY)
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        if not kind and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _component(name: str) -> str:
    """Return the name if it is a single path component and not hidden, else raise ValueError."""
    if not name or name.startswith(".") or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        raise ValueError(f"{name!r} is not a file name; accepted: letters, digits, '-', '_' and '.', not as the first")
    return name


def _encode(value: object) -> bytes:
    # ASCII only: control characters and lone surrogates in the metadata become harmless escapes.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & 0o7777 != 0o755:
        path.chmod(0o755)


def _shortened(status: Status, size: int) -> Status:
    """Return the status with a few entries of each list whose length depends on the metadata or other programs."""
    limit = f"the limit is {MAX_STATUS_BYTES}: lists are cut to {_MAX_SHORTENED} entries"
    notice = f"status.json would have {size} bytes; {limit}"
    shortened: Status = {
        **status,
        "links": {ifindex: _shortened_link(link) for ifindex, link in status["links"].items()},
        "unknown_macs": status["unknown_macs"][:_MAX_SHORTENED],
        "departed_macs": status["departed_macs"][:_MAX_SHORTENED],
        "conflicts": status["conflicts"][:_MAX_SHORTENED],
        "notices": [notice, *status["notices"][:_MAX_SHORTENED]],
    }
    return shortened


def _shortened_link(link: LinkStatus) -> LinkStatus:
    addresses = [*link["addresses"]]
    if addresses:
        addresses[0] = {**addresses[0], "public": addresses[0]["public"][:_MAX_SHORTENED]}
    return {
        **link,
        "addresses": addresses,
        "subnets": link["subnets"][:_MAX_SHORTENED],
        "drift": link["drift"][:_MAX_SHORTENED],
    }


def _write(path: str, content: bytes) -> None:
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    if not target.parent.exists():
        _make_directory(target.parent)
    descriptor = os.open(temporary, flags, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(content)
        temporary.rename(target)
    except BaseException:
        temporary.unlink()
        raise


def _unreadable(path: str, error: OSError) -> StateError:
    what = f"{path}: cannot be read: {error.strerror}"
    if isinstance(error, PermissionError):
        what += "; use sudo, or restart cloud-network-fetcher, which corrects the file mode"
    return StateError(what)
