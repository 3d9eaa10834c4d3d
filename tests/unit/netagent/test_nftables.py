"""Every message of the nftables table equals what pyroute2 encodes from the same fields."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from cloud_network.netagent import nftables
from cloud_network.netagent.nftables import FORWARD, PREROUTING, PUBLISHED, REPLIES, UNMARK
from cloud_network.netagent.operations import LinkMark
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg

Attributes = list[tuple[str, Any]]
number = st.integers(1, 2**31 - 1)
numbers = st.lists(st.integers(1, 63), min_size=1, max_size=8, unique=True)
TABLE = "cloud_network"


def encoded(message: Any, attributes: Attributes, family: int = 1, res_id: int = 0) -> bytes:
    """Return the body that pyroute2 encodes: everything but struct nlmsghdr."""
    message["nfgen_family"], message["version"], message["res_id"] = family, 0, res_id
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)[16:]


def expression(name: str, *attributes: tuple[str, Any]) -> Any:
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": list(attributes)})]}


def register(name: str, value: int = 1) -> tuple[str, Any]:
    return name, {"value": value}


def data(name: str, value: bytes) -> tuple[str, Any]:
    return name, {"attrs": [("NFTA_DATA_VALUE", value)]}


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def load(kind: str, key: int) -> Any:
    upper = kind.upper()
    return expression(kind, register(f"NFTA_{upper}_DREG"), register(f"NFTA_{upper}_KEY", key))


def store(kind: str, key: int) -> Any:
    upper = kind.upper()
    return expression(kind, register(f"NFTA_{upper}_KEY", key), register(f"NFTA_{upper}_SREG"))


def bitwise(mask: int, xor: int) -> Any:
    registers = register("NFTA_BITWISE_SREG"), register("NFTA_BITWISE_DREG"), ("NFTA_BITWISE_LEN", 4)
    return expression("bitwise", *registers, data("NFTA_BITWISE_MASK", u32(mask)), data("NFTA_BITWISE_XOR", u32(xor)))


def compare(operator: int, value: bytes) -> Any:
    return expression("cmp", register("NFTA_CMP_SREG"), register("NFTA_CMP_OP", operator), data("NFTA_CMP_DATA", value))


def goto(chain: str) -> Any:
    verdict = ("NFTA_DATA_VERDICT", {"attrs": [register("NFTA_VERDICT_CODE", -4), ("NFTA_VERDICT_CHAIN", chain)]})
    return expression("immediate", register("NFTA_IMMEDIATE_DREG", 0), ("NFTA_IMMEDIATE_DATA", {"attrs": [verdict]}))


def packed_rule(chain: str, *expressions: Any) -> bytes:
    where: Attributes = [("NFTA_RULE_TABLE", TABLE), ("NFTA_RULE_CHAIN", chain)]
    return encoded(nft_rule_msg(), [*where, ("NFTA_RULE_EXPRESSIONS", list(expressions))])


def packed_base_chain(name: str, hook: int, priority: int) -> bytes:
    where = {"attrs": [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]}
    named: Attributes = [("NFTA_CHAIN_TABLE", TABLE), ("NFTA_CHAIN_NAME", name)]
    return encoded(
        nft_chain_msg(),
        [*named, ("NFTA_CHAIN_HOOK", where), ("NFTA_CHAIN_POLICY", 1), ("NFTA_CHAIN_TYPE", "filter")],
    )


@given(link=number, mark=st.integers(1, 63))
@settings(deadline=None)
def test_transaction_equals_pyroute2s_encoding(link: int, mark: int) -> None:
    mask, other = 0x7F, 0xFFFFFF80
    packet = load("ct", 3), bitwise(mask, 0), compare(0, u32(mark)), load("meta", 3)
    marked = load("ct", 3), bitwise(mask, 0), compare(1, u32(0))
    unmarked = load("meta", 3), bitwise(other, 0), store("meta", 3)
    table: Attributes = [("NFTA_TABLE_NAME", TABLE)]
    in_table: Attributes = [("NFTA_CHAIN_TABLE", TABLE)]
    wanted = [
        (0x10, 0, encoded(nfgen_msg(), [], family=0, res_id=10)),
        (0xA00, 0x400, encoded(nft_table_msg(), table)),
        (0xA02, 0, encoded(nft_table_msg(), table)),
        (0xA00, 0x400, encoded(nft_table_msg(), table)),
        (0xA03, 0x400, encoded(nft_chain_msg(), [*in_table, ("NFTA_CHAIN_NAME", "replies")])),
        (0xA03, 0x400, encoded(nft_chain_msg(), [*in_table, ("NFTA_CHAIN_NAME", "published")])),
        (0xA03, 0x400, encoded(nft_chain_msg(), [*in_table, ("NFTA_CHAIN_NAME", "unmark")])),
        (0xA03, 0x400, packed_base_chain("prerouting", 0, -99)),
        (0xA03, 0x400, packed_base_chain("forward", 2, -151)),
        (0xA06, 0xC00, packed_rule("replies", *packet, bitwise(other, mark), store("meta", 3))),
        (0xA06, 0xC00, packed_rule("published", *packet, bitwise(other, mark | 0x40), store("meta", 3))),
        (
            0xA06,
            0xC00,
            packed_rule("unmark", *packet, bitwise(0x3F, 0), compare(0, u32(mark)), *unmarked),
        ),
        (0xA06, 0xC00, packed_rule("prerouting", load("ct", 1), compare(0, b"\1"), *marked, goto("replies"))),
        (
            0xA06,
            0xC00,
            packed_rule(
                "prerouting",
                *(load("meta", 4), compare(0, u32(link)), load("ct", 0), bitwise(8, 0), compare(1, u32(0))),
                *(load("ct", 3), bitwise(other, mark), store("ct", 3)),
            ),
        ),
        (
            0xA06,
            0xC00,
            packed_rule("prerouting", load("ct", 2), bitwise(32, 0), compare(1, u32(0)), *marked, goto("published")),
        ),
        (0xA06, 0xC00, packed_rule("prerouting", *marked, goto("unmark"))),
        (0xA06, 0xC04, packed_rule("forward", *marked, goto("unmark"))),  # NLM_F_ACK
        (0x11, 0, encoded(nfgen_msg(), [], family=0, res_id=10)),
    ]
    found = nftables.replacement((LinkMark(link, mark),), mask)
    assert [(each.kind, each.flags) for each in found] == [(kind, flags) for kind, flags, _ in wanted]
    for each, (_, _, body) in zip(found, wanted, strict=True):
        assert each.body == body


def test_without_marks_the_table_is_removed() -> None:
    assert [each.kind for each in nftables.replacement((), 0x7F)] == [0x10, 0xA00, 0xA02, 0x11]


def as_dumped(marks: tuple[LinkMark, ...], mask: int) -> list[nftables.Rule]:
    """Return the rules of the table as the kernel dumps them, in its order of chains."""
    bodies = [each.body for each in nftables.replacement(marks, mask) if each.kind == 0xA06]
    return [rule for body in bodies if (rule := nftables.decode_rule(body)) is not None]


@given(found=numbers, shift=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_marks_are_read_back(found: list[int], shift: int) -> None:
    marks, mask = tuple(LinkMark(each + 1, each << shift) for each in found), 0x7F << shift
    rules = as_dumped(marks, mask)
    assert nftables.marks_of(rules, mask) == marks
    assert nftables.marks_of(rules, mask << 1) == ()
    for at in range(len(rules)):
        assert nftables.marks_of(rules[:at] + rules[at + 1 :], mask) == ()
    assert nftables.marks_of([*rules, rules[0]], mask) == ()


@pytest.mark.parametrize("chain", [REPLIES, PUBLISHED, UNMARK, PREROUTING, FORWARD])
def test_a_foreign_rule_makes_the_table_incomplete(chain: bytes) -> None:
    marks = (LinkMark(2, 1), LinkMark(3, 2))
    drop = nftables.Rule(chain, nftables.rules(marks, 0x7F)[0].expressions[:1])
    assert nftables.marks_of([*as_dumped(marks, 0x7F), drop], 0x7F) == ()


def test_a_rule_of_another_table_is_not_read() -> None:
    body = encoded(nft_rule_msg(), [("NFTA_RULE_TABLE", "filter"), ("NFTA_RULE_CHAIN", "replies")])
    assert nftables.decode_rule(body) is None
    assert nftables.decode_rule(packed_rule("replies")) is not None
    four = encoded(nft_rule_msg(), [("NFTA_RULE_TABLE", TABLE), ("NFTA_RULE_CHAIN", "replies")], family=2)
    assert nftables.decode_rule(four) is None
