"""The wire between the fetcher and netagent: every message there is, and the shape of each.

A frame is a 4-byte big-endian length and one msgpack map. Addresses are packed bytes (4 or 16, network order), links
are interface indices; there is no name, and no string that anything could interpret. This module says what is well
formed; `policy` says what is allowed. The fetcher imports it too, and nothing else of this room.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct

import msgpack

TYPE_CHECKING = False  # `typing` is not imported at run time: it costs more than all of this module
if TYPE_CHECKING:
    from .shapes import Any, Sequence
    from .shapes import Message as Message
    from .shapes import Op as Op

VERSION = 3
SOCKET = "/run/cloud-network-netagent/netagent.sock"
MAX_FRAME, MAX_OPS = 1 << 20, 4096
HEADER = Struct(">I")
UCRED = Struct("=iII")  # struct ucred of linux/socket.h: pid, uid, gid
ROOT = UCRED.pack(1, 0, 0)  # the SCM_CREDENTIALS that root's first byte, before the first frame, must come with

PROTOCOL = 209  # what routes, rules and addresses of ours carry (RTA_PROTOCOL, FRA_PROTOCOL, IFA_PROTO)
TABLE_MAIN, TABLE_LOCAL = 254, 255
BAND = 30  # the three steps of the rules lie in RulePriority .. RulePriority + BAND - 1

# Type of every field, and what its value (int, bool) or length (others) may be. nil is only ever a route's gateway.
# An address is a route's destination, or what a rule is `from` (or `to`), with prefix 0 for everything. `route`: that
# the kernel shall make the connected route. `suppress`: suppress_prefixlength 0. `local`: what this host itself sends,
# not what it forwards (`iif lo`). A route in table 255 is of type local.
FIELDS: dict[str, tuple[Any, Sequence[int]]] = {
    "confirm_within": (int, range(601)),  # seconds; 0 asks for no confirmation
    "id": (str, range(1, 65)),
    "mtu": (int, range(576, 65536)),
    "ops": (list, range(1, MAX_OPS + 1)),
    "prefix": (int, range(129)),
    "priority": (int, range(1, 32766)),
    "version": (int, range(1, 256)),
    **dict.fromkeys(("link", "table"), (int, range(1, 2**31))),
    **dict.fromkeys(("address", "gateway"), (bytes, (4, 16))),
    **dict.fromkeys(("route", "suppress", "to", "local"), (bool, range(2))),
}
OPS: dict[str, tuple[str, ...]] = {
    "link_up": ("link",),
    "link_mtu": ("link", "mtu"),
    "address_add": ("link", "address", "prefix", "route"),
    "address_remove": ("link", "address", "prefix"),
    **dict.fromkeys(("route_replace", "route_remove"), ("table", "link", "address", "prefix", "gateway")),
    **dict.fromkeys(("rule_add", "rule_remove"), ("priority", "address", "prefix", "to", "table", "suppress", "local")),
}
REQUESTS: dict[str, tuple[str, ...]] = {
    "hello": ("version",),
    "apply": ("id", "ops", "confirm_within"),
    **dict.fromkeys(("confirm", "rollback", "flush"), ("id",)),
    "status": (),
}


def raise_if(so: object, error: type[BaseException], reason: str, *of: object) -> None:
    """What most checks are made of: if it is so, the error. `of` fills the blanks of the reason, and only then."""
    if so:
        raise error(reason.format(*of))


class Malformed(ValueError):
    """What arrived is not a message of this protocol; the text says where."""


def encode(message: Message) -> bytes:
    """A frame. MAX_OPS operations are well below MAX_FRAME."""
    body: bytes = msgpack.packb(message)
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Any:
    """What is in a frame's body, with every size bounded before anything is made of it."""
    left: dict[Any, int] = {list: 1, dict: MAX_OPS + 1}

    def count(value: Any) -> Any:
        left[type(value)] -= 1
        raise_if(left[type(value)] < 0, ValueError, "more lists or maps than any request has")
        return value

    limits = {"max_str_len": 1024, "max_bin_len": 16, "max_array_len": MAX_OPS, "max_map_len": 16, "max_ext_len": 0}
    try:
        return msgpack.unpackb(body, strict_map_key=True, list_hook=count, object_hook=count, **limits)
    except (ValueError, msgpack.UnpackException) as error:  # UnicodeDecodeError is a ValueError
        raise Malformed(f"not msgpack: {str(error)[:120] or type(error).__name__}") from None


def check_request(message: Any) -> None:
    """Malformed unless `message` is a request, whole and with nothing more, every operation of it included."""
    _check("request", message, REQUESTS, "request")
    for position, op in enumerate(message.get("ops", ())):
        _check(f"ops[{position}]", op, OPS, "op")
        if "address" in op:
            prefix, bits, gateway = op["prefix"], len(op["address"]) * 8, op.get("gateway")
            raise_if(prefix > bits, Malformed, "ops[{}].prefix: {} is not 0..{}", position, prefix, bits)
            other = gateway is not None and len(gateway) * 8 != bits
            raise_if(other, Malformed, "ops[{}].gateway: not of the address's family", position)


def _check(what: str, value: Any, shapes: dict[str, tuple[str, ...]], tag: str) -> None:
    kind = value.get(tag) if type(value) is dict else None
    keys = shapes.get(kind) if type(kind) is str else None
    if keys is None:
        raise Malformed(f"{what}.{tag}: {kind!r:.40} is none of {', '.join(shapes)}")
    odd = value.keys() ^ {*keys, tag}
    raise_if(odd, Malformed, "{}: the keys of {} are {}; {!r:.40} is missing or too much", what, kind, keys, *odd)
    for key in keys:
        found, (wanted, sizes) = value[key], FIELDS[key]
        fits = type(found) is wanted and (found if wanted in (int, bool) else len(found)) in sizes
        if not fits and (key, found) != ("gateway", None):
            raise Malformed(f"{what}.{key}: {found!r:.40} is not {wanted.__name__} in {sizes[0]}..{sizes[-1]}")


def text(packed: bytes) -> str:
    """An address for a person."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def pack_address(shown: str) -> bytes:
    """What a person wrote, packed; nothing for what is no address."""
    try:
        return inet_pton(AF_INET6 if ":" in shown else AF_INET, shown)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return b""
