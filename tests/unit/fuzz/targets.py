"""What is fuzzed: bytes go in, and nothing but the refusals that are meant may come out.

Each target is named for the folder of its corpus. `SEEN` counts what became of the inputs, so that a run which never
got past the first check is seen for what it is.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloud_network.netagent import policy, protocol, rtnetlink
from cloud_network.netagent.settings import Settings

from tests.system.netagent.machine_kernel import Snapshot, dangers, predict

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SEEN: Counter[str] = Counter()
Found = dict[str, Any]
PARSERS: dict[str, Callable[[bytes], Found]] = {
    "link": rtnetlink.parse_link,
    "address": rtnetlink.parse_address,
    "route": rtnetlink.parse_route,
    "rule": rtnetlink.parse_rule,
}


def recorded(kind: str) -> Iterator[bytes]:
    """The messages of a dump that make_corpus.py recorded, without their struct nlmsghdr."""
    data = (HERE / "recorded" / kind).read_bytes()
    while data:
        (length,) = struct.unpack_from("=I", data)
        yield data[16:length]
        data = data[(length + 3) & ~3 :]


class Recorded:
    """A kernel that says what was recorded, and that nothing changes."""

    def __init__(self) -> None:
        self._messages = {kind: list(recorded(kind)) for kind in PARSERS}

    def all(self, kind: str, index: int = 0) -> list[Found]:
        found = [PARSERS[kind](message) for message in self._messages[kind]]
        return [each for each in found if index in (0, each.get("link"))]

    def routes(self, table: int | None) -> list[Found]:
        """Those of one table; with None, of all tables those that carry our protocol number."""
        found = map(rtnetlink.parse_route, self._messages["route"])
        return [
            each
            for each in found
            if (each["protocol"] == protocol.PROTOCOL if table is None else each["table"] == table)
        ]


class Once(Recorded):
    """The same, parsed once: the dumps do not change, and the fuzzer has a million questions."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[Any, list[Found]] = {}

    def _once(self, key: Any, make: Callable[[], list[Found]]) -> list[Found]:
        if key not in self._kept:
            self._kept[key] = make()
        return [dict(found) for found in self._kept[key]]

    def all(self, kind: str, index: int = 0) -> list[Found]:
        return self._once((kind, index), lambda: super(Once, self).all(kind, index))

    def routes(self, table: int | None) -> list[Found]:
        return self._once(table, lambda: super(Once, self).routes(table))


KERNEL = Once()
NAMES: dict[int, str] = {found["link"]: found["name"] for found in KERNEL.all("link")}
SETTINGS = Settings()
SETTINGS.allow_kinds = frozenset({"veth"})
RESOLVERS = frozenset({bytes((10, 0, 2, 2)), bytes.fromhex("fd00" + "0" * 26 + "53")})
NONE: frozenset[Any] = frozenset()
NOTHING = Snapshot(dict.fromkeys(NAMES.values(), (True, 1500)), NONE, NONE, NONE, (), (), (), NONE, ())


def _target(op: protocol.Op) -> tuple[Any, ...]:
    """What an operation removes or replaces."""
    if op["op"] == "address_remove":
        return op["link"], op["address"]
    return (op["table"], op["address"], op["prefix"]) if op["op"].startswith("route") else ()


FOREIGN = {
    *((found["link"], found["address"]) for found in KERNEL.all("address") if found["protocol"] != protocol.PROTOCOL),
    *(
        (found["table"], found["address"], found["prefix"])
        for found in map(rtnetlink.parse_route, recorded("route"))
        if found["protocol"] != protocol.PROTOCOL
    ),
}


def _hold(true: bool, said: str) -> None:
    assert true, said


def fuzz_protocol(data: bytes) -> protocol.Message | None:
    """The decoder and the check of shape; the message when it is well formed."""
    try:
        message = protocol.decode(data)
        protocol.check_request(message)
    except protocol.Malformed as error:
        SEEN["malformed"] += 1
        brief = len(str(error)) < 400  # or a client decides how long a line of the log is
        _hold(brief, str(error))
        return None
    assert protocol.decode(protocol.encode(message)[protocol.HEADER.size :]) == message
    SEEN[message["request"]] += 1
    return message


def fuzz_policy(data: bytes) -> None:
    """The same, and what is allowed: every accepted operation has its way back, and does no harm to anybody."""
    message = fuzz_protocol(data)
    if message is None or message["request"] != "apply":
        return
    ops = message["ops"]
    view = policy.View(KERNEL, SETTINGS, RESOLVERS, frozenset())  # type: ignore[arg-type]
    try:
        undo = policy.check(ops, view)
    except policy.Refusal as refusal:
        SEEN["refused"] += 1
        _hold(0 <= view.position < len(ops) and bool(refusal.args[0]), repr(refusal))
        return
    assert len(undo) == len(ops)
    for op in undo:
        if op["op"] != "link_down":
            protocol.check_request({**message, "ops": [op]})
    assert not [op for op in ops if _target(op) in FOREIGN], ops
    assert dangers(predict(NOTHING, ops, NAMES), NAMES) == [], ops
    SEEN["accepted"] += 1


def fuzz_rtnetlink(data: bytes) -> None:
    """One message of a dump: the first byte says of which. What the kernel always sends may be found missing."""
    parse = [*PARSERS.values()][data[0] % len(PARSERS)] if data else rtnetlink.parse_link
    try:
        found = parse(data[1:])
    except (struct.error, LookupError) as error:
        SEEN[type(error).__name__] += 1
        return
    SEEN["parsed"] += 1
    for key in ("link", "table", "metric", "priority", "mtu"):
        assert type(found.get(key, 0)) is int
    assert type(found.get("address", b"")) is bytes


TARGETS: dict[str, Callable[[bytes], object]] = {
    "protocol": fuzz_protocol,
    "policy": fuzz_policy,
    "rtnetlink": fuzz_rtnetlink,
}
