"""The metadata server behaves like Azure's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Interface, Lab, Spec
from tests.lab.curl import Answer, ask

VERSION = "api-version=2021-02-01"
INTERFACES = f"/metadata/instance/network/interface?{VERSION}"


def get(lab: Lab, path: str, *more: str) -> Answer:
    return ask(lab, path, "Metadata: true", *more)


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    interfaces = (Interface("10.0.1.0/24", 3, public=1, ipv6=2), Interface("10.0.2.0/26", 1))
    with Lab(Spec(interfaces, provider="azure")) as made:
        yield made


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    yield shared
    shared.metadata.clear()
    shared.metadata.configure(standard=False, per_second=None)


def test_interfaces_are_named_by_macs_without_separators(lab: Lab) -> None:
    first, second = lab.nics
    one, other = get(lab, INTERFACES).json
    assert one == {
        "ipv4": {
            "ipAddress": [
                {"privateIpAddress": "10.0.1.10", "publicIpAddress": "203.0.113.1"},
                {"privateIpAddress": "10.0.1.11", "publicIpAddress": ""},
                {"privateIpAddress": "10.0.1.12", "publicIpAddress": ""},
            ],
            "subnet": [{"address": "10.0.1.0", "prefix": "24"}],
        },
        "ipv6": {"ipAddress": [{"privateIpAddress": address} for address in first.ipv6]},
        "macAddress": first.mac.replace(":", "").upper(),
    }
    assert (other["ipv6"]["ipAddress"], other["ipv4"]["subnet"][0]["prefix"]) == ([], "26")
    assert other["macAddress"] == second.mac.replace(":", "").upper()


def test_the_whole_document_and_a_leaf_of_it(lab: Lab) -> None:
    whole = get(lab, f"/metadata/instance?{VERSION}").json
    assert set(whole) == {"compute", "network"}
    leaf = "/metadata/instance/compute/vmId"
    assert get(lab, f"{leaf}?{VERSION}&format=text").body == whole["compute"]["vmId"]
    assert get(lab, f"{leaf}?{VERSION}").status == 400
    assert get(lab, f"/metadata/instance/compute/nothing?{VERSION}").status == 404


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ((), VERSION, 400),
        (("Metadata: true", "X-Forwarded-For: 10.0.0.1"), VERSION, 400),
        (("Metadata: true",), "", 400),
        (("Metadata: true",), "api-version=2019-13-01", 400),
        (("Metadata: true",), f"{VERSION}&{VERSION}", 400),
        (("Metadata: true",), VERSION, 200),
    ],
)
def test_request_needs_header_and_one_known_version(
    lab: Lab, headers: tuple[str, ...], query: str, status: int
) -> None:
    assert ask(lab, f"/metadata/instance?{query}", *headers).status == status


def test_missing_version_lists_the_newest(lab: Lab) -> None:
    assert get(lab, "/metadata/instance").json["newest-versions"] == ["2025-04-07", "2024-07-17", "2024-03-15"]
    assert "2017-04-02" in get(lab, "/metadata/versions").json["apiVersions"]
    assert ask(lab, INTERFACES, "Metadata: true", method="POST").status == 405


def test_too_many_requests_get_retry_after(lab: Lab) -> None:
    lab.metadata.configure(per_second=0)
    refused = get(lab, INTERFACES)
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")


def test_standard_sku_addresses_are_in_the_load_balancer(lab: Lab) -> None:
    lab.metadata.configure(standard=True)
    assert get(lab, INTERFACES).json[0]["ipv4"]["ipAddress"][0]["publicIpAddress"] == ""
    [pair] = get(lab, f"/metadata/loadbalancer?{VERSION}").json["loadbalancer"]["publicIpAddresses"]
    assert pair == {"frontendIpAddress": "203.0.113.1", "privateIpAddress": "10.0.1.10"}


def test_the_attested_document_depends_on_the_nonce(lab: Lab) -> None:
    path = f"/metadata/attested/document?{VERSION}"
    one, other = get(lab, path).json, get(lab, f"{path}&nonce=1234567890").json
    assert one["encoding"] == "pkcs7"
    assert one["signature"] != other["signature"]


def test_the_instance_looks_like_azures(lab: Lab) -> None:
    assert lab.run(["cat", "/sys/class/dmi/id/chassis_asset_tag"]).stdout == "7783-7084-3265-9085-8269-3286-77\n"
    assert "via fe80::1234:5678:9abc" in lab.run(["ip", "-6", "route", "show", "default"]).stdout
