"""bench/results.json → docs/*.svg: `python -m bench.plots`, also run by `make bench`.

Only this module imports matplotlib. Plots are small, on white, with text as text. Parts without results are not drawn.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.figures import Figure, figures_of, format_number, load_results

DOCS = Path(__file__).parents[1] / "docs"
# Okabe and Ito's colours, which are distinguishable for colour-blind people.
BLUE, ORANGE, GREEN, RED, GREY, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#999999", "#56b4e9"
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "cloud-network",  # the same figures give the same file
}
Found = Mapping[str, Figure]
SIZES = ("1 × 1", "4 × 15", "15 × 50", "60 × 50")


def draw() -> None:
    """Draw every plot whose part has been measured."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    results = load_results()
    for part, plot in PLOTS.items():
        if found := figures_of(results, part):
            with pyplot.rc_context(STYLE):  # type: ignore[arg-type]
                figure = plot(found, pyplot)
                figure.savefig(DOCS / f"performance-{part}.svg", bbox_inches="tight", metadata={"Date": None})
                pyplot.close(figure)


def _stack(axes: Any, at: float, parts: Sequence[tuple[str, float, str]], whole: Figure | None = None) -> None:
    """Draw one bar of several parts, and behind it the median of the whole if measured: medians do not add up."""
    left = 0.0
    for label, width, colour in parts:
        axes.barh(at, width, left=left, color=colour, label=label, height=0.6)
        left += width
    axes.text(left, at, f"  {format_number(whole.median if whole else left)}", va="center")


def _legend(axes: Any, **more: Any) -> None:
    """Add every label once."""
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(labels.values(), labels.keys(), **more)


def converge(found: Found, pyplot: Any) -> Any:
    """Plot the growth by size, and the parts of the time."""
    sizes = [size for size in SIZES if f"{size}: changes" in found]
    figure, (growth, parts) = pyplot.subplots(1, 2, figsize=(9, 3.2), width_ratios=(1, 1.3))
    lines = (
        ("start to all in the kernel", "cloud-network", BLUE, "o-"),
        ("ip -batch and the two interpreters", "ip -batch, 2 interpreters", GREEN, "s--"),
        ("ip -batch of the same", "ip -batch alone", GREY, "^:"),
        ("a shell that calls ip for each", "a shell calling ip", ORANGE, "D-."),
    )
    for what, label, colour, style in lines:
        values = [found[f"{size}: {what}"] for size in sizes]
        middle = [each.median for each in values]
        spans = [[each.median - each.least for each in values], [each.most - each.median for each in values]]
        growth.errorbar(range(len(sizes)), middle, spans, fmt=style, color=colour, label=label, markersize=4, capsize=2)
    growth.set(yscale="log", xticks=range(len(sizes)), ylabel="ms", title="Cold convergence")
    growth.set_xticklabels(sizes)
    growth.set_xlabel("interfaces × addresses")
    growth.grid(axis="y", alpha=0.3)
    _legend(growth)
    colours = {
        "start and imports": BLUE,
        "metadata": ORANGE,
        "kernel read, planning, wire": GREEN,
        "netagent and kernel": RED,
    }
    least = {
        "two interpreters that import the packages": SKY,
        "ip -batch of the same": GREY,
    }
    ticks = []
    for row, size in enumerate(reversed(sizes[1:])):
        wholes = found[f"{size}: start to all in the kernel"], found[f"{size}: ip -batch and the two interpreters"]
        for shift, which, name, whole in ((0.7, colours, size, wholes[0]), (0.0, least, "at least", wholes[1])):
            stack = [(what, found[f"{size}: {what}"].median, colour) for what, colour in which.items()]
            _stack(parts, 2 * row + shift, stack, whole)
            ticks.append((2 * row + shift, name))
    parts.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    parts.set(xlabel="ms", title="… and its parts")
    parts.margins(x=0.15)
    _legend(parts, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def steps(found: Found, pyplot: Any) -> Any:
    """Plot the time of each step of a pass."""
    rows = list(dict.fromkeys(name.split(": ")[0] for name in found))
    labels = [name for name in dict.fromkeys(name.split(": ")[1] for name in found) if "bare dumps" not in name]
    figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(rows) + 1))
    for at, row in enumerate(reversed(rows)):
        colours = zip(labels, (ORANGE, GREEN, BLUE, SKY, RED, GREY), strict=True)
        _stack(axes, at, [(what, found[f"{row}: {what}"].median, colour) for what, colour in colours])
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="ms", title="The steps of a pass")
    axes.margins(x=0.15)
    _legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def change(found: Found, pyplot: Any) -> Any:
    """Plot one change among 3,000 by stage."""
    rows = list(dict.fromkeys(name.split(": ")[0] for name in found))
    labels = list(dict.fromkeys(name.split(": ")[1] for name in found if "change to answer" not in name))
    figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(rows) + 1))
    for at, row in enumerate(reversed(rows)):
        colours = zip(labels, (GREY, ORANGE, BLUE, RED), strict=True)
        stack = [(what, max(0.0, found[f"{row}: {what}"].median), colour) for what, colour in colours]
        _stack(axes, at, stack, found[f"{row}: change to answer"])
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="ms", title="One address more among 3,000: from the change to the first answer")
    axes.margins(x=0.15)
    _legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def drift(found: Found, pyplot: Any) -> Any:
    """Plot medians with the least and the most, and the target."""
    figures = [each for each in reversed(list(found.values())) if each.unit == "ms"]
    figure, axes = pyplot.subplots(figsize=(6, 0.4 * len(figures) + 0.8))
    for at, each in enumerate(figures):
        span = [[each.median - each.least], [each.most - each.median]]
        axes.barh(at, each.median, color=BLUE if "no kernel events" not in each.name else GREY, height=0.6)
        axes.errorbar(each.median, at, xerr=span, color="black", capsize=3, linewidth=1)
        axes.text(each.most, at, f"  {format_number(each.median)}", va="center")
        if each.bound is not None:
            axes.plot([each.bound] * 2, [at - 0.45, at + 0.45], color=RED, label=f"target: {each.bound:g} ms")
    axes.set_yticks(range(len(figures)), [each.name for each in figures])
    axes.set(xlabel="ms", title="Drift and hot-plug: median, least and most")
    axes.margins(x=0.15)
    _legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def memory(found: Found, pyplot: Any) -> Any:
    """Plot the memory of each daemon, and of a bare interpreter."""
    figures = [each for each in found.values() if each.unit == "MB"]
    figure, axes = pyplot.subplots(figsize=(6, 0.28 * len(figures) + 0.8))
    for at, each in enumerate(reversed(figures)):
        colour = GREY if "bare" in each.name else ORANGE if "all" in each.name else BLUE
        axes.barh(at, each.median, color=colour, height=0.6)
        axes.text(each.median, at, f"  {format_number(each.median)}", va="center")
    axes.set_yticks(range(len(figures)), [each.name for each in reversed(figures)])
    axes.set(xlabel="MB (PSS)", title="Memory")
    axes.margins(x=0.12)
    return figure


def datapath(found: Found, pyplot: Any) -> Any:
    """Plot the cost per packet by the number of addresses that have rules."""
    figure, axes = pyplot.subplots(figsize=(5, 3))
    series: dict[str, dict[int, Figure]] = defaultdict(dict)
    for each in found.values():
        if (parts := re.fullmatch(r"(\d+) addresses, ([^:]+)(: .*)?", each.name)) and each.unit == "ns":
            series[parts[2]][int(parts[1])] = each
    bare = series.pop("no rules", {})
    for (label, values), colour in zip(series.items(), (ORANGE, BLUE, GREEN, RED), strict=False):
        middle = [each.median / 1e3 for each in values.values()]
        spans = [
            [(each.median - each.least) / 1e3 for each in values.values()],
            [(each.most - each.median) / 1e3 for each in values.values()],
        ]
        axes.errorbar(list(values), middle, spans, fmt="o-", color=colour, label=label, capsize=2, markersize=4)
    for each in bare.values():
        axes.axhline(each.median / 1e3, color=GREY, linestyle="--", label="no rules")
    axes.set(xlabel="addresses", ylabel="µs per packet", title="Cost of the rules per packet")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


PLOTS: dict[str, Callable[[Found, Any], Any]] = {
    "converge": converge,
    "steps": steps,
    "change": change,
    "drift": drift,
    "memory": memory,
    "datapath": datapath,
}

if __name__ == "__main__":
    draw()
