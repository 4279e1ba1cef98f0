"""Gathers, scatters, one-hot, top-k."""

from __future__ import annotations

from typing import Any

from twofold.base.dims import Sym
from twofold.base.dtypes import int64
from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.base.shapes import axis_index
from twofold.io.onnx.load.rows import row
from twofold.ir import Value, bind
from twofold.ops import cast, where
from twofold.ops import elementwise as el
from twofold.ops.creation import iota
from twofold.ops.gather import ADD_ND, gather_nd, scatter_nd, take, take_along_axis
from twofold.ops.movement import broadcast_to, expand_dims, reshape, slice_, stack
from twofold.ops.sorting import topk


@row("Gather")
def _gather(c: Any) -> Value:
    return take(c.value(0), c.value(1), axis=c.attr("axis", 0))


@row("GatherElements")
def _gather_elements(c: Any) -> Value:
    """Dimensions in which the indices are shorter are cut."""
    x, indices = c.value(0), c.value(1)
    axis = axis_index(c.attr("axis", 0), x.ndim)
    if indices.ndim != x.ndim:
        raise FormatError(f"indices {indices.spec} for {x.spec}; expected the same rank")
    x = slice_(x, [(0, d if i == axis else n, 1) for i, (d, n) in enumerate(zip(x.shape, indices.shape))])
    return take_along_axis(x, indices, axis=axis)


@row("GatherND")
def _gather_nd(c: Any) -> Value:
    x, indices = c.value(0), c.value(1)
    batch = c.attr("batch_dims", 0)
    return gather_nd(x, _with_batch(indices, batch) if batch else indices)


def _places(axis: int, shape: Any, like: Value) -> Value:
    """An array of ``shape`` that holds each element's place along ``axis``."""
    line = reshape(iota(shape[axis], like.dtype), [-1 if i == axis else 1 for i in range(len(shape))])
    return broadcast_to(line, shape)


def _with_batch(indices: Value, batch: int) -> Value:
    """Points that begin with the place in the first ``batch`` dimensions."""
    lead = indices.shape[:-1]
    grids = [_places(i, lead, indices) for i in range(batch)]
    columns = [slice_(indices, [*((0, d, 1) for d in lead), (k, k + 1, 1)]) for k in range(int(indices.shape[-1]))]
    return stack([*grids, *(reshape(column, lead) for column in columns)], axis=-1)


@row("ScatterElements", "Scatter")
def _scatter_elements(c: Any) -> Value:
    x, indices, updates = c.values()
    axis = axis_index(c.attr("axis", 0), x.ndim)
    columns = [indices if i == axis else _places(i, indices.shape, indices) for i in range(x.ndim)]
    return _scatter(c, x, stack(columns, axis=-1), updates)


@row("ScatterND")
def _scatter_nd(c: Any) -> Value:
    return _scatter(c, *c.values())


def _scatter(c: Any, x: Value, points: Value, updates: Value) -> Value:
    how = c.attr("reduction", "none")
    if how == "none":
        return scatter_nd(x, points, updates)
    if how == "add":
        return x + bind(ADD_ND, updates, points, shape=x.shape)
    raise UnsupportedOpError(f"reduction {how!r}; expected 'none' or 'add'")


@row("OneHot")
def _one_hot(c: Any) -> Value:
    """Indices may be negative; outside ``[-depth, depth)`` the row is all "off"."""
    indices, depth, (off, on) = cast(c.value(0), int64), c.number(1), _halves(c.value(2))
    depth = depth if isinstance(depth, Sym) else int(depth)
    axis = axis_index(c.attr("axis", -1), indices.ndim + 1)
    indices = where(indices < 0, indices + depth, indices)
    places = reshape(iota(depth, int64), [-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return where(el.equal(expand_dims(indices, axis), places), on, off)


def _halves(values: Value) -> tuple[Value, Value]:
    return tuple(reshape(slice_(values, [(i, i + 1, 1)]), ()) for i in (0, 1))  # type: ignore[return-value]


@row("TopK")
def _topk(c: Any) -> tuple[Value, Value]:
    x, axis = c.value(0), c.attr("axis", -1)
    k = int(c.number(1)) if c.opset >= 10 else c.attr("k")
    if x.dtype.kind == "u":  # any signed dtype orders them alike
        values, places = topk(cast(x, int64), k, axis=axis, largest=bool(c.attr("largest", 1)))
        return cast(values, x.dtype), places
    return topk(x, k, axis=axis, largest=bool(c.attr("largest", 1)))


@row("ReverseSequence")
def _reverse_sequence(c: Any) -> Value:
    """Each item of the batch has its first ``length`` steps mirrored."""
    x, lengths = c.value(0), cast(c.value(1), int64)
    time, batch = c.attr("time_axis", 0), c.attr("batch_axis", 1)
    steps = reshape(iota(x.shape[time], int64), [-1 if i == time else 1 for i in range(2)])
    lengths = reshape(lengths, [-1 if i == batch else 1 for i in range(2)])
    places = where(steps < lengths, lengths - 1 - steps, steps)
    places = reshape(places, (*places.shape, *(1,) * (x.ndim - 2)))
    return take_along_axis(x, broadcast_to(places, x.shape), axis=time)
