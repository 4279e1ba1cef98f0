"""Learning curves as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twofold.base.figures import new_figure, save


def have_matplotlib() -> bool:
    """Whether the plots extra is there."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def plot_history(history: Sequence[dict[str, Any]], path: str | os.PathLike, title: str = "") -> None:
    """Loss and accuracy by epoch, training and validation, written to ``path`` as PNG (needs matplotlib)."""
    figure = new_figure(9, 3.6)
    epochs = [row["epoch"] for row in history]
    for axes, name, scale in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100)):
        for key, label, style in ((name, "training", "-"), (f"val_{name}", "validation", "--")):
            if history and key in history[0]:
                axes.plot(epochs, [row[key] * scale for row in history], style, marker="o", markersize=3, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name if scale == 1 else f"{name} (%)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    if title:
        figure.suptitle(title)
    save(figure, path)
