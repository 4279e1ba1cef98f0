"""Ops without inputs: constant, full, iota, and the size of a symbolic dimension."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from twofold.base.dims import Dim, Sym
from twofold.base.dtypes import DType, as_dtype, float32, int64
from twofold.base.errors import ShapeError
from twofold.base.shapes import as_shape
from twofold.ir import Op, Sample, Spec, Value, bind, current_builder, recording, register
from twofold.ops.convert import cast, is_scalar, value
from twofold.ops.movement import broadcast_to

CONSTANT = register(
    Op(
        "constant", lambda *, value: Spec(value.shape, as_dtype(value.dtype)), lambda *, value: value,
        None, lambda: (Sample((), {"value": np.arange(3.0)}, False),), "Constant", "creation",
    )
)  # fmt: skip
FULL = register(
    Op(
        "full", lambda *, shape, fill, dtype: Spec(shape, dtype),
        lambda *, shape, fill, dtype: np.full(shape, fill, dtype.numpy),
        None, lambda: (Sample((), {"shape": (2, 3), "fill": 1.5, "dtype": float32}, False),), kind="creation",
    )
)  # fmt: skip
IOTA = register(
    Op(
        "iota", lambda *, size, dtype: Spec((size,), dtype), lambda *, size, dtype: np.arange(size).astype(dtype.numpy),
        None, lambda: (Sample((), {"size": 5, "dtype": int64}, False),), kind="creation", doc="0, 1, 2, ... size-1",
    )
)  # fmt: skip


def _dim_size_ref(*, dim: Dim, dtype: DType) -> np.ndarray:
    if isinstance(dim, Sym):
        raise ShapeError(f"the size {dim} is symbolic; the graph must be specialised to concrete shapes before it runs")
    return np.asarray(dim, dtype.numpy)


DIM_SIZE = register(
    Op(
        "dim_size", lambda *, dim, dtype: Spec((), dtype), _dim_size_ref, None,
        lambda: (Sample((), {"dim": 4, "dtype": int64}, False),), kind="creation",
        doc="A symbolic dimension as a number; a constant once the graph is specialised.",
    )
)  # fmt: skip


def full(shape: Any, fill_value: Any, dtype: Any = None, *, device: Any = None, like: Value | None = None) -> Value:
    """An array of one value. ``like`` puts it beside another value (its graph, its device)."""
    shape, fill = as_shape(shape), fill_value
    if not is_scalar(fill):
        fill = value(fill)
        return broadcast_to(fill if dtype is None else cast(fill, dtype), shape)
    if dtype is None:
        dtype = (
            as_dtype(bool)
            if isinstance(fill, (bool, np.bool_))
            else int64
            if isinstance(fill, (int, np.integer))
            else float32
        )
    attrs = {"shape": shape, "fill": _plain(fill, as_dtype(dtype)), "dtype": as_dtype(dtype)}
    if like is not None:
        builder = current_builder((like,))
        if builder is not None:
            with recording(builder):
                return bind(FULL, **attrs)
        device = device or getattr(like, "device", None)
    return bind(FULL, **attrs, **({} if device is None else {"device": device}))


def _plain(fill: Any, dtype: DType) -> Any:
    if dtype.is_floating:
        return float(fill)
    return bool(fill) if dtype.kind == "b" else int(fill)


def iota(size: Dim, dtype: Any = None, *, device: Any = None) -> Value:
    """0, 1, ... size-1."""
    return bind(IOTA, size=size, dtype=as_dtype(dtype or int64), **({} if device is None else {"device": device}))


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None, *, device: Any = None) -> Value:
    """Numbers from ``start`` up to (not including) ``stop`` by ``step``; int64, or float32 if any bound is a float."""
    if stop is None:
        start, stop = 0, start
    if isinstance(stop, Sym):
        return iota(stop - start, dtype, device=device)
    if dtype is None:
        dtype = float32 if any(isinstance(v, float) for v in (start, stop, step)) else int64
    if step == 0:
        raise ShapeError("arange: step 0; expected a step that is not zero")
    size = max(0, math.ceil((stop - start) / step))
    dtype = as_dtype(dtype)
    if (start, step) == (0, 1):
        return iota(size, dtype, device=device)
    numbers = (start + step * np.arange(size)).astype(dtype.numpy)
    return bind(CONSTANT, value=numbers, **({} if device is None else {"device": device}))
