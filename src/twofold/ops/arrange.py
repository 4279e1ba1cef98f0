"""Rearrangements and patterns written with other ops: flip, roll, repeat, tile, triangles, grids, differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.base.dims import Dim
from twofold.base.dtypes import as_dtype, float32, int64
from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.base.shapes import axis_index, axis_tuple, broadcast, product, show
from twofold.ir import Value, bind
from twofold.ops.convert import cast, constant, value
from twofold.ops.creation import full, iota
from twofold.ops.elementwise import equal, greater_equal, less_equal, logical_xor, not_equal, subtract, where
from twofold.ops.gather import take
from twofold.ops.indexing import concrete_array
from twofold.ops.movement import FLIP, broadcast_to, concat, expand_dims, permute_dims, reshape, slice_along, squeeze
from twofold.ops.precision import rounded_once
from twofold.ops.reduction import CUMPROD, CUMSUM, _widened
from twofold.ops.reduction import sum as sum_


def flip(x: Any, /, *, axis: int | Sequence[int] | None = None) -> Value:
    """``x`` with the order of elements along ``axis`` (None: every axis) reversed."""
    x = value(x)
    axes = axis_tuple(axis, x.ndim)
    return bind(FLIP, x, axes=axes) if axes else x


def roll(x: Any, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None) -> Value:
    """Elements moved by ``shift`` places along ``axis``; those that leave at the end come in at the front."""
    x = value(x)
    if axis is None:
        return reshape(roll(reshape(x, -1), shift, axis=0), x.shape)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: {len(shifts)} shifts for {len(axes)} axes; expected as many")
    for one, places in zip(axes, shifts):
        one = axis_index(one, x.ndim)
        size = x.shape[one]
        if size == 0:
            continue
        places = places % size if isinstance(size, int) else places
        if places:
            cut = size - places if places > 0 else -places
            x = concat([slice_along(x, one, cut, size), slice_along(x, one, 0, cut)], axis=one)
    return x


def repeat(x: Any, repeats: Any, /, *, axis: int | None = None) -> Value:
    """Each element along ``axis`` (None: of the flattened array) ``repeats`` times: an int, or one for each element."""
    x = value(x)
    if axis is None:
        x, axis = reshape(x, -1), 0
    axis = axis_index(axis, x.ndim)
    size = x.shape[axis]
    if isinstance(repeats, Value):
        repeats = concrete_array(repeats, "repeat with an array of counts")
    counts = np.asarray(repeats)
    if counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
        raise ArgumentError(f"repeat: repeats {repeats!r}; expected integers that are not negative")
    if counts.size == 1:
        times = int(counts.reshape(()))
        wide = broadcast_to(expand_dims(x, axis + 1), (*x.shape[: axis + 1], times, *x.shape[axis + 1 :]))
        return reshape(wide, (*x.shape[:axis], size * times, *x.shape[axis + 1 :]))
    if counts.shape != (size,):
        raise ShapeError(
            f"repeat: repeats of shape {show(counts.shape)} for axis {axis} of {show(x.shape)}; expected ({size},)"
        )
    return take(x, np.repeat(np.arange(size), counts), axis=axis)


def tile(x: Any, repetitions: Sequence[int], /) -> Value:
    """``x`` laid out ``repetitions`` times along each axis (counted from the last)."""
    x = value(x)
    rank = max(x.ndim, len(repetitions))
    times = (1,) * (rank - len(repetitions)) + tuple(repetitions)
    shape = (1,) * (rank - x.ndim) + x.shape
    pairs = [p for t, d in zip(times, shape) for p in (t, d)]
    narrow = reshape(x, tuple(p for d in shape for p in (1, d)))
    return reshape(broadcast_to(narrow, pairs), tuple(t * d for t, d in zip(times, shape)))


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int], /) -> Value:
    """Axes ``source`` moved to ``destination``; the others keep their order."""
    x = value(x)
    come, go = (
        [axis_index(a, x.ndim) for a in (s if isinstance(s, (tuple, list)) else (s,))] for s in (source, destination)
    )
    if len(come) != len(go) or len(set(come)) != len(come) or len(set(go)) != len(go):
        raise ShapeError(
            f"moveaxis: source {source} and destination {destination}; expected as many distinct axes in both"
        )
    order = [i for i in range(x.ndim) if i not in come]
    for to, origin in sorted(zip(go, come)):
        order.insert(to, origin)
    return permute_dims(x, order)


def transpose(x: Any, first: int, second: int) -> Value:
    """Two dimensions exchanged."""
    x = value(x)
    order = list(range(x.ndim))
    a, b = axis_index(first, x.ndim), axis_index(second, x.ndim)
    order[a], order[b] = b, a
    return permute_dims(x, order)


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Value, ...]:
    """The slices of ``x`` along ``axis``, without that axis."""
    x = value(x)
    axis = axis_index(axis, x.ndim)
    return tuple(squeeze(slice_along(x, axis, i, i + 1), axis) for i in range(int(x.shape[axis])))


def broadcast_arrays(*arrays: Any) -> list[Value]:
    """The arrays in their common broadcast shape."""
    xs = [value(a) for a in arrays]
    shape = broadcast(*(x.shape for x in xs)) if xs else ()
    return [broadcast_to(x, shape) for x in xs]


def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Value]:
    """Coordinate grids of 1-d arrays. ``indexing`` "xy" puts the second array first (rows), "ij" keeps the order."""
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"meshgrid: indexing {indexing!r}; expected 'xy' or 'ij'")
    xs = [value(a) for a in arrays]
    if any(x.ndim > 1 for x in xs):
        raise ShapeError("meshgrid: expected 1-d arrays")
    if any(x.dtype is not xs[0].dtype for x in xs):
        raise DtypeError(f"meshgrid: dtypes {', '.join(x.dtype.name for x in xs)}; expected one")
    places = list(range(len(xs)))
    if indexing == "xy" and len(xs) > 1:
        places[0], places[1] = 1, 0
    wide = [reshape(x, tuple(product(x.shape) if i == p else 1 for i in range(len(xs)))) for x, p in zip(xs, places)]
    return broadcast_arrays(*wide)


# ---- triangles and diagonals -----------------------------------------------------------------------------------------


def _off_diagonal(x: Value) -> Value:
    """Column less row of each place of the last two dimensions."""
    rows, columns = x.shape[-2], x.shape[-1]
    return subtract(reshape(iota(columns), (1, columns)), reshape(iota(rows), (rows, 1)))


def _clamped(k: int, rows: Dim, columns: Dim) -> int:
    """A diagonal's number, or the nearest that also lies outside the matrix (so that any int fits int64)."""
    if isinstance(rows, int) and isinstance(columns, int):
        return max(-rows, min(k, columns))
    return k


def _matrices(name: str, x: Any) -> Value:
    x = value(x)
    if x.ndim < 2:
        raise ShapeError(f"{name}: {show(x.shape)} has fewer than two dimensions")
    return x


def tril(x: Any, /, *, k: int = 0) -> Value:
    """The lower triangle of (stacks of) matrices, up to diagonal ``k``; zero elsewhere."""
    x = _matrices("tril", x)
    return where(less_equal(_off_diagonal(x), _clamped(k, *x.shape[-2:])), x, full((), 0, x.dtype, like=x))


def triu(x: Any, /, *, k: int = 0) -> Value:
    """The upper triangle of (stacks of) matrices, from diagonal ``k``; zero elsewhere."""
    x = _matrices("triu", x)
    return where(greater_equal(_off_diagonal(x), _clamped(k, *x.shape[-2:])), x, full((), 0, x.dtype, like=x))


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Value:
    """A matrix with ones on diagonal ``k``."""
    n_cols = n_rows if n_cols is None else n_cols
    k = _clamped(k, n_rows, n_cols)
    columns, rows = iota(n_cols, device=device), iota(n_rows, device=device)
    hit = equal(reshape(columns, (1, n_cols)), reshape(rows, (n_rows, 1)) + k)
    return cast(hit, dtype or float32)


def linspace(
    start: float, stop: float, /, num: int, *, dtype: Any = None, device: Any = None, endpoint: bool = True
) -> Value:
    """``num`` evenly spaced numbers from ``start`` to ``stop`` (included unless ``endpoint`` is False)."""
    numbers = np.linspace(start, stop, num, endpoint=endpoint).astype(as_dtype(dtype or float32).numpy)
    return constant(numbers) if device is None else bind("constant", value=numbers, device=device)


# ---- counts, differences, running sums -------------------------------------------------------------------------------


def count_nonzero(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Value:
    """How many elements over ``axis`` are not zero (int64)."""
    x = value(x)
    hit = x if x.dtype.kind == "b" else not_equal(x, 0)
    return sum_(cast(hit, int64), axis=axis, keepdims=keepdims)


def diff(x: Any, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Value:
    """``n``-th differences of neighbours along ``axis``; ``prepend`` and ``append`` are joined to ``x`` first."""
    x = value(x)
    axis = axis_index(axis, x.ndim)
    if n < 0:
        raise ArgumentError(f"diff: n = {n}; expected 0 or more")
    parts = [p for p in (prepend, x, append) if p is not None]
    x = concat(parts, axis=axis)
    for _ in range(n):
        size = x.shape[axis]
        if size == 0:
            break
        later, earlier = slice_along(x, axis, 1, size), slice_along(x, axis, 0, size - 1)
        x = logical_xor(later, earlier) if x.dtype.kind == "b" else later - earlier
    return x


def _cumulative(op: Any, x: Any, axis: int | None, dtype: Any, include_initial: bool, start: int) -> Value:
    x = _widened(value(x), dtype)
    if axis is None:
        if x.ndim != 1:
            raise ShapeError(f"{op.name}: x has shape {show(x.shape)}; say which axis")
        axis = 0
    axis = axis_index(axis, x.ndim)
    out = bind(op, x, axis=axis)
    if not include_initial:
        return out
    first = full(tuple(1 if i == axis else d for i, d in enumerate(x.shape)), start, x.dtype, like=x)
    return concat([first, out], axis=axis)


@rounded_once
def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Value:
    """Running sums along ``axis``; with ``include_initial`` a zero stands before them."""
    return _cumulative(CUMSUM, x, axis, dtype, include_initial, 0)


@rounded_once
def cumulative_prod(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Value:
    """Running products along ``axis``; with ``include_initial`` a one stands before them."""
    return _cumulative(CUMPROD, x, axis, dtype, include_initial, 1)
