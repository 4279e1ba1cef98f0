"""The training loop: ``fit`` runs compiled steps over a loader, validates, keeps the best and the last checkpoint, and
goes on after an interruption with the bits that an uninterrupted training would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import twofold as tw
from twofold.base.errors import ArgumentError
from twofold.train.checkpoint import STATE_KEY, Progress, read_checkpoint, restore, save_checkpoint
from twofold.train.curves import have_matplotlib, plot_history
from twofold.train.diagnose import explain
from twofold.train.evaluate import criterion_of, evaluate, main_output
from twofold.train.report import Reporter

LAST, BEST, CURVES = "last.safetensors", "best.safetensors", "curves.png"


class Trainer:
    """One training: a model, its optimizer and data, and the progress made. ``fit`` is the short way to use it."""

    def __init__(
        self, model: Any, train: Any, val: Any = None, *, optimizer: Any, schedule: Any = None,
        criterion: Callable[[Any, Any], Any] | None = None, output: Any = None, settings: dict[str, Any] | None = None,
        compiled: bool = True, devices: Any = None, clip: float | None = None, checkpoint_every: float = 30.0,
        schedule_steps: bool = False,
    ):  # fmt: skip
        self.model, self.train, self.val = model, train, val
        self.optimizer, self.schedule = optimizer, schedule
        self.criterion = criterion or criterion_of(model)
        self.output = None if output is None else Path(output)
        self.clip, self.checkpoint_every, self.schedule_steps = clip, checkpoint_every, schedule_steps
        self.progress = Progress(settings=settings or {})
        self.step = tw.compile(self._step, devices=devices) if compiled else self._step
        self.compiled = compiled
        self._saved_at = time.monotonic()
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)

    # -- one step ------------------------------------------------------------------------------------------------------
    def _step(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Forward, backward, update. Where the loss is not finite every variable keeps its value."""
        output = self.model(images)
        loss = self.criterion(output, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            tw.nn.utils.clip_grad_norm_(list(self.model.parameters()), self.clip)
        before = {name: +variable for name, variable in self._updated().items()}
        self.optimizer.step()
        self.optimizer.zero_grad()
        fine = tw.isfinite(loss.detach())
        for name, variable in self._updated().items():
            variable.assign(tw.where(fine, variable, before[name]))
        correct = (main_output(output).argmax(axis=1) == labels).astype(tw.int64).sum()
        return loss.detach(), correct

    def _updated(self) -> dict[str, Any]:
        """The variables that the optimizer writes."""
        return {**{f"model.{n}": p for n, p in self.model.named_parameters()}, **self._optimizer_variables()}

    def _optimizer_variables(self) -> dict[str, Any]:
        return {f"optimizer.{n}": v for n, v in self.optimizer.named_variables()}

    def variables(self) -> dict[str, Any]:
        """Every variable of the training by its name in a checkpoint."""
        model = {f"model.{n}": v for n, v in self.model.state_dict(keep_vars=True).items()}
        return {**model, **self._optimizer_variables(), STATE_KEY: tw.random.generator()}

    # -- files ---------------------------------------------------------------------------------------------------------
    def save(self, name: str = LAST) -> None:
        """Write a checkpoint to the output folder."""
        if self.output is None:
            return
        self.progress.loader = self.train.state_dict()
        self.progress.schedule = {} if self.schedule is None else self.schedule.state_dict()
        save_checkpoint(self.output / name, self.variables(), self.progress)
        self._saved_at = time.monotonic()

    def resume(self, path: Any = None) -> None:
        """Go on from a checkpoint (by default the last one in the output folder)."""
        if path is None and self.output is None:
            raise ArgumentError("resume: give the path of a checkpoint, or an output folder that holds one")
        path = path or self.output / LAST  # type: ignore[operator]
        arrays, progress = read_checkpoint(path)
        restore(self.variables(), arrays, path)
        self.train.load_state_dict(progress.loader)
        if self.schedule is not None:
            self.schedule.load_state_dict(progress.schedule)
        self.progress = progress

    # -- the loop ------------------------------------------------------------------------------------------------------
    def run(self, epochs: int, reporter: Reporter | None = None) -> list[dict[str, Any]]:
        """Train until ``epochs`` are finished; returns the history, one row for each epoch."""
        reporter = reporter or Reporter(epochs)
        try:
            while self.progress.epoch < epochs:
                began = time.perf_counter()
                row = self._epoch(reporter)
                duration = time.perf_counter() - began
                reporter.finished(row, duration, duration * (epochs - self.progress.epoch))
        except KeyboardInterrupt:
            self.save()
            reporter.line(
                f"interrupted after step {self.progress.step}"
                + (f"; {self.output / LAST} is kept: --resume goes on" if self.output else "")
            )
            raise
        return self.progress.history

    def _epoch(self, reporter: Reporter) -> dict[str, Any]:
        progress = self.progress
        sums = progress.running = {
            "loss": 0.0,
            "correct": 0,
            "images": 0,
            "steps": 0,
            "seconds": 0.0,
            **progress.running,
        }
        self.model.train()
        began, earlier, seen = time.perf_counter(), sums["seconds"], 0
        with reporter.epoch(progress.epoch + 1, len(self.train), sums["steps"]):
            for images, labels in self.train:
                seen += self._batch(images, labels, sums)
                sums["seconds"] = earlier + time.perf_counter() - began
                reporter.step(sums["steps"], sums["loss"] / sums["images"], sums["correct"] / sums["images"], seen)
                if time.monotonic() - self._saved_at > self.checkpoint_every:
                    self.save()
        return self._close_epoch(sums)

    def _batch(self, images: Any, labels: Any, sums: dict[str, Any]) -> int:
        loss, correct = self.step(images, labels)
        value, size = loss.item(), int(labels.shape[0])
        if not math.isfinite(value):
            self.save()
            raise explain(
                self.model, images, value, self.progress.epoch + 1, self.progress.step + 1, float(self.optimizer.lr)
            )
        sums["loss"] += value * size
        sums["correct"] += int(correct.item())
        sums["images"] += size
        sums["steps"] += 1
        self.progress.step += 1
        if self.schedule_steps:
            self.schedule.step()
        return size

    def _close_epoch(self, sums: dict[str, Any]) -> dict[str, Any]:
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1, "step": progress.step, "lr": float(self.optimizer.lr),
            "loss": sums["loss"] / sums["images"], "accuracy": sums["correct"] / sums["images"],
            "images_per_second": sums["images"] / max(sums["seconds"], 1e-9),
        }  # fmt: skip
        if self.val is not None:
            score = evaluate(self.model, self.val, criterion=self.criterion, compiled=self.compiled)
            row |= {"val_loss": score.loss, "val_accuracy": score.accuracy, "val_top5": score.top5}
        if self.schedule is not None and not self.schedule_steps:
            metric = (row.get("val_loss", row["loss"]),) if self.schedule.needs_metric else ()
            self.schedule.step(*metric)
        progress.epoch, progress.running = progress.epoch + 1, {}
        progress.history.append(row)
        measure = row.get("val_accuracy", row["accuracy"])
        if measure > progress.best:
            progress.best = measure
            self.save(BEST)
        self.save()
        if self.output is not None and have_matplotlib():
            plot_history(progress.history, self.output / CURVES, str(progress.settings.get("network", "")))
        return row


def fit(
    model: Any, train: Any, val: Any = None, *, epochs: int, optimizer: Any, schedule: Any = None,
    criterion: Callable[[Any, Any], Any] | None = None, output: Any = None, resume: bool = False,
    settings: dict[str, Any] | None = None, compiled: bool = True, devices: Any = None, clip: float | None = None,
    reporter: Reporter | None = None, checkpoint_every: float = 30.0, schedule_steps: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train ``model`` on the batches of ``train`` for ``epochs`` epochs.

    Args:
        model: a Module; its own ``loss(output, labels)`` is used if it has one, else the cross-entropy of its logits.
        train, val: loaders of (images (N, C, H, W), labels (N,)); ``val`` is scored after each epoch.
        optimizer, schedule: from ``tw.optim``; the schedule steps once an epoch (``schedule_steps``: at each step).
        output: folder for ``last.safetensors``, ``best.safetensors`` (by validation accuracy) and ``curves.png``.
        resume: go on from ``output/last.safetensors``, with the bits of an uninterrupted training.
        compiled: run each step as one static program; False runs it eagerly, with the same numbers.
        clip: largest norm of the gradient.
        checkpoint_every: seconds between checkpoints within an epoch.

    Returns the history: for each epoch its loss, accuracy, validation scores and images/s.
    Raises NonFiniteError, naming the layer, when the loss is not a number; the variables keep their last good values.
    """
    trainer = Trainer(
        model, train, val, optimizer=optimizer, schedule=schedule, criterion=criterion, output=output,
        settings=settings, compiled=compiled, devices=devices, clip=clip, checkpoint_every=checkpoint_every,
        schedule_steps=schedule_steps,
    )  # fmt: skip
    if resume:
        trainer.resume()
    return trainer.run(epochs, reporter)
