"""Dynamic loss scaling, which float16 needs: its smallest number is 6e-8, and gradients below that would be 0.

The loss is multiplied by a factor before ``backward``, so all gradients are larger by it; they are divided by it before the
update. The factor is found while training (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2): it doubles after many
good steps; a step whose gradients are not finite is left out, and halves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from twofold.base.dtypes import float32
from twofold.base.errors import ArgumentError, WeightsError
from twofold.ir import Value, grad_mode
from twofold.ops.convert import cast
from twofold.ops.elementwise import isfinite, maximum, minimum, where
from twofold.ops.movement import stack
from twofold.ops.reduction import all as all_
from twofold.optim.optimizer import Optimizer
from twofold.tensor.tensor import Tensor, concrete
from twofold.tensor.variable import Variable


class LossScale:
    """The factor on a float16 training's loss, and when to change it.

    Its state is in variables, so a traced step is one program, and ``state_dict`` is what a resumed training needs.

    Args:
        initial: the factor at first; 65536 is soon brought down to what a network bears.
        growth_interval: the factor doubles after as many good steps in a row.
        minimum, maximum: its bounds. A step that is not finite at the minimum is no matter of scale (``exhausted``).

    >>> import twofold as tw
    >>> w = tw.nn.Parameter([1.0])
    >>> opt, scale = tw.optim.SGD([w], lr=0.1), tw.optim.LossScale()
    >>> scale.scale((w * w).sum()).backward()
    >>> scale.step(opt).item(), round(w.item(), 6)
    (True, 0.8)
    """

    def __init__(
        self, initial: float = 2.0**16, growth_interval: int = 2000, minimum: float = 1.0, maximum: float = 2.0**24, *,
        device: Any = None,
    ):  # fmt: skip
        if not 0 < minimum <= initial <= maximum or growth_interval < 1:
            raise ArgumentError(
                f"LossScale: initial={initial}, minimum={minimum}, maximum={maximum}, growth_interval={growth_interval}; "
                "expected 0 < minimum <= initial <= maximum, and an interval of at least 1"
            )
        self.growth_interval, self.minimum, self.maximum = int(growth_interval), float(minimum), float(maximum)
        self.factor = Variable(np.float32(initial), name="loss_scale", device=device)
        self.good_steps = Variable(np.int64(0), name="loss_scale.good_steps", device=device)  # in a row
        self.skipped = Variable(np.int64(0), name="loss_scale.skipped", device=device)  # in all

    # -- a step --------------------------------------------------------------------------------------------------------
    def scale(self, loss: Tensor) -> Tensor:
        """``loss`` times the factor, in float32: what ``backward`` is called on."""
        return Tensor(cast(loss.value, float32) * self.factor.value)

    def unscale(self, optimizer: Optimizer) -> Tensor:
        """Divide all gradients by the factor; whether all are finite (a bool). Clip them after this."""
        with grad_mode(False):
            given = [(p, p.grad.value) for p in optimizer.parameters() if p.grad is not None]
            if not given:
                raise ArgumentError("LossScale: no parameter has a gradient; call scale(loss).backward() first")
            finite = all_(finite_each([g for _, g in given]))
            share = 1.0 / self.factor.value
            for p, g in given:
                p.grad = Tensor(g * cast(share, g.dtype))
            return Tensor(finite)

    def step(self, optimizer: Optimizer, finite: Tensor | None = None) -> Tensor:
        """Update the parameters if all gradients are finite, else leave everything as it is; then adapt the factor.

        ``finite``: what ``unscale`` returned, if it was called (to clip gradients); else it is called here. Returns
        whether the step was made.
        """
        finite = self.unscale(optimizer) if finite is None else finite
        before = present(optimizer.variables())
        optimizer.step()
        keep_if(finite, before)
        self.update(finite)
        return finite

    def exhausted(self) -> Tensor:
        """Whether the factor is at its minimum (a bool)."""
        return self.factor <= self.minimum

    def update(self, finite: Tensor) -> None:
        """Adapt the factor to one more step that was finite or not."""
        with grad_mode(False):
            good, factor = finite.value, self.factor.value
            row = where(good, self.good_steps.value + 1, 0)
            grown = row >= self.growth_interval
            larger, smaller = minimum(factor * 2.0, self.maximum), maximum(factor * 0.5, self.minimum)
            self.factor.assign(Tensor(where(good, where(grown, larger, factor), smaller)))
            self.good_steps.assign(Tensor(where(grown, 0, row)))
            self.skipped.assign(Tensor(where(good, self.skipped.value, self.skipped.value + 1)))

    # -- saving --------------------------------------------------------------------------------------------------------
    def named_variables(self) -> Iterator[tuple[str, Variable]]:
        """All state."""
        return ((name, getattr(self, name)) for name in ("factor", "good_steps", "skipped"))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the state."""
        return {name: v.numpy().copy() for name, v in self.named_variables()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``; WeightsError if it is none."""
        own = dict(self.named_variables())
        if set(state) != set(own):
            raise WeightsError(f"LossScale: the state has {', '.join(sorted(state))}; expected {', '.join(own)}")
        for name, variable in own.items():
            variable.set_array(concrete(np.asarray(state[name]), variable.dtype, variable.device))

    def __repr__(self) -> str:
        return (
            f"LossScale({self.factor.item():g}, growth_interval={self.growth_interval}, skipped={self.skipped.item()})"
        )


def finite_each(values: Sequence[Value]) -> Value:
    """For each value whether all its numbers are finite: bools (n,), from one pass over each."""
    return stack([all_(isfinite(v)) for v in values])


def present(variables: Iterable[Variable]) -> list[tuple[Variable, Tensor]]:
    """The variables with their present values, for ``keep_if``."""
    return [(v, Tensor(v.value)) for v in variables]


def keep_if(good: Tensor, before: Iterable[tuple[Variable, Tensor]]) -> None:
    """Let variables keep what they were assigned since ``before`` if ``good`` (a bool), else put them back."""
    with grad_mode(False):
        for variable, old in before:
            if variable.value is not old.value:
                variable.assign(Tensor(where(good.value, variable.value, old.value)))
