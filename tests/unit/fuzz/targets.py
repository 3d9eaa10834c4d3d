"""Fuzz targets: each takes bytes, and only the intended refusals may be raised.

Each target is named after the folder of its corpus. `SEEN` counts the results, so that a run whose inputs all fail the
first check is noticed.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cloud_network.netagent import operations, protocol, request_policy, rtnetlink, view
from cloud_network.netagent.operations import AddressRemove, LinkDown, Operation, RouteRemove, RouteReplace
from cloud_network.netagent.settings import Settings

from tests.system.netagent.state_model import Snapshot, predict, violations
from tests.system.netagent.wire import main_rule

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SEEN: Counter[str] = Counter()
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "link": rtnetlink.decode_link,
    "address": rtnetlink.decode_address,
    "route": rtnetlink.decode_route,
    "rule": rtnetlink.decode_rule,
}


def recorded(kind: str) -> Iterator[bytes]:
    """Yield the messages of a dump that make_corpus.py recorded, without their struct nlmsghdr."""
    data = (HERE / "recorded" / kind).read_bytes()
    while data:
        (length,) = struct.unpack_from("=I", data)
        yield data[16:length]
        data = data[(length + 3) & ~3 :]


def decoded(kind: str) -> tuple[Any, ...]:
    return tuple(each for each in map(DECODERS[kind], recorded(kind)) if each is not None)


KERNEL = view.Snapshot(decoded("link"), decoded("address"), decoded("route"), decoded("rule"), frozenset())
NAMES: dict[int, str] = {link.index: link.name for link in KERNEL.links}
SETTINGS = Settings(allow_kinds=("veth",), exclude=("spare1",))  # the far end of `spare`
KNOWN = view.OutsideState(resolvers=frozenset(map(ip_address, ("10.0.2.2", "fd00::53"))))
NONE: frozenset[Any] = frozenset()
EMPTY_SNAPSHOT = Snapshot(dict.fromkeys(NAMES.values(), (True, 1500)), NONE, NONE, NONE, (), (), (), NONE, ())
FOREIGN = {
    *((each.link, each.ip) for each in KERNEL.addresses if each.protocol != operations.PROTOCOL),
    *((each.table, each.destination) for each in KERNEL.routes if each.protocol != operations.PROTOCOL),
}


def _target(op: Operation) -> tuple[Any, ...]:
    """Return the object that an operation removes or replaces."""
    if isinstance(op, AddressRemove):
        return op.link, op.interface.ip
    if isinstance(op, RouteReplace | RouteRemove):
        return op.table, op.destination
    return ()


def _hold(true: bool, message: str) -> None:
    assert true, message


def fuzz_protocol(data: bytes) -> protocol.Request | None:
    """Run the decoders; return the request if it is well formed."""
    try:
        request = protocol.request_from_wire(protocol.decode(data))
    except protocol.Malformed as error:
        SEEN["malformed"] += 1
        _hold(len(str(error)) < 400, str(error))  # else a client could decide the length of a log line
        return None
    again = protocol.decode(protocol.encode(request.to_wire())[protocol.HEADER.size :])
    assert protocol.request_from_wire(again) == request
    SEEN[str(request.to_wire()["request"])] += 1
    return request


def fuzz_policy(data: bytes) -> None:
    """Run the decoders and the policy: every accepted operation has an inverse, and does not harm other programs."""
    request = fuzz_protocol(data)
    if not isinstance(request, protocol.Apply):
        return
    ops = request.ops
    reported = request_policy.check_for_report(ops, view.View(KERNEL, SETTINGS, KNOWN))
    try:
        undo = request_policy.check_for_apply(ops, view.View(KERNEL, SETTINGS, KNOWN))
    except request_policy.Rejected as rejected:
        SEEN["refused"] += 1
        _hold(rejected.refused.position in range(len(ops)) and bool(reported), rejected.refused.reason)
        return
    assert not reported
    assert len(undo) == len(ops)
    for op in undo:
        assert operations.undo_from_wire(op.to_wire()) == op
        assert isinstance(op, LinkDown) or operations.operation_from_wire(op.to_wire()) == op
    assert not [op for op in ops if _target(op) in FOREIGN], ops
    wire = [dict(op.to_wire()) for op in ops]
    made = [main_rule(), *wire]  # KERNEL has this rule
    assert violations(predict(EMPTY_SNAPSHOT, made, NAMES), NAMES) == [], ops
    SEEN["accepted"] += 1


def fuzz_rtnetlink(data: bytes) -> None:
    """Parse one message of a dump; the first byte selects its type.

    Attributes that the kernel always sends may be missing.
    """
    decode = [*DECODERS.values()][data[0] % len(DECODERS)] if data else rtnetlink.decode_link
    try:
        decode(data[1:])
    except (struct.error, LookupError, ValueError) as error:
        SEEN[type(error).__name__] += 1
        return
    SEEN["parsed"] += 1


TARGETS: dict[str, Callable[[bytes], object]] = {
    "protocol": fuzz_protocol,
    "policy": fuzz_policy,
    "rtnetlink": fuzz_rtnetlink,
}
