"""Elementwise rows. As in the reference, float16 and bfloat16 are stored narrow and computed in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

Row = Callable[..., Any]


def is_narrow(x: Any) -> bool:
    """Whether ``x`` is a 16-bit float."""
    return x.dtype in (jnp.float16, jnp.bfloat16)


def computed_wide(row: Row) -> Row:
    """``row`` in float32 for 16-bit floats, rounded once at the end."""

    def wide(*xs: Any, **attrs: Any) -> Any:
        if not is_narrow(xs[0]):
            return row(*xs, **attrs)
        out = row(*(x.astype(jnp.float32) for x in xs), **attrs)
        return out.astype(xs[0].dtype) if out.dtype == jnp.float32 else out

    return wide


def _on_floats(row: Row) -> Row:
    """Rounding rows: integers are what they are."""
    return lambda x: row(x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _integers(row: Row) -> Row:
    """Division rows: NumPy gives 0 for an integer divided by 0, XLA gives -1."""

    def guarded(a: Any, b: Any) -> Any:
        if jnp.issubdtype(a.dtype, jnp.floating):
            return row(a, b)
        return jnp.where(b == 0, jnp.zeros((), a.dtype), row(a, jnp.where(b == 0, jnp.ones((), b.dtype), b)))

    return guarded


def _power(a: Any, b: Any) -> Any:
    """Of integers to a negative power: the quotient cut to an integer."""
    if not jnp.issubdtype(a.dtype, jnp.signedinteger):
        return jnp.power(a, b)
    unit = jnp.where(a == 1, 1, jnp.where(a == -1, jnp.where(b & 1, -1, 1), 0)).astype(a.dtype)
    return jnp.where(b < 0, unit, jnp.power(a, jnp.maximum(b, 0)))


def _reciprocal(x: Any) -> Any:
    return jnp.ones((), x.dtype) / x


_COMPUTED: dict[str, Row] = {
    "negative": jnp.negative, "abs": jnp.abs, "exp": jnp.exp, "expm1": jnp.expm1, "log": jnp.log, "log1p": jnp.log1p,
    "log2": jnp.log2, "log10": jnp.log10, "sqrt": jnp.sqrt, "sin": jnp.sin, "cos": jnp.cos, "tan": jnp.tan,
    "asin": jnp.arcsin, "acos": jnp.arccos, "atan": jnp.arctan, "sinh": jnp.sinh, "cosh": jnp.cosh, "tanh": jnp.tanh,
    "asinh": jnp.arcsinh, "acosh": jnp.arccosh, "atanh": jnp.arctanh, "sigmoid": lax.logistic, "erf": lax.erf,
    "square": jnp.square, "reciprocal": _reciprocal, "sign": jnp.sign, "floor": _on_floats(jnp.floor),
    "ceil": _on_floats(jnp.ceil), "trunc": _on_floats(jnp.trunc), "round": _on_floats(jnp.round),
    "relu": lambda x: jnp.maximum(x, jnp.zeros((), x.dtype)),
    "add": jnp.add, "subtract": jnp.subtract, "multiply": jnp.multiply, "divide": jnp.divide, "pow": _power,
    "maximum": jnp.maximum, "minimum": jnp.minimum, "atan2": jnp.arctan2, "hypot": jnp.hypot,
    "logaddexp": jnp.logaddexp, "remainder": _integers(jnp.remainder), "copysign": jnp.copysign,
    "floor_divide": _integers(jnp.floor_divide), "nextafter": jnp.nextafter,
}  # fmt: skip

_EXACT: dict[str, Row] = {
    "isfinite": jnp.isfinite, "isinf": jnp.isinf, "isnan": jnp.isnan, "signbit": jnp.signbit,
    "logical_not": jnp.logical_not, "bitwise_invert": jnp.bitwise_not,
    "equal": jnp.equal, "not_equal": jnp.not_equal, "less": jnp.less, "less_equal": jnp.less_equal,
    "greater": jnp.greater, "greater_equal": jnp.greater_equal,
    "logical_and": jnp.logical_and, "logical_or": jnp.logical_or, "logical_xor": jnp.logical_xor,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or, "bitwise_xor": jnp.bitwise_xor,
    "bitwise_left_shift": jnp.left_shift, "bitwise_right_shift": jnp.right_shift,
    "where": jnp.where,
    "cast": lambda x, *, dtype: x.astype(dtype.numpy),
    "detach": lambda x: x, "identity": lambda x: x, "barrier": lambda *xs: lax.optimization_barrier(xs),
}  # fmt: skip

ROWS: dict[str, Row] = {**{name: computed_wide(row) for name, row in _COMPUTED.items()}, **_EXACT}
