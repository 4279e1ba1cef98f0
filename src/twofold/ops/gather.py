"""Gathers and their transposes. Each pair is closed under differentiation:

    gather          <-> scatter_add        whole slices along one axis           (ONNX Gather)
    take_along_axis <-> add_along_axis     one element per index                 (ONNX GatherElements)
    gather_nd       <-> add_nd             slices at points of the first axes    (ONNX GatherND)
    scatter_nd                             replacement at such points            (ONNX ScatterND)

Indices may be negative (counted from the end) and are checked against the range when the op runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dims import Dim
from twofold.base.dtypes import DType, bool_, float32, int64
from twofold.base.errors import DtypeError, IndexRangeError, ShapeError
from twofold.base.shapes import Shape, axis_index, broadcast, show
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import cast, together, value
from twofold.ops.creation import full, iota
from twofold.ops.elementwise import equal, where
from twofold.ops.movement import broadcast_to, reshape


def in_range(name: str, indices: np.ndarray, size: int, axis: int, negative: bool = True) -> np.ndarray:
    """``indices`` counted from the front, or IndexRangeError naming the first offender, the range and the axis."""
    low = -size if negative else 0
    if indices.size and (int(indices.min()) < low or int(indices.max()) >= size):
        wrong = indices[(indices < low) | (indices >= size)]
        raise IndexRangeError(
            f"{name}: index {int(wrong.flat[0])} is out of range for axis {axis} of size {size}; "
            f"expected {low} <= index < {size}"
        )
    return np.where(indices < 0, indices + size, indices) if negative and indices.dtype.kind == "i" else indices


def _check_indices(name: str, indices: Spec) -> None:
    if not indices.dtype.is_integer:
        raise DtypeError(
            f"{name}: indices have dtype {indices.dtype.name}; expected integers; cast with .astype(tw.int64)"
        )


def _places(indices: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    """Index arrays that pick ``indices`` along ``axis`` and everything in order elsewhere."""
    grid = np.ogrid[tuple(slice(n) for n in indices.shape)]
    return tuple(indices if i == axis else g for i, g in enumerate(grid))


def _narrow(x: np.ndarray) -> bool:
    return x.dtype.itemsize == 2 and x.dtype.kind not in "iu"


def _add_at(shape: tuple[int, ...], where_: Any, updates: np.ndarray) -> np.ndarray:
    """Zeros of ``shape`` with ``updates`` added at the index ``where_``; 16-bit floats are added up in float32."""
    out = np.zeros(shape, np.float32 if _narrow(updates) else updates.dtype)
    np.add.at(out, where_, updates.astype(out.dtype, copy=False))
    return out.astype(updates.dtype, copy=False)


# ---- whole slices along one axis -------------------------------------------------------------------------------------


def _gather_infer(x: Spec, indices: Spec, *, axis: int) -> Spec:
    _check_indices("take", indices)
    return Spec((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _gather_ref(x: np.ndarray, indices: np.ndarray, *, axis: int) -> np.ndarray:
    return np.take(x, in_range("take", indices, x.shape[axis], axis), axis)


def _scatter_add_infer(updates: Spec, indices: Spec, *, axis: int, size: Dim) -> Spec:
    _check_indices("scatter_add", indices)
    if updates.shape[axis : axis + indices.ndim] != indices.shape:
        raise ShapeError(
            f"scatter_add: updates {show(updates.shape)} do not hold the indices' shape {show(indices.shape)} at axis {axis}"
        )
    return Spec((*updates.shape[:axis], size, *updates.shape[axis + indices.ndim :]), updates.dtype)


def _scatter_add_ref(updates: np.ndarray, indices: np.ndarray, *, axis: int, size: int) -> np.ndarray:
    places = in_range("scatter_add", indices, size, axis)
    shape = (*updates.shape[:axis], size, *updates.shape[axis + indices.ndim :])
    return _add_at(shape, (*(slice(None),) * axis, places), updates)


_ROWS = np.array([[2, 0], [-1, 2]])
GATHER = register(
    Op(
        "gather", _gather_infer, _gather_ref,
        lambda g, _y, x, indices, *, axis: (bind(SCATTER_ADD, g, indices, axis=axis, size=x.shape[axis]), None),
        lambda: (Sample(((3, 4), _ROWS), {"axis": 0}), Sample(((2, 3), np.array([1, 1, 0])), {"axis": 1}),
                 Sample(((4,), np.array(-1)), {"axis": 0})),
        "Gather", "indexing",
    )
)  # fmt: skip
SCATTER_ADD = register(
    Op(
        "scatter_add", _scatter_add_infer, _scatter_add_ref,
        lambda g, _y, _u, indices, *, axis, size: (bind(GATHER, g, indices, axis=axis), None),
        lambda: (Sample(((2, 2, 4), _ROWS), {"axis": 0, "size": 3}),
                 Sample(((2, 3), np.array([1, 1, 0])), {"axis": 1, "size": 2})),
        kind="indexing", doc="The transpose of gather: zeros, with each slice added at its index.",
    )
)  # fmt: skip


def take(x: Any, indices: Any, *, axis: int | None = None) -> Value:
    """Slices of ``x`` along ``axis`` at integer ``indices`` (any shape), which may be negative; out of range is an error."""
    x = value(x)
    if axis is None:
        if x.ndim != 1:
            raise ShapeError(f"take: x has shape {show(x.shape)}; say which axis")
        axis = 0
    return bind(GATHER, x, value(indices, (x,)), axis=axis_index(axis, x.ndim))


def scatter_add(updates: Any, indices: Any, *, axis: int, size: Dim) -> Value:
    """Zeros with ``size`` places along ``axis``, to which the slices of ``updates`` are added at ``indices``."""
    updates = value(updates)
    return bind(SCATTER_ADD, updates, value(indices, (updates,)), axis=axis_index(axis, updates.ndim), size=size)


# ---- one element per index along one axis ----------------------------------------------------------------------------


def _along_infer(x: Spec, indices: Spec, *, axis: int) -> Spec:
    _check_indices("take_along_axis", indices)
    same = x.ndim == indices.ndim and all(a == b for i, (a, b) in enumerate(zip(x.shape, indices.shape)) if i != axis)
    if not same:
        raise ShapeError(
            f"take_along_axis: x {show(x.shape)} and indices {show(indices.shape)} differ outside axis {axis}"
        )
    return Spec(indices.shape, x.dtype)


def _along_ref(x: np.ndarray, indices: np.ndarray, *, axis: int) -> np.ndarray:
    return x[_places(in_range("take_along_axis", indices, x.shape[axis], axis), axis)]


def _add_along_infer(updates: Spec, indices: Spec, *, axis: int, size: Dim) -> Spec:
    _check_indices("add_along_axis", indices)
    if updates.shape != indices.shape:
        raise ShapeError(
            f"add_along_axis: updates {show(updates.shape)} and indices {show(indices.shape)} differ in shape"
        )
    return Spec(tuple(size if i == axis else d for i, d in enumerate(updates.shape)), updates.dtype)


def _add_along_ref(updates: np.ndarray, indices: np.ndarray, *, axis: int, size: int) -> np.ndarray:
    places = _places(in_range("add_along_axis", indices, size, axis), axis)
    return _add_at(tuple(size if i == axis else d for i, d in enumerate(updates.shape)), places, updates)


_PICKS = np.array([[1, 1], [0, -1], [2, 0]])
TAKE_ALONG = register(
    Op(
        "take_along_axis", _along_infer, _along_ref,
        lambda g, _y, x, indices, *, axis: (bind(ADD_ALONG, g, indices, axis=axis, size=x.shape[axis]), None),
        lambda: (Sample(((3, 4), _PICKS), {"axis": 1}), Sample(((3,), np.array([2, 2, 0, 1])), {"axis": 0})),
        "GatherElements", "indexing",
    )
)  # fmt: skip
ADD_ALONG = register(
    Op(
        "add_along_axis", _add_along_infer, _add_along_ref,
        lambda g, _y, _u, indices, *, axis, size: (bind(TAKE_ALONG, g, indices, axis=axis), None),
        lambda: (Sample(((3, 2), _PICKS), {"axis": 1, "size": 4}),),
        kind="indexing", doc="The transpose of take_along_axis.",
    )
)  # fmt: skip


def take_along_axis(x: Any, indices: Any, *, axis: int = -1) -> Value:
    """``x`` picked along ``axis`` by one index per element; the other dimensions broadcast. For picking by ``argsort``
    or by labels."""
    x = value(x)
    indices = value(indices, (x,))
    if x.ndim != indices.ndim:
        raise ShapeError(f"take_along_axis: x {show(x.shape)} and indices {show(indices.shape)} differ in rank")
    axis = axis_index(axis, x.ndim)
    common = broadcast(*((*s[:axis], 1, *s[axis + 1 :]) for s in (x.shape, indices.shape)))
    x = broadcast_to(x, (*common[:axis], x.shape[axis], *common[axis + 1 :]))
    indices = broadcast_to(indices, (*common[:axis], indices.shape[axis], *common[axis + 1 :]))
    return bind(TAKE_ALONG, x, indices, axis=axis)


# ---- points of the first axes ----------------------------------------------------------------------------------------


def _points(name: str, indices: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(in_range(name, indices[..., i], shape[i], i) for i in range(indices.shape[-1]))


def _nd_shape(name: str, x: Shape, indices: Spec) -> Shape:
    _check_indices(name, indices)
    if indices.ndim == 0 or not isinstance(indices.shape[-1], int) or indices.shape[-1] > len(x):
        raise ShapeError(
            f"{name}: indices {show(indices.shape)} for {show(x)}; expected (..., k) with k at most {len(x)}"
        )
    return (*indices.shape[:-1], *x[indices.shape[-1] :])


def _add_nd_infer(updates: Spec, indices: Spec, *, shape: Shape) -> Spec:
    expected = _nd_shape("add_nd", shape, indices)
    if updates.shape != expected:
        raise ShapeError(f"add_nd: updates {show(updates.shape)}; expected {show(expected)}")
    return Spec(shape, updates.dtype)


def _scatter_nd_infer(x: Spec, indices: Spec, updates: Spec) -> Spec:
    expected = _nd_shape("scatter_nd", x.shape, indices)
    if updates.shape != expected or updates.dtype is not x.dtype:
        raise ShapeError(f"scatter_nd: updates {updates}; expected {Spec(expected, x.dtype)}")
    return x


def _scatter_nd_ref(x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[_points("scatter_nd", indices, x.shape)] = updates
    return out


def _scatter_nd_vjp(g: Value, _y: Value, _x: Value, indices: Value, updates: Value) -> tuple[Any, None, Any]:
    """Replaced places get nothing; of several updates to one place the last one that was written gets it all."""

    def of_updates() -> Value:
        count = indices.shape[:-1]
        rank = reshape(iota(_size(count)), count)
        lead = g.shape[: int(indices.shape[-1])]
        last = bind(GATHER_ND, bind(SCATTER_ND, full(lead, -1, int64, like=g), indices, rank), indices)
        won = reshape(equal(last, rank), (*count, *(1,) * (updates.ndim - len(count))))
        return where(won, bind(GATHER_ND, g, indices), 0)

    return lambda: bind(SCATTER_ND, g, indices, full(updates.shape, 0, g.dtype, like=g)), None, of_updates


def _size(shape: Shape) -> Dim:
    out: Dim = 1
    for d in shape:
        out = out * d
    return out


_POINTS = np.array([[0, 1], [2, -1], [0, 1]])
GATHER_ND = register(
    Op(
        "gather_nd", lambda x, indices: Spec(_nd_shape("gather_nd", x.shape, indices), x.dtype),
        lambda x, indices: x[_points("gather_nd", indices, x.shape)],
        lambda g, _y, x, indices: (bind(ADD_ND, g, indices, shape=x.shape), None),
        lambda: (Sample(((3, 4), _POINTS)), Sample(((3, 4, 2), _POINTS)), Sample(((3, 2), np.array([[2], [0]])))),
        "GatherND", "indexing",
    )
)  # fmt: skip
ADD_ND = register(
    Op(
        "add_nd", _add_nd_infer,
        lambda updates, indices, *, shape: _add_at(shape, _points("add_nd", indices, shape), updates),
        lambda g, _y, _u, indices, *, shape: (bind(GATHER_ND, g, indices), None),
        lambda: (Sample(((3,), _POINTS), {"shape": (3, 4)}), Sample(((3, 2), _POINTS), {"shape": (3, 4, 2)})),
        kind="indexing", doc="The transpose of gather_nd.",
    )
)  # fmt: skip
SCATTER_ND = register(
    Op(
        "scatter_nd", _scatter_nd_infer, _scatter_nd_ref, _scatter_nd_vjp,
        lambda: (Sample(((3, 4), _POINTS, (3,))), Sample(((3, 4, 2), _POINTS, (3, 2)))),
        "ScatterND", "indexing", doc="x with the places at `indices` replaced; of equal indices the last wins.",
    )
)  # fmt: skip


def gather_nd(x: Any, indices: Any) -> Value:
    """``x[i, j, ...]`` for each row ``(i, j, ...)`` of ``indices`` (shape ``(..., k)``): shape ``(..., *x.shape[k:])``."""
    x = value(x)
    return bind(GATHER_ND, x, value(indices, (x,)))


def scatter_nd(x: Any, indices: Any, updates: Any) -> Value:
    """``x`` with ``x[i, j, ...]`` replaced for each row of ``indices`` (shape ``(..., k)``)."""
    x, updates = together(x, updates)
    return bind(SCATTER_ND, x, value(indices, (x,)), updates)


# ---- one_hot ---------------------------------------------------------------------------------------------------------


def _one_hot_infer(indices: Spec, *, depth: int, dtype: DType) -> Spec:
    _check_indices("one_hot", indices)
    return Spec((*indices.shape, depth), dtype)


def _one_hot_ref(indices: np.ndarray, *, depth: int, dtype: DType) -> np.ndarray:
    in_range("one_hot", indices, depth, indices.ndim, negative=False)
    return (indices[..., None] == np.arange(depth)).astype(dtype.numpy)


ONE_HOT = register(
    Op(
        "one_hot", _one_hot_infer, _one_hot_ref, None,
        lambda: (Sample((np.array([0, 2, 1]),), {"depth": 3, "dtype": float32}, False),
                 Sample((np.array([[1], [3]]),), {"depth": 4, "dtype": bool_}, False)),
        kind="indexing",
    )
)  # fmt: skip


def one_hot(indices: Any, num_classes: int, *, dtype: Any = None) -> Value:
    """Vectors of length ``num_classes`` with a one at each index: shape ``(*indices.shape, num_classes)``.

    An index outside ``[0, num_classes)`` is an error.
    """
    out = bind(ONE_HOT, value(indices), depth=num_classes, dtype=float32)
    return out if dtype is None else cast(out, dtype)
