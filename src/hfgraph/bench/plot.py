"""The result as a figure: speed beside eager's, and the roofline with what was reached of it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from hfgraph.bench.limits import Limits
from hfgraph.bench.results import Figure, Result
from hfgraph.bench.systems import BASELINE, SYSTEMS

# Okabe and Ito's colours, which differ for every kind of colour vision; shapes say the same again.
_LOOKS = dict(zip(SYSTEMS, (("#8c8c8c", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#0072B2", "D")), strict=True))
_APART = 1.13
_INK, _FAINT = "#222222", "#d9d9d9"
_STYLE: Any = {
    "font.size": 10, "text.color": _INK, "axes.edgecolor": "#888888", "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "hfgraph",
}  # fmt: skip


def save(result: Result, paths: list[Path]) -> None:
    """Draw once, write all."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure = draw(result)
        for path in paths:
            figure.savefig(path, dpi=160, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)


def draw(result: Result) -> Any:
    """The figure."""
    from matplotlib.figure import Figure as Canvas

    figures = result.figures()
    roofline = [f for f in figures if f.share is not None]
    canvas = Canvas(figsize=(12.5 if roofline else 7, 5.4), layout="constrained")
    left, *right = canvas.subplots(1, 2 if roofline else 1, squeeze=False, width_ratios=[1.15, 1] if roofline else None)[0]
    _speeds(left, figures)
    if roofline and (limits := result.median_limits) is not None:
        _roofline(right[0], roofline, limits)
    where = result.machine.get("gpu") or f"{result.machine['processor']}, {result.plan.threads} threads"
    weights = "" if result.plan.source else ", random weights"
    canvas.suptitle(f"{result.plan.model}{weights}, {result.plan.dtype}", x=0.01, ha="left", fontsize=14, fontweight="bold")
    systems = list(dict.fromkeys(f.system for f in figures))
    handles = [left.scatter([], [], color=_LOOKS[s][0], marker=_LOOKS[s][1], s=50, label=s) for s in systems]
    canvas.legend(handles=handles, loc="outside upper right", ncols=len(systems), frameon=False, handletextpad=0.2)
    versions = ", ".join(f"{p} {result.versions[p]}" for p in ("hfgraph", "torch", "transformers") if p in result.versions)
    canvas.supxlabel(f"{where}; {versions}; {result.started[:10]}; medians of {result.plan.rounds} rounds", x=0.01, ha="left", fontsize=8.5, color="#666666")
    return canvas


def _speeds(axes: Any, figures: list[Figure]) -> None:
    """Grouped bars; a thin line spans the rounds."""
    tasks = list(dict.fromkeys(f.task for f in figures))
    systems = [s for s in dict.fromkeys(f.system for f in figures) if s != BASELINE]
    width = 0.8 / max(len(systems), 1)
    top = max([f.high for f in figures], default=1.0)
    for f in figures:
        if f.system == BASELINE:
            continue
        x = tasks.index(f.task) + (systems.index(f.system) - (len(systems) - 1) / 2) * width
        axes.bar(x, f.ratio, width * 0.9, color=_LOOKS[f.system][0])
        axes.plot([x, x], [f.low, f.high], color=_INK, linewidth=1.2)
        axes.annotate(f"{f.ratio:.2f}", (x, f.high), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    axes.axhline(1, color=_LOOKS[BASELINE][0], linewidth=1.5, zorder=0)
    base = {f.task: f.rate for f in figures if f.system == BASELINE}
    axes.set_xticks(range(len(tasks)), [f"{t}\neager {_rate(base[t])}\ntokens/s" for t in tasks], fontsize=9.5)
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    axes.set_ylim(0, top * 1.12)
    axes.set_ylabel("times as fast as eager (line)")
    axes.set_title("Speed; thin lines span the rounds", loc="left", fontsize=11)
    axes.tick_params(axis="x", length=0)


def _roofline(axes: Any, figures: list[Figure], limits: Limits) -> None:
    """Operations per second over operations per byte, under the two limits."""
    ridge = limits.gemm / limits.bandwidth
    intensities = [f.intensity or 1 for f in figures]
    low, high = min(*intensities, ridge) / 4, max(*intensities, ridge) * 4
    axes.loglog([low, ridge, high], [low * limits.bandwidth / 1e9, limits.gemm / 1e9, limits.gemm / 1e9], color=_INK, linewidth=1.6)
    axes.annotate(f"{limits.gemm / 1e9:.0f} GFLOP/s", (high, limits.gemm / 1e9), xytext=(0, 5), textcoords="offset points", ha="right", fontsize=9)
    place = (low * 3.2, low * 3.2 * limits.bandwidth / 1e9)
    axes.annotate(f"{limits.bandwidth / 1e9:.0f} GB/s", place, xytext=(-6, 6), textcoords="offset points", ha="right", fontsize=9)
    speeds = [(f.speed or 1) / 1e9 for f in figures]
    axes.set_xlim(low, high)
    axes.set_ylim(min(speeds) / 5, limits.gemm / 1e9 * 2)
    for task in dict.fromkeys(f.task for f in figures):
        mine = sorted((f for f in figures if f.task == task), key=lambda f: -(f.share or 0))
        x = mine[0].intensity or 1
        roof = min(x * limits.bandwidth, limits.gemm) / 1e9
        axes.plot([x, x], [min((f.speed or 1) / 1e9 for f in mine), roof], color=_FAINT, linewidth=1.2, zorder=0)
        for i, f in enumerate(mine):  # side by side, or one would hide the other
            color, marker = _LOOKS[f.system]
            axes.plot(x * _APART ** (i - (len(mine) - 1) / 2), (f.speed or 1) / 1e9, color=color, marker=marker, markersize=6.5, linestyle="")
        _shares(axes, task, mine, x, right=x < ridge)
    axes.set_xlabel("operations per byte that must be read")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Roofline; share of the limit reached", loc="left", fontsize=11)
    axes.grid(True, color="#f0f0f0", zorder=-1)
    axes.set_axisbelow(True)


def _shares(axes: Any, task: str, figures: list[Figure], x: float, right: bool) -> None:
    """A small list beside the points, the fastest first, so that points which lie on each other keep their names."""
    from matplotlib.offsetbox import AnnotationBbox, TextArea, VPacker

    small = {"fontsize": 8.5, "color": _INK}
    rows: Any = [TextArea(task, textprops={**small, "fontweight": "bold"})]
    rows += [TextArea(f"{f.share:.0%}  {f.system}", textprops=small) for f in figures]
    packed = VPacker(children=rows, pad=0, sep=2)
    height = statistics.geometric_mean([(f.speed or 1) / 1e9 for f in figures])
    box = AnnotationBbox(
        packed, (x, height), xybox=(26 if right else -26, 0), boxcoords="offset points", box_alignment=(0 if right else 1, 0.5), frameon=False, pad=0
    )
    axes.add_artist(box)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
