"""Telling how a training goes: a progress bar on a terminal, a plain line for each epoch elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


def seconds(duration: float) -> str:
    """A duration for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Reporter:
    """Shows an epoch's progress. A bar with loss, accuracy, images/s and time left when ``stream`` is a terminal."""

    def __init__(self, epochs: int, stream: TextIO | None = None, quiet: bool = False):
        self.epochs = epochs
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.bar: Any = None
        self.task: Any = None

    @contextmanager
    def epoch(self, number: int, steps: int, done: int) -> Iterator[Reporter]:
        """Shows one epoch (counted from 1) of ``steps`` steps, of which ``done`` are behind us."""
        self.started, self.first = time.perf_counter(), done
        if self.quiet or not self.stream.isatty():
            yield self
            return
        with self._bar() as self.bar:
            self.task = self.bar.add_task(f"epoch {number}/{self.epochs}", total=steps, completed=done, text="")
            yield self
        self.bar = None

    def _bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=Console(file=self.stream), transient=True)

    def step(self, done: int, loss: float, accuracy: float, images: int) -> None:
        """One more step: ``images`` seen since the epoch (or its resumption) began."""
        if self.bar is not None:
            rate = images / max(time.perf_counter() - self.started, 1e-9)
            self.bar.update(
                self.task, completed=done, text=f"loss {loss:.4f}  accuracy {accuracy:6.2%}  {rate:,.0f} images/s"
            )

    def line(self, text: str) -> None:
        """A line of the log."""
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    def finished(self, row: dict[str, Any], duration: float, left: float, preparing: float = 0.0) -> None:
        """The line of a finished epoch, in which ``preparing`` seconds went into compiling."""
        parts = [f"epoch {row['epoch']:>3}/{self.epochs}", f"loss {row['loss']:.4f}", f"accuracy {row['accuracy']:.2%}"]
        if "val_accuracy" in row:
            parts += [f"val loss {row['val_loss']:.4f}", f"val accuracy {row['val_accuracy']:.2%}"]
        if "loss_scale" in row:
            parts.append(f"loss scale {row['loss_scale']:g} ({row['skipped_steps']} steps skipped)")
        parts += [f"{row['images_per_second']:,.0f} images/s", seconds(duration)]
        if preparing >= 1:
            parts.append(f"({seconds(preparing)} of it to compile)")
        if left > 0:
            parts.append(f"{seconds(left)} left")
        self.line("  ".join(parts))
