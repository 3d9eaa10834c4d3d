"""Hetzner's two documents -> Instance."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from cloud_network.fetcher.metadata.model import Instance, MetadataError
from cloud_network.fetcher.metadata.providers.hetzner import parse_yaml

from tests.unit.fetcher.emulated import document, read


def parsed(name: str, old: str = "", new: str = "") -> Instance:
    """Return the instance with `old` replaced in both documents."""
    whole = document("hetzner", name)
    return read("hetzner", {key: [line.replace(old, new) for line in whole[key]] for key in whole})


def test_server_is_read_whole() -> None:
    public, private, *_ = parsed("many").interfaces
    assert (public.mac, private.mac) == ("96:00:00:08:19:da", "86:00:00:2a:7d:e0")
    assert [str(address) for address in public.addresses] == ["1.2.3.4/32", "2a01:4f8:beef:beef::1/64"]
    assert public.gateways == (ip_address("fe80::1"),)
    assert [str(address) for address in private.addresses] == [f"10.0.0.{last}/24" for last in range(2, 17)]
    assert (private.subnets, private.routed) == ((ip_network("10.0.0.0/16"),), True)  # all behind the gateway
    assert (private.gateways, private.device_number) == ((ip_address("10.0.0.1"),), 1)
    assert private.document["network_name"] == "nw-test0"


def test_alias_entry_without_mac_belongs_to_its_interface() -> None:
    found = parsed("alias")
    assert found.complete
    (public,) = found.interfaces
    assert [str(address) for address in public.addresses] == ["1.2.3.4/32", "2a01:4f8:beef:beef::1/64"]
    assert public.gateways == (ip_address("fe80::1"),)


def test_gateway_with_a_zone_is_understood() -> None:
    assert parsed("ipv6", "gateway: fe80::1", "gateway: fe80::1%eth0").interfaces[0].gateways == (
        ip_address("fe80::1"),
    )


def test_other_kinds_of_entries_are_ignored_or_a_notice() -> None:
    whole = document("hetzner", "alias")
    position = whole["metadata"].index("  config:")
    whole["metadata"][position + 1 : position + 1] = ["  - type: nameserver", "  - type: hologram", "    name: x"]
    found = read("hetzner", whole)
    assert (found.complete, len(found.interfaces)) == (True, 1)
    assert ["hologram" in notice for notice in found.notices] == [True]


def test_subnet_of_an_unknown_type_is_a_notice() -> None:
    found = parsed("ipv6", "type: dhcp", "type: hologram")
    assert ["type: 'hologram' is not a known type" in notice for notice in found.notices] == [True]
    assert (found.problems, found.interfaces) == ((), parsed("ipv6").interfaces)
    assert found.unproven == {found.interfaces[0].mac}


def test_server_without_private_or_public_network() -> None:
    assert [each.mac for each in parsed("one").interfaces] == ["96:00:00:08:19:da"]
    assert [each.mac for each in parsed("sparse").interfaces] == ["86:00:00:2a:7d:e0"]
    with pytest.raises(MetadataError, match="names no interface"):
        read("hetzner", {"metadata": ["hostname: x"], "private-networks": ["[]"]})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ip: 10.0.0.2", "ip: 10.9.9.2.1", "[0].ip: '10.9.9.2.1' is not an IP"),
        ("ip: 10.0.0.2", "ip: 11.9.0.2", "[0].ip: '11.9.0.2' is not inside 10.0.0.0/16"),
        ("10.0.0.4]", "10.0.0.400]", "[0].alias_ips[1]: '10.0.0.400' is not an IP"),
        ("gateway: 10.0.0.1", "gateway: x", "[0].gateway: 'x' is not an IP"),
        ("interface_num: 1", "interface_num: one", "[0].interface_num: 'one' is not 0..4096"),
        ("beef::1/64", "beef::1/640", "network-config.config[0].subnets[1].address: '640' is not 0..128"),
        ("public-ipv4: 1.2.3.4", "public-ipv4: 1.2.3", "public-ipv4: '1.2.3' is not an IP"),
    ],
)
def test_wrong_value_is_reported_by_its_path(old: str, new: str, message: str) -> None:
    found = parsed("ipv6", old, new)
    (problem,) = found.problems
    assert message in problem.text
    assert len(found.interfaces) == 2


def test_yaml_scalars_are_text_and_null_is_nothing() -> None:
    found = parse_yaml("mac: 86:00:00:12:34:56\nyes: yes\nnone: null\nempty:\nquoted: 'null'\n", "x").value
    assert found == {"mac": "86:00:00:12:34:56", "yes": "yes", "none": None, "empty": None, "quoted": "null"}


def test_yaml_that_the_network_does_not_need_is_read() -> None:
    text = "public-keys:\n- {type: ssh-rsa}\nvendor_data: |\n  #cloud-config\n  a: !custom [b]\nkey: !custom text\n"
    assert parse_yaml(text, "x").value["public-keys"] == [{"type": "ssh-rsa"}]
    assert parsed("many", "hostname: my-server", "public-keys: !x {a: [b, !!binary c]}").complete


def test_yaml_alias_is_not_followed_and_stops_nothing() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    assert parse_yaml(bomb, "x").value["c"] == ["*b", "*b"]
    assert parsed("many", "hostname: my-server", "public-keys: [&key a, *key]").complete
    found = parsed("ipv6", "gateway: fe80::1", "gateway: *somewhere")
    assert ["'*somewhere' is not an IP address" in problem.text for problem in found.problems] == [True]
    assert len(found.interfaces) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", ["a: [b", "\ta: b", "[" * 5000, "a: \x00"])
def test_yaml_with_errors_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match="private-networks: not YAML") as caught:
        parse_yaml(text, "private-networks")
    assert caught.value.kind == "invalid"


def test_large_yaml_is_refused_unread() -> None:
    with pytest.raises(MetadataError, match="longer than") as caught:
        parse_yaml("a: b\n" * 30000, "metadata")
    assert caught.value.kind == "too large"
