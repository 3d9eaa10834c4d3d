"""Every message that netagent packs, byte for byte what pyroute2's encoder makes of the same fields."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from cloud_network.netagent import rtnetlink
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

packed = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
number = st.integers(1, 2**31 - 1)


def family(address: bytes) -> int:
    return 2 if len(address) == 4 else 10


def text(address: bytes) -> str:
    return str(ip_address(address))


def encoded(message: Any, header: dict[str, int], attributes: list[tuple[str, Any]]) -> bytes:
    """The body that pyroute2 packs: all but struct nlmsghdr."""
    for key, value in header.items():
        message[key] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)[16:]


@given(link=number, up=st.booleans())
def test_link_up_and_down(link: int, up: bool) -> None:
    kind, flags, body = rtnetlink.pack({"op": "link_up" if up else "link_down", "link": link})
    assert (kind, flags) == (16, 0)
    assert body == encoded(ifinfmsg(), {"index": link, "flags": int(up), "change": 1}, [])


@given(link=number, mtu=st.integers(576, 65535))
def test_link_mtu(link: int, mtu: int) -> None:
    _, _, body = rtnetlink.pack({"op": "link_mtu", "link": link, "mtu": mtu})
    assert body == encoded(ifinfmsg(), {"index": link}, [("IFLA_MTU", mtu)])


@given(link=number, address=packed, prefix=st.integers(0, 32), route=st.booleans(), add=st.booleans())
def test_address(link: int, address: bytes, prefix: int, route: bool, add: bool) -> None:
    op = {"op": "address_add" if add else "address_remove", "link": link, "address": address, "prefix": prefix}
    kind, flags, body = rtnetlink.pack({**op, "route": route})
    attributes: list[tuple[str, Any]] = [("IFA_LOCAL", text(address)), ("IFA_ADDRESS", text(address))]
    if add:
        attributes += [("IFA_FLAGS", (0 if route else 0x200) | (2 if len(address) == 16 else 0)), ("IFA_PROTO", 209)]
    assert (kind, flags) == ((20, 0x600) if add else (21, 0))
    assert body == encoded(ifaddrmsg(), {"family": family(address), "prefixlen": prefix, "index": link}, attributes)


@given(data=st.data(), link=number, address=packed, prefix=st.integers(0, 32), table=number, add=st.booleans())
def test_route(data: st.DataObject, link: int, address: bytes, prefix: int, table: int, add: bool) -> None:
    gateway = data.draw(st.none() | st.binary(min_size=len(address), max_size=len(address)))
    op = {"op": "route_replace" if add else "route_remove", "link": link, "address": address, "prefix": prefix}
    kind, flags, body = rtnetlink.pack({**op, "table": table, "gateway": gateway})
    local = table == 255
    header = {"family": family(address), "dst_len": prefix, "proto": 209, "type": 2 if local else 1}
    header["scope"] = 254 if local else 253 if gateway is None else 0
    attributes: list[tuple[str, Any]] = [("RTA_DST", text(address)), ("RTA_OIF", link)]
    attributes += [] if gateway is None else [("RTA_GATEWAY", text(gateway))]
    assert (kind, flags) == ((24, 0x500) if add else (25, 0))
    assert body == encoded(rtmsg(), header, [*attributes, ("RTA_TABLE", table)])


@given(address=packed, prefix=st.integers(0, 32), table=number, priority=number, flags=st.tuples(*[st.booleans()] * 4))
def test_rule(address: bytes, prefix: int, table: int, priority: int, flags: tuple[bool, ...]) -> None:
    to, suppress, local, add = flags
    op = {"op": "rule_add" if add else "rule_remove", "address": address, "prefix": prefix, "table": table}
    op |= {"priority": priority, "to": to, "suppress": suppress, "local": local}
    kind, netlink_flags, body = rtnetlink.pack(op)
    header = {"family": family(address), "dst_len" if to else "src_len": prefix, "action": 1}
    attributes: list[tuple[str, Any]] = [("FRA_DST" if to else "FRA_SRC", text(address))] if prefix else []
    attributes += [("FRA_IIFNAME", "lo")] if local else []
    attributes += [("FRA_PRIORITY", priority)] + ([("FRA_SUPPRESS_PREFIXLEN", 0)] if suppress else [])
    assert (kind, netlink_flags) == ((32, 0x600) if add else (33, 0))
    assert body == encoded(fibmsg(), header, [*attributes, ("FRA_TABLE", table), ("FRA_PROTOCOL", 209)])
    if prefix and not add:
        return
    parsed = rtnetlink.parse_rule(body)
    assert {key: parsed[key] for key in op if key not in ("op", "address")} == {
        key: value for key, value in op.items() if key not in ("op", "address")
    } | ({} if prefix else {"to": False})
    assert parsed["address"] == (address if prefix else bytes(len(address)))
    assert parsed["protocol"] == 209
