"""The wire between the fetcher and netagent: every message there is, and the shape of each.

A frame is a 4-byte big-endian length and one msgpack map. Addresses are packed bytes (4 or 16, network
order); links are interface indices; there is no name and no string that anything could interpret. This module says what
is well formed; `policy` says what is allowed. The fetcher imports it too, and nothing else of this room.
"""

from __future__ import annotations

from struct import Struct

import msgpack

TYPE_CHECKING = False  # `typing` is not imported at run time: it costs more than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Op = dict[str, Any]
    Message = dict[str, Any]

VERSION = 1
SOCKET = "/run/cloud-network-netagent/netagent.sock"
MAX_FRAME = 1 << 20
MAX_OPS = 4096
MAX_CONFIRM = 600
HEADER = Struct(">I")

PROTOCOL = 209  # what routes, rules and addresses of ours carry (RTA_PROTOCOL, FRA_PROTOCOL, IFA_PROTO)
TABLE_MAIN, TABLE_LOCAL = 254, 255
BAND = 30  # the three steps of the rules lie in RulePriority .. RulePriority + BAND - 1


class Malformed(ValueError):
    """What arrived is not a message of this protocol; the text says where."""


def _integer(low: int, high: int) -> Callable[[object], bool]:
    def accepts(value: object) -> bool:
        return type(value) is int and low <= value <= high

    accepts.__doc__ = f"a whole number in {low}..{high}"
    return accepts


def _packed(value: object) -> bool:
    """4 or 16 bytes."""
    return type(value) is bytes and len(value) in (4, 16)


def _packed_or_none(value: object) -> bool:
    """4 or 16 bytes, or nil."""
    return value is None or _packed(value)


def _flag(value: object) -> bool:
    """true or false."""
    return type(value) is bool


def _text(value: object) -> bool:
    """1 to 64 printable characters."""
    return type(value) is str and 0 < len(value) <= 64 and value.isprintable()


def _list(value: object) -> bool:
    """a list."""
    return type(value) is list


_LINK = _integer(1, 2**31 - 1)
_PREFIX = _integer(0, 128)
_TABLE = _integer(1, 2**31 - 1)
_ADDRESS = {"link": _LINK, "address": _packed, "prefix": _PREFIX}
# A route in table 255 is of type `local` and scope host; any other is unicast.
_ROUTE = {
    "table": _TABLE,
    "link": _LINK,
    "destination": _packed,
    "prefix": _PREFIX,
    "gateway": _packed_or_none,
}
# `selector` is the address or range in `from` (or in `to`, with `to` true); nil selects everything.
_RULE = {
    "priority": _integer(1, 32765),
    "family": _integer(2, 10),
    "selector": _packed_or_none,
    "prefix": _PREFIX,
    "to": _flag,
    "table": _TABLE,
    "suppress": _flag,
}
OPS: dict[str, dict[str, Callable[[object], bool]]] = {
    "link_up": {"link": _LINK},
    "link_mtu": {"link": _LINK, "mtu": _integer(576, 65535)},
    "address_add": {
        **_ADDRESS,
        "route": _flag,
    },  # route: whether the kernel makes a connected route for the prefix
    "address_remove": _ADDRESS,
    "route_replace": _ROUTE,
    "route_remove": _ROUTE,
    "rule_add": _RULE,
    "rule_remove": _RULE,
}
_ID: dict[str, Callable[[object], bool]] = {"id": _text}
REQUESTS: dict[str, dict[str, Callable[[object], bool]]] = {
    "hello": {"version": _integer(1, 255)},
    "apply": {
        **_ID,
        "ops": _list,
        "confirm_within": _integer(0, MAX_CONFIRM),
    },  # seconds; 0: no confirmation asked
    "confirm": _ID,
    "rollback": _ID,
    "flush": _ID,
    "status": {},
}


def encode(message: Message) -> bytes:
    """A frame; Malformed when it would be larger than a frame may be."""
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME:
        raise Malformed(f"a message of {len(body)} bytes: the limit is {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """The map in a frame's body, with every size bounded before anything is made of it."""
    try:
        message = msgpack.unpackb(
            body,
            max_str_len=1024,
            max_bin_len=16,
            max_array_len=MAX_OPS,
            max_map_len=16,
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, msgpack.UnpackException) as error:  # UnicodeDecodeError is a ValueError
        raise Malformed(f"not msgpack: {str(error)[:120] or type(error).__name__}") from None
    if type(message) is not dict:
        raise Malformed(f"not a map but {type(message).__name__}")
    return message


def _check(what: str, value: object, shapes: dict[str, dict[str, Callable[[object], bool]]], tag: str) -> None:
    if type(value) is not dict:
        raise Malformed(f"{what}: not a map")
    kind = value.get(tag)
    shape = shapes.get(kind) if type(kind) is str else None
    if shape is None:
        raise Malformed(f"{what}.{tag}: {kind!r:.40} is none of {', '.join(shapes)}")
    for key, accepts in shape.items():
        if key not in value:
            raise Malformed(f"{what}.{key}: missing")
        if not accepts(value[key]):
            raise Malformed(f"{what}.{key}: {value[key]!r:.40} is not {(accepts.__doc__ or '').rstrip('.')}")
    if len(value) != len(shape) + 1:
        unknown = next(key for key in value if key not in shape and key != tag)
        raise Malformed(f"{what}: unknown key {unknown!r:.40}")


def check_request(message: Message) -> None:
    """Malformed unless `message` is a request, whole and with nothing more, every operation of it included."""
    _check("request", message, REQUESTS, "request")
    for position, op in enumerate(message.get("ops", ())):
        _check(f"ops[{position}]", op, OPS, "op")
        _check_family(position, op)


def _check_family(position: int, op: Op) -> None:
    """Addresses of one operation are of one family and prefixes fit it."""
    packed = op.get("address") or op.get("destination") or op.get("selector")
    if "family" in op:
        if op["family"] not in (2, 10):
            raise Malformed(f"ops[{position}].family: {op['family']} is neither 2 (AF_INET) nor 10 (AF_INET6)")
        if packed is not None and len(packed) != (4 if op["family"] == 2 else 16):
            raise Malformed(f"ops[{position}].selector: not of family {op['family']}")
        if packed is None and op["prefix"]:
            raise Malformed(f"ops[{position}].prefix: {op['prefix']} without a selector")
    if packed is not None and op["prefix"] > len(packed) * 8:
        raise Malformed(f"ops[{position}].prefix: {op['prefix']} is not 0..{len(packed) * 8}")
    gateway = op.get("gateway")
    if gateway is not None and len(gateway) != len(op["destination"]):
        raise Malformed(f"ops[{position}].gateway: not of the destination's family")


def text(packed: bytes) -> str:
    """An address for a person: 4 or 16 packed bytes as `10.0.0.1` or `fd00:0:0:…` (RFC 5952 is inet_ntop's work)."""
    from _socket import AF_INET, AF_INET6, inet_ntop

    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)
