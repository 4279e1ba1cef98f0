"""Gathers, scatters, one-hot. Ranges are checked as in the reference (see ``checks``)."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from twofold.backends.xla.checks import in_range
from twofold.backends.xla.table.elementwise import is_narrow


def _add_at(shape: Any, places: Any, updates: Any) -> Any:
    if updates.dtype == jnp.bool_:  # a sum of bools: whether any is true
        return jnp.zeros(shape, jnp.bool_).at[places].max(updates, mode="drop")
    wide = updates.astype(jnp.float32) if is_narrow(updates) else updates
    return jnp.zeros(shape, wide.dtype).at[places].add(wide, mode="drop").astype(updates.dtype)


def _gather(x: Any, indices: Any, *, axis: int) -> Any:
    return jnp.take(x, in_range("take", indices, x.shape[axis], axis), axis, mode="clip")


def _scatter_add(updates: Any, indices: Any, *, axis: int, size: int) -> Any:
    places = in_range("scatter_add", indices, size, axis)
    shape = (*updates.shape[:axis], size, *updates.shape[axis + indices.ndim :])
    return _add_at(shape, (*(slice(None),) * axis, places), updates)


def _along(x: Any, indices: Any, *, axis: int) -> Any:
    return jnp.take_along_axis(x, in_range("take_along_axis", indices, x.shape[axis], axis), axis, mode="clip")


def _add_along(updates: Any, indices: Any, *, axis: int, size: int) -> Any:
    grid = jnp.ogrid[tuple(slice(n) for n in indices.shape)]
    checked = in_range("add_along_axis", indices, size, axis)
    places = tuple(checked if i == axis else g for i, g in enumerate(grid))
    return _add_at(tuple(size if i == axis else d for i, d in enumerate(updates.shape)), places, updates)


def _points(name: str, indices: Any, shape: Any) -> tuple[Any, ...]:
    return tuple(in_range(name, indices[..., i], shape[i], i) for i in range(indices.shape[-1]))


def _add_nd(updates: Any, indices: Any, *, shape: Any) -> Any:
    return _add_at(shape, _points("add_nd", indices, shape), updates)


def _scatter_nd(x: Any, indices: Any, updates: Any) -> Any:
    """XLA leaves open which of several updates to one place wins; the last must, so all others are dropped."""
    places = _points("scatter_nd", indices, x.shape)
    if not places or not indices.size:
        return updates.reshape(-1, *x.shape)[-1] if indices.shape[-1] == 0 and updates.size else x
    lead = x.shape[: indices.shape[-1]]
    rank = jnp.arange(math.prod(indices.shape[:-1])).reshape(indices.shape[:-1])
    last = jnp.full(lead, -1, rank.dtype).at[places].max(rank, mode="drop")
    outside = jnp.where(last[places] == rank, places[0], lead[0])
    return x.at[(outside, *places[1:])].set(updates, mode="drop")


def _one_hot(indices: Any, *, depth: int, dtype: Any) -> Any:
    checked = in_range("one_hot", indices, depth, indices.ndim, negative=False)
    return (checked[..., None] == jnp.arange(depth)).astype(dtype.numpy)


ROWS = {
    "gather": _gather, "scatter_add": _scatter_add, "take_along_axis": _along, "add_along_axis": _add_along,
    "gather_nd": lambda x, indices: x[_points("gather_nd", indices, x.shape)], "add_nd": _add_nd,
    "scatter_nd": _scatter_nd, "one_hot": _one_hot,
}  # fmt: skip
