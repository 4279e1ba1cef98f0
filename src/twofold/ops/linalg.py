"""Linear algebra beyond products: the array API standard's ``linalg`` extension.

``solve`` is an op with a gradient, and what can be written with other ops (inverses, powers, norms, diagonals, cross
products) has one too. Factorisations go through NumPy's LAPACK: they are eager only and refuse tensors that require
gradients, since these would be lost silently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.base.errors import ArgumentError, DtypeError, GradientError, ShapeError
from twofold.base.shapes import axis_index, axis_tuple, broadcast, show, without
from twofold.ir import Op, Sample, Spec, Value, bind, context, register
from twofold.ops.arrange import eye
from twofold.ops.convert import cast, together, value
from twofold.ops.elementwise import abs_, not_equal
from twofold.ops.indexing import concrete_array
from twofold.ops.matmul import matmul, outer, tensordot, vecdot  # noqa: F401 (the standard has them here too)
from twofold.ops.movement import broadcast_to, concat, matrix_transpose, reshape, slice_along
from twofold.ops.precision import rounded_once
from twofold.ops.reduction import max as max_
from twofold.ops.reduction import min as min_
from twofold.ops.reduction import norm
from twofold.ops.reduction import sum as sum_


class EighResult(NamedTuple):
    """Result of ``eigh``."""

    eigenvalues: Value
    eigenvectors: Value


class QRResult(NamedTuple):
    """Result of ``qr``."""

    Q: Value
    R: Value


class SlogdetResult(NamedTuple):
    """Result of ``slogdet``."""

    sign: Value
    logabsdet: Value


class SVDResult(NamedTuple):
    """Result of ``svd``."""

    U: Value
    S: Value
    Vh: Value


def _matrices(name: str, x: Any, square: bool = False) -> Value:
    x = value(x)
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        raise ShapeError(f"{name}: x has shape {show(x.shape)}; expected (..., {'n, n' if square else 'm, n'})")
    if not x.dtype.is_floating:
        raise DtypeError(f"{name}: dtype {x.dtype.name}; expected a floating dtype; cast with .astype(tw.float32)")
    return x


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _factorise(name: str, x: Value, function: Any) -> tuple[Value, ...]:
    """``function`` of the numbers of ``x``, its results as values in ``x``'s dtype."""
    if x.requires_grad and context.grad_enabled:
        raise GradientError(f"{name} has no gradient; use x.detach(), or `with tw.no_grad():`")
    array = concrete_array(x, name)
    try:
        results = function(_wide(array))
    except np.linalg.LinAlgError as error:
        raise ArgumentError(f"{name}: {error}") from None
    results = results if isinstance(results, tuple) else (results,)
    return tuple(value(np.asarray(r).astype(x.dtype.numpy), (x,)) for r in results)


# ---- solve and what follows from it ----------------------------------------------------------------------------------


def _solve_infer(a: Spec, b: Spec) -> Spec:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"solve: matrices {show(a.shape)} and right sides {show(b.shape)}; expected (..., n, n) and (..., n, k)"
        )
    if a.dtype is not b.dtype or not a.dtype.is_floating:
        raise DtypeError(f"solve: dtypes {a.dtype.name} and {b.dtype.name}; expected one floating dtype")
    return Spec((*broadcast(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), a.dtype)


def _solve_ref(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    try:
        out = np.linalg.solve(
            np.broadcast_to(_wide(a), lead + a.shape[-2:]), np.broadcast_to(_wide(b), lead + b.shape[-2:])
        )
    except np.linalg.LinAlgError:
        raise ArgumentError("solve: a matrix is singular; it has no inverse") from None
    return out.astype(a.dtype)


def _solve_vjp(g: Value, y: Value, a: Value, _b: Value) -> tuple[Any, Any]:
    back = bind(SOLVE, matrix_transpose(a), g)
    return lambda: -matmul(back, matrix_transpose(y)), back


_A = np.array([[2.0, 1.0], [0.5, -3.0]])
SOLVE = register(
    Op(
        "solve", _solve_infer, _solve_ref, _solve_vjp,
        lambda: (Sample((_A, (2, 3))), Sample((np.stack([_A, _A.T + 0.5]), (2, 1)))),
        kind="linalg", doc="x with a @ x = b, for (stacks of) square matrices.",
    )
)  # fmt: skip


def solve(x1: Any, x2: Any, /) -> Value:
    """``x`` with ``x1 @ x = x2``: matrices ``(..., n, n)``; right sides ``(n,)`` or ``(..., n, k)``."""
    a, b = together(x1, x2)
    if b.ndim == 1:
        out = bind(SOLVE, a, reshape(b, (b.shape[0], 1)))
        return reshape(out, out.shape[:-1])
    return bind(SOLVE, a, b)


def inv(x: Any, /) -> Value:
    """Inverses of square matrices ``(..., n, n)``."""
    x = _matrices("inv", x, square=True)
    return bind(SOLVE, x, eye(x.shape[-1], dtype=x.dtype))


def matrix_power(x: Any, n: int, /) -> Value:
    """Square matrices multiplied with themselves ``n`` times; negative: the inverse's power."""
    x = _matrices("matrix_power", x, square=True)
    if n < 0:
        return matrix_power(inv(x), -n)
    out: Value | None = None
    while n:  # binary powers
        if n & 1:
            out = x if out is None else matmul(out, x)
        n >>= 1
        x = matmul(x, x) if n else x
    return broadcast_to(eye(x.shape[-1], dtype=x.dtype), x.shape) if out is None else out


# ---- written with other ops ------------------------------------------------------------------------------------------


def cross(x1: Any, x2: Any, /, *, axis: int = -1) -> Value:
    """Cross products of 3-vectors along ``axis``."""
    a, b = together(x1, x2)
    for x in (a, b):
        if x.shape[axis_index(axis, x.ndim)] != 3:
            raise ShapeError(f"cross: {show(x.shape)} has size {x.shape[axis]} along axis {axis}; expected 3")
    shape = broadcast(a.shape, b.shape)
    a, b = broadcast_to(a, shape), broadcast_to(b, shape)
    at = axis_index(axis, len(shape))
    part = lambda x, i: slice_along(x, at, i % 3, i % 3 + 1)
    return concat([part(a, i + 1) * part(b, i + 2) - part(a, i + 2) * part(b, i + 1) for i in range(3)], axis=at)


def diagonal(x: Any, /, *, offset: int = 0) -> Value:
    """Diagonal ``offset`` of matrices ``(..., m, n)``: shape ``(..., k)``."""
    x = value(x)
    if x.ndim < 2:
        raise ShapeError(f"diagonal: x has shape {show(x.shape)}; expected (..., m, n)")
    rows, columns = int(x.shape[-2]), int(x.shape[-1])
    length = max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))
    start = offset if offset >= 0 else -offset * columns
    flat = reshape(x, (*x.shape[:-2], rows * columns))
    return (
        slice_along(
            flat, flat.ndim - 1, min(start, rows * columns), start + (length - 1) * (columns + 1) + 1, columns + 1
        )
        if length
        else (slice_along(flat, flat.ndim - 1, 0, 0))
    )


def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Value:
    """Sum of diagonal ``offset``."""
    return sum_(diagonal(x, offset=offset), axis=-1, dtype=dtype)


@rounded_once
def vector_norm(x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: float = 2) -> Value:
    """The ``ord``-norm over ``axis`` (all elements for None): any number, or plus or minus infinity. Gradient 0 at 0 for
    ``ord`` 2."""
    x = value(x)
    if not x.dtype.is_floating:
        raise DtypeError(f"vector_norm: dtype {x.dtype.name}; expected a floating dtype; cast with .astype(tw.float32)")
    axes = axis_tuple(axis, x.ndim)
    if ord == 0:
        return sum_(cast(not_equal(x, 0), x.dtype), axis=axes, keepdims=keepdims)
    size = abs_(x)
    if not axes:
        return size
    if ord in (np.inf, -np.inf):
        return (max_ if ord > 0 else min_)(size, axis=axes, keepdims=keepdims)
    if ord == 1:
        return sum_(size, axis=axes, keepdims=keepdims)
    if ord == 2:
        return norm(x, axis=axes, keepdims=keepdims)
    return sum_(size**ord, axis=axes, keepdims=keepdims) ** (1 / ord)


@rounded_once
def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Value:
    """A norm of matrices ``(..., m, n)``: "fro", "nuc", 1, -1, 2, -2, inf or -inf (2, -2, "nuc": eager, no gradient)."""
    x = _matrices("matrix_norm", x)
    rows, columns = x.ndim - 2, x.ndim - 1
    if ord == "fro":
        return vector_norm(x, axis=(rows, columns), keepdims=keepdims)
    if ord in (1, -1, np.inf, -np.inf):
        added, kept = (rows, columns) if ord in (1, -1) else (columns, rows)
        sums = sum_(abs_(x), axis=added, keepdims=True)
        out = (max_ if ord > 0 else min_)(sums, axis=kept, keepdims=True)
    elif ord in (2, -2, "nuc"):
        s = svdvals(x)
        out = (
            sum_(s, axis=-1, keepdims=True) if ord == "nuc" else (max_ if ord > 0 else min_)(s, axis=-1, keepdims=True)
        )
        out = reshape(out, (*out.shape, 1))
    else:
        raise ArgumentError(f"matrix_norm: ord {ord!r}; expected 'fro', 'nuc', 1, -1, 2, -2, inf or -inf")
    return out if keepdims else reshape(out, without(x.shape, (rows, columns), False))


# ---- through NumPy: eager, no gradient -------------------------------------------------------------------------------


def cholesky(x: Any, /, *, upper: bool = False) -> Value:
    """The triangular factor of symmetric positive definite matrices: lower ``x = L @ L.mT``, or upper."""
    (lower,) = _factorise("cholesky", _matrices("cholesky", x, True), np.linalg.cholesky)
    return matrix_transpose(lower) if upper else lower


def det(x: Any, /) -> Value:
    """Determinants of square matrices."""
    return _factorise("det", _matrices("det", x, True), np.linalg.det)[0]


def slogdet(x: Any, /) -> SlogdetResult:
    """Sign and logarithm of the absolute determinant of square matrices."""
    return SlogdetResult(*_factorise("slogdet", _matrices("slogdet", x, True), lambda a: tuple(np.linalg.slogdet(a))))


def eigh(x: Any, /) -> EighResult:
    """Eigenvalues (ascending) and eigenvectors (columns) of symmetric matrices; the lower triangle is read."""
    return EighResult(*_factorise("eigh", _matrices("eigh", x, True), lambda a: tuple(np.linalg.eigh(a))))


def eigvalsh(x: Any, /) -> Value:
    """Eigenvalues (ascending) of symmetric matrices."""
    return _factorise("eigvalsh", _matrices("eigvalsh", x, True), np.linalg.eigvalsh)[0]


def qr(x: Any, /, *, mode: str = "reduced") -> QRResult:
    """``x = Q @ R`` with orthonormal columns in Q and an upper triangle R; ``mode`` "reduced" or "complete"."""
    if mode not in ("reduced", "complete"):
        raise ArgumentError(f"qr: mode {mode!r}; expected 'reduced' or 'complete'")
    return QRResult(*_factorise("qr", _matrices("qr", x), lambda a: tuple(np.linalg.qr(a, mode))))  # type: ignore[call-overload]


def svd(x: Any, /, *, full_matrices: bool = True) -> SVDResult:
    """``x = U @ diag(S) @ Vh`` with singular values S in descending order."""
    return SVDResult(*_factorise("svd", _matrices("svd", x), lambda a: tuple(np.linalg.svd(a, full_matrices))))


def svdvals(x: Any, /) -> Value:
    """Singular values, in descending order."""
    return _factorise("svdvals", _matrices("svdvals", x), np.linalg.svdvals)[0]


def pinv(x: Any, /, *, rtol: Any = None) -> Value:
    """Moore-Penrose inverses; singular values below ``rtol`` times the largest count as zero."""
    limit = None if rtol is None else _limit(rtol)
    return _factorise(
        "pinv", _matrices("pinv", x), lambda a: np.linalg.pinv(a, rtol=_default_rtol(a) if limit is None else limit)
    )[0]


def matrix_rank(x: Any, /, *, rtol: Any = None) -> Value:
    """How many singular values exceed ``rtol`` times the largest (int64)."""
    x = _matrices("matrix_rank", x)
    s = concrete_array(svdvals(x), "matrix_rank")
    limit = np.asarray(_default_rtol(concrete_array(x, "matrix_rank")) if rtol is None else _limit(rtol))
    largest = s.max(axis=-1, keepdims=True, initial=0)
    return value(np.asarray((s > largest * limit[..., None]).sum(axis=-1), np.int64), (x,))


def _limit(rtol: Any) -> Any:
    return concrete_array(rtol, "rtol") if isinstance(rtol, Value) else rtol


def _default_rtol(a: np.ndarray) -> float:
    return max(a.shape[-2:]) * float(np.finfo(_wide(a).dtype).eps)


NAMES = (
    "cholesky", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv", "matmul", "matrix_norm", "matrix_power",
    "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve", "svd", "svdvals", "tensordot", "trace",
    "vecdot", "vector_norm",
)  # fmt: skip
