"""Accuracy against operations, a bubble for each network, its area the parameters.

After Canziani, Paszke and Culurciello, "An Analysis of Deep Neural Network Models for Practical Applications", 2016.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twofold.base.figures import new_figure, save
from twofold.zoo import info, names
from twofold.zoo.registry import Entry

AREA = 6.0  # square points for a million parameters


def plotted(entries: Sequence[Entry]) -> list[Entry]:
    """The networks that have a published top-1 error on ImageNet."""
    return [e for e in entries if e.error is not None and e.error.top1 is not None and e.error.on.startswith("ImageNet")]


def bubbles(path: str | os.PathLike, entries: Sequence[Entry] | None = None) -> list[str]:
    """Draw the picture to ``path`` (PNG); the names of the networks shown. ``entries`` defaults to the whole zoo.

    Accuracies are the published ones: crops and data differ from paper to paper, so neighbours are not ranked.
    """
    shown = plotted([info(n) for n in names()] if entries is None else entries)
    figure = new_figure(10, 6.5)
    axes = figure.subplots()
    for k, year in enumerate(sorted({e.paper.year for e in shown})):
        chosen = [e for e in shown if e.paper.year == year]
        axes.scatter(
            [e.macs / 1e9 for e in chosen], [_accuracy(e) for e in chosen],
            s=[max(4.0, AREA * e.params / 1e6) for e in chosen], alpha=0.45, color=f"C{k}", label=str(year),
        )  # fmt: skip
    _label(axes, shown)
    axes.set_xscale("log")
    axes.set_xlabel("multiply-adds for one image (billions)")
    axes.set_ylabel("published top-1 accuracy (%)")
    axes.set_title("Accuracy against operations; the area of a bubble is the number of parameters")
    axes.grid(alpha=0.3)
    legend = axes.legend(title="paper", loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    save(figure, path)
    return [e.name for e in shown]


def _accuracy(e: Entry) -> float:
    """Published top-1 accuracy in percent."""
    assert e.error is not None and e.error.top1 is not None  # `plotted` saw to it
    return 100 - e.error.top1


def _label(axes: Any, shown: Sequence[Entry]) -> None:
    """Names beside the bubbles; one that would lie on another moves down."""
    taken: list[tuple[float, float]] = []
    for e in sorted(shown, key=lambda e: (-_accuracy(e), e.macs)):
        x, y = e.macs / 1e9, _accuracy(e)
        while any(abs(y - b) < 0.75 and 0.4 < x / a < 2.5 for a, b in taken):
            y -= 0.25
        taken.append((x, y))
        arrow = {"arrowstyle": "-", "alpha": 0.35, "linewidth": 0.6}
        axes.annotate(e.name, (x, _accuracy(e)), (x * 1.06, y), fontsize=7, va="center", arrowprops=arrow)


__all__ = ["bubbles", "plotted"]
