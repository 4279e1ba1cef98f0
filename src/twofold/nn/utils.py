"""``tw.nn.utils``: gradient clipping. Works in eager and in traced steps."""

from __future__ import annotations

from collections.abc import Iterable

from twofold.base.dtypes import sum_dtype
from twofold.base.errors import ArgumentError
from twofold.ir import grad_mode
from twofold.ops.convert import cast
from twofold.ops.elementwise import abs_, clip, minimum, sqrt
from twofold.ops.movement import stack
from twofold.ops.reduction import max as max_
from twofold.ops.reduction import sum as sum_
from twofold.tensor.functions import zeros
from twofold.tensor.tensor import Tensor


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale all gradients so that their norm, taken together, is at most ``max_norm``; the norm before is returned.

    ``norm_type`` is 2 or ``inf``. Gradients that are None are left alone.
    """
    chosen = [p for p in _several(parameters) if p.grad is not None]
    if not chosen:
        return zeros(())
    with grad_mode(False):
        gradients = [p.grad.value for p in chosen]  # type: ignore[union-attr]
        wide = [cast(g, sum_dtype(g.dtype)) for g in gradients]
        if norm_type == 2.0:
            squares = stack([cast(sum_(g * g), "float32") for g in wide])
            total = sqrt(sum_(squares))
        elif norm_type == float("inf"):
            total = max_(stack([cast(max_(abs_(g)), "float32") for g in gradients]))
        else:
            raise ArgumentError(f"clip_grad_norm_: norm_type={norm_type}; expected 2 or inf")
        scale = minimum(float(max_norm) / (total + 1e-6), 1.0)
        for p, g in zip(chosen, gradients):
            p.grad = Tensor(g * cast(scale, g.dtype))
    return Tensor(total)


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Limit every element of every gradient to ``[-clip_value, clip_value]``."""
    with grad_mode(False):
        for p in _several(parameters):
            if p.grad is not None:
                p.grad = Tensor(clip(p.grad.value, -float(clip_value), float(clip_value)))


def _several(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
