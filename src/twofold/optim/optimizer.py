"""``Optimizer``: what all optimizers share: parameter groups, state variables, saving.

Moments, step counts and learning rates are variables made when the optimizer is made, so ``step()`` runs unchanged in a
traced function: they are its state, and a new learning rate needs no new trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from twofold.base.errors import ArgumentError, WeightsError
from twofold.base.shapes import show
from twofold.ir import Value, current_builder, grad_mode
from twofold.ir.assumed import changed, fixed
from twofold.ops.convert import cast
from twofold.optim.whole import WholeStep
from twofold.tensor.tensor import Tensor, concrete
from twofold.tensor.variable import Variable


class Group:
    """Parameters that share settings. ``group["lr"]`` reads and sets one, as in PyTorch."""

    def __init__(
        self, number: int, params: list[Variable], settings: dict[str, Any], check: Callable[[Mapping[str, Any]], None]
    ):
        self.params, self.check = params, check
        self.number = number
        precise = any(p.dtype == "float64" for p in params)
        where = params[0].device
        self.rate = Variable(
            np.asarray(settings.pop("lr"), "float64" if precise else "float32"), name=f"lr.{number}", device=where
        )
        self.settings = settings

    def __getitem__(self, key: str) -> Any:
        if key == "lr":
            return float(self.rate.numpy())
        return self.params if key == "params" else self.settings[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            _outside_traces("the learning rate")
            _not_negative("lr", value)
            self.rate.set_array(concrete(np.asarray(float(value)), self.rate.dtype, self.rate.device))
        elif key in self.settings:
            self.check({**self.settings, key: value})
            self.settings[key] = value
            changed()
        else:
            raise ArgumentError(f"setting {key!r} is unknown; expected lr, {', '.join(self.settings)}")

    def assumed(self) -> dict[str, Any]:
        """What traces of the optimizer's step take for granted. (The learning rate is a variable.)"""
        return {name: fixed(value) for name, value in self.settings.items() if name != "initial_lr"}

    def keys(self) -> list[str]:
        """Names of the settings."""
        return ["params", "lr", *self.settings]

    def __repr__(self) -> str:
        settings = {"lr": self["lr"], **self.settings}
        return f"Group({len(self.params)} parameters, {', '.join(f'{k}={v}' for k, v in settings.items())})"


def _outside_traces(what: str) -> None:
    if current_builder() is not None:
        raise ArgumentError(
            f"{what} is set by Python and would be fixed in this trace; set it outside the compiled function"
        )


class Optimizer:
    """Base of optimizers. A subclass names its ``slots`` and writes ``update``.

    ``params`` is an iterable of parameters, of ``(name, parameter)`` pairs, or of dicts ``{"params": ..., "lr": ...}``
    for groups with their own settings.
    """

    def __init__(self, params: Iterable[Any], lr: float, **defaults: Any):
        _not_negative("lr", lr)
        self.param_groups: list[Group] = []
        self._state: dict[str, dict[int, Variable]] = {}
        self._steps: list[Variable] = []
        self._whole: WholeStep | None = None
        self._defaults = {"lr": lr, **defaults}
        given = list(params)
        for group in given if given and isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    # -- what a subclass writes ----------------------------------------------------------------------------------------
    def slots(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the state kept for each parameter (variables of its shape, zero at first)."""
        return ()

    counts_steps = False
    # True in a class whose ``update`` reads nothing but its arguments, and for it alone: eager steps may then be compiled
    traceable: ClassVar[bool]

    def update(
        self, p: Value, g: Value, lr: Value, state: dict[str, Value], step: Value | None, s: Mapping[str, Any]
    ) -> Value:
        """The new parameter; new state goes into ``state``. ``step`` counts from 1, ``s`` are the group's settings."""
        raise NotImplementedError(f"{type(self).__name__} has no update()")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ArgumentError for settings that make no sense."""
        for name, value in settings.items():
            if value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool)):
                _not_negative(name, value)

    # -- groups --------------------------------------------------------------------------------------------------------
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """More parameters, with settings of their own where given."""
        unknown = set(group) - {"params", *self._defaults}
        if unknown:
            raise ArgumentError(
                f"{type(self).__name__}: unknown setting {min(unknown)!r}; expected {', '.join(self._defaults)}"
            )
        if "params" not in group:
            raise ArgumentError(f"{type(self).__name__}: a group has no 'params'; it has {', '.join(map(str, group))}")
        params = _parameters(type(self).__name__, group["params"])
        known = {id(p) for g in self.param_groups for p in g.params}
        if len({id(p) for p in params}) < len(params) or any(id(p) in known for p in params):
            raise ArgumentError(f"{type(self).__name__}: a parameter was given twice")
        settings = {**self._defaults, **{k: v for k, v in group.items() if k != "params"}}
        self.check(settings)
        first = sum(len(g.params) for g in self.param_groups)
        self._whole = None
        made = Group(len(self.param_groups), params, settings, self.check)
        self.param_groups.append(made)
        changed()
        for slot in self.slots(settings):
            rows = self._state.setdefault(slot, {})
            for i, p in enumerate(params, first):
                zeros = np.zeros([int(d) for d in p.shape], p.dtype.numpy)
                rows[i] = Variable(zeros, p.dtype, name=f"{slot}.{p.name or i}", device=p.device)
        if self.counts_steps:
            self._steps.append(Variable(np.zeros((), np.int64), name=f"step.{made.number}", device=params[0].device))

    def assumed(self) -> dict[str, Any]:
        """What traces of ``step`` take for granted, beside what each group's do."""
        return {"param_groups": fixed(self.param_groups)}

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets all groups."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def parameters(self) -> Iterator[Variable]:
        """The parameters of all groups."""
        return (p for group in self.param_groups for p in group.params)

    # -- training ------------------------------------------------------------------------------------------------------
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        if "traceable" in vars(type(self)):
            if self._whole is None:
                self._whole = WholeStep()
            if self._whole.run(self):
                return
        self.step_by_ops()

    def step_by_ops(self) -> None:
        """``step``, one parameter after the other."""
        index = 0
        builder = current_builder()
        if builder is not None:
            builder.watch(self, type(self).__name__)
        with grad_mode(False):
            for group in self.param_groups:
                if builder is not None:
                    builder.watch(group, f"{type(self).__name__}.param_groups[{group.number}]")
                step = self._next_step(group)
                for p in group.params:
                    g = p.grad
                    if g is not None:
                        self._update(index, p, g.value, group, step)
                    index += 1

    def _next_step(self, group: Group) -> Value | None:
        if not self.counts_steps:
            return None
        counter = self._steps[group.number]
        counter.assign(counter + 1)
        return cast(counter.value, group.rate.dtype)

    def _update(self, index: int, p: Variable, g: Value, group: Group, step: Value | None) -> None:
        rows = {slot: table[index] for slot, table in self._state.items() if index in table}
        state = {slot: variable.value for slot, variable in rows.items()}
        x = p.value
        precise = x.dtype if x.dtype.bits >= 32 else group.rate.dtype  # 16-bit parameters are updated in float32
        lr, now = cast(group.rate.value, precise), None if step is None else cast(step, precise)
        new = self.update(x, cast(g, x.dtype), lr, state, now, group.settings)
        for slot, variable in rows.items():
            variable.assign(Tensor(state[slot]))
        p.assign(Tensor(new))

    # -- saving --------------------------------------------------------------------------------------------------------
    def named_variables(self) -> Iterator[tuple[str, Variable]]:
        """All state: ``lr.0``, ``step.0``, ``momentum.3`` (the fourth parameter's)."""
        yield from ((f"lr.{g.number}", g.rate) for g in self.param_groups)
        yield from ((f"step.{i}", v) for i, v in enumerate(self._steps))
        yield from ((f"{slot}.{i}", v) for slot, table in self._state.items() for i, v in table.items())

    def variables(self) -> Iterator[Variable]:
        """All that ``step`` may write: the parameters, then the state."""
        yield from self.parameters()
        yield from (v for _, v in self.named_variables())

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {name: array}, "groups": [settings]}``: everything ``load_state_dict`` needs, as copies."""
        return {
            "state": {name: v.numpy().copy() for name, v in self.named_variables()},
            "groups": [{"size": len(g.params), **g.settings} for g in self.param_groups],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the ``state_dict`` of an optimizer for the same parameters; WeightsError if it does not fit."""
        own, (saved, groups) = dict(self.named_variables()), _saved(type(self).__name__, state)
        sizes, expected = [g["size"] for g in groups], [len(g.params) for g in self.param_groups]
        wrong = [n for n, v in own.items() if n in saved and tuple(np.shape(saved[n])) != v.shape]
        if sizes != expected or set(own) != set(saved) or wrong:
            rows = [f"{n}: shape {show(np.shape(saved[n]))}, expected {show(own[n].shape)}" for n in wrong[:5]]
            raise WeightsError(
                f"state does not fit this {type(self).__name__}: group sizes {sizes}, expected {expected}; "
                f"missing {sorted(set(own) - set(saved))[:5]}; unexpected {sorted(set(saved) - set(own))[:5]}; {rows}"
            )
        settings = [{k: _plain(v) for k, v in g.items() if k != "size"} for g in groups]
        for given in settings:
            if missing := sorted(set(self._defaults) - {"lr"} - given.keys()):
                raise WeightsError(f"state does not fit this {type(self).__name__}: a group lacks {', '.join(missing)}")
            self.check(given)
        for name, variable in own.items():
            variable.set_array(concrete(np.asarray(saved[name]), variable.dtype, variable.device))
        for group, given in zip(self.param_groups, settings):
            group.settings = given
        changed()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles compile their own steps."""
        return {**vars(self), "_whole": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.param_groups))})"


def _saved(name: str, state: Any) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The two parts of a state dict: arrays of numbers by name, and groups; WeightsError if it is none."""
    parts: Mapping[str, Any] = state if isinstance(state, Mapping) else {}
    saved: Any = parts.get("state")
    groups: Any = parts.get("groups")
    fine = isinstance(saved, Mapping) and isinstance(groups, (list, tuple))
    if not fine or not all(isinstance(g, Mapping) and isinstance(g.get("size"), int) for g in groups):
        raise WeightsError(f"{name}: this is no state; expected {{'state': ..., 'groups': [...]}}, as state_dict() gives")
    for key, array in saved.items():
        if np.asarray(array).dtype.kind in "OUSM":
            raise WeightsError(f"{name}: {key} in the state holds {np.asarray(array).dtype}; expected numbers")
    return saved, list(groups)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _not_negative(name: str, value: Any) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, str) or not 0 <= number < math.inf:
        raise ArgumentError(f"{name}={value!r}; expected a number that is not negative")


def _parameters(name: str, params: Any) -> list[Variable]:
    given = [params] if isinstance(params, Tensor) else list(params)
    out: list[Variable] = []
    for item in given:
        p = item[1] if isinstance(item, tuple) else item
        if not isinstance(p, Variable):
            raise ArgumentError(f"{name}: got a {type(p).__name__}; expected Parameters, as model.parameters() gives")
        out.append(p)
    if not out:
        raise ArgumentError(f"{name}: no parameters; pass model.parameters()")
    return out
