"""Checks a whole request: each operation by `policy`, and then the owned rules that would exist after the request.

No rule may lose its justification (be orphaned): an address, an on-link or local route, or a mark.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import process_time

from . import claims
from .claims import single
from .operations import (
    EVERYTHING,
    TABLE_LOCAL,
    AddressAdd,
    AddressRemove,
    Change,
    ForwardedReplies,
    IPNetwork,
    LinkMark,
    Operation,
    RouteRemove,
    RouteReplace,
    RuleAdd,
    RuleRemove,
)
from .policy import Refusal, check_operation, forwarding_orphan, is_justified, needs_main, rule_text
from .protocol import MAX_REFUSALS, Refused
from .rules import is_rule_for_main
from .view import View

MAX_ROUNDS = 8
"""Rounds of `check_for_report`: each can show further operations that orphan a rule."""
CHECK_SECONDS = 10
"""Limit of a check, in seconds of the processor (a virtual machine may be paused). Root waits meanwhile, and so does
the rollback of an overdue change. 4,096 usual operations take less than a second; a client may choose others."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An operation of a request that was accepted, with its inverse."""

    position: int
    op: Operation
    inverse: Change
    removed_justification: tuple[int, IPNetwork] | None  # see justification_removed_by
    orphan: RuleRemove | None  # see rule_orphaned_meanwhile


class Limits:
    """The limits of one check: its time, and each operation once. One operation may take 20 ms beside 8,000 rules."""

    reason = f"the check of the request takes longer than {CHECK_SECONDS} s; send fewer operations"

    def __init__(self) -> None:
        self._end = process_time() + CHECK_SECONDS
        self._tried = set[Operation]()

    def start_round(self) -> None:
        """Forget the operations, which are about to be checked again."""
        self._tried.clear()

    def take(self, op: Operation) -> None:
        """Count an operation that is about to be checked. Raises Refusal at a limit."""
        if op in self._tried:
            raise Refusal("the same operation twice in one request")
        self._tried.add(op)
        if self.are_over():
            raise Refusal(self.reason)

    def are_over(self) -> bool:
        """Return True if the time is over."""
        return process_time() > self._end


class Rejected(Exception):
    """A request contains an operation that is refused."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


def check_for_apply(ops: Sequence[Operation], view: View) -> list[Change]:
    """Return the operation that undoes each of `ops`. Raises Rejected for the first that is refused."""
    accepted, limits = list[Accepted](), Limits()
    for position, op in enumerate(ops):
        try:
            accepted.append(accept(position, op, limits, view))
        except Refusal as refusal:
            raise Rejected(refusal.at(position)) from None
    if orphan := next(orphans(accepted, limits, view), None):
        raise Rejected(orphan)
    return [each.inverse for each in accepted]


def check_for_report(ops: Sequence[Operation], view: View) -> list[Refused]:
    """Return every refusal. Each operation is checked as if the accepted ones before it were applied.

    Operations that would orphan a rule are found only at the end. The others are then checked again without them, at
    most MAX_ROUNDS times.
    """
    orphaning, limits = dict[int, Refused](), Limits()
    for _ in range(MAX_ROUNDS):
        accepted, refusals = check_round(ops, view, orphaning, limits)
        found = {each.position: each for each in orphans(accepted, limits, view) if each.position is not None}
        orphaning |= found
        if not found:
            break
        view = View(view.snapshot, view.settings, view.outside)
    return sorted([*refusals, *orphaning.values()], key=lambda each: each.position or 0)


def check_round(
    ops: Sequence[Operation], view: View, left_out: Collection[int], limits: Limits
) -> tuple[list[Accepted], list[Refused]]:
    """Check each operation, except those at the positions `left_out`, which have been refused already."""
    accepted, refusals, refused_positions = list[Accepted](), list[Refused](), list[int]()
    limits.start_round()
    for position, op in enumerate(ops):
        if position in left_out:
            refused_positions.append(position)
            continue
        try:
            accepted.append(accept(position, op, limits, view))
        except Refusal as refusal:
            depends = None
            if len(refusals) < MAX_REFUSALS:  # later ones are only counted
                depends = next((each for each in refused_positions if builds_on(op, ops[each], view)), None)
            refusals.append(refusal.at(position, depends))
            refused_positions.append(position)
    return accepted, refusals


def accept(position: int, op: Operation, limits: Limits, view: View) -> Accepted:
    """Return the operation as accepted, and count it in the view. Raises Refusal."""
    limits.take(op)
    inverse = check_operation(op, view)
    removed = justification_removed_by(op, inverse, view)
    orphan = None if removed is None else rule_orphaned_meanwhile(op, *removed, view)
    return Accepted(position, op, inverse, removed, orphan)


def rule_orphaned_meanwhile(op: Operation, link: int, network: IPNetwork, view: View) -> RuleRemove | None:
    """Return a rule without `iif lo` whose address or range in table local `op` has removed, if there is one.

    While that was there, the kernel dropped packets of others with such a source. Now the rule would select them, until
    the request removes it, which may take seconds. A range that is only a part of a subnet makes no such difference.
    """
    if isinstance(op, RouteRemove | RouteReplace) and op.table != TABLE_LOCAL:
        return None
    took_last = network == EVERYTHING[4]  # the last IPv4 address of the link: the kernel has removed all ranges, too
    if isinstance(op, AddressRemove) and not took_last:
        return forwarding_orphan(link, single(op.interface.ip), view, exact=True)
    return forwarding_orphan(link, network, view, exact=False)


def builds_on(op: Operation, earlier: Operation, view: View) -> bool:
    """Return True if `op` may have been refused only because `earlier` was."""
    if isinstance(earlier, RuleAdd) and isinstance(op, RuleAdd):
        same_family = earlier.selector.version == op.selector.version
        return same_family and is_rule_for_main(earlier) and needs_main(op, view) is not None
    if isinstance(earlier, AddressAdd):
        link, network, made = earlier.link, earlier.interface.network, single(earlier.interface.ip)
    elif isinstance(earlier, RouteReplace):
        link, network, made = earlier.link, earlier.destination, earlier.destination
    else:
        return False
    if isinstance(op, RuleAdd):
        return op.table in view.tables_of(link) and claims.overlap(op.selector, made)
    if isinstance(op, RouteReplace) and op.link == link:
        needs = single(op.gateway) if op.gateway is not None else op.destination
        return claims.contains(network, needs)
    return False


def orphans(accepted: Sequence[Accepted], limits: Limits, view: View) -> Iterator[Refused]:
    """Yield a refusal of each operation that would orphan a rule."""
    yield from orphans_of_marks(accepted, view)
    yield from orphans_of_addresses(accepted, limits, view)


def orphans_of_marks(accepted: Sequence[Accepted], view: View) -> Iterator[Refused]:
    """Yield a refusal of the last change of the table if a rule needs a mark that it no longer sets."""
    position = max((each.position for each in accepted if isinstance(each.op, ForwardedReplies)), default=None)
    if position is None or view.marks is None:
        return
    mask = view.settings.mark_mask
    marks = set(view.marks)
    for key in view.rules.owned:
        link = key.table - view.settings.route_table_base
        if (
            key.mask == mask
            and view.links.is_managed(link)  # no request can set the mark of another link
            and LinkMark(link, key.mark & claims.mark_bits(mask)) not in marks
        ):
            reason = f"rule {key.priority} fwmark {key.mark:#x}/{key.mask:#x} depends on it; remove the rule, too"
            yield Refused(reason, position)
            return


def orphans_of_addresses(accepted: Sequence[Accepted], limits: Limits, view: View) -> Iterator[Refused]:
    """Yield a refusal of each operation after which a rule selects addresses that its link no longer has.

    That it also selects addresses of other links is no reason: they may have got these since, and then the repair would
    be refused.
    """
    removed = dict[tuple[int, IPNetwork], int]()  # by link and network, the position
    for each in accepted:
        if each.orphan is not None:
            yield Refused(f"{rule_text(each.orphan)} depends on it; remove the rule before it", each.position)
        elif each.removed_justification is not None:
            removed.setdefault(each.removed_justification, each.position)
        if isinstance(each.op, AddressRemove):  # its subnet may also justify rules of other links: View.is_in_subnet
            subnet = each.op.interface.network
            for link in view.networks.owned_on_link.links_with(subnet):
                removed.setdefault((link, subnet), each.position)
    justified = set[RuleRemove]()
    for (link, network), position in removed.items():
        if limits.are_over():
            yield Refused(limits.reason, position)
            continue
        for rule in view.rules_of(link, network):
            if rule in justified:
                continue
            if not is_justified(rule, link, view):
                yield Refused(f"{rule_text(rule)} depends on it; remove the rule in the same request", position)
                break
            justified.add(rule)


def justification_removed_by(op: Operation, inverse: Change, view: View) -> tuple[int, IPNetwork] | None:
    """Return the link and the network of an object that `op` removes or replaces and that may justify rules.

    An address justifies rules for its whole subnet, an on-link or local route rules for its destination. With the last
    IPv4 address of a link, the kernel removes all IPv4 routes of the link (fib_disable_ip).
    """
    match op, inverse:
        case AddressRemove(), _:
            stays = op.interface.version == 6 or view.addresses.has_family(op.link, 4)
            return op.link, op.interface.network if stays else EVERYTHING[4]
        case RouteRemove(gateway=None), _:
            return op.link, op.destination
        case RouteReplace(), RouteReplace(gateway=None) as before:
            return before.link, before.destination
    return None
