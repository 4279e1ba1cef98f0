"""Matrix products: one op, batched and broadcasting; the rest is written with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.base.dtypes import bool_
from twofold.base.errors import DtypeError, ShapeError
from twofold.base.shapes import axis_index, broadcast, product, show
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import together, value
from twofold.ops.movement import matrix_transpose, permute_dims, reshape
from twofold.ops.precision import rounded_once
from twofold.ops.reduction import sum as sum_


def _infer(a: Spec, b: Spec) -> Spec:
    if a.dtype is not b.dtype or a.dtype is bool_:
        raise DtypeError(f"matmul: dtypes {a.dtype.name} and {b.dtype.name}; expected one numeric dtype")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: {show(a.shape)} @ {show(b.shape)}; expected (..., m, k) @ (..., k, n): "
            f"the last dimension of the first must equal the second-last of the second"
        )
    return Spec((*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)


def _ref(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        if a.dtype.itemsize == 2 and a.dtype.kind not in "iu":
            return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
        return np.matmul(a, b)


def _vjp(g: Value, _y: Value, a: Value, b: Value) -> tuple[Any, Any]:
    return lambda: matmul(g, matrix_transpose(b)), lambda: matmul(matrix_transpose(a), g)


MATMUL = register(
    Op(
        "matmul", _infer, _ref, _vjp,
        lambda: (Sample(((2, 3), (3, 4))), Sample(((5, 2, 3), (5, 3, 2))), Sample(((2, 1, 2, 3), (4, 3, 2))),
                 Sample(((2, 0), (0, 3)))),
        "MatMul", "matmul", doc="(..., m, k) @ (..., k, n) -> (..., m, n); leading dimensions broadcast.",
    )
)  # fmt: skip


def matmul(x1: Any, x2: Any) -> Value:
    """Matrix product ``(..., m, k) @ (..., k, n)``; leading dimensions broadcast.

    A 1-d first operand is a row, a 1-d second a column, and the dimension added for it is taken away again. A stack of
    matrices times one matrix is computed as a single tall product.
    """
    a, b = together(x1, x2)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: {show(a.shape)} @ {show(b.shape)}; operands need at least one dimension; use x * y")
    if a.ndim == 1 and b.ndim == 1:
        return reshape(matmul(reshape(a, (1, a.shape[0])), reshape(b, (b.shape[0], 1))), ())
    if a.ndim == 1:
        out = matmul(reshape(a, (1, a.shape[0])), b)
        return reshape(out, (*out.shape[:-2], out.shape[-1]))
    if b.ndim == 1:
        return reshape(matmul(a, reshape(b, (b.shape[0], 1))), a.shape[:-1] if a.shape[-1] == b.shape[0] else (-1,))
    if a.ndim > 2 and b.ndim == 2 and a.shape[-1] == b.shape[0]:
        tall = reshape(a, (product(a.shape[:-1]), a.shape[-1]))
        return reshape(bind(MATMUL, tall, b), (*a.shape[:-1], b.shape[1]))
    return bind(MATMUL, a, b)


@rounded_once
def vecdot(x1: Any, x2: Any, *, axis: int = -1) -> Value:
    """Sum of products along ``axis`` (negative: counted from the end in both), after broadcasting."""
    a, b = together(x1, x2)
    for x in (a, b):
        axis_index(axis, x.ndim)
    if a.shape[axis] != b.shape[axis]:
        raise ShapeError(f"vecdot: {show(a.shape)} and {show(b.shape)} differ along axis {axis}; expected equal sizes")
    return sum_(a * b, axis=axis, dtype=a.dtype)


def tensordot(x1: Any, x2: Any, *, axes: int | Sequence[Sequence[int]] = 2) -> Value:
    """Sum of products over several axes: the last ``axes`` of ``x1`` with the first of ``x2``, or two lists of them."""
    a, b = together(x1, x2)
    if isinstance(axes, int):
        if axes < 0 or axes > min(a.ndim, b.ndim):
            raise ShapeError(f"tensordot: axes={axes} for {show(a.shape)} and {show(b.shape)}")
        first, second = list(range(a.ndim - axes, a.ndim)), list(range(axes))
    else:
        first, second = ([axis_index(i, x.ndim) for i in side] for side, x in zip(axes, (a, b)))
    if [a.shape[i] for i in first] != [b.shape[j] for j in second]:
        raise ShapeError(f"tensordot: axes {first} of {show(a.shape)} and {second} of {show(b.shape)} differ in size")
    rows = [i for i in range(a.ndim) if i not in first]
    columns = [j for j in range(b.ndim) if j not in second]
    inner = product(a.shape[i] for i in first)
    left = reshape(permute_dims(a, rows + first), (product(a.shape[i] for i in rows), inner))
    right = reshape(permute_dims(b, second + columns), (inner, product(b.shape[j] for j in columns)))
    return reshape(bind(MATMUL, left, right), (*(a.shape[i] for i in rows), *(b.shape[j] for j in columns)))


def outer(x1: Any, x2: Any) -> Value:
    """All products of the elements of two 1-d arrays: shape ``(m, n)``."""
    a, b = value(x1), value(x2)
    if a.ndim != 1 or b.ndim != 1:
        raise ShapeError(f"outer: {show(a.shape)} and {show(b.shape)}; expected two 1-d arrays")
    return reshape(a, (a.shape[0], 1)) * reshape(b, (1, b.shape[0]))
