"""Ops that move elements without computing: reshape, permute, broadcast, concat, slice, pad, flip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.base.dims import Dim
from twofold.base.errors import DtypeError, ShapeError
from twofold.base.shapes import Shape, as_shape, axis_index, broadcast, is_static, product, show
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import together, value

# ---- reshape ---------------------------------------------------------------------------------------------------------


def _reshape_infer(x: Spec, *, shape: Shape) -> Spec:
    if product(x.shape) != product(shape):
        raise ShapeError(
            f"reshape: {show(x.shape)} has {product(x.shape)} elements, {show(shape)} has {product(shape)}"
        )
    return Spec(shape, x.dtype)


RESHAPE = register(
    Op(
        "reshape", _reshape_infer, lambda x, *, shape: x.reshape(shape),
        lambda g, _y, x, *, shape: (reshape(g, x.shape),),
        lambda: (Sample(((2, 6),), {"shape": (3, 4)}), Sample(((),), {"shape": (1, 1)}), Sample(((0, 3),), {"shape": (3, 0)})),
        kind="movement",
    )
)  # fmt: skip


def reshape(x: Any, /, shape: Dim | Sequence[Dim], *, copy: bool | None = None) -> Value:
    """``x`` with another shape of the same number of elements, row-major; one size may be -1 (worked out).

    Values never change, so ``copy`` has nothing to decide.
    """
    x = value(x)
    dims = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    holes = [i for i, d in enumerate(dims) if isinstance(d, (int, np.integer)) and d == -1]
    if len(holes) > 1:
        raise ShapeError(f"reshape: {show(dims)} has more than one -1")
    if holes:
        rest = product(d for i, d in enumerate(dims) if i != holes[0])
        total = product(x.shape)
        if isinstance(rest, int) and isinstance(total, int) and (rest == 0 or total % rest):
            raise ShapeError(f"reshape: {show(x.shape)} has {total} elements, which do not fit {show(dims)}")
        dims = tuple(total // rest if i == holes[0] else d for i, d in enumerate(dims))
    dims = as_shape(dims)
    return x if dims == x.shape else bind(RESHAPE, x, shape=dims)


# ---- permute_dims ----------------------------------------------------------------------------------------------------


def _permute_infer(x: Spec, *, axes: tuple[int, ...]) -> Spec:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(
            f"permute_dims: axes {axes} are not a permutation of the {x.ndim} dimensions of {show(x.shape)}"
        )
    return Spec(tuple(x.shape[a] for a in axes), x.dtype)


PERMUTE = register(
    Op(
        "permute_dims", _permute_infer, lambda x, *, axes: x.transpose(axes),
        lambda g, _y, _x, *, axes: (bind(PERMUTE, g, axes=tuple(int(i) for i in np.argsort(axes))),),
        lambda: (Sample(((2, 3, 4),), {"axes": (2, 0, 1)}),),
        "Transpose", "movement",
    )
)  # fmt: skip


def permute_dims(x: Any, axes: Sequence[int]) -> Value:
    """Dimensions of ``x`` in another order."""
    x = value(x)
    axes = tuple(axis_index(a, x.ndim) for a in axes)
    return x if axes == tuple(range(x.ndim)) else bind(PERMUTE, x, axes=axes)


# ---- broadcast_to ----------------------------------------------------------------------------------------------------


def _broadcast_infer(x: Spec, *, shape: Shape) -> Spec:
    if broadcast(x.shape, shape) != shape:
        raise ShapeError(f"broadcast_to: {show(x.shape)} does not broadcast to {show(shape)}")
    return Spec(shape, x.dtype)


BROADCAST = register(
    Op(
        "broadcast_to", _broadcast_infer, lambda x, *, shape: np.broadcast_to(x, shape),
        lambda g, _y, _x, *, shape: (g,),  # the engine sums to the input's shape
        lambda: (Sample(((3, 1),), {"shape": (2, 3, 4)}), Sample(((),), {"shape": (2, 2)})),
        kind="movement",
    )
)  # fmt: skip


def broadcast_to(x: Any, shape: Dim | Sequence[Dim]) -> Value:
    """``x`` repeated to ``shape`` by NumPy's rule."""
    x, shape = value(x), as_shape(shape)
    return x if x.shape == shape else bind(BROADCAST, x, shape=shape)


# ---- concat ----------------------------------------------------------------------------------------------------------


def _concat_infer(*xs: Spec, axis: int) -> Spec:
    first = xs[0]
    for x in xs[1:]:
        if x.dtype is not first.dtype:
            raise DtypeError(f"concat: dtypes {first.dtype.name} and {x.dtype.name}; expected one")
        if x.ndim != first.ndim or any(a != b for i, (a, b) in enumerate(zip(x.shape, first.shape)) if i != axis):
            raise ShapeError(f"concat: shapes {show(first.shape)} and {show(x.shape)} differ outside axis {axis}")
    total = first.shape[axis]
    for x in xs[1:]:
        total = total + x.shape[axis]
    return Spec(tuple(total if i == axis else d for i, d in enumerate(first.shape)), first.dtype)


def _concat_vjp(g: Value, _y: Value, *xs: Value, axis: int) -> tuple[Value, ...]:
    out: list[Value] = []
    start: Dim = 0
    for x in xs:
        stop = start + x.shape[axis]
        out.append(slice_(g, _along(g, axis, start, stop)))
        start = stop
    return tuple(out)


CONCAT = register(
    Op(
        "concat", _concat_infer, lambda *xs, axis: np.concatenate(xs, axis), _concat_vjp,
        lambda: (Sample(((2, 3), (2, 1)), {"axis": 1}), Sample(((2,), (3,), (1,)), {"axis": 0})),
        "Concat", "movement",
    )
)  # fmt: skip


def concat(arrays: Sequence[Any], axis: int | None = 0) -> Value:
    """Arrays joined along an existing axis (None: flattened first). They must agree in every other dimension."""
    if not len(arrays):
        raise ShapeError("concat: expected at least one array")
    xs = together(*[value(a) for a in arrays])
    if axis is None:
        xs, axis = tuple(reshape(x, -1) for x in xs), 0
    axis = axis_index(axis, xs[0].ndim)
    return xs[0] if len(xs) == 1 else bind(CONCAT, *xs, axis=axis)


# ---- slice -----------------------------------------------------------------------------------------------------------
# starts, stops and steps for every dimension; steps are positive; bounds lie inside. `flip` does negative steps.


def _slice_infer(x: Spec, *, starts: Shape, stops: Shape, steps: tuple[int, ...]) -> Spec:
    out: list[Dim] = []
    for size, start, stop, step in zip(x.shape, starts, stops, steps):
        if (
            isinstance(start, int)
            and isinstance(stop, int)
            and isinstance(size, int)
            and not 0 <= start <= max(stop, start) <= size
        ):
            raise ShapeError(f"slice: {start}:{stop} lies outside a dimension of size {size} of {show(x.shape)}")
        length = stop - start
        out.append(length if step == 1 else (length + (step - 1)) // step)
    return Spec(tuple(out), x.dtype)


def _slice_vjp(g: Value, _y: Value, x: Value, *, starts: Shape, stops: Shape, steps: tuple[int, ...]) -> tuple[Value]:
    high = tuple(
        size - (start + (length - 1) * step + 1) if length != 0 else size - start
        for size, start, step, length in zip(x.shape, starts, steps, g.shape)
    )
    return (pad(g, tuple(zip(starts, high)), interior=tuple(s - 1 for s in steps)),)


def _slice_ref(x: np.ndarray, *, starts: Any, stops: Any, steps: Any) -> np.ndarray:
    return x[tuple(map(slice, starts, stops, steps))]


SLICE = register(
    Op(
        "slice", _slice_infer, _slice_ref, _slice_vjp,
        lambda: (Sample(((5, 6),), {"starts": (1, 0), "stops": (4, 6), "steps": (1, 2)}),
                 Sample(((5,),), {"starts": (2,), "stops": (2,), "steps": (1,)}),
                 Sample(((7,),), {"starts": (1,), "stops": (6,), "steps": (3,)})),
        kind="movement",
    )
)  # fmt: skip


def _along(x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> tuple[tuple[Dim, Dim, int], ...]:
    return tuple((start, stop, step) if i == axis else (0, d, 1) for i, d in enumerate(x.shape))


def slice_(x: Value, ranges: Sequence[tuple[Dim, Dim, int]]) -> Value:
    """``x[start:stop:step, ...]`` for every dimension, bounds inside and steps positive."""
    starts, stops, steps = (tuple(c) for c in zip(*ranges)) if ranges else ((), (), ())
    if starts == (0,) * x.ndim and stops == x.shape and set(steps) <= {1}:
        return x
    return bind(SLICE, x, starts=starts, stops=stops, steps=steps)


def slice_along(x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
    """``x`` restricted to ``start:stop:step`` in one axis."""
    return slice_(x, _along(x, axis_index(axis, x.ndim), start, stop, step))


# ---- pad: low/high may be negative (crops), interior zeros between elements ------------------------------------------


def _pad_infer(x: Spec, *, widths: tuple[tuple[Dim, Dim], ...], interior: tuple[int, ...], fill: float) -> Spec:
    if len(widths) != x.ndim or len(interior) != x.ndim:
        raise ShapeError(f"pad: {len(widths)} pairs of widths for {show(x.shape)}; expected one pair per dimension")
    shape: list[Dim] = []
    for size, (low, high), inner in zip(x.shape, widths, interior):
        stretched = size if inner == 0 or size == 0 else size + (size - 1) * inner
        shape.append(low + high + stretched)
        if isinstance(shape[-1], int) and shape[-1] < 0:
            raise ShapeError(f"pad: widths {(low, high)} crop more than a dimension of {show(x.shape)} has")
    return Spec(tuple(shape), x.dtype)


def _pad_ref(x: np.ndarray, *, widths: Any, interior: Any, fill: float) -> np.ndarray:
    stretched = tuple(n if n == 0 else n + (n - 1) * i for n, i in zip(x.shape, interior))
    out = np.full([low + high + n for (low, high), n in zip(widths, stretched)], fill, x.dtype)
    source, target = [], []
    for (low, _), i, n, size in zip(widths, interior, x.shape, out.shape):
        step = i + 1
        first = max(0, -(low // step)) if low < 0 else 0
        last = min(n - 1, (size - 1 - low) // step)
        count = max(0, last - first + 1)
        source.append(slice(first, first + count))
        target.append(
            slice(
                low + first * step, low + first * step + (count - 1) * step + 1 if count else low + first * step, step
            )
        )
        if count == 0:
            return out
    out[tuple(target)] = x[tuple(source)]
    return out


def _pad_vjp(g: Value, _y: Value, x: Value, *, widths: Any, interior: Any, fill: float) -> tuple[Value]:
    inner = pad(g, tuple((-low, -high) for low, high in widths))
    if 0 in inner.shape or not any(interior):
        return (inner,)
    return (slice_(inner, tuple((0, d, i + 1) for d, i in zip(inner.shape, interior))),)


PAD = register(
    Op(
        "pad", _pad_infer, _pad_ref, _pad_vjp,
        lambda: (Sample(((2, 3),), {"widths": ((1, 0), (2, 1)), "interior": (0, 0), "fill": 0.0}),
                 Sample(((2, 3),), {"widths": ((0, 1), (1, 1)), "interior": (1, 2), "fill": 0.5}),
                 Sample(((4, 5),), {"widths": ((-1, 1), (1, -2)), "interior": (0, 0), "fill": 0.0})),
        kind="movement",
    )
)  # fmt: skip


def pad(x: Any, widths: Sequence[tuple[Dim, Dim]], fill: float = 0.0, interior: Sequence[int] | None = None) -> Value:
    """``x`` with ``(low, high)`` elements of ``fill`` added to each dimension (negative: cropped), and ``interior``
    elements between neighbours."""
    x = value(x)
    widths = tuple((low, high) for low, high in widths)
    interior = tuple(interior) if interior is not None else (0,) * x.ndim
    if not any(interior) and all(w == (0, 0) for w in widths):
        return x
    return bind(PAD, x, widths=widths, interior=interior, fill=float(fill))


# ---- flip ------------------------------------------------------------------------------------------------------------
FLIP = register(
    Op(
        "flip", lambda x, *, axes: x, lambda x, *, axes: np.flip(x, axes),
        lambda g, _y, _x, *, axes: (bind(FLIP, g, axes=axes),),
        lambda: (Sample(((2, 3),), {"axes": (1,)}),), kind="movement",
    )
)  # fmt: skip


# ---- functions over these --------------------------------------------------------------------------------------------


def expand_dims(x: Any, axis: int | Sequence[int] = 0) -> Value:
    """``x`` with dimensions of size one inserted at ``axis`` (counted in the result)."""
    x = value(x)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    rank = x.ndim + len(axes)
    places = {axis_index(a, rank) for a in axes}
    rest = iter(x.shape)
    return reshape(x, tuple(1 if i in places else next(rest) for i in range(rank)))


def squeeze(x: Any, axis: int | Sequence[int]) -> Value:
    """``x`` without the named dimensions, which must have size one."""
    x = value(x)
    axes = {axis_index(a, x.ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))}
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of {show(x.shape)} has size {x.shape[a]}; expected 1")
    return reshape(x, tuple(d for i, d in enumerate(x.shape) if i not in axes))


def stack(arrays: Sequence[Any], axis: int = 0) -> Value:
    """Arrays of one shape joined along a new axis."""
    xs = together(*[value(a) for a in arrays])
    axis = axis_index(axis, xs[0].ndim + 1)
    return concat([expand_dims(x, axis) for x in xs], axis)


def flatten(x: Any, start: int = 0, end: int = -1) -> Value:
    """Dimensions ``start`` to ``end`` (both included) merged into one."""
    x = value(x)
    if x.ndim == 0:
        return reshape(x, (1,))
    start, end = axis_index(start, x.ndim), axis_index(end, x.ndim)
    if start > end:
        raise ShapeError(f"flatten: dimensions {start} to {end} of {show(x.shape)}; expected them in order")
    return reshape(x, (*x.shape[:start], product(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def matrix_transpose(x: Any) -> Value:
    """The last two dimensions exchanged."""
    x = value(x)
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: {show(x.shape)} has fewer than two dimensions")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def sum_to(g: Value, shape: Shape) -> Value:
    """``g`` summed over the dimensions along which ``shape`` was broadcast: the transpose of broadcasting."""
    from twofold.ops.reduction import sum as sum_

    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, d in enumerate(shape) if d == 1 and g.shape[i + extra] != 1)
    out = sum_(g, axis=axes, dtype=g.dtype) if axes else g
    return reshape(out, shape)


def number_of_elements(shape: Shape) -> Any:
    """Elements of a shape, as an int or (symbolic) a dim."""
    return math.prod(shape) if is_static(shape) else product(shape)
