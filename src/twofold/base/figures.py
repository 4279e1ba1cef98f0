"""What every picture needs: a figure without a window, and writing it whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from twofold.base.errors import MissingDependencyError
from twofold.base.files import atomic_write

DPI = 120


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of this size in inches; MissingDependencyError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib: pip install 'twofold[plots]'") from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | os.PathLike) -> None:
    """Write the figure to ``path`` as PNG, atomically."""
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=DPI)
