"""The nftables table of ForwardedReplies="mark": the nfnetlink messages that replace and read it.

    table inet cloud_network {
        chain replies {
            ct mark & MASK == MARK meta mark set meta mark & ~MASK | MARK            for each link
        }
        chain published {
            ct mark & MASK == MARK meta mark set meta mark & ~MASK | MARK | ARRIVAL  for each link
        }
        chain unmark {
            ct mark & MASK == MARK meta mark & LINKS == MARK meta mark set meta mark & ~MASK  for each link
        }
        chain prerouting {
            type filter hook prerouting priority dstnat + 1; policy accept;
            ct direction reply ct mark & MASK != 0 goto replies
            iif LINK ct state new ct mark set ct mark & ~MASK | MARK                 for each link
            ct status dnat ct mark & MASK != 0 goto published
            ct mark & MASK != 0 goto unmark
        }
        chain forward {
            type filter hook forward priority mangle - 1; policy accept;
            ct mark & MASK != 0 goto unmark
        }
    }

The connection mark stores the link on which a connection arrived. Replies get this mark before they are routed, while
they still have the container's address. Packets that arrive for a published port also get ARRIVAL, the highest bit of
the mask (LINKS are the others): the strict reverse path filter looks up the route back with the packet's mark
(net.ipv4.conf.*.src_valid_mark=1). The priority of `prerouting` is after NAT, which sets `ct status dnat`, and after
mangle chains, in which other programs restore whole connection marks (wg-quick, for example).

`unmark` removes these marks: from other packets of a connection's original direction, which would be routed by the
table of the link on which they arrive, instead of into a VPN; and from packets that are routed, because the outer
packet of a tunnel (VXLAN, for example) inherits the mark and would be routed by it, too.

No name, number or expression of this table comes from a client, except the links and their marks. Names and layouts are
those of linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h; attributes are big-endian, register data is in the
host's byte order. Tests compare the messages with pyroute2's, and the table with what `nft` makes of the text above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from .claims import arrival_mark, mark_bits
from .netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, U32, Packed, attributes, pack_attribute, parse_attributes
from .operations import MAX_MARK, LinkMark

NFGENMSG = Struct(">BBH")  # struct nfgenmsg: nfgen_family, version, res_id
BE32, SBE32 = Struct(">I"), Struct(">i")

NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_NEWRULE, NFT_MSG_GETRULE = 3, 4, 6, 7
NFPROTO_UNSPEC, NFPROTO_INET = 0, 1
NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_ACCEPT = 0, 2, 1
NFTA_LIST_ELEM = 1
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS = 1, 2
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN, NFT_GOTO = 1, 2, -4
NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 2, 3, 4, 5
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA, NFT_CMP_EQ, NFT_CMP_NEQ = 1, 2, 3, 0, 1
NFTA_CT_DREG, NFTA_CT_KEY, NFTA_CT_SREG = 1, 2, 4
NFTA_META_DREG, NFTA_META_KEY, NFTA_META_SREG = 1, 2, 3
NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA = 1, 2
NFT_REG_VERDICT, NFT_REG_1 = 0, 1
NFT_CT_STATE, NFT_CT_DIRECTION, NFT_CT_STATUS, NFT_CT_MARK = 0, 1, 2, 3
NFT_META_MARK, NFT_META_IIF = 3, 4
NF_CT_STATE_NEW = 8  # NF_CT_STATE_BIT(IP_CT_NEW)
IP_CT_DIR_REPLY = 1
IPS_DST_NAT = 32
NF_IP_PRI_MANGLE, NF_IP_PRI_NAT_DST = -150, -100

TABLE, PREROUTING, FORWARD = b"cloud_network\0", b"prerouting\0", b"forward\0"
REPLIES, PUBLISHED, UNMARK = b"replies\0", b"published\0", b"unmark\0"
_ORDER = (REPLIES, PUBLISHED, UNMARK, PREROUTING, FORWARD)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A netlink attribute: bytes, or nested attributes."""

    kind: int
    value: bytes | tuple[Attribute, ...]

    def pack(self) -> bytes:
        """Return the attribute with its header and padding."""
        return pack_attribute(self.kind, self.value if isinstance(self.value, bytes) else pack(self.value))

    def matches(self, data: bytes) -> bool:
        """Return True if `data`, the kernel's value of this attribute, has the same content (or more attributes)."""
        if isinstance(self.value, bytes):
            return data == self.value
        found = parse_attributes(data)
        return all(each.kind in found and each.matches(found[each.kind]) for each in self.value)


def pack(attributes: Sequence[Attribute]) -> bytes:
    """Return the attributes as bytes."""
    return b"".join(each.pack() for each in attributes)


def _be32(kind: int, value: int) -> Attribute:
    return Attribute(kind, BE32.pack(value))


def _data(kind: int, value: bytes) -> Attribute:
    return Attribute(kind, (Attribute(NFTA_DATA_VALUE, value),))


# Expressions. All use one register.


def _expression(name: str, *attributes: Attribute) -> Attribute:
    named = Attribute(NFTA_EXPR_NAME, name.encode() + b"\0")
    return Attribute(NFTA_LIST_ELEM, (named, Attribute(NFTA_EXPR_DATA, attributes)))


def _load(kind: str, key: int) -> Attribute:
    dreg, named = (NFTA_CT_DREG, NFTA_CT_KEY) if kind == "ct" else (NFTA_META_DREG, NFTA_META_KEY)
    return _expression(kind, _be32(dreg, NFT_REG_1), _be32(named, key))


def _store(kind: str, key: int) -> Attribute:
    named, sreg = (NFTA_CT_KEY, NFTA_CT_SREG) if kind == "ct" else (NFTA_META_KEY, NFTA_META_SREG)
    return _expression(kind, _be32(named, key), _be32(sreg, NFT_REG_1))


def _bitwise(mask: int, xor: int) -> Attribute:
    """Keep the bits of `mask`, and then flip those of `xor`."""
    registers = _be32(NFTA_BITWISE_SREG, NFT_REG_1), _be32(NFTA_BITWISE_DREG, NFT_REG_1)
    bits = _data(NFTA_BITWISE_MASK, U32.pack(mask)), _data(NFTA_BITWISE_XOR, U32.pack(xor))
    return _expression("bitwise", *registers, _be32(NFTA_BITWISE_LEN, U32.size), *bits)


def _compare(operator: int, value: bytes) -> Attribute:
    return _expression(
        "cmp", _be32(NFTA_CMP_SREG, NFT_REG_1), _be32(NFTA_CMP_OP, operator), _data(NFTA_CMP_DATA, value)
    )


def _goto(chain: bytes) -> Attribute:
    verdict = Attribute(NFTA_VERDICT_CODE, SBE32.pack(NFT_GOTO)), Attribute(NFTA_VERDICT_CHAIN, chain)
    data = Attribute(NFTA_IMMEDIATE_DATA, (Attribute(NFTA_DATA_VERDICT, verdict),))
    return _expression("immediate", _be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), data)


def _set_bits(kind: str, key: int, mask: int, bits: int) -> tuple[Attribute, ...]:
    """Replace the bits of `mask` in a mark; keep all others."""
    return _load(kind, key), _bitwise(MAX_MARK & ~mask, bits), _store(kind, key)


# The table.


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the table."""

    chain: bytes
    expressions: tuple[Attribute, ...]

    def matches(self, found: Rule) -> bool:
        """Return True if the kernel's rule is this one."""
        wanted, present = self.expressions, found.expressions
        if self.chain != found.chain or len(wanted) != len(present):
            return False
        pairs = zip(wanted, present, strict=True)
        return all(isinstance(data.value, bytes) and each.matches(data.value) for each, data in pairs)


def _packet_rule(chain: bytes, link_mark: LinkMark, mask: int, bits: int) -> Rule:
    return Rule(chain, (*_has_mark("ct", NFT_CT_MARK, link_mark, mask), *_set_bits("meta", NFT_META_MARK, mask, bits)))


def _unmark_rule(link_mark: LinkMark, mask: int) -> Rule:
    connection = _has_mark("ct", NFT_CT_MARK, link_mark, mask)
    packet = _has_mark("meta", NFT_META_MARK, link_mark, mark_bits(mask))
    return Rule(UNMARK, (*connection, *packet, *_set_bits("meta", NFT_META_MARK, mask, 0)))


def _has_mark(kind: str, key: int, link_mark: LinkMark, mask: int) -> tuple[Attribute, ...]:
    return _load(kind, key), _bitwise(mask, 0), _compare(NFT_CMP_EQ, U32.pack(link_mark.mark))


def _arrival_rule(link_mark: LinkMark, mask: int) -> Rule:
    is_link = _load("meta", NFT_META_IIF), _compare(NFT_CMP_EQ, U32.pack(link_mark.link))
    is_new = _load("ct", NFT_CT_STATE), _bitwise(NF_CT_STATE_NEW, 0), _compare(NFT_CMP_NEQ, bytes(U32.size))
    return Rule(PREROUTING, (*is_link, *is_new, *_set_bits("ct", NFT_CT_MARK, mask, link_mark.mark)))


def _goto_rule(chain: bytes, target: bytes, mask: int, *condition: Attribute) -> Rule:
    is_marked = _load("ct", NFT_CT_MARK), _bitwise(mask, 0), _compare(NFT_CMP_NEQ, bytes(U32.size))
    return Rule(chain, (*condition, *is_marked, _goto(target)))


def rules(marks: Sequence[LinkMark], mask: int) -> list[Rule]:
    """Return the rules of the table, by chain in the order of _ORDER."""
    replies = [_packet_rule(REPLIES, each, mask, each.mark) for each in marks]
    published = [_packet_rule(PUBLISHED, each, mask, arrival_mark(each.mark, mask)) for each in marks]
    unmark = [_unmark_rule(each, mask) for each in marks]
    is_reply = _load("ct", NFT_CT_DIRECTION), _compare(NFT_CMP_EQ, bytes([IP_CT_DIR_REPLY]))
    is_dnat = _load("ct", NFT_CT_STATUS), _bitwise(IPS_DST_NAT, 0), _compare(NFT_CMP_NEQ, bytes(U32.size))
    arriving = (
        _goto_rule(PREROUTING, REPLIES, mask, *is_reply),
        *(_arrival_rule(each, mask) for each in marks),
        _goto_rule(PREROUTING, PUBLISHED, mask, *is_dnat),
        _goto_rule(PREROUTING, UNMARK, mask),
    )
    return [*replies, *published, *unmark, *arriving, _goto_rule(FORWARD, UNMARK, mask)]


def _chain(name: bytes, *more: Attribute) -> tuple[Attribute, ...]:
    return Attribute(NFTA_CHAIN_TABLE, TABLE), Attribute(NFTA_CHAIN_NAME, name), *more


def _base_chain(name: bytes, hook: int, priority: int) -> tuple[Attribute, ...]:
    hook_and_priority = _be32(NFTA_HOOK_HOOKNUM, hook), Attribute(NFTA_HOOK_PRIORITY, SBE32.pack(priority))
    policy, kind = _be32(NFTA_CHAIN_POLICY, NF_ACCEPT), Attribute(NFTA_CHAIN_TYPE, b"filter\0")
    return _chain(name, Attribute(NFTA_CHAIN_HOOK, hook_and_priority), policy, kind)


BASE_CHAINS = (
    _base_chain(PREROUTING, NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST + 1),
    _base_chain(FORWARD, NF_INET_FORWARD, NF_IP_PRI_MANGLE - 1),
)
ACTIVE_TABLE = Attribute(NFTA_TABLE_NAME, TABLE), _be32(NFTA_TABLE_FLAGS, 0)  # not NFT_TABLE_F_DORMANT
CHAINS = (*map(_chain, (REPLIES, PUBLISHED, UNMARK)), *BASE_CHAINS)


# Messages.


def _message(kind: int, flags: int, attributes: Sequence[Attribute]) -> Packed:
    header = NFGENMSG.pack(NFPROTO_INET, 0, 0)
    return Packed(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, header + pack(attributes))


def _batch(kind: int) -> Packed:
    return Packed(kind, 0, NFGENMSG.pack(NFPROTO_UNSPEC, 0, NFNL_SUBSYS_NFTABLES))


def replacement(marks: Sequence[LinkMark], mask: int) -> list[Packed]:
    """Return one nfnetlink transaction that replaces the table, or removes it if there are no marks.

    It first creates the table, so that the removal cannot fail. The last message before the end requests an
    acknowledgement; the kernel always reports errors.
    """
    name = (Attribute(NFTA_TABLE_NAME, TABLE),)
    new_table = _message(NFT_MSG_NEWTABLE, NLM_F_CREATE, name)
    messages = [new_table, _message(NFT_MSG_DELTABLE, 0, name)]
    if marks:
        messages += [new_table, *(_message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, each) for each in CHAINS)]
        messages += [_new_rule(rule) for rule in rules(marks, mask)]
    last = messages[-1]
    messages[-1] = Packed(last.kind, last.flags | NLM_F_ACK, last.body)
    return [_batch(NFNL_MSG_BATCH_BEGIN), *messages, _batch(NFNL_MSG_BATCH_END)]


def _new_rule(rule: Rule) -> Packed:
    table_and_chain = Attribute(NFTA_RULE_TABLE, TABLE), Attribute(NFTA_RULE_CHAIN, rule.chain)
    expressions = Attribute(NFTA_RULE_EXPRESSIONS, rule.expressions)
    return _message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, (*table_and_chain, expressions))


GET_TABLE_AND_BASE_CHAINS = (
    _message(NFT_MSG_GETTABLE, NLM_F_ACK, ACTIVE_TABLE[:1]),
    *(_message(NFT_MSG_GETCHAIN, NLM_F_ACK, each[:2]) for each in BASE_CHAINS),
)
DUMP_RULES = _message(NFT_MSG_GETRULE, 0, (Attribute(NFTA_RULE_TABLE, TABLE),))


# Reading.


def is_active(answers: Sequence[bytes]) -> bool:
    """Return True if the answers to GET_TABLE_AND_BASE_CHAINS are ACTIVE_TABLE, and BASE_CHAINS with their hooks."""
    found = [each[NFGENMSG.size :] for each in answers]
    wanted = (ACTIVE_TABLE, *BASE_CHAINS)
    return all(any(Attribute(0, attributes).matches(each) for each in found) for attributes in wanted)


def decode_rule(body: bytes) -> Rule | None:
    """Return the rule of an NFT_MSG_NEWRULE message, with packed expressions; None for a rule of another table."""
    found = parse_attributes(body, NFGENMSG.size)
    if found.get(NFTA_RULE_TABLE) != TABLE or body[0] != NFPROTO_INET:
        return None
    expressions = attributes(found.get(NFTA_RULE_EXPRESSIONS, b""))
    return Rule(found[NFTA_RULE_CHAIN], tuple(Attribute(kind, value) for kind, value in expressions))


def marks_of(found: Sequence[Rule], mask: int) -> tuple[LinkMark, ...]:
    """Return the marks for which `rules` returns exactly the rules in `found`; empty if no marks do."""
    if not all(rule.chain in _ORDER for rule in found):
        return ()
    arrivals = [rule for rule in found if rule.chain == PREROUTING][1:-2]
    marks = tuple(filter(None, (_mark_of(rule, mask) for rule in arrivals)))
    wanted = rules(marks, mask)
    by_chain = sorted(found, key=lambda rule: _ORDER.index(rule.chain))
    if len(wanted) != len(found) or not all(each.matches(rule) for each, rule in zip(wanted, by_chain, strict=True)):
        return ()
    return marks


def _mark_of(rule: Rule, mask: int) -> LinkMark | None:
    """Return link and mark, from the second and the last but one expression, if this may be an arrival rule."""
    if len(rule.expressions) != len(_arrival_rule(LinkMark(1, 1), mask).expressions):
        return None
    link = _value(rule.expressions[1], NFTA_CMP_DATA)
    mark = _value(rule.expressions[-2], NFTA_BITWISE_XOR)
    return LinkMark(link, mark) if link and mark else None


def _value(expression: Attribute, kind: int) -> int:
    """Return a 32-bit number that an expression of the kernel holds, or 0."""
    data = expression.value if isinstance(expression.value, bytes) else b""
    for step in (NFTA_EXPR_DATA, kind, NFTA_DATA_VALUE):
        data = parse_attributes(data).get(step, b"")
    return int(U32.unpack(data)[0]) if len(data) == U32.size else 0
