"""Pictures of what benchmarks found, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

mpl.rcParams["svg.hashsalt"] = "recfit"  # the same numbers make the same file
BLUE, BROWN, GREY = "#1f5fa8", "#b35900", "#777777"


@dataclass(frozen=True)
class Dot:
    """A point with an interval of `error` on either side, a name, a size (1 is usual) and a colour."""

    x: float
    y: float
    error: float
    name: str
    size: float = 1.0
    colour: str = BLUE


def scatter(dots: Sequence[Dot], path: Path, *, x: str, y: str, log: bool = False, title: str = "") -> Path:
    """The dots with their intervals, numbered, and the names beside; 100 on the y axis is the original."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes, key = figure.subplots(1, 2, width_ratios=(3, 2))
    for level, style in ((100, "-"), (99, "--")):
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle=style)
    for number, dot in enumerate(dots, 1):
        axes.errorbar(dot.x, dot.y, dot.error, color=dot.colour, alpha=0.35, linewidth=1)
        axes.scatter([dot.x], [dot.y], s=40 * dot.size, color=dot.colour, alpha=0.7, linewidth=0, zorder=3)
        axes.annotate(str(number), (dot.x, dot.y), (5, 3), textcoords="offset points", fontsize=8)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=8, color=GREY, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    key.axis("off")
    names = "\n".join(f"{number:2} {dot.name}" for number, dot in enumerate(dots, 1))
    key.text(0, 1, names, fontsize=8, va="top", transform=key.transAxes, wrap=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def tradeoff(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> Path:
    """Recipes: p99 against the quality that is kept; the area of a dot is its bytes on disk beside the original's."""
    dots = [
        Dot(
            x=row["metrics"]["p99_ms"],
            y=100 * row["kept"],
            error=50 * (row["kept_interval"][1] - row["kept_interval"][0]),
            name=row["recipe"],
            size=max(0.4, 6 / row["times_less"]["bundle_mb"]),
            colour=BROWN if number == 0 else BLUE,
        )
        for number, row in enumerate(rows)
        if row["kept_interval"]
    ]
    about = "area: bytes on disk; bars: paired 95 % interval; brown: the original in ONNX Runtime"
    return scatter(dots, path, x="p99 ms, one request at a time", y=f"{metric} kept, %", log=True, title=about)


def overload(rows: Sequence[Mapping[str, Any]], budget_ms: float, path: Path) -> Path:
    """What happens to p99 and to the expected quality as the load grows, of one server and another."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    late, quality = figure.subplots(1, 2)
    for name, colour in (("alone", BROWN), ("ladder", BLUE)):
        mine = [row for row in rows if row["server"] == name]
        loads = [row["load"] for row in mine]
        late.plot(loads, [min(row["ms"]["99"], 1e5) for row in mine], "o-", color=colour, label=name)
        quality.plot(loads, [row["quality"] for row in mine], "o-", color=colour, label=name)
    late.axhline(budget_ms, color=GREY, linewidth=0.8, linestyle="--")
    late.set_yscale("log")
    late.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    late.set(xlabel="load, times what the best bundle takes", ylabel="p99 ms (dashed: the budget)")
    quality.set(xlabel="load, times what the best bundle takes", ylabel="expected NDCG@10 of what is answered")
    quality.set_ylim(bottom=0)
    for axes in (late, quality):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return path
