"""bench/results.json → the figures of docs/performance.md: `python -m bench.page`, also run by `make bench`.

The page's text is written by hand. The figures are between two comments and are only written here, so that they always
agree with the results (tests/unit/test_performance.py):

    <!-- bench: KIND PART -->        targets · runs · table PART · sizes PART
    …
    <!-- end -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, figures_of, format_number, load_results

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- bench: ([a-z]+) ?([a-z]*) -->\n).*?(<!-- end -->)", re.DOTALL)
_NOT_MEASURED = "*Not measured yet: `make bench`.*"


def generate() -> None:
    """Write the page again."""
    PAGE.write_text(render(PAGE.read_text(), load_results()))


def render(page: str, results: dict[str, Any]) -> str:
    """Return the page with the figures of `results`. Raises ValueError for an unknown kind of block."""

    def block(found: re.Match[str]) -> str:
        return "\n".join([found[1].rstrip(), *_lines(found[2], found[3], results), found[4]])

    return _BLOCK.sub(block, page)


def _lines(kind: str, part: str, results: dict[str, Any]) -> Iterator[str]:
    if kind == "targets":
        return _targets(results)
    if kind == "runs":
        return _runs(results)
    if kind == "table":
        return _table(figures_of(results, part).values())
    if kind == "sizes":
        return _sizes(figures_of(results, part).values())
    raise ValueError(f"a block of kind {kind!r}; accepted: targets, runs, table, sizes")


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _shown(figure: Figure) -> str:
    return figure.shown + (
        f" ({format_number(figure.least)}–{format_number(figure.most)})" if figure.rounds > 1 else ""
    )


def _runs(results: dict[str, Any]) -> Iterator[str]:
    """Yield the run of each part: parts can be from different commits and machines."""
    runs: dict[str, dict[str, Any]] = results.get("runs", {})
    if not runs:
        return iter([_NOT_MEASURED])
    rows = [
        (
            part,
            *(str(run[key]) for key in ("date", "commit", "seconds", "load")),
            f"{run['processors']} × {run['processor']}, Linux {run['kernel']}, Python {run['python']}",
        )
        for part, run in runs.items()
    ]
    return _rows(("part", "date", "commit", "seconds", "load before it", "machine"), rows)


def _targets(results: dict[str, Any]) -> Iterator[str]:
    rows = [
        (part, each.name, _shown(each), f"{each.bound:g} {each.unit}".rstrip(), "**missed**" if each.missed else "met")
        for part, found in results.items()
        if isinstance(found, list)
        for each in figures_of(results, part).values()
        if each.bound is not None
    ]
    return _rows(("part", "what", "median (least–most)", "at most", ""), sorted(rows, key=lambda row: row[-1]))


def _table(figures: Iterable[Figure]) -> Iterator[str]:
    rows = [(each.name, _shown(each)) for each in figures]
    return _rows(("what", "median (least–most)"), rows) if rows else iter([_NOT_MEASURED])


def _sizes(figures: Iterable[Figure]) -> Iterator[str]:
    """Yield a row for each measurement and a column for each size; a figure's name is `SIZE: WHAT`."""
    cells = {tuple(each.name.split(": ", 1)): _shown(each) for each in figures if ": " in each.name}
    if not cells:
        return iter([_NOT_MEASURED])
    sizes = list(dict.fromkeys(size for size, _ in cells))
    labels = list(dict.fromkeys(what for _, what in cells))
    return _rows(("", *sizes), [(what, *(cells.get((size, what), "") for size in sizes)) for what in labels])


if __name__ == "__main__":
    generate()
