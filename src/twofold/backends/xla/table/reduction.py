"""Reductions, running sums and products, sorting. 16-bit floats are added up in float32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from twofold.backends.xla.table.elementwise import Row, computed_wide


def _over_axes(function: Any) -> Row:
    return computed_wide(lambda x, *, axes, keepdims: function(x, axis=axes, keepdims=keepdims).astype(x.dtype))


def _arg(function: Any) -> Row:
    return lambda x, *, axis, keepdims: function(x, axis=axis, keepdims=keepdims).astype(jnp.int64)


def _running(function: Any) -> Row:
    return computed_wide(lambda x, *, axis: function(x, axis=axis).astype(x.dtype))


def order(x: Any, axis: int, descending: bool) -> Any:
    """Positions (int64) in sorted order; equal elements keep their order, NaN is the largest."""
    if not descending:
        return jnp.argsort(x, axis=axis, stable=True).astype(jnp.int64)
    mirrored = jnp.argsort(jnp.flip(x, axis), axis=axis, stable=True)
    return jnp.flip(x.shape[axis] - 1 - mirrored, axis).astype(jnp.int64)


def _sort(x: Any, *, axis: int, descending: bool) -> Any:
    return jnp.take_along_axis(x, order(x, axis, descending), axis, mode="clip")


def _topk(x: Any, *, k: int, axis: int, largest: bool) -> tuple[Any, Any]:
    places = jnp.take(order(x, axis, largest), jnp.arange(k), axis, mode="clip")
    return jnp.take_along_axis(x, places, axis, mode="clip"), places


def _batch_norm_train(x: Any, weight: Any, bias: Any, *, eps: float) -> tuple[Any, Any, Any]:
    axes, shape = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    wide, weight, bias = (a.astype(jnp.promote_types(x.dtype, jnp.float32)) for a in (x, weight, bias))
    average = jnp.mean(wide, axis=axes)
    centred = wide - average.reshape(shape)
    variance = jnp.mean(centred * centred, axis=axes)
    scale = weight / jnp.sqrt(variance + eps)
    return (centred * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype), average, variance


ROWS: dict[str, Row] = {
    "batch_norm_train": _batch_norm_train,
    "sum": _over_axes(jnp.sum), "prod": _over_axes(jnp.prod), "max": _over_axes(jnp.max), "min": _over_axes(jnp.min),
    "any": lambda x, *, axes, keepdims: jnp.any(x, axis=axes, keepdims=keepdims),
    "all": lambda x, *, axes, keepdims: jnp.all(x, axis=axes, keepdims=keepdims),
    "argmax": _arg(jnp.argmax), "argmin": _arg(jnp.argmin),
    "cumulative_sum": _running(jnp.cumsum), "cumulative_prod": _running(jnp.cumprod),
    "sort": _sort, "argsort": lambda x, *, axis, descending: order(x, axis, descending), "topk": _topk,
    "searchsorted": lambda x1, x2, *, side: jnp.searchsorted(x1, x2, side=side).astype(jnp.int64),
}  # fmt: skip
