"""The training loop: ``fit`` runs compiled steps over a loader, validates, keeps the best and the last checkpoint, and
goes on after an interruption with the bits that an uninterrupted training would have had.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import twofold as tw
from twofold.base import signals
from twofold.base.dtypes import float16
from twofold.base.errors import ArgumentError, DataError, NonFiniteError
from twofold.base.files import claimed, remove_parts
from twofold.nn.statistics import batch_statistics
from twofold.ops.precision import policy_of
from twofold.optim.loss_scale import LossScale, finite_each, keep_if, present
from twofold.tensor import distributed
from twofold.train.checkpoint import STATE_KEY, Progress, host_arrays, read_checkpoint, restore, save_checkpoint
from twofold.train.curves import have_matplotlib, plot_history
from twofold.train.diagnose import check_finite, explain
from twofold.train.evaluate import Score, criterion_of, main_output, score, scoring
from twofold.train.report import Reporter
from twofold.train.spread import parts_of_statistics, place_of, together

LAST, BEST, CURVES = "last.safetensors", "best.safetensors", "curves.png"


class Trainer:
    """One training: a model, its optimizer and data, and the progress made. ``fit`` is the short way to use it."""

    def __init__(
        self, model: Any, train: Any, val: Any = None, *, optimizer: Any, schedule: Any = None,
        criterion: Callable[[Any, Any], Any] | None = None, output: Any = None, settings: dict[str, Any] | None = None,
        compiled: bool = True, devices: Any = None, clip: float | None = None, checkpoint_every: float = 30.0,
        schedule_steps: bool = False, precision: Any = "fp32",
        shard_state: bool = False, batch_norm: str = "synchronised",
    ):  # fmt: skip
        self.where = place_of(model, devices, shard_state)
        if self.where is not None and not compiled:
            raise ArgumentError(f"fit: devices={devices!r} needs compiled steps; leave out compiled=False, or devices")
        self.parts = parts_of_statistics(batch_norm, self.where)
        self.gathers = shard_state and distributed.processes() > 1  # to read a variable, all processes must take part
        self.model, self.train, self.val = model, together(train, self.where), together(val, self.where)
        self.optimizer, self.schedule = optimizer, schedule
        self.criterion = criterion or criterion_of(model)
        self.output = None if output is None else Path(output)
        self.clip, self.checkpoint_every, self.schedule_steps = clip, checkpoint_every, schedule_steps
        self.precision, policy = precision, policy_of(precision)
        self.loss_scale = LossScale() if policy is not None and policy.low is float16 else None
        self.progress = Progress(settings=settings or {})
        self.step: Any = tw.compile(self._step, devices=self.where) if compiled else self._step
        self.scoring = scoring(self.model, self.criterion, compiled, self.where)
        self.compiled = compiled
        self.whole = True  # the variables are those of a step's end
        self.most = math.inf  # steps, after which to stop
        self.preparing = 0.0  # seconds of this epoch in which programs were compiled
        if self.output is not None and not hasattr(self.train, "state_dict"):
            raise ArgumentError(
                f"fit: output= is for checkpoints, and a {type(train).__name__} cannot say its place; "
                "expected a DataLoader, or a loader with state_dict() and load_state_dict()"
            )
        self._saved_at = time.monotonic()
        if self.output is not None and distributed.rank() == 0:
            self.output.mkdir(parents=True, exist_ok=True)

    # -- one step ------------------------------------------------------------------------------------------------------
    def _step(self, images: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
        """Forward, backward, update. Where the loss, a gradient or a statistic is not finite every variable keeps its value.
        Returns the loss, how many predictions are right, whether the training is lost, and which of ``self.watched`` are
        finite."""
        before = present([*self.optimizer.variables(), *self.model.buffers()])
        with tw.autocast(self.precision), batch_statistics(self.parts):
            output = self.model(images)
            loss = self.criterion(output, labels)
        self.optimizer.zero_grad()
        (loss if self.loss_scale is None else self.loss_scale.scale(loss)).backward()
        finite = self._finite(before)
        fine = tw.logical_and(tw.isfinite(loss.detach()), finite.all())
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.optimizer)
        if self.clip is not None:
            tw.nn.utils.clip_grad_norm_(list(self.model.parameters()), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        keep_if(fine, before)
        lost = tw.logical_not(fine)
        if self.loss_scale is not None:  # a smaller scale may help
            lost = tw.logical_and(lost, self.loss_scale.exhausted())
            self.loss_scale.update(fine)
        correct = (main_output(output).argmax(axis=1) == labels).astype(tw.int64).sum()
        return loss.detach(), correct, lost, finite

    def _finite(self, before: list[tuple[Any, Any]]) -> Any:
        """For each gradient, and each buffer that the forward pass changed, whether it is finite; ``self.watched`` tells
        what they are."""
        names = {id(v): name for name, v in self.model.state_dict(keep_vars=True).items()}
        name = lambda v: repr(names.get(id(v), v.name))
        found = {f"the gradient of {name(p)}": p.grad for p in self.optimizer.parameters() if p.grad is not None}
        found |= {name(v): v for v, old in before if v.dtype.is_floating and v.value is not old.value}
        self.watched = list(found)
        with tw.no_grad():
            return tw.Tensor(finite_each([t.value for t in found.values()]))

    def variables(self) -> dict[str, Any]:
        """Every variable of the training by its name in a checkpoint."""
        parts = {"model": self.model.state_dict(keep_vars=True), "optimizer": dict(self.optimizer.named_variables())}
        if self.loss_scale is not None:
            parts["loss_scale"] = dict(self.loss_scale.named_variables())
        named = {f"{part}.{n}": v for part, variables in parts.items() for n, v in variables.items()}
        return {**named, STATE_KEY: tw.random.generator()}

    # -- files ---------------------------------------------------------------------------------------------------------
    def save(self, name: str = LAST) -> None:
        """Write a checkpoint to the output folder; in a job, process 0 does it for all. NonFiniteError, and the file that is
        there stays, where an update has overflowed."""
        if self.output is None or (distributed.rank() and not self.gathers):
            return
        self.progress.schedule = {} if self.schedule is None else self.schedule.state_dict()
        arrays = host_arrays(self.variables())
        trained = {f"model.{name}" for name, _ in self.model.named_parameters()}
        check_finite({n: a for n, a in arrays.items() if n in trained or n.startswith("optimizer.")}, self.progress.step)
        if distributed.rank() == 0:
            save_checkpoint(self.output / name, arrays, self.progress)
        self._saved_at = time.monotonic()
        distributed.advise(
            f"{self.output / LAST} holds step {self.progress.step}: start again with --resume (resume=True), on any "
            "number of processes"
        )

    def _due(self) -> bool:
        """Whether a checkpoint within the epoch is due. Clocks differ: where all must take part, process 0 says."""
        due = time.monotonic() - self._saved_at > self.checkpoint_every
        return distributed.agreed(due) if self.gathers and self.output is not None else due

    def resume(self, path: Any = None) -> None:
        """Go on from a checkpoint (by default the last one in the output folder)."""
        if path is None and self.output is None:
            raise ArgumentError("resume: give the path of a checkpoint, or an output folder that holds one")
        path = path or self.output / LAST  # type: ignore[operator]
        arrays, progress = read_checkpoint(path)
        restore(self.variables(), arrays, path)
        if progress.loader:
            self.train.load_state_dict(progress.loader)
        if self.schedule is not None:
            self.schedule.load_state_dict(progress.schedule)
        self.progress, self.whole = progress, True

    # -- the loop ------------------------------------------------------------------------------------------------------
    def run(self, epochs: int, reporter: Reporter | None = None, steps: int | None = None) -> list[dict[str, Any]]:
        """Train until ``epochs`` are finished, or ``steps`` are done, from the first one on; returns the history, one row for
        each epoch. Stopped by ``steps`` within an epoch, it leaves a checkpoint, and goes on as after an interruption.

        Ctrl-C and SIGTERM take effect after the step under way, and leave a checkpoint; ``run`` again goes on. In a job of
        several processes SIGTERM to one ends all.
        """
        if not self.whole:
            raise ArgumentError("run: a step was broken off half done; resume() from the last checkpoint first")
        reporter = reporter or Reporter(epochs, quiet=distributed.rank() > 0)
        self.most = math.inf if steps is None else steps
        if self.output is None or distributed.rank():
            return self._run(epochs, reporter)
        with claimed(self.output) as free:
            if not free:
                raise ArgumentError(f"run: another training writes to {self.output}; give another output folder, or wait")
            for name in (LAST, BEST):
                remove_parts(self.output / name)
            return self._run(epochs, reporter)

    def _run(self, epochs: int, reporter: Reporter) -> list[dict[str, Any]]:
        if distributed.processes() > 1:
            self._begin_together()
        if self.progress.loader:  # after an interruption the loader may be ahead
            self.train.load_state_dict(self.progress.loader)
        try:
            with signals.sigterm_exits():
                while self.progress.epoch < epochs and self.progress.step < self.most:
                    began = time.perf_counter()
                    row = self._epoch(reporter)
                    if row is None:
                        break
                    duration = time.perf_counter() - began
                    left = (duration - self.preparing) * (epochs - self.progress.epoch)
                    reporter.finished(row, duration, left, self.preparing)
        except (KeyboardInterrupt, SystemExit) as end:
            self._interrupted(reporter)
            if isinstance(end, SystemExit):  # at the end of Python it looks like a good end, for which all would wait
                distributed.abandon(end.code if isinstance(end.code, int) else 1)
            raise
        return self.progress.history

    def _interrupted(self, reporter: Reporter) -> None:
        """Keep what is done, unless a second signal broke off a step, or others may be at another one."""
        if self.whole and not self.gathers:
            try:
                self.save()
            except NonFiniteError as error:
                reporter.line(str(error))
        kept = self.output is not None and (self.output / LAST).exists()
        at = f"interrupted after step {self.progress.step}" if self.whole else "interrupted within a step"
        reporter.line(at + (f"; {self.output / LAST} is kept: --resume goes on" if kept else ""))  # type: ignore[operator]

    def _begin_together(self) -> None:
        """Check that all processes are about to do the same, and write a checkpoint to fall back to."""
        distributed.check_same("training", f"{self.progress.settings} at step {self.progress.step}")
        if self.output is not None:
            distributed.advise(f"{self.output / LAST} is the last checkpoint: start again with --resume (resume=True)")
        if not self.progress.step:
            self.save()

    def _epoch(self, reporter: Reporter) -> dict[str, Any] | None:
        """The rest of an epoch; None if it is not finished, for enough steps are done."""
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
        began, earlier, seen, self.preparing = time.perf_counter(), sums["seconds"], 0, 0.0
        with reporter.epoch(progress.epoch + 1, len(self.train), sums["steps"]):
            for images, labels in self.train:
                seen += self._batch(images, labels, sums, self._place())
                sums["seconds"] = earlier + time.perf_counter() - began - self.preparing
                reporter.step(sums["steps"], _mean(sums, "loss"), _mean(sums, "correct"), seen)
                if progress.step >= self.most and sums["steps"] < len(self.train):
                    self.save()
                    return None
                if self._due():
                    self.save()
        if not sums["steps"]:
            raise DataError("fit: the loader gave no batches; give it samples, or leave out drop_last")
        return self._close_epoch(sums)

    def _batch(self, images: Any, labels: Any, sums: dict[str, Any], place: dict[str, Any]) -> int:
        """One step. It counts, and the loader's ``place`` is behind its batch, when it is done; signals wait for that."""
        self._prepare(self.step, images, labels)
        generator = tw.random.generator()
        drawn = generator._own
        with signals.held(), self._in_one():
            loss, correct, lost, finite = self.step(images, labels) if self.compiled else self._or_undone(images, labels)
            value, size = loss.item(), int(labels.shape[0])
            if not lost.item():
                self._count(value, int(correct.item()), size, sums, place)
                return size
            generator.put_back(drawn)  # the step's own variables have not changed
        self.save()
        at = self.progress.epoch + 1, self.progress.step + 1
        bad = [name for name, fine in zip(self.watched, finite.tolist()) if not fine]
        raise explain(self.model, images, value, bad, *at, float(self.optimizer.lr), self.precision)

    def _prepare(self, program: Any, images: Any, labels: Any) -> None:
        """Compile, if that is to be done yet: it takes long at first, counts apart, and changes nothing."""
        if self.compiled:
            began = time.perf_counter()
            program.prepare(images, labels)
            self.preparing += time.perf_counter() - began

    @contextlib.contextmanager
    def _in_one(self) -> Iterator[None]:
        """Notes when the block is not finished: variables and progress may be of two different steps then."""
        self.whole = False
        yield
        self.whole = True

    def _or_undone(self, images: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
        """An eager step; if it fails, every variable is put back. (A compiled one works in place.)"""
        before = [(v, v._own) for v in self.variables().values()]
        try:
            return self.step(images, labels)
        except BaseException:
            for variable, old in before:
                variable.put_back(old)
            self.optimizer.zero_grad()
            self.whole = True
            raise

    def _count(self, loss: float, correct: int, size: int, sums: dict[str, Any], place: dict[str, Any]) -> None:
        if math.isfinite(loss):  # else the step was skipped
            sums["loss"] += loss * size
            sums["correct"] += correct
            sums["images"] += size
        sums["steps"] += 1
        self.progress.step += 1
        self.progress.loader = place
        if self.schedule_steps:
            self.schedule.step()

    def _close_epoch(self, sums: dict[str, Any]) -> dict[str, Any]:
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1, "step": progress.step, "lr": float(self.optimizer.lr),
            "loss": _mean(sums, "loss"), "accuracy": _mean(sums, "correct"),
            "images_per_second": sums["images"] / max(sums["seconds"], 1e-9),
        }  # fmt: skip
        if self.loss_scale is not None:
            row |= {"loss_scale": self.loss_scale.factor.item(), "skipped_steps": self.loss_scale.skipped.item()}
        if self.val is not None:
            val = self._score()
            row |= {"val_loss": val.loss, "val_accuracy": val.accuracy, "val_top5": val.top5}
        with signals.held():
            with self._in_one():
                if self.schedule is not None and not self.schedule_steps:
                    metric = (row.get("val_loss", row["loss"]),) if self.schedule.needs_metric else ()
                    self.schedule.step(*metric)
                progress.epoch, progress.running, progress.loader = progress.epoch + 1, {}, self._place()
                progress.history.append(row)
            measure = row.get("val_accuracy", row["accuracy"])
            if measure > progress.best:
                self.save(BEST)
                progress.best = measure
            self.save()
        if self.output is not None and distributed.rank() == 0 and have_matplotlib():
            plot_history(progress.history, self.output / CURVES, str(progress.settings.get("network", "")))
        return row

    def _place(self) -> dict[str, Any]:
        """Where the training loader is; empty for one that cannot say."""
        return self.train.state_dict() if hasattr(self.train, "state_dict") else {}

    def _score(self) -> Score:
        """Validation. It is the same after an interruption: the loader's order goes by the epoch, and random numbers that
        are drawn until one count only when it is done."""
        if hasattr(self.val, "set_epoch"):
            self.val.set_epoch(self.progress.epoch)
        generator = tw.random.generator()
        before = generator._own
        try:
            return score(self.model, self.val, self._score_batch)
        except BaseException:
            generator.put_back(before)
            raise

    def _score_batch(self, images: Any, labels: Any) -> tuple[Any, Any, Any]:
        self._prepare(self.scoring, images, labels)
        return self.scoring(images, labels)


def _mean(sums: dict[str, Any], what: str) -> float:
    """A sum by images; not a number while there are none."""
    return sums[what] / sums["images"] if sums["images"] else math.nan


def fit(
    model: Any, train: Any, val: Any = None, *, epochs: int, optimizer: Any, schedule: Any = None,
    criterion: Callable[[Any, Any], Any] | None = None, output: Any = None, resume: bool = False,
    settings: dict[str, Any] | None = None, compiled: bool = True, devices: Any = None, clip: float | None = None,
    reporter: Reporter | None = None, checkpoint_every: float = 30.0, schedule_steps: bool = False,
    precision: Any = "fp32", shard_state: bool = False, batch_norm: str = "synchronised",
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
        precision: "bf16" or "fp16" for mixed precision (``tw.autocast``), the latter with a ``LossScale``. Parameters and
            updates stay float32; validation is in float32.
        devices: where to run: "gpu:all", a list of names, or "all" of the kind that the model is on. Each batch is split
            over them. In a job of several processes each process's loader reads its share: ``DataLoader(..., shard=)``.
        shard_state: split parameters and the optimizer's moments over the devices instead of keeping all on each.
        batch_norm: "synchronised" statistics are those of the whole batch, as on one device; "per_replica" ones are each
            device's own, and running statistics move towards their mean.

    Returns the history: for each epoch its loss, accuracy, validation scores and images/s.
    Raises NonFiniteError, naming the layer, when the loss is not a number; the variables keep their last good values.
    """
    trainer = Trainer(
        model, train, val, optimizer=optimizer, schedule=schedule, criterion=criterion, output=output,
        settings=settings, compiled=compiled, devices=devices, clip=clip, checkpoint_every=checkpoint_every,
        schedule_steps=schedule_steps, precision=precision, shard_state=shard_state, batch_norm=batch_norm,
    )  # fmt: skip
    if resume:
        trainer.resume()
    return trainer.run(epochs, reporter)
