"""Bad metadata: a log line names the path, the state is kept, nothing is removed; then the fetcher recovers.

One lab for the whole file; every test restores its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.lab import Lab, Spec
from tests.lab.metadata.hetzner import private_network, yaml
from tests.system.service import MACS, audit, errors, kernel, read_all_facts, refresh, running_lab, status

META = "/latest/meta-data/"
TOKEN = "/latest/api/token"
SECOND = "{second}"  # the second interface's directory


@pytest.fixture(scope="module")
def settled() -> Iterator[Lab]:
    with running_lab(Spec.aws(interfaces=3, addresses=4)) as made:
        read_all_facts(made)
        yield made


@pytest.fixture
def lab(settled: Lab) -> Iterator[Lab]:
    """Check that the fetcher recovers by itself, and that netagent received no request."""
    before, documents, lines = kernel(settled), files(settled), audit(settled)
    yield settled
    settled.metadata.clear()
    settled.metadata.load(settled.nics)
    assert refresh(settled) == "ok"
    assert status(settled)["last_error"] is None
    assert kernel(settled) == before
    assert files(settled) == documents
    assert audit(settled) == lines


def files(lab: Lab) -> dict[str, bytes]:
    """Return the metadata in the state files, which must stay readable."""
    root = lab.path("/run/cloud-network")
    return {
        str(path): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "status.json"
    }


def logged_errors(lab: Lab, provoke: Callable[[], object]) -> list[str]:
    """Return the errors and warnings that `provoke` causes."""
    before = len(errors(lab))
    provoke()
    return errors(lab)[before:]


def assert_unchanged(lab: Lab, before: object) -> None:
    """Check the kernel, the files and the status: all addresses are still there."""
    assert (kernel(lab), files(lab)) == before
    links = status(lab)["links"].values()
    assert {each["address"] for link in links for each in link["addresses"] if each["present"]} == set(lab.addresses)


@pytest.mark.parametrize(
    ("fault", "path", "words"),
    [
        ("html", MACS, ["network/interfaces/macs/", "HTML page"]),
        ("html", f"{SECOND}local-ipv4s", ["{mac}/local-ipv4s", "HTML page"]),
        ("html", SECOND, ["{mac}/", "HTML page"]),
        ("html", TOKEN, ["/latest/api/token", "not a token"]),
        ("truncated", MACS, ["network/interfaces/macs/", "bytes"]),
        ("truncated", f"{SECOND}local-ipv4s", ["{mac}/local-ipv4s", "bytes"]),
        ("empty", MACS, ["network/interfaces/macs/", "no interface"]),
        ("empty", SECOND, ["{mac}/", "no 'mac'"]),
        ("empty", f"{SECOND}local-ipv4s", ["{mac}/local-ipv4s", "empty"]),
        ("short", SECOND, ["{mac}/", "the listing is not whole"]),
        ("reset", f"{SECOND}local-ipv4s", ["{mac}/local-ipv4s", "reset"]),
        ("refuse", "*", ["169.254.169.254", "refused"]),
        ("timeout", f"{SECOND}device-number", ["{mac}/device-number", "no answer in time"]),
        (404, MACS, ["network/interfaces/macs/", "HTTP 404"]),
        (404, SECOND, ["{mac}/", "HTTP 404"]),
        (404, f"{SECOND}local-ipv4s", ["{mac}/local-ipv4s", "HTTP 404"]),
        (429, "*", ["HTTP 429"]),
        (500, f"{META}*", ["network/interfaces/macs/", "HTTP 500"]),
        (503, f"{SECOND}local-ipv4s", ["{mac}/local-ipv4s", "HTTP 503"]),
        (401, f"{META}*", ["network/interfaces/macs/", "HTTP 401"]),
        (403, TOKEN, ["/latest/api/token", "HTTP 403"]),
        (302, MACS, ["network/interfaces/macs/", "HTTP 302"]),
    ],
)
def test_failure_is_logged_once_and_changes_nothing(lab: Lab, fault: str | int, path: str, words: list[str]) -> None:
    mac = lab.nics[1].mac
    before = kernel(lab), files(lab)
    if path == TOKEN:
        lab.metadata.expire_tokens()
    where = path.replace(SECOND, f"{MACS}{mac}/")
    if isinstance(fault, int):
        lab.metadata.fail("status", where, status=fault)
    else:
        lab.metadata.fail(fault, where)
    repeat = 1 if fault == "timeout" else 3

    def read() -> None:
        for _ in range(repeat):
            assert refresh(lab) in ("degraded", "error")

    [line] = logged_errors(lab, read)
    assert "nothing is removed" in line
    assert all(word.format(mac=mac) in line for word in words), line
    assert status(lab)["last_error"]["kind"] == "metadata"
    assert_unchanged(lab, before)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "999.1.1.1", "127.0.0.1", "224.0.0.1", "10.0.2.1", "10.0.2.255", "::1", "x"]
)
@pytest.mark.parametrize("also", [True, False])
def test_invalid_address_is_reported_with_its_path(lab: Lab, address: str, also: bool) -> None:
    nic = lab.nics[1]
    before = kernel(lab), files(lab)
    lab.metadata.content(f"{MACS}{nic.mac}/local-ipv4s", "\n".join([*(nic.addresses if also else ()), address]))
    [line] = logged_errors(lab, lambda: refresh(lab))
    assert f"macs/{nic.mac}/" in line
    assert f"local-ipv4s: '{address}' is not " in line or f"{address} is both an address of the " in line
    assert status(lab)["state"] == "degraded"
    assert_unchanged(lab, before)


def test_invalid_subnet_is_reported_with_its_path(lab: Lab) -> None:
    before = kernel(lab), files(lab)
    lab.metadata.content(f"{MACS}{lab.nics[1].mac}/subnet-ipv4-cidr-block", "0.0.0.0/0")
    [line] = logged_errors(lab, lambda: refresh(lab))
    assert f"macs/{lab.nics[1].mac}/subnet-ipv4-cidr-block: '0.0.0.0/0' is not " in line
    assert_unchanged(lab, before)


def test_unknown_mac_is_reported_and_unnamed_links_stay(lab: Lab) -> None:
    before = kernel(lab)
    lab.metadata.load([lab.nics[0], replace(lab.nics[1], mac="02:00:00:00:00:99"), lab.nics[2]])
    [line] = logged_errors(lab, lambda: [refresh(lab), refresh(lab)])
    assert "02:00:00:00:00:99" in line
    assert "no link of this host has that MAC" in line
    assert status(lab)["unknown_macs"] == ["02:00:00:00:00:99"]
    assert status(lab)["state"] == "degraded"
    assert kernel(lab) == before


def test_two_reads_that_differ_remove_nothing(lab: Lab) -> None:
    """A shorter list is accepted only if the next read agrees."""
    nic, before = lab.nics[1], kernel(lab)
    whole = "\n".join(nic.addresses)
    lab.metadata.content(f"{MACS}{nic.mac}/local-ipv4s", nic.addresses[0], whole)
    assert refresh(lab) == "ok"
    assert kernel(lab) == before
    lab.metadata.content(f"{MACS}{nic.mac}/local-ipv4s", nic.addresses[0], nic.addresses[1], whole)
    refresh(lab)
    assert kernel(lab) == before
    assert "confirming with a second read before removal" in lab.log("fetcher")


def test_failing_server_is_asked_with_backoff(lab: Lab) -> None:
    lab.metadata.fail("status", MACS, status=503)
    refresh(lab)
    lab.metadata.reset()
    lab.wait_for(lambda: len(lab.metadata.requests()) >= 2, 20, "two more tries")
    at = [record.at for record in lab.metadata.requests()]
    assert at[1] - at[0] > 0.7
    assert len({record.path for record in lab.metadata.requests()}) == 1


OUTAGES: tuple[tuple[str | int, str], ...] = (
    ("refuse", "*"),
    ("reset", "*"),
    ("html", "*"),
    ("truncated", f"{META}*"),
    ("empty", MACS),
    (401, f"{META}*"),
    (404, f"{SECOND}*"),
    (429, "*"),
    (503, "*"),
)


SPEED = 1000  # a hung pass is one of 900 s: almost a second here


def requests(lab: Lab) -> int:
    return int(status(lab)["counters"]["metadata_requests"])


HETZNER = "2001:db8::/32 192.0.2.0/24"
PRIVATE = "/hetzner/v1/metadata/private-networks"


@pytest.fixture(scope="module")
def hetzner() -> Iterator[Lab]:
    with running_lab(Spec.cloud("hetzner", 3, 4, 1), f'AllowAddresses = "{HETZNER}"\n') as made:
        yield made


@pytest.mark.parametrize("path", ["/hetzner/v1/metadata", PRIVATE])
@pytest.mark.parametrize("fault", ["short", "empty"])
def test_yaml_that_is_cut_off_removes_nothing(hetzner: Lab, fault: str, path: str) -> None:
    """The document is still valid YAML."""
    before = kernel(hetzner)
    hetzner.metadata.fail(fault, path)
    for _ in range(3):
        refresh(hetzner)
    assert kernel(hetzner) == before
    hetzner.metadata.clear()
    assert refresh(hetzner) == "ok"


@pytest.mark.parametrize("key", ["alias_ips", "gateway"])
def test_missing_mandatory_key_removes_nothing(hetzner: Lab, key: str) -> None:
    before = kernel(hetzner)
    networks = [private_network(nic) for nic in hetzner.nics[1:]]
    for network in networks:
        del network[key]
    hetzner.metadata.content(PRIVATE, yaml(networks))
    for _ in range(3):
        assert refresh(hetzner) == "ok"
    assert kernel(hetzner) == before
    assert any(f"{key}: missing; the earlier values are kept" in notice for notice in status(hetzner)["notices"])
    hetzner.metadata.clear()
    assert refresh(hetzner) == "ok"
    assert status(hetzner)["notices"] == []
