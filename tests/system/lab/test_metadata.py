"""The metadata server behaves like EC2's, and fails as configured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest

from tests.lab import Interface, Lab, Spec

TOKEN_PATH = "/latest/api/token"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
META = "/latest/meta-data"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
SPEC = Spec((
    Interface("10.0.1.0/24", 3, public=1),
    Interface("10.0.2.0/24", 2, ipv6=("2001:db8:1:2::10", "2001:db8:1:2::11"), prefixes=("10.0.2.64/28",)),
))  # fmt: skip

ASK = """
import http.client, json, sys
answers, connection = [], http.client.HTTPConnection("169.254.169.254", timeout=%r)
for method, path, headers in json.load(sys.stdin):
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        answers.append([answer.status, body, {k.lower(): v for k, v in answer.getheaders()}])
    except (OSError, http.client.HTTPException) as error:
        answers.append([0, type(error).__name__, {}])
        connection.close()
print(json.dumps(answers))
"""


class Client:
    """A client inside the instance; the requests of one call use one connection if the server allows it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def ask(
        self, *wanted: tuple[str, str, Mapping[str, str]], timeout: float = 5
    ) -> list[tuple[int, str, dict[str, str]]]:
        requests = json.dumps([(method, path, dict(headers)) for method, path, headers in wanted])
        done = self.lab.run(["/usr/bin/python3", "-I", "-S", "-c", ASK % timeout], stdin=requests)
        return [(status, body, headers) for status, body, headers in json.loads(done.stdout)]

    def get(self, path: str, headers: Mapping[str, str] = NO_HEADERS, timeout: float = 5) -> tuple[int, str]:
        return self.ask(("GET", path, headers), timeout=timeout)[0][:2]

    def token(self, ttl: int = 60) -> str:
        status, token, headers = self.ask(("PUT", TOKEN_PATH, {TTL: str(ttl)}))[0]
        assert (status, headers[TTL.lower()]) == (200, str(ttl))
        return token


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with Lab(SPEC) as lab:
        yield Client(lab)


@pytest.fixture
def client(shared: Client) -> Iterator[Client]:
    """The server, reset for each test."""
    yield shared
    shared.lab.metadata.clear()
    shared.lab.metadata.configure(v1=True, role="lab-role", user_data=None, keep_alive=True)
    shared.lab.metadata.reset()


def test_version_1_can_be_switched_off(client: Client) -> None:
    assert client.get(f"{META}/instance-type") == (200, "m7i.4xlarge")
    client.lab.metadata.configure(v1=False)
    assert client.get(f"{META}/instance-type")[0] == 401
    assert client.get(f"{META}/instance-type", {TOKEN: client.token()}) == (200, "m7i.4xlarge")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("PUT", TOKEN_PATH, {}, 400),
        ("PUT", TOKEN_PATH, {TTL: "0"}, 400),
        ("PUT", TOKEN_PATH, {TTL: "21601"}, 400),
        ("PUT", TOKEN_PATH, {TTL: "soon"}, 400),
        ("PUT", TOKEN_PATH, {TTL: "21600"}, 200),
        ("PUT", TOKEN_PATH, {TTL: "60", "X-Forwarded-For": "198.51.100.1"}, 403),
        ("PUT", f"{TOKEN_PATH}/", {TTL: "60"}, 403),
        ("GET", TOKEN_PATH, {TTL: "60"}, 405),
        ("GET", f"{META}/", {TOKEN: "invented"}, 401),
        ("POST", f"{META}/", {}, 405),
    ],
)
def test_statuses_of_version_2(client: Client, method: str, path: str, headers: dict[str, str], status: int) -> None:
    assert client.ask((method, path, headers))[0][0] == status


def test_a_token_ends_with_its_time_or_by_command(client: Client) -> None:
    token = client.token(ttl=1)
    assert client.get(f"{META}/mac", {TOKEN: token})[0] == 200
    time.sleep(1.1)
    assert client.get(f"{META}/mac", {TOKEN: token})[0] == 401
    token = client.token()
    client.lab.metadata.expire_tokens()
    assert client.get(f"{META}/mac", {TOKEN: token})[0] == 401


def test_directories_are_listed_with_and_without_a_slash(client: Client) -> None:
    status, listing = client.get(f"{META}/")
    assert status == 200
    assert {"ami-id", "network/", "placement/", "public-keys/", "services/"} <= set(listing.split("\n"))
    assert client.get(META) == (status, listing)
    assert client.get("/latest/") == (200, "dynamic\nmeta-data")
    assert client.get(f"{META}/public-keys/") == (200, "0=lab-key")
    assert client.get(f"{META}/public-keys/0/") == (200, "openssh-key")
    assert client.get("/2021-07-15/meta-data/placement/") == (200, "availability-zone\navailability-zone-id\nregion")
    assert "latest" in client.get("/")[1].split("\n")
    first, second = client.lab.nics
    assert client.get(f"{META}/network/interfaces/macs/")[1].split("\n") == sorted([f"{first.mac}/", f"{second.mac}/"])


@pytest.mark.parametrize(
    "path", ["ami-id/", "ami-id/x", "nothing", "network/interfaces/macs/02:00:00:00:00:00/", "spot"]
)
def test_absent_path_is_404(client: Client, path: str) -> None:
    status, body, headers = client.ask(("GET", f"{META}/{path}", {}))[0]
    assert (status, headers["content-type"]) == (404, "text/html")
    assert "404 - Not Found" in body


def test_an_interface_has_only_the_keys_that_apply(client: Client) -> None:
    first, second = client.lab.nics
    keys = {
        nic.device: set(client.get(f"{META}/network/interfaces/macs/{nic.mac}/")[1].split("\n"))
        for nic in (first, second)
    }
    public = {"ipv4-associations/", "public-hostname", "public-ipv4s"}
    assert keys[0] - keys[1] == public
    six = {"ipv4-prefix", "ipv6s", "subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks"}
    assert keys[1] - keys[0] == six
    assert {"device-number", "local-ipv4s", "subnet-ipv4-cidr-block", "vpc-ipv4-cidr-blocks"} <= keys[0] & keys[1]


def test_leaves_have_the_values_of_the_interface(client: Client) -> None:
    second = f"{META}/network/interfaces/macs/{client.lab.nics[1].mac}"
    first = f"{META}/network/interfaces/macs/{client.lab.nics[0].mac}"
    expected = {
        f"{second}/device-number": "1",
        f"{second}/local-ipv4s": "10.0.2.10\n10.0.2.11",
        f"{second}/subnet-ipv4-cidr-block": "10.0.2.0/24",
        f"{second}/ipv6s": "2001:db8:1:2::10\n2001:db8:1:2::11",
        f"{second}/subnet-ipv6-cidr-blocks": "2001:db8:1:2::/64",
        f"{second}/ipv4-prefix": "10.0.2.64/28",
        f"{first}/ipv4-associations/": "203.0.113.1",
        f"{first}/ipv4-associations/203.0.113.1": "10.0.1.10",
        f"{META}/public-ipv4": "203.0.113.1",
        f"{META}/mac": client.lab.nics[0].mac,
    }
    answers = client.ask(*(("GET", path, {}) for path in expected))
    assert [body for _, body, _ in answers] == list(expected.values())


def test_user_data_role_and_identity(client: Client) -> None:
    assert client.get("/latest/user-data")[0] == 404
    client.lab.metadata.configure(user_data="#!/bin/sh\n", role="other")
    assert client.get("/latest/user-data") == (200, "#!/bin/sh\n")
    assert client.get(f"{META}/iam/security-credentials/") == (200, "other")
    assert "SECRET" in json.loads(client.get(f"{META}/iam/security-credentials/other")[1])["SecretAccessKey"]
    client.lab.metadata.configure(role=None)
    assert client.get(f"{META}/iam/")[0] == 404
    document = json.loads(client.get("/latest/dynamic/instance-identity/document")[1])
    assert document["privateIp"] == "10.0.1.10"
    assert client.get("/latest/dynamic/instance-identity/") == (200, "document\npkcs7\nrsa2048\nsignature")


def test_requests_and_connections_are_counted(client: Client) -> None:
    client.ask(*[("GET", f"{META}/mac", {})] * 5)
    assert client.lab.metadata.connections() == 1
    assert [(r.method, r.path, r.status) for r in client.lab.metadata.requests()] == [("GET", f"{META}/mac", 200)] * 5
    client.lab.metadata.reset()
    client.lab.metadata.configure(keep_alive=False)
    client.ask(*[("GET", f"{META}/mac", {})] * 3)
    assert client.lab.metadata.connections() == len(client.lab.metadata.paths()) == 3


def test_status_with_retry_after_a_number_of_times(client: Client) -> None:
    client.lab.metadata.fail("status", f"{META}/*", status=429, retry_after=7, times=2)
    answers = client.ask(*[("GET", f"{META}/mac", {})] * 3)
    assert [status for status, _, _ in answers] == [429, 429, 200]
    assert answers[0][2]["retry-after"] == "7"


@pytest.mark.parametrize("status", [403, 404, 405])
def test_tokens_can_be_refused(client: Client, status: int) -> None:
    client.lab.metadata.fail("status", TOKEN_PATH, status=status)
    assert client.ask(("PUT", TOKEN_PATH, {TTL: "60"}))[0][0] == status
    assert client.get(f"{META}/mac")[0] == 200


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("timeout", (0, "TimeoutError")),
        ("reset", (0, "ConnectionResetError")),
        ("refuse", (0, "ConnectionRefusedError")),
        ("truncated", (0, "IncompleteRead")),
        ("short", (200, "m7i.4")),
        ("empty", (200, "")),
    ],
)
def test_faults_last_until_cleared(client: Client, kind: str, expected: tuple[int, str]) -> None:
    client.lab.metadata.fail(kind)
    for _ in range(2):
        assert client.get(f"{META}/instance-type", timeout=0.3) == expected
    client.lab.metadata.clear()
    assert client.get(f"{META}/instance-type") == (200, "m7i.4xlarge")


def test_a_page_instead_of_an_answer(client: Client) -> None:
    client.lab.metadata.fail("html", f"{META}/mac")
    status, body, headers = client.ask(("GET", f"{META}/mac", {}))[0]
    assert (status, headers["content-type"]) == (200, "text/html")
    assert body.startswith("<!DOCTYPE html>")


def test_a_dripping_answer_is_slow_but_complete(client: Client) -> None:
    client.lab.metadata.fail("drip", interval=0.05)
    start = time.monotonic()
    assert client.get(f"{META}/instance-type") == (200, "m7i.4xlarge")
    assert time.monotonic() - start > 10 * 0.05


def test_content_changes_between_two_reads(client: Client) -> None:
    leaf = f"{META}/network/interfaces/macs/{client.lab.nics[0].mac}/local-ipv4s"
    client.lab.metadata.content(leaf, "10.0.1.10", "999.1.1.1")
    assert [body for _, body, _ in client.ask(*[("GET", leaf, {})] * 3)] == ["10.0.1.10", "999.1.1.1", "999.1.1.1"]
    client.lab.metadata.content(f"{META}/network/interfaces/macs/", "02:ff:ff:ff:ff:ff/", times=1)
    assert client.get(f"{META}/network/interfaces/macs/") == (200, "02:ff:ff:ff:ff:ff/")
    assert client.lab.nics[0].mac in client.get(f"{META}/network/interfaces/macs/")[1]


def test_content_override_still_needs_a_token(client: Client) -> None:
    client.lab.metadata.configure(v1=False)
    client.lab.metadata.content(f"{META}/mac", "02:ff:ff:ff:ff:ff")
    assert client.get(f"{META}/mac")[0] == 401


def test_wrong_fault_name_is_an_error(client: Client) -> None:
    with pytest.raises(ValueError, match="unknown fault 'brocken'"):
        client.lab.metadata.fail("brocken")
    with pytest.raises(ValueError, match="v3"):
        client.lab.metadata.configure(v3=True)
