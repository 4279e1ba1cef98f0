"""Accuracy against operations, a bubble for each network, its area the parameters.

After Canziani, Paszke and Culurciello, "An Analysis of Deep Neural Network Models for Practical Applications", 2016.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from twofold.base.figures import new_figure, save
from twofold.viz.labels import Box, gap, nearest, place
from twofold.zoo import info, names
from twofold.zoo.registry import Entry

AREA = 6.0  # square points for a million parameters
FONT, PAD = 7.5, 2.0  # points: of the names, and around them
LINE = 8.0  # points: a name farther from its bubble than this gets a line to it


def plotted(entries: Sequence[Entry]) -> list[Entry]:
    """The networks that have a published top-1 error on ImageNet."""
    return [
        e for e in entries if e.error is not None and e.error.top1 is not None and e.error.on.startswith("ImageNet")
    ]


def bubbles(path: str | os.PathLike, entries: Sequence[Entry] | None = None) -> list[str]:
    """Draw the picture to ``path`` (PNG); the names of the networks shown. ``entries`` defaults to the whole zoo.

    Accuracies are the published ones: crops and data differ from paper to paper, so neighbours are not ranked.
    """
    shown = plotted([info(n) for n in names()] if entries is None else entries)
    figure = new_figure(11, 7.5)
    axes = figure.subplots()
    for k, year in enumerate(sorted({e.paper.year for e in shown})):
        chosen = [e for e in shown if e.paper.year == year]
        axes.scatter(
            [e.macs / 1e9 for e in chosen], [_accuracy(e) for e in chosen],
            s=[_area(e) for e in chosen], alpha=0.45, color=f"C{k}", label=str(year),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(0.1, 0.07)  # room for names at the edges
    axes.set_xlabel("multiply-adds for one image (billions)")
    axes.set_ylabel("published top-1 accuracy (%)")
    axes.set_title("Accuracy against operations; the area of a bubble is the number of parameters")
    axes.grid(alpha=0.3)
    legend = axes.legend(title="paper", loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    _label(figure, axes, shown, legend)
    save(figure, path)
    return [e.name for e in shown]


def _accuracy(e: Entry) -> float:
    """Published top-1 accuracy in percent."""
    assert e.error is not None and e.error.top1 is not None  # `plotted` saw to it
    return 100 - e.error.top1


def _area(e: Entry) -> float:
    """The size of a marker as matplotlib counts it: the square of its diameter, in square points."""
    return max(4.0, AREA * e.params / 1e6)


def _label(figure: Any, axes: Any, shown: Sequence[Entry], legend: Any) -> None:
    """Names beside the bubbles, with a thin line where a name had to move away from its own. All in points."""
    figure.draw_without_rendering()  # settles the axes and the legend
    point = figure.dpi / 72  # in pixels

    def extent(artist: Any) -> Box:
        return tuple(artist.get_window_extent(figure.canvas.get_renderer()).extents / point)

    texts = [axes.annotate(e.name, (0, 0), xycoords="figure points", fontsize=FONT) for e in shown]
    extents = [extent(text) for text in texts]
    centres = axes.transData.transform([(e.macs / 1e9, _accuracy(e)) for e in shown]) / point
    circles = [(float(x), float(y), math.sqrt(_area(e)) / 2) for e, (x, y) in zip(shown, centres)]
    sizes = [(right - left + 2 * PAD, top - bottom + 2 * PAD) for left, bottom, right, top in extents]
    for text, circle, box in zip(texts, circles, place(circles, sizes, extent(axes.patch), [extent(legend)])):
        text.set_position((box[0] + PAD, box[1] + PAD))
        if gap(box, circle) > LINE:
            arrow = {"arrowstyle": "-", "alpha": 0.5, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            ends = circle[:2], nearest(box, *circle[:2])
            axes.annotate("", *ends, xycoords="figure points", textcoords="figure points", arrowprops=arrow)


__all__ = ["bubbles", "plotted"]
