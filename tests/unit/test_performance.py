"""docs/performance.md has the figures of bench/results.json, and shows the existing plots."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.figures import Figure
from bench.page import PAGE, render

RESULTS = Path(__file__).parents[2] / "bench" / "results.json"


def test_page_has_the_measured_figures() -> None:
    page = PAGE.read_text()
    assert render(page, json.loads(RESULTS.read_text())) == page, "run: python -m bench.page"


def test_another_figure_is_another_page() -> None:
    results = json.loads(RESULTS.read_text())
    part = next(each for each in results.values() if isinstance(each, list))
    part[0]["median"] += 1000
    assert render(PAGE.read_text(), results) != PAGE.read_text()


def test_every_shown_plot_exists() -> None:
    shown = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text())
    assert shown
    assert [name for name in shown if not (PAGE.parent / name).exists()] == []


def test_figures_are_replaced_and_the_text_stays() -> None:
    figure = {
        "name": "4 × 15: drift",
        "unit": "ms",
        "median": 250.0,
        "least": 90,
        "most": 300,
        "rounds": 5,
        "bound": 200.0,
    }
    page = "before\n<!-- bench: sizes drift -->\nold\n<!-- end -->\n"
    page += "between\n<!-- bench: targets -->\n<!-- end -->\nafter\n"
    assert render(page, {"drift": [figure]}) == (
        "before\n<!-- bench: sizes drift -->\n|  | 4 × 15 |\n|---|---|\n| drift | 250 ms (90–300) |\n<!-- end -->\n"
        "between\n<!-- bench: targets -->\n| part | what | median (least–most) | at most |  |\n|---|---|---|---|---|\n"
        "| drift | 4 × 15: drift | 250 ms (90–300) | 200 ms | **missed** |\n<!-- end -->\nafter\n"
    )


def test_missing_part_is_marked_and_unknown_kind_is_refused() -> None:
    assert "Not measured" in render("<!-- bench: table drift -->\n<!-- end -->\n", {})
    with pytest.raises(ValueError, match="kind 'tabel'"):
        render("<!-- bench: tabel drift -->\n<!-- end -->\n", {})


def test_target_is_missed_only_above_its_bound() -> None:
    at = Figure("a", "ms", 200.0, 1, 300, 5, 200.0)
    above = Figure("a", "ms", 200.1, 1, 300, 5, 200.0)
    assert (at.missed, above.missed, Figure("a", "ms", 1e9, 1, 2, 5).missed) == (False, True, False)


def test_each_part_names_its_run() -> None:
    run = {"date": "2026-01-02", "seconds": 9, "processors": 2, "processor": "P", "kernel": "6.1", "python": "3.11"}
    page = "<!-- bench: runs -->\n<!-- end -->\n"
    found = render(
        page, {"runs": {"drift": {**run, "commit": "a1", "load": 0.1}, "rest": {**run, "commit": "b2+", "load": 7.2}}}
    )
    assert "| drift | 2026-01-02 | a1 | 9 | 0.1 |" in found
    assert "| rest | 2026-01-02 | b2+ | 9 | 7.2 |" in found


def test_every_measured_part_has_its_run() -> None:
    results = json.loads(RESULTS.read_text())
    assert {part for part, found in results.items() if isinstance(found, list)} == set(results["runs"])
