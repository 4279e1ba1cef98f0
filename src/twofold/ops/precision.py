"""Mixed precision: which ops compute in 16 bits inside ``autocast``, and which in float32.

    LOW      products: operands go down to 16 bits and the result stays there (the sums inside are float32)
    FULL     what overflows 16 bits or loses digits that matter: 16-bit operands go up to float32
    others   follow their operands; where a 16-bit array meets a float32 one, the result is float32, as ever

float64 is left alone. The casts are ops of their own, in the record and in the graph, so the gradient of a float32
parameter is float32; each gradient is computed in the dtypes of the op that it belongs to, wherever it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from twofold.base.dtypes import DType, as_dtype, bfloat16, float16, float32, promote
from twofold.base.errors import ArgumentError, DtypeError
from twofold.ir import Op, Value, context, precision_mode
from twofold.ops.convert import cast, value
from twofold.ops.movement import broadcast_to

LOW = frozenset({"matmul", "conv", "conv_input_grad", "conv_weight_grad"})
FULL = frozenset({
    "sum", "prod", "cumulative_sum", "cumulative_prod",
    "exp", "expm1", "log", "log1p", "log2", "log10", "logaddexp", "pow", "reciprocal",
    "sinh", "cosh", "tan", "asin", "acos", "acosh", "atanh",
})  # fmt: skip

PRECISIONS: dict[str, DType] = {"fp32": float32, "bf16": bfloat16, "fp16": float16}
_NARROW = (bfloat16, float16)


@dataclass(frozen=True)
class Policy:
    """What ``autocast`` does to the operands of an op: the tables above, with ``low`` for 16 bits."""

    low: DType

    def operands(self, op: Op, inputs: Sequence[Value]) -> Sequence[Value]:
        """The operands that ``op`` is to be applied to."""
        if op.name in LOW:
            if any(v.dtype is not float32 and v.dtype not in _NARROW for v in inputs):
                return inputs
            return tuple(cast(v, self.low) for v in inputs)
        return tuple(map(_raised, inputs)) if op.name in FULL else inputs


POLICIES: dict[DType, Policy | None] = {float32: None, **{low: Policy(low) for low in _NARROW}}


def policy_of(precision: Any) -> Policy | None:
    """The policy of a precision by name (``"bf16"``) or dtype; None for float32, which casts nothing."""
    try:
        return POLICIES[as_dtype(PRECISIONS.get(precision, precision))]
    except (DtypeError, KeyError, TypeError):
        names = ", ".join(map(repr, PRECISIONS))
        raise ArgumentError(f"precision {precision!r} is unknown; expected one of {names}") from None


def autocast(precision: Any) -> AbstractContextManager[None]:
    """Mixed precision in the block: products in 16 bits, what would suffer from that in float32. Also a decorator.

    ``precision``: ``"bf16"``, ``"fp16"``, or ``"fp32"``, which ends it in an inner block. Parameters stay float32; it
    holds for what is applied in the block, eagerly or while a graph is recorded, on this thread.

    >>> import twofold as tw
    >>> x, w = tw.ones((2, 3)), tw.ones((3, 2))
    >>> with tw.autocast("bf16"):
    ...     y = x @ w
    >>> y.dtype, (x @ w).dtype
    (twofold.bfloat16, twofold.float32)
    """
    return precision_mode(policy_of(precision))


def _raised(x: Any) -> Any:
    return cast(x, float32) if isinstance(x, Value) and x.dtype in _NARROW else x


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of values that belongs to FULL as a whole: inside ``autocast`` it takes, and gives, no 16-bit floats."""

    @functools.wraps(function)
    def raised(*args: Any, **kwargs: Any) -> Any:
        if context.precision is None:
            return function(*args, **kwargs)
        return function(*map(_raised, args), **{name: _raised(x) for name, x in kwargs.items()})

    return raised


def rounded_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of values that adds up many elements: 16-bit floats go in as float32, and what comes out is rounded to
    their dtype once, unless a wider array was given too, or a ``dtype`` asked for. Inside ``autocast`` it belongs to FULL."""

    @in_float32
    @functools.wraps(function)
    def wide(x: Any, *others: Any, **options: Any) -> Any:
        x = value(x)
        if x.dtype not in _NARROW:
            return function(x, *others, **options)
        if options.get("dtype") is not None:  # the function sees to it
            return function(cast(x, float32), *others, **options)
        dtype = x.dtype
        for other in (*others, *options.values()):
            if hasattr(other, "dtype") and as_dtype(other.dtype).is_floating:
                dtype = promote(dtype, as_dtype(other.dtype))
        y = function(cast(x, float32), *others, **options)
        return cast(y, dtype) if dtype in _NARROW else y

    return wide


def beside(parameter: Value, x: Value) -> Value:
    """A float32 parameter (a bias, a slope) as it meets ``x``: inside ``autocast`` it goes down with a 16-bit ``x``, so
    that the result stays in 16 bits. For its gradient it is laid over ``x`` before, so that this is added up after the cast
    back."""
    if context.precision is None or x.dtype not in _NARROW or parameter.dtype is not float32:
        return parameter
    return cast(broadcast_to(parameter, x.shape) if context.grad_enabled else parameter, x.dtype)


__all__ = ["FULL", "LOW", "PRECISIONS", "Policy", "autocast", "beside", "in_float32", "policy_of", "rounded_once"]
