"""The kernel's rules, with the accepted operations of this request applied: a part of `view`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import claims
from .network_index import NetworkIndex
from .operations import PROTOCOL, TABLE_LOCAL, TABLE_MAIN, IPNetwork, RuleAdd, RuleRemove
from .rtnetlink import Rule


@dataclass(frozen=True, slots=True)
class RuleKey:
    """The fields by which the kernel finds the rule to remove.

    A removal without `suppress` or `iif_lo` can also match a rule with it. So no two owned rules may differ only in
    these two.
    """

    priority: int
    selector: IPNetwork
    to: bool
    table: int
    mark: int = 0
    mask: int = 0


class Rules:
    """The owned rules, and what the policy must know of other programs' rules."""

    def __init__(self, rules: Iterable[Rule], first_priority: int) -> None:
        self.owned: dict[RuleKey, RuleRemove] = {}  # the removal of each
        self._first_priority = first_priority  # of owned rules: RulePriority=
        self._changed = set[RuleRemove]()  # owned rules that this request adds or removes
        self._main: dict[int, set[int]] = defaultdict(set)  # by IP version, priorities of owned: see is_rule_for_main
        self._local: dict[int, set[int]] = defaultdict(set)  # the same, of other programs' rules for table local
        self._gotos: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of goto rules: priority and target
        self._marks_of_others: list[Rule] = []  # other programs' rules that select by mark
        self._by_network: NetworkIndex[RuleRemove] | None = None  # built when it is needed: see overlapping
        for rule in rules:
            self._read(rule)

    def _read(self, rule: Rule) -> None:
        if rule.goto is not None:
            self._gotos[rule.selector.version].append((rule.priority, rule.goto))
        if rule.protocol == PROTOCOL and not rule.is_inexpressible:
            self.add(rule)
            return
        if rule.mask:
            self._marks_of_others.append(rule)
        if rule.table == TABLE_LOCAL and rule.is_for_all:
            self._local[rule.selector.version].add(rule.priority)

    def add(self, rule: Rule | RuleAdd) -> None:
        """Count an owned rule of the snapshot, or one that this request adds."""
        self.owned[rule_key(rule)] = removal = removal_of(rule)
        if isinstance(rule, RuleAdd):
            self._changed.add(removal)
        if self._by_network is not None:
            self._by_network.add(rule.selector, removal)
        if is_rule_for_main(rule):
            self._main[rule.selector.version].add(rule.priority)

    def remove(self, rule: RuleRemove) -> None:
        """Forget a rule that this request removes."""
        del self.owned[rule_key(rule)]
        self._changed.add(rule)
        if self._by_network is not None:
            self._by_network.discard(rule.selector, rule)
        if is_rule_for_main(rule):
            self._main[rule.selector.version].discard(rule.priority)

    def has_changed(self, rule: RuleAdd | RuleRemove) -> bool:
        """Return True if an earlier operation of the request adds or removes exactly this rule."""
        return removal_of(rule) in self._changed

    def main_comes_before(self, version: int, priority: int, without: int | None = None) -> bool:
        """Return True if an owned rule before this priority looks up main for every source of this family.

        The rule with the priority `without` does not count: it is about to be removed.
        """
        return self._is_effective((each for each in self._main[version] if each != without), version, priority)

    def local_comes_first(self, version: int) -> bool:
        """Return True if table local is looked up before the owned rules. Operators of VRFs may move its rule."""
        return self._is_effective(self._local[version], version, self._first_priority)

    def _is_effective(self, priorities: Iterable[int], version: int, before: int) -> bool:
        """Return True if the kernel tries one of these rules for every packet that reaches the priority `before`.

        A goto rule may skip a rule between its own priority and its target.
        """
        gotos = self._gotos[version]
        return any(each < before and not any(goto <= each < target for goto, target in gotos) for each in priorities)

    def other_use(self, mark: int, mask: int) -> Rule | None:
        """Return another program's rule for packets whose mark may be `mark` under `mask`, also an inverted rule."""
        for rule in self._marks_of_others:
            if claims.MarkSelector(rule.mark, rule.mask, rule.is_inverted).may_have(mark, mask):
                return rule
        return None

    def overlapping(self, network: IPNetwork) -> Iterator[RuleRemove]:
        """Yield the owned rules whose selector overlaps `network`, except for those without a selector."""
        yield from (rule for _, rule in self._index().overlapping(network) if rule.selector.prefixlen)

    def inside(self, network: IPNetwork) -> Iterator[RuleRemove]:
        """Yield the owned rules whose selector is `network` or lies in it, except for those without a selector."""
        yield from (rule for rule in self._index().exactly(network) if rule.selector.prefixlen)
        yield from (rule for _, rule in self._index().inside(network))

    def _index(self) -> NetworkIndex[RuleRemove]:
        if self._by_network is None:
            self._by_network = NetworkIndex()
            for rule in self.owned.values():
                self._by_network.add(rule.selector, rule)
        return self._by_network

    def removals(self) -> list[RuleRemove]:
        """Return the removals of all owned rules. Rules for main are last, because the others need them."""
        return sorted(self.owned.values(), key=lambda rule: rule.table == TABLE_MAIN)


def is_rule_for_main(rule: Rule | RuleAdd | RuleRemove) -> bool:
    """Return True for an owned rule that looks up table main for every source.

    The policy accepts no other rule for main: each has `suppress`, and none has `to`.
    """
    return rule.table == TABLE_MAIN and not rule.selector.prefixlen and not rule.mask and not rule.iif_lo


def removal_of(rule: Rule | RuleAdd | RuleRemove) -> RuleRemove:
    """Return the operation that removes a rule."""
    return RuleRemove(
        rule.priority, rule.selector, rule.to, rule.table, rule.suppress, rule.iif_lo, rule.mark, rule.mask
    )


def rule_key(rule: Rule | RuleAdd | RuleRemove) -> RuleKey:
    """Return the key of a rule."""
    return RuleKey(rule.priority, rule.selector, rule.to, rule.table, rule.mark, rule.mask)
