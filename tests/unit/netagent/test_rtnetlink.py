"""Every message that netagent packs equals what pyroute2 encodes from the same fields."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from cloud_network.netagent import rtnetlink
from cloud_network.netagent.netlink import Packed, pack_attribute
from cloud_network.netagent.operations import (
    AddressAdd,
    AddressRemove,
    LinkDown,
    LinkMtu,
    LinkUp,
    RouteAdd,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from cloud_network.netagent.rtnetlink import Rule
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

Interface = IPv4Interface | IPv6Interface
FAMILY = {4: 2, 6: 10}
packed = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
interfaces = st.builds(lambda address, prefix: ip_interface((address, prefix)), packed, st.integers(0, 32))
number = st.integers(1, 2**31 - 1)


def encoded(message: Any, header: dict[str, int], attributes: list[tuple[str, Any]]) -> bytes:
    """Return the body that pyroute2 encodes: everything but struct nlmsghdr."""
    for key, value in header.items():
        message[key] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)[16:]


@given(link=number, up=st.booleans())
def test_link_up_and_down(link: int, up: bool) -> None:
    body = encoded(ifinfmsg(), {"index": link, "flags": int(up), "change": 1}, [])
    assert rtnetlink.encode(LinkUp(link) if up else LinkDown(link)) == Packed(16, 0, body)


@given(link=number, mtu=st.integers(576, 65535))
def test_link_mtu(link: int, mtu: int) -> None:
    body = encoded(ifinfmsg(), {"index": link}, [("IFLA_MTU", mtu)])
    assert rtnetlink.encode(LinkMtu(link, mtu)) == Packed(16, 0, body)


@given(link=number, interface=interfaces, route=st.booleans(), add=st.booleans())
def test_address(link: int, interface: Interface, route: bool, add: bool) -> None:
    op = AddressAdd(link, interface, route) if add else AddressRemove(link, interface)
    attributes: list[tuple[str, Any]] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    if add:
        flags = (0 if route else 0x200) | (2 if interface.version == 6 else 0)
        attributes += [("IFA_FLAGS", flags), ("IFA_PROTO", 209)]
    header = {"family": FAMILY[interface.version], "prefixlen": interface.network.prefixlen, "index": link}
    kind, netlink_flags = (20, 0x600) if add else (21, 0)
    assert rtnetlink.encode(op) == Packed(kind, netlink_flags, encoded(ifaddrmsg(), header, attributes))


@given(data=st.data(), link=number, interface=interfaces, table=number, add=st.booleans())
def test_route(data: st.DataObject, link: int, interface: Interface, table: int, add: bool) -> None:
    length, network = len(interface.packed), interface.network
    via = data.draw(st.none() | st.binary(min_size=length, max_size=length).map(ip_address))
    op = RouteReplace(table, link, network, via) if add else RouteRemove(table, link, network, via)
    local = table == 255
    header = {"family": FAMILY[network.version], "dst_len": network.prefixlen, "proto": 209, "type": 2 if local else 1}
    header["scope"] = 254 if local else 253 if via is None else 0
    attributes: list[tuple[str, Any]] = [("RTA_DST", str(network.network_address)), ("RTA_OIF", link)]
    attributes += [] if via is None else [("RTA_GATEWAY", str(via))]
    body = encoded(rtmsg(), header, [*attributes, ("RTA_TABLE", table)])
    assert rtnetlink.encode(op) == (Packed(24, 0x500, body) if add else Packed(25, 0, body))


@given(
    interface=interfaces,
    table=number,
    priority=number,
    flags=st.tuples(*[st.booleans()] * 4),
    marks=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_rule(interface: Interface, table: int, priority: int, flags: tuple[bool, ...], marks: tuple[int, int]) -> None:
    (to, suppress, local, add), network, (mark, mask) = flags, interface.network, marks
    op = (RuleAdd if add else RuleRemove)(priority, network, to, table, suppress, local, mark, mask)
    header = {"family": FAMILY[network.version], "dst_len" if to else "src_len": network.prefixlen, "action": 1}
    attributes: list[tuple[str, Any]] = []
    if network.prefixlen:
        attributes.append(("FRA_DST" if to else "FRA_SRC", str(network.network_address)))
    attributes += [("FRA_IIFNAME", "lo")] if local else []
    attributes += [("FRA_PRIORITY", priority)] + ([("FRA_FWMARK", mark)] if mark else [])
    attributes += ([("FRA_SUPPRESS_PREFIXLEN", 0)] if suppress else []) + [("FRA_TABLE", table)]
    attributes += [("FRA_FWMASK", mask)] if mask else []
    body = encoded(fibmsg(), header, [*attributes, ("FRA_PROTOCOL", 209)])
    assert rtnetlink.encode(op) == (Packed(32, 0x600, body) if add else Packed(33, 0, body))
    expected = Rule(priority, network, to and network.prefixlen > 0, table, suppress, local, 209, mark, mask)
    assert rtnetlink.decode_rule(body) == expected


@pytest.mark.parametrize(("kind", "narrowed"), [(11, False), (25, True), (26, True), (30, True), (99, True)])
def test_a_rule_with_an_unknown_attribute_is_not_for_all(kind: int, narrowed: bool) -> None:
    """FRA_FLOW is no selector; FRA_DSCP, FRA_FLOWLABEL and FRA_DSCP_MASK are, and one of a later kernel may be."""
    header = rtnetlink.FIB_RULE_HDR.pack(2, 0, 0, 0, 255, 0, 0, 1, 0)
    attribute = pack_attribute(kind, bytes(4))
    rule = rtnetlink.decode_rule(header + attribute)
    assert rule is not None
    assert rule.is_for_all is not narrowed


def test_a_rule_with_source_and_destination_is_no_operations() -> None:
    header = rtnetlink.FIB_RULE_HDR.pack(2, 32, 32, 0, 255, 0, 0, 1, 0)
    to, source = (pack_attribute(kind, ip_address(text).packed) for kind, text in ((1, "10.0.1.9"), (2, "10.0.1.10")))
    both, one = (
        rtnetlink.decode_rule(header + to + source),
        rtnetlink.decode_rule(header[:1] + b"\0" + header[2:] + source),
    )
    assert both is not None
    assert one is not None
    assert (both.is_inexpressible, one.is_inexpressible) == (True, False)


def test_a_new_route_replaces_none() -> None:
    to, via = ip_network("10.9.0.0/16"), ip_address("10.0.2.1")
    replace, add = rtnetlink.encode(RouteReplace(10001, 2, to, via)), rtnetlink.encode(RouteAdd(10001, 2, to, via))
    assert add == Packed(24, 0x600, replace.body)


@pytest.mark.parametrize("local", ["10.55.0.1", None])
def test_decodes_an_address_without_a_peer_or_without_any(local: str | None) -> None:
    """The kernel leaves out 0.0.0.0, as of `ip address add 10.55.0.1 peer 0.0.0.0`."""
    attributes = [] if local is None else [("IFA_LOCAL", local)]
    body = encoded(ifaddrmsg(), {"family": 2, "prefixlen": 32, "index": 3}, attributes)
    found = rtnetlink.decode_address(body)
    assert found is not None
    assert str(found.ip) == (local or "0.0.0.0")


def test_addresses_of_other_families_are_left_out() -> None:
    """A dump of all families has those of MCTP and Phonet, with one byte each."""
    body = rtnetlink.IFADDRMSG.pack(45, 0, 0, 0, 3) + pack_attribute(rtnetlink.IFA_LOCAL, b"\x09")
    assert rtnetlink.decode_address(body) is None


def test_decodes_every_next_hop_of_a_multipath_route() -> None:
    hops = [{"oif": 3, "attrs": [("RTA_GATEWAY", "10.0.1.1")]}, {"oif": 4, "attrs": [("RTA_GATEWAY", "10.0.2.1")]}]
    body = encoded(rtmsg(), {"family": 2, "table": 254, "type": 1}, [("RTA_MULTIPATH", hops)])
    found = rtnetlink.decode_route(body)
    assert found is not None
    assert [(hop.link, str(hop.gateway)) for hop in found.hops] == [(3, "10.0.1.1"), (4, "10.0.2.1")]


@pytest.mark.parametrize(("expires", "shown"), [(0, False), (300, True), (-1, None)])
def test_an_expired_route_is_left_out(expires: int, shown: bool | None) -> None:
    cache = ("RTA_CACHEINFO", {"rta_expires": expires})
    body = encoded(rtmsg(), {"family": 10, "dst_len": 64, "table": 254, "type": 1}, [("RTA_DST", "fd00::"), cache])
    found = rtnetlink.decode_route(body)
    assert (None if found is None else found.expires) == shown
