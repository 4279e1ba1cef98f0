"""``x[index]`` and ``x[index] = new``: NumPy's rules over slice, flip, gather and scatter."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from twofold.base.dims import Dim, Sym
from twofold.base.dtypes import bool_
from twofold.base.errors import IndexRangeError, ShapeError, TraceError
from twofold.base.shapes import broadcast, product, show
from twofold.ir import Value, bind
from twofold.ops.convert import cast, value
from twofold.ops.creation import full, iota
from twofold.ops.elementwise import where
from twofold.ops.gather import GATHER, GATHER_ND, SCATTER_ND
from twofold.ops.movement import FLIP, broadcast_to, concat, pad, permute_dims, reshape, slice_


class _Range(NamedTuple):
    """``start:stop:step`` of one dimension in order of memory (step positive), then reversed if ``flipped``."""

    start: Dim
    stop: Dim
    step: int
    flipped: bool
    dropped: bool  # an integer index: the dimension goes away


class _Plan(NamedTuple):
    """What an index does: ranges of every dimension of x, then a shape with new axes, then arrays at some axes."""

    ranges: list[_Range]
    shape: list[Dim]
    arrays: list[tuple[int, Value]]
    together: bool  # the arrays are neighbours in the index


def concrete_array(x: Value, what: str) -> np.ndarray:
    """The numbers of ``x``, for what cannot be done without; TraceError in a graph being built."""
    numpy = getattr(x, "numpy", None)
    if numpy is None:
        raise TraceError(
            f"{what} needs the numbers of a {x.spec} value now, but it is symbolic: the shape of the result depends on them. "
            "Use tw.where(mask, x, 0) or do this outside the compiled function"
        )
    return numpy()


def getitem(x: Value, index: Any) -> Value:
    """``x[index]``: integers, slices, ``...``, ``None``, integer arrays, boolean masks (eager only)."""
    plan = _plan(x, index)
    out = reshape(_take_ranges(x, plan.ranges), tuple(plan.shape))
    if not plan.arrays:
        return out
    if len(plan.arrays) == 1:
        ((axis, places),) = plan.arrays
        return bind(GATHER, out, places, axis=axis)
    return _take_points(out, [a for a, _ in plan.arrays], [p for _, p in plan.arrays], plan.together)


def setitem(x: Value, index: Any, new: Any) -> Value:
    """``x`` with ``x[index]`` replaced by ``new``, which is cast to ``x``'s dtype and broadcast."""
    new = cast(value(new, (x,)), x.dtype)
    mask = _whole_mask(x, index)
    if mask is not None and new.ndim == 0:
        return where(mask, new, x)
    plan = _plan(x, index)
    if plan.arrays:
        size = product(x.shape)
        places = getitem(reshape(iota(size), x.shape), index)
        updates = _fitted(new, places.shape)
        flat = bind(SCATTER_ND, reshape(x, (size,)), reshape(places, (*places.shape, 1)), updates)
        return reshape(flat, x.shape)
    part = reshape(_fitted(new, tuple(plan.shape)), tuple(_length(r) for r in plan.ranges))
    flips = tuple(i for i, r in enumerate(plan.ranges) if r.flipped)
    part = bind(FLIP, part, axes=flips) if flips else part
    widths, interior = _widths(x, plan.ranges)
    if not any(interior) and all(w == (0, 0) for w in widths):
        return part
    if 0 in part.shape:
        return x
    inside = pad(full(part.shape, True, like=x), widths, False, interior)
    return where(inside, pad(part, widths, 0, interior), x)


# ---- reading an index ------------------------------------------------------------------------------------------------


def _plan(x: Value, index: Any) -> _Plan:
    items = _expand(x, index)
    several = any(isinstance(i, (Value, _OnNewAxis)) for i in items)
    ranges: list[_Range] = []
    shape: list[Dim] = []
    arrays: list[tuple[int, Value]] = []
    places: list[int] = []  # of the arrays in the index
    for place, item in enumerate(items):
        if item is None:
            shape.append(1)
        elif item is Ellipsis:
            continue
        elif isinstance(item, _OnNewAxis):
            places.append(place)
            arrays.append((len(shape), item.places))
            shape.append(1)
        else:
            axis, size = len(ranges), x.shape[len(ranges)]
            if several and not isinstance(item, (slice, Value)):
                item = value(np.asarray(_integer(item, size, axis)), (x,))
            if isinstance(item, Value):
                _check_places(item, size, axis)
                places.append(place)
                arrays.append((len(shape), item))
                item = slice(None)
            ranges.append(_range(item, size, axis))
            shape += [] if ranges[-1].dropped else [_length(ranges[-1])]
    return _Plan(ranges, shape, arrays, places == list(range(places[0], places[-1] + 1)) if places else True)


class _OnNewAxis(NamedTuple):
    """Integer places along a new axis of size one: what a 0-d boolean index means."""

    places: Value


def _expand(x: Value, index: Any) -> list[Any]:
    """Index items, one for each dimension of ``x`` (others for new ones): masks become integer arrays. An ellipsis stays
    before the slices it stands for: even one that stands for none keeps arrays apart."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple) else (index,):
        if isinstance(item, (list, np.ndarray, bool, np.bool_)):
            item = value(np.asarray(item, np.int64) if isinstance(item, list) and not item else np.asarray(item), (x,))
        if isinstance(item, Value) and item.dtype is bool_:
            items += _mask_places(x, item, sum(map(_consumes, items)))
        else:
            items.append(item)
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexRangeError("an index can have only one ellipsis ('...')")
    consumed = sum(map(_consumes, items))
    if consumed > x.ndim:
        raise IndexRangeError(f"too many indices: {consumed} for an array of shape {show(x.shape)}")
    fill = [slice(None)] * (x.ndim - consumed)
    at = dots[0] if dots else len(items)
    return items[: at + 1] + fill + items[at + 1 :]


def _consumes(item: Any) -> bool:
    return item is not None and item is not Ellipsis and not isinstance(item, _OnNewAxis)


def _mask_places(x: Value, mask: Value, axis: int) -> list[Any]:
    numbers = concrete_array(mask, "a boolean index")
    if mask.ndim == 0:
        return [_OnNewAxis(value(np.zeros(int(numbers), np.int64), (x,)))]
    covered = x.shape[axis : axis + mask.ndim]
    if covered != mask.shape:
        raise IndexRangeError(
            f"a boolean mask of shape {show(mask.shape)} does not match {show(covered)} of {show(x.shape)}"
        )
    return [value(p, (x,)) for p in np.nonzero(numbers)]


def _check_places(places: Value, size: Dim, axis: int) -> None:
    if not places.dtype.is_integer:
        raise IndexRangeError(f"index array for axis {axis} has dtype {places.dtype.name}; expected integers or bool")


def _integer(item: Any, size: Dim, axis: int) -> int:
    try:
        number = operator.index(item)
    except TypeError:
        raise IndexRangeError(
            f"index {item!r} for axis {axis} is a {type(item).__name__}; expected an integer, a slice, ..., None, "
            "an integer array or a boolean mask"
        ) from None
    if isinstance(size, int) and not -size <= number < size:
        raise IndexRangeError(
            f"index {number} is out of range for axis {axis} of size {size}; expected {-size} <= index < {size}"
        )
    return number


def _range(item: Any, size: Dim, axis: int) -> _Range:
    if not isinstance(item, slice):
        number = _integer(item, size, axis)
        start = number if number >= 0 else size + number
        return _Range(start, start + 1, 1, False, True)
    if item.start is None and item.stop is None and item.step is None:
        return _Range(0, size, 1, False, False)
    step = 1 if item.step is None else operator.index(item.step)
    if step == 0:
        raise IndexRangeError(f"slice for axis {axis} has step 0")
    if isinstance(size, Sym) or isinstance(item.start, Sym) or isinstance(item.stop, Sym):
        return _symbolic_range(item, size, step, axis)
    start, stop, step = slice(
        *(None if b is None else operator.index(b) for b in (item.start, item.stop, item.step))
    ).indices(size)
    count = len(range(start, stop, step))
    if step > 0:
        return _Range(start if count else 0, max(start, stop) if count else 0, step, False, False)
    first = start + (count - 1) * step if count else 0
    return _Range(first, start + 1 if count else 0, -step, True, False)


def _symbolic_range(item: slice, size: Dim, step: int, axis: int) -> _Range:
    """Bounds of a symbolic size cannot be clamped: they are taken to lie inside, and checked when the program runs."""
    if step < 0 and not (item.start is None and item.stop is None and step == -1):
        raise ShapeError(f"slice of axis {axis} of symbolic size {size}: of negative steps only [::-1] is supported")
    bound = lambda b, default: default if b is None else b if isinstance(b, Sym) else b if b >= 0 else size + b
    return _Range(bound(item.start, 0), bound(item.stop, size), abs(step), step < 0, False)


# ---- carrying it out -------------------------------------------------------------------------------------------------


def _length(r: _Range) -> Dim:
    return r.stop - r.start if r.step == 1 else (r.stop - r.start + (r.step - 1)) // r.step


def _take_ranges(x: Value, ranges: Sequence[_Range]) -> Value:
    out = slice_(x, [(r.start, r.stop, r.step) for r in ranges])
    flips = tuple(i for i, r in enumerate(ranges) if r.flipped)
    return bind(FLIP, out, axes=flips) if flips else out


def _take_points(x: Value, axes: list[int], arrays: list[Value], together: bool) -> Value:
    """Several integer arrays at once: broadcast together, their dimensions stand where the first one stood if they are
    neighbours, else in front (NumPy's rule)."""
    shape = broadcast(*(a.shape for a in arrays))
    wide = [reshape(broadcast_to(cast(a, "int64"), shape), (*shape, 1)) for a in arrays]
    rest = [i for i in range(x.ndim) if i not in axes]
    out = bind(GATHER_ND, permute_dims(x, axes + rest), concat(wide, len(shape)))
    if axes[0] == 0 or not together:
        return out
    n = len(shape)
    return permute_dims(out, [*range(n, n + axes[0]), *range(n), *range(n + axes[0], out.ndim)])


def _whole_mask(x: Value, index: Any) -> Value | None:
    """The index, if it is one boolean array of ``x``'s leading shape: then assignment needs no positions."""
    if isinstance(index, np.ndarray) and index.dtype == np.bool_:
        index = value(index, (x,))
    if not isinstance(index, Value) or index.dtype is not bool_ or index.shape != x.shape[: index.ndim]:
        return None
    return reshape(index, (*index.shape, *(1,) * (x.ndim - index.ndim)))


def _fitted(new: Value, shape: tuple[Dim, ...]) -> Value:
    """``new`` broadcast to the shape it replaces; extra leading ones are dropped, as in NumPy."""
    while new.ndim > len(shape) and new.shape[0] == 1:
        new = reshape(new, new.shape[1:])
    try:
        return broadcast_to(new, shape)
    except ShapeError:
        raise ShapeError(
            f"assignment to part of an array: got shape {show(new.shape)}, expected {show(shape)}"
        ) from None


def _widths(x: Value, ranges: Sequence[_Range]) -> tuple[list[tuple[Dim, Dim]], list[int]]:
    """Padding that lays a part back at its place in ``x``."""
    widths: list[tuple[Dim, Dim]] = []
    for size, r in zip(x.shape, ranges):
        length = _length(r)
        widths.append((r.start, size - (r.start + (length - 1) * r.step + 1) if length != 0 else size - r.start))
    return widths, [r.step - 1 for r in ranges]
