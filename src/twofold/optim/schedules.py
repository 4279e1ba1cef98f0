"""Learning-rate schedules. ``step()`` once an epoch (or a batch: the unit is what you count) sets the learning rates.

A schedule is a formula: ``rate(base, t)`` is the learning rate after ``t`` steps of a group that began with ``base``.
So schedules compose: ``LinearWarmup(opt, 5, after=CosineAnnealingLR(opt, 85))``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twofold.base.errors import ArgumentError, WeightsError
from twofold.optim.optimizer import Optimizer


class Schedule:
    """Base of schedules; a subclass writes ``rate``. Making one sets the learning rates of ``t = 0``."""

    needs_metric = False

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        # a schedule made for an optimizer that has one already starts from the same learning rates
        self.base_lrs: list[float] = [g.settings.setdefault("initial_lr", g["lr"]) for g in optimizer.param_groups]
        self.t = 0
        self._set()

    def rate(self, base: float, t: int) -> float:
        """The learning rate after ``t`` steps."""
        raise NotImplementedError(f"{type(self).__name__} has no rate()")

    def step(self) -> None:
        """Go on by one step."""
        self.t += 1
        self._set()

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.rate(base, self.t)

    def get_last_lr(self) -> list[float]:
        """The present learning rate of each group."""
        return [self.rate(base, self.t) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """How far the schedule is."""
        return {"t": self.t, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``; WeightsError, and nothing changes, if it is not one of an equal schedule."""
        self._check(state)
        self._take(state)
        self._set()

    def _take(self, state: Mapping[str, Any]) -> None:
        self.t, self.base_lrs = state["t"], list(state["base_lrs"])

    def _check(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        found = {name: state.get(name) for name in own} if isinstance(state, Mapping) else {"state": state}
        wrong = [name for name, value in found.items() if name not in own or not _like(value, own[name])]
        if wrong:
            rows = ", ".join(f"{name} is {str(found[name])[:60]}" for name in wrong)
            raise WeightsError(
                f"state does not fit this {type(self).__name__} of {len(self.base_lrs)} parameter groups: {rows}; expected "
                "what state_dict() of an equal schedule gives"
            )


class LambdaLR(Schedule):
    """``base * factor(t)`` for a function of yours."""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]):
        self.factor = factor
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * self.factor(t)


class StepLR(Schedule):
    """Times ``gamma`` every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1):
        self.step_size, self.gamma = _at_least_one("step_size", step_size), gamma
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * self.gamma ** (t // self.step_size)


class MultiStepLR(Schedule):
    """Times ``gamma`` at each of ``milestones``."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1):
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, t)


class ExponentialLR(Schedule):
    """Times ``gamma`` at each step."""

    def __init__(self, optimizer: Optimizer, gamma: float):
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * self.gamma**t


class CosineAnnealingLR(Schedule):
    """Half a cosine from the base to ``eta_min`` in ``T_max`` steps (Loshchilov and Hutter 2016, arXiv 1608.03983)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0):
        self.T_max, self.eta_min = _at_least_one("T_max", T_max), eta_min
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * t / self.T_max)) / 2


class PolynomialLR(Schedule):
    """``base * (1 - t / total)**power``, then 0."""

    def __init__(self, optimizer: Optimizer, total_iters: int, power: float = 1.0):
        self.total_iters, self.power = _at_least_one("total_iters", total_iters), power
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        return base * (1 - min(t, self.total_iters) / self.total_iters) ** self.power


class LinearWarmup(Schedule):
    """From ``start * base`` linearly to ``base`` in ``steps`` steps, then ``after`` (a schedule, which starts then)."""

    def __init__(self, optimizer: Optimizer, steps: int, start: float = 0.0, after: Schedule | None = None):
        self.steps, self.start, self.after = _at_least_one("steps", steps), start, after
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        if t < self.steps:
            return base * (self.start + (1 - self.start) * t / self.steps)
        return base if self.after is None else self.after.rate(base, t - self.steps)


class SequentialLR(Schedule):
    """Schedules one after another: the next begins, at its own t = 0, at each of ``milestones``."""

    def __init__(self, optimizer: Optimizer, schedules: Sequence[Schedule], milestones: Sequence[int]):
        if len(schedules) != len(milestones) + 1 or list(milestones) != sorted(milestones):
            raise ArgumentError(
                f"SequentialLR: {len(schedules)} schedules and milestones {list(milestones)}; expected one milestone "
                "fewer than schedules, in order"
            )
        self.schedules, self.milestones = list(schedules), list(milestones)
        super().__init__(optimizer)

    def rate(self, base: float, t: int) -> float:
        place = bisect.bisect_right(self.milestones, t)
        return self.schedules[place].rate(base, t - (self.milestones[place - 1] if place else 0))


class ReduceLROnPlateau(Schedule):
    """Times ``factor`` when the metric given to ``step`` has not improved for more than ``patience`` steps.

    ``mode`` is "min" or "max". Better means by more than ``threshold``: relative to the best ("rel") or not ("abs").
    After a reduction ``cooldown`` steps do not count. No learning rate goes below ``min_lr``.
    """

    needs_metric = True
    _STATE = ("best", "bad", "cooling", "lrs")

    def __init__(
        self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
        threshold_mode: str = "rel", cooldown: int = 0, min_lr: float = 0.0,
    ):  # fmt: skip
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs") or not factor < 1:
            raise ArgumentError(
                f"ReduceLROnPlateau: mode={mode!r}, threshold_mode={threshold_mode!r}, factor={factor}; "
                "expected 'min' or 'max', 'rel' or 'abs', below 1"
            )
        self.mode, self.factor, self.patience, self.cooldown, self.min_lr = mode, factor, patience, cooldown, min_lr
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.best = math.inf if mode == "min" else -math.inf
        self.bad = self.cooling = 0
        self.lrs = [g["lr"] for g in optimizer.param_groups]
        super().__init__(optimizer)

    def _set(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr

    def get_last_lr(self) -> list[float]:
        return list(self.lrs)

    def step(self, metric: Any = None) -> None:
        """Go on by one step, with what was measured."""
        if metric is None:
            raise ArgumentError(
                "ReduceLROnPlateau: step() needs the metric that is watched, for example the validation loss"
            )
        self.t += 1
        value = float(metric)
        if self._better(value):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.patience:
            self.cooling, self.bad = self.cooldown, 0
            self.lrs = [max(lr * self.factor, self.min_lr) for lr in self.lrs]
            self._set()

    def _better(self, value: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        margin = self.threshold * (abs(self.best) if self.threshold_mode == "rel" else 1)
        return sign * value < sign * self.best - (margin if math.isfinite(margin) else 0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in self._STATE}}

    def _take(self, state: Mapping[str, Any]) -> None:
        super()._take(state)
        for name in self._STATE:
            setattr(self, name, state[name])


def _like(value: Any, own: Any) -> bool:
    """Whether a saved value can stand for one's own: a count, a number, or a learning rate for each group."""
    if isinstance(own, list):
        return isinstance(value, (list, tuple)) and len(value) == len(own) and all(_is_rate(v) for v in value)
    if isinstance(own, int):
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ArgumentError(f"{name}={value}; expected at least 1")
    return value
