"""Reductions: sum, prod, max, min, any, all, argmax, argmin, cumulative sum and product, and means over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dtypes import DType, as_dtype, bool_, int64, sum_dtype
from twofold.base.errors import DtypeError, ShapeError
from twofold.base.shapes import axis_index, axis_tuple, product, show, without
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import cast, dim_value, value
from twofold.ops.elementwise import equal, sqrt, where
from twofold.ops.movement import FLIP, broadcast_to, reshape
from twofold.ops.precision import rounded_once

_SAMPLES = lambda: (
    Sample(((3, 4),), {"axes": (1,), "keepdims": False}),
    Sample(((2, 3, 2),), {"axes": (0, 2), "keepdims": True}),
    Sample(((3,),), {"axes": (0,), "keepdims": False}),
)


def _infer(name: str, out: DType | None = None) -> Any:
    def infer(x: Spec, *, axes: tuple[int, ...], keepdims: bool) -> Spec:
        if name in ("any", "all") and x.dtype is not bool_:
            raise DtypeError(f"{name}: dtype {x.dtype.name}; expected bool")
        if name in ("max", "min") and 0 in [x.shape[a] for a in axes]:
            raise ShapeError(f"{name}: no elements to reduce in {show(x.shape)} over axes {axes}")
        return Spec(without(x.shape, axes, keepdims), out or x.dtype)

    return infer


def _ref(function: Any) -> Any:
    def ref(x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
        with np.errstate(all="ignore"):
            out = function(x.astype(_sums(x), copy=False), axis=axes, keepdims=keepdims)
            return np.asarray(out).astype(x.dtype, copy=False)

    return ref


def _spread(g: Value, x: Value, axes: tuple[int, ...]) -> Value:
    """A reduced value laid over the shape it was reduced from."""
    return broadcast_to(reshape(g, without(x.shape, axes, True)), x.shape)


def _extremum_vjp(g: Value, y: Value, x: Value, *, axes: tuple[int, ...], keepdims: bool) -> tuple[Value]:
    """Ties share the gradient equally."""
    hit = cast(equal(x, _spread(y, x, axes)), x.dtype)
    count = bind(SUM, hit, axes=axes, keepdims=True)
    return (hit * _spread(g, x, axes) / count,)


def _prod_vjp(g: Value, _y: Value, x: Value, *, axes: tuple[int, ...], keepdims: bool) -> tuple[Value]:
    """The product of all *other* elements, by running products from both sides, so that zeros are exact."""
    from twofold.ops.movement import pad, permute_dims, slice_along

    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = kept + axes
    shape = tuple(x.shape[i] for i in order)
    flat = reshape(permute_dims(x, order), (*shape[: len(kept)], product(shape[len(kept) :])))
    last, n = flat.ndim - 1, flat.shape[-1]
    ahead = [(0, 0)] * last + [(1, 0)]
    before = slice_along(pad(bind(CUMPROD, flat, axis=last), ahead, 1.0), last, 0, n)
    mirrored = bind(FLIP, flat, axes=(last,))
    after = bind(FLIP, slice_along(pad(bind(CUMPROD, mirrored, axis=last), ahead, 1.0), last, 0, n), axes=(last,))
    others = permute_dims(reshape(before * after, shape), tuple(int(i) for i in np.argsort(order)))
    return (others * _spread(g, x, axes),)


SUM = register(
    Op("sum", _infer("sum"), _ref(np.sum), lambda g, _y, x, *, axes, keepdims: (_spread(g, x, axes),), _SAMPLES,
       "ReduceSum", "reduction")
)  # fmt: skip
PROD = register(Op("prod", _infer("prod"), _ref(np.prod), _prod_vjp, _SAMPLES, "ReduceProd", "reduction"))
MAX = register(Op("max", _infer("max"), _ref(np.max), _extremum_vjp, _SAMPLES, "ReduceMax", "reduction"))
MIN = register(Op("min", _infer("min"), _ref(np.min), _extremum_vjp, _SAMPLES, "ReduceMin", "reduction"))
_BOOLS = lambda: (Sample((np.array([[True, False], [True, True]]),), {"axes": (1,), "keepdims": False}, False),)
ANY = register(Op("any", _infer("any", bool_), _ref(np.any), None, _BOOLS, kind="reduction"))
ALL = register(Op("all", _infer("all", bool_), _ref(np.all), None, _BOOLS, kind="reduction"))


def _reduce(op: Op, x: Value, axis: Any, keepdims: bool) -> Value:
    axes = axis_tuple(axis, x.ndim)
    return bind(op, x, axes=axes, keepdims=bool(keepdims)) if axes else x


def _widened(x: Value, dtype: Any) -> Value:
    """The standard's accumulation rule: small integers are summed in 64 bits."""
    if dtype is not None:
        return cast(x, dtype)
    if x.dtype is bool_ or x.dtype.kind == "i":
        return cast(x, int64)
    return cast(x, as_dtype("uint64")) if x.dtype.kind == "u" else x


def sum(x: Any, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Value:
    """Sum over ``axis`` (an int, a tuple, or None for all). Integers accumulate in 64 bits unless ``dtype`` is given."""
    total = _reduce(SUM, _widened(value(x), dtype), axis, keepdims)
    return total if dtype is None else cast(total, dtype)


@rounded_once
def prod(x: Any, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Value:
    """Product over ``axis``; the gradient is exact where elements are zero."""
    total = _reduce(PROD, _widened(value(x), dtype), axis, keepdims)
    return total if dtype is None else cast(total, dtype)


def max(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """Largest element over ``axis``; ties share the gradient."""
    return _reduce(MAX, value(x), axis, keepdims)


def min(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """Smallest element over ``axis``; ties share the gradient."""
    return _reduce(MIN, value(x), axis, keepdims)


def any(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """Whether some element over ``axis`` is true (not zero)."""
    return _reduce(ANY, cast(value(x), bool_), axis, keepdims)


def all(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """Whether every element over ``axis`` is true (not zero)."""
    return _reduce(ALL, cast(value(x), bool_), axis, keepdims)


def _count(x: Value, axis: Any) -> Any:
    return product(x.shape[a] for a in axis_tuple(axis, x.ndim))


@rounded_once
def mean(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """Arithmetic mean over ``axis``; floating dtypes only. 16-bit floats are added and divided in float32."""
    x = value(x)
    if not x.dtype.is_floating:
        raise DtypeError(f"mean: dtype {x.dtype.name}; expected a floating dtype; cast with .astype(tw.float32)")
    total = _reduce(SUM, x, axis, keepdims)
    return total / dim_value(_count(x, axis), total.dtype)


@rounded_once
def var(x: Any, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Value:
    """Variance over ``axis``, two-pass; the divisor is the count less ``correction``."""
    x = value(x)
    centred = x - mean(x, axis=axis, keepdims=True)
    total = _reduce(SUM, centred * centred, axis, keepdims)
    return total / (dim_value(_count(x, axis), total.dtype) - correction)


@rounded_once
def std(x: Any, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Value:
    """Standard deviation over ``axis``; its gradient at a constant array is 0, not NaN."""
    return root(var(x, axis=axis, correction=correction, keepdims=keepdims))


@rounded_once
def norm(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """Euclidean norm over ``axis``; gradient 0 at 0."""
    x = value(x)
    return root(sum(x * x, axis=axis, keepdims=keepdims))


def root(total: Value) -> Value:
    """The square root of a sum of squares, with gradient 0 where it is 0: there every square's slope is 0 too."""
    zero = equal(total, 0)
    return where(zero, 0, sqrt(where(zero, 1, total)))


# ---- argmax, argmin --------------------------------------------------------------------------------------------------


def _arg_infer(x: Spec, *, axis: int, keepdims: bool) -> Spec:
    if x.shape[axis] == 0:
        raise ShapeError(f"argmax/argmin: no elements along axis {axis} of {show(x.shape)}")
    return Spec(without(x.shape, (axis,), keepdims), int64)


def _arg(name: str, function: Any, onnx: str) -> Op:
    ref = lambda x, *, axis, keepdims: np.asarray(function(x, axis=axis, keepdims=keepdims))
    samples = lambda: (Sample(((3, 4),), {"axis": 1, "keepdims": False}, False),)
    return register(Op(name, _arg_infer, ref, None, samples, onnx, "reduction"))


ARGMAX = _arg("argmax", np.argmax, "ArgMax")
ARGMIN = _arg("argmin", np.argmin, "ArgMin")


def _arg_function(op: Op, x: Any, axis: int | None, keepdims: bool) -> Value:
    x = value(x)
    if axis is None:
        out = bind(op, reshape(x, -1), axis=0, keepdims=False)
        return reshape(out, (1,) * x.ndim) if keepdims else out
    return bind(op, x, axis=axis_index(axis, x.ndim), keepdims=bool(keepdims))


def argmax(x: Any, *, axis: int | None = None, keepdims: bool = False) -> Value:
    """Position (int64) of the first largest element along ``axis`` (None: of the flattened array)."""
    return _arg_function(ARGMAX, x, axis, keepdims)


def argmin(x: Any, *, axis: int | None = None, keepdims: bool = False) -> Value:
    """Position (int64) of the first smallest element along ``axis``."""
    return _arg_function(ARGMIN, x, axis, keepdims)


# ---- running sums and products ---------------------------------------------------------------------------------------


def _cumulative_ref(function: Any) -> Any:
    """16-bit floats are added up in float32; each result is rounded once."""
    return lambda x, *, axis: function(x, axis=axis, dtype=_sums(x)).astype(x.dtype, copy=False)


def _sums(x: np.ndarray) -> np.dtype:
    return sum_dtype(as_dtype(x.dtype)).numpy


def _cumsum_vjp(g: Value, _y: Value, _x: Value, *, axis: int) -> tuple[Value]:
    mirrored = bind(FLIP, g, axes=(axis,))
    return (bind(FLIP, bind(CUMSUM, mirrored, axis=axis), axes=(axis,)),)


def _cumprod_vjp(g: Value, y: Value, x: Value, *, axis: int) -> tuple[Value]:
    """Sum over later outputs of (g y) / x; where x is 0 the quotient is rebuilt by a masked product."""
    n = x.shape[axis]
    if not isinstance(n, int):
        raise ShapeError("cumulative_prod: its gradient needs a fixed size along the axis")
    total = None
    for i in range(n):  # d y[j] / d x[i] = product of x[k], k <= j, k != i, for j >= i
        place = np.arange(n).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        others = bind(CUMPROD, where(place == i, 1.0, x), axis=axis)
        part = where(place == i, sum(where(place >= i, others * g, 0.0), axis=axis, keepdims=True), 0.0)
        total = part if total is None else total + part
    return (total if total is not None else g,)


_CUM = lambda: (Sample(((3, 4),), {"axis": 1}), Sample(((3,),), {"axis": 0}))
_same = lambda x, *, axis: x
CUMSUM = register(Op("cumulative_sum", _same, _cumulative_ref(np.cumsum), _cumsum_vjp, _CUM, kind="scan"))
CUMPROD = register(Op("cumulative_prod", _same, _cumulative_ref(np.cumprod), _cumprod_vjp, _CUM, kind="scan"))


@rounded_once
def logsumexp(x: Any, *, axis: Any = None, keepdims: bool = False) -> Value:
    """log(sum(exp(x))) over ``axis``, computed about the maximum so that it does not overflow."""
    from twofold.ops.elementwise import detach, exp, isfinite, log

    x = value(x)
    peak = detach(max(x, axis=axis, keepdims=True))
    peak = where(isfinite(peak), peak, 0.0)
    out = log(sum(exp(x - peak), axis=axis, keepdims=True)) + peak
    return out if keepdims else reshape(out, without(x.shape, axis_tuple(axis, x.ndim), False))


__all__ = [
    "all", "any", "argmax", "argmin", "logsumexp", "max", "mean", "min", "norm", "prod", "std", "sum", "var",
]  # fmt: skip
