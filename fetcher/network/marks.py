"""ForwardedReplies="mark": the mark of each link, and the rules that select the link's table by mark. Pure.

The highest bit of MarkMask= marks packets that arrive on a link; the other bits number the links. netagent's table
`cloud_network` sets both. For each link with table T and mark M, in the three steps of `rules`:

  1. fwmark M/MASK lookup T suppress_prefixlength 0           own and sibling subnets
  3. fwmark M/MASK lookup T                                   everything else leaves through the connection's link

On a link with the strict reverse path filter (rp_filter=1, IPv4) the rules also match M with the highest bit, which
packets that arrive for published ports have: with src_valid_mark=1, the filter looks up their reverse path by mark.
These rules also decide the route of such packets if main has only a default route for the container.

A connection keeps its mark for its lifetime, so a link keeps its mark: the one in the table, else the one in its rules,
else the number of its ifindex if that is free.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from cloud_network.fetcher.config import Config
from cloud_network.fetcher.network.objects import Actual, ReversePath, Rule
from cloud_network.fetcher.network.rules import STEP
from cloud_network.netagent.claims import arrival_mark, is_used_mark, mark_bits
from cloud_network.netagent.operations import MAX_MARKED_LINKS, LinkMark

MAX_TRIED = 1024
"""Number of marks that are tried. Wide masks have millions; at most MAX_MARKED_LINKS links need one."""
SYSCTL = Path(os.environ.get("IPV4_CONF", "/proc/sys/net/ipv4/conf"))
"""The sysctls of each link. The unit sets IPV4_CONF=, because ProcSubset=pid hides the usual directory."""


def marks_in_use(config: Config, actual: Actual) -> dict[int, int]:
    """Return the mark of each link that has one, by ifindex: from the table, else from the rules."""
    mask, bits = config.mark_mask, mark_bits(config.mark_mask)
    found = {rule.table - config.route_table_base: rule.mark & bits for rule in actual.rules if rule.mask == mask}
    found |= {each.link: each.mark for each in actual.marks or ()}
    return {link: mark for link, mark in found.items() if mark and not mark & ~bits}


def assign_marks(links: Iterable[int], config: Config, actual: Actual, kept: Collection[int]) -> dict[int, int]:
    """Return a mark for each link, by ifindex, except links for which no number is left.

    `kept` are other links, whose marks stay. The mark of any further link becomes free once that link is gone. A new
    mark is not one of another program; a link keeps its mark, because its connections have it.
    """
    in_use, bits = marks_in_use(config, actual), mark_bits(config.mark_mask)
    wanted = list(links)
    found: dict[int, int] = {}
    for link in (*kept, *wanted):
        if link in in_use and in_use[link] not in found.values():
            found[link] = in_use[link]
    present = {link.ifindex for link in actual.links}
    leaving = {mark for link, mark in in_use.items() if link in present and link not in {*kept, *wanted}}
    numbers = range(bits & -bits, bits + 1, bits & -bits)[:MAX_TRIED]
    unused = {mark for mark in numbers if not is_used_mark(mark, config.mark_mask, actual.marks_of_others)}
    free = sorted(unused - leaving - set(found.values()))
    for link in wanted:
        if link not in found and free and len(found) < MAX_MARKED_LINKS:
            own = link * numbers.step
            found[link] = own if own in free else free[0]
            free.remove(found[link])
    return found


def mark_rules(link: int, mark: int, versions: Iterable[int], config: Config, *, strict: bool) -> tuple[Rule, ...]:
    """Return the rules of one link. `strict`: the link has the strict reverse path filter."""
    first, last, table = config.rule_priority, config.rule_priority + 2 * STEP, config.route_table_base + link
    arrived, mask = arrival_mark(mark, config.mark_mask), config.mark_mask
    found = []
    for version in versions:
        for value in (mark, arrived) if strict and version == 4 else (mark,):
            found.append(Rule(first, version, None, table, suppress=True, mark=value, mask=mask))
            found.append(Rule(last, version, None, table, suppress=False, mark=value, mask=mask))
    return tuple(found)


def table_of(marks: Iterable[tuple[int, int]]) -> tuple[LinkMark, ...]:
    """Return (ifindex, mark) pairs as entries of netagent's table."""
    return tuple(LinkMark(link, mark) for link, mark in sorted(marks))


def reverse_path(link: str) -> ReversePath:
    """Return how the reverse path filter treats packets that arrive on a link and are forwarded to a container.

    The larger value of `all` and the link counts for rp_filter; either enables src_valid_mark: ip-sysctl.rst.
    """
    if max(_sysctl("all", "rp_filter"), _sysctl(link, "rp_filter")) != 1:
        return ReversePath.LOOSE
    by_mark = _sysctl("all", "src_valid_mark") or _sysctl(link, "src_valid_mark")
    return ReversePath.BY_MARK if by_mark else ReversePath.DROPS


def _sysctl(link: str, name: str) -> int:
    try:
        return int((SYSCTL / link / name).read_text())
    except (OSError, ValueError):
        return 0
