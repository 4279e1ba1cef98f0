"""Sorting: sort, argsort, topk, searchsorted. Sorts are stable; NaN counts as larger than every number."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dtypes import bool_, int64
from twofold.base.errors import DtypeError, ShapeError
from twofold.base.shapes import axis_index, show
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import together, value
from twofold.ops.gather import ADD_ALONG


def _order(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Positions in sorted order; equal elements keep their order, also when descending."""
    if x.dtype.itemsize == 2 and x.dtype.kind not in "iu":
        x = x.astype(np.float32)
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    mirrored = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - mirrored, axis)


def _sort_ref(x: np.ndarray, *, axis: int, descending: bool) -> np.ndarray:
    return np.take_along_axis(x, _order(x, axis, descending), axis)


def _sort_vjp(g: Value, _y: Value, x: Value, *, axis: int, descending: bool) -> tuple[Value]:
    order = bind(ARGSORT, x, axis=axis, descending=descending)
    return (bind(ADD_ALONG, g, order, axis=axis, size=x.shape[axis]),)


_SAMPLES = lambda: (
    Sample((np.array([[3.0, 1.0, 2.0], [0.5, 2.5, -1.0]]),), {"axis": 1, "descending": False}),
    Sample((np.array([[3.0, 1.0, 2.0], [0.5, 2.5, -1.0]]),), {"axis": 0, "descending": True}),
)
SORT = register(Op("sort", lambda x, *, axis, descending: x, _sort_ref, _sort_vjp, _SAMPLES, kind="sorting"))
ARGSORT = register(
    Op(
        "argsort", lambda x, *, axis, descending: Spec(x.shape, int64),
        lambda x, *, axis, descending: _order(x, axis, descending).astype(np.int64), None,
        lambda: (Sample(((3, 4),), {"axis": 1, "descending": False}, False),
                 Sample((np.array([1, 0, 1, 0]),), {"axis": 0, "descending": True}, False)),
        kind="sorting",
    )
)  # fmt: skip


def _topk_infer(x: Spec, *, k: int, axis: int, largest: bool) -> tuple[Spec, Spec]:
    size = x.shape[axis]
    if k < 0 or (isinstance(size, int) and k > size):
        raise ShapeError(f"topk: k = {k} for axis {axis} of {show(x.shape)}; expected 0 <= k <= {size}")
    shape = tuple(k if i == axis else d for i, d in enumerate(x.shape))
    return Spec(shape, x.dtype), Spec(shape, int64)


def _topk_ref(x: np.ndarray, *, k: int, axis: int, largest: bool) -> tuple[np.ndarray, np.ndarray]:
    order = np.take(_order(x, axis, largest), np.arange(k), axis).astype(np.int64)
    return np.take_along_axis(x, order, axis), order


def _topk_vjp(gs: tuple, ys: tuple, x: Value, *, k: int, axis: int, largest: bool) -> tuple[Value]:
    return (bind(ADD_ALONG, gs[0], ys[1], axis=axis, size=x.shape[axis]),)


TOPK = register(
    Op(
        "topk", _topk_infer, _topk_ref, _topk_vjp,
        lambda: (Sample((np.array([[3.0, 1.0, 2.0], [0.5, 2.5, -1.0]]),), {"k": 2, "axis": 1, "largest": True}),
                 Sample((np.array([3.0, 1.0, 2.0]),), {"k": 1, "axis": 0, "largest": False})),
        "TopK", "sorting", multi=True, doc="The k largest (or smallest) along an axis in sorted order, and their positions.",
    )
)  # fmt: skip


def _searchsorted_infer(x1: Spec, x2: Spec, *, side: str) -> Spec:
    if x1.ndim != 1 or x1.dtype is not x2.dtype:
        raise ShapeError(f"searchsorted: x1 is {x1}, x2 is {x2}; expected a sorted 1-d x1 and one dtype")
    return Spec(x2.shape, int64)


def _searchsorted_ref(x1: np.ndarray, x2: np.ndarray, *, side: Any) -> np.ndarray:
    if x1.dtype.itemsize == 2 and x1.dtype.kind not in "iu":
        x1, x2 = x1.astype(np.float32), x2.astype(np.float32)
    return np.asarray(np.searchsorted(x1, x2, side), np.int64)


SEARCHSORTED = register(
    Op(
        "searchsorted", _searchsorted_infer, _searchsorted_ref, None,
        lambda: (Sample((np.array([1.0, 2.0, 3.0]), np.array([[0.5, 2.0], [3.0, 9.0]])), {"side": "left"}, False),
                 Sample((np.array([1.0, 2.0, 2.0]), np.array(2.0)), {"side": "right"}, False)),
        kind="sorting",
    )
)  # fmt: skip


def _sortable(name: str, x: Any, axis: int) -> tuple[Value, int]:
    x = value(x)
    if x.dtype is bool_:
        raise DtypeError(f"{name}: dtype bool; expected a numeric dtype; cast with .astype")
    return x, axis_index(axis, x.ndim)


def sort(x: Any, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Value:
    """``x`` sorted along ``axis`` (always stable)."""
    x, axis = _sortable("sort", x, axis)
    return bind(SORT, x, axis=axis, descending=bool(descending))


def argsort(x: Any, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Value:
    """Positions (int64) that sort ``x`` along ``axis`` (always stable)."""
    x, axis = _sortable("argsort", x, axis)
    return bind(ARGSORT, x, axis=axis, descending=bool(descending))


def topk(x: Any, k: int, *, axis: int = -1, largest: bool = True) -> tuple[Value, Value]:
    """The ``k`` largest (or smallest) elements along ``axis`` in sorted order, and their positions (int64)."""
    x, axis = _sortable("topk", x, axis)
    return bind(TOPK, x, k=int(k), axis=axis, largest=bool(largest))


def searchsorted(x1: Any, x2: Any, *, side: str = "left", sorter: Any = None) -> Value:
    """Where elements of ``x2`` would be inserted into the sorted 1-d ``x1`` to keep it sorted (int64)."""
    from twofold.ops.gather import take

    if side not in ("left", "right"):
        raise ShapeError(f"searchsorted: side {side!r}; expected 'left' or 'right'")
    a, b = together(x1, x2)
    if sorter is not None:
        a = take(a, sorter, axis=0)
    return bind(SEARCHSORTED, a, b, side=side)
