"""The plot of a comparison: every seed, and what the scores cost."""

from __future__ import annotations

import io
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkit.evaluation.comparison import Comparison, Variant

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # told apart by everyone


def draw_comparison(comparison: Comparison) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    comparison_figure(comparison).savefig(file, format="png")
    return file.getvalue()


def comparison_figure(comparison: Comparison) -> Figure:
    """Two panels: AP of every seed with the means, and mean AP with its range against latency.

    Where no latency is known the second panel has the number of parameters instead. Orange marks
    what is beyond the spread of the seeds, see `Comparison`.
    """
    count = len(comparison.variants)
    figure = Figure(figsize=(max(9.0, 4.5 + 0.9 * count), 4.2), dpi=150, layout="constrained")
    seeds, cost = figure.subplots(1, 2, width_ratios=(max(1.0, count / 6), 1), sharey=True)
    _draw_seeds(seeds, comparison)
    _draw_cost(cost, comparison)
    figure.suptitle(comparison.conclusion(), fontsize=9, wrap=True)
    return figure


def _draw_seeds(axes: Axes, comparison: Comparison) -> None:
    variants = comparison.variants
    for place, variant in enumerate(variants):
        color = _color(comparison, variant)
        # side by side in the order of the seeds: equal scores stay apart
        middle = (len(variant.scores) - 1) / 2
        places = [place + 0.1 * (i - middle) / max(middle, 1) for i in range(len(variant.scores))]
        axes.plot(places, variant.aps, "o", color=color, markersize=4, alpha=0.8)
        if variant.mean is not None:
            axes.hlines(variant.mean, place - 0.28, place + 0.28, color=color, linewidth=2)
    first = variants[0].mean
    if first is not None:
        axes.axhline(first, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    names = [variant.name for variant in variants]
    tilted = sum(map(len, names)) > 50
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=30 if tilted else 0,
        ha="right" if tilted else "center",
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel(", ".join(comparison.keys) or "recipe")
    axes.set_ylabel("AP (dot: a seed, line: mean)")
    axes.grid(axis="y", alpha=0.3)


def _draw_cost(axes: Axes, comparison: Comparison) -> None:
    timed = any(variant.latency for variant in comparison.variants)
    for variant in comparison.variants:
        if variant.mean is None:
            continue
        cost = variant.parameters / 1e6
        if timed:
            cost = variant.latency.milliseconds if variant.latency else math.nan
        color = _color(comparison, variant)
        aps = variant.aps
        axes.vlines(cost, min(aps), max(aps), color=color, linewidth=1, alpha=0.6)
        axes.plot(cost, variant.mean, "o", color=color, markersize=5)
        axes.annotate(
            variant.name,
            (cost, max(aps)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_xlabel("ms per image, batch 1" if timed else "parameters (M)")
    axes.margins(x=0.15, y=0.1)
    axes.grid(alpha=0.3)


def _color(comparison: Comparison, variant: Variant) -> str:
    """Grey for the first, orange for what is beyond the spread, blue for the others."""
    if variant is comparison.variants[0]:
        return GREY
    interval = comparison.interval(variant)
    return ORANGE if interval is not None and interval.beyond_spread else BLUE
