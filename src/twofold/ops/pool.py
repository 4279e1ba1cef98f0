"""Max and average pooling over ``(N, C, *spatial)``, and the ops that differentiate them.

    max_pool(x)            avg_pool(x)
    max_pool_grad(x, g)    avg_pool_grad(g)     send each window's g back: to the first maximum; evenly
    max_pool_pick(x, c)                         read c where max_pool found its maxima: the transpose of max_pool_grad

Padding never wins a maximum. An average divides by the number of positions of its window that lie in the input, or
(``include_pad``) in the padded input; overhang of ceil mode never counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from twofold.base.dims import Dim
from twofold.base.dtypes import float32 as _FLOAT
from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.base.shapes import show
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.windows import (
    Ints,
    Pads,
    check_fits,
    check_window,
    cropped,
    extent,
    output_size,
    padded,
    tap_slices,
    taps,
    widen,
)

# ---- type rules ------------------------------------------------------------------------------------------------------


def _outputs(
    spatial: Any, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> tuple[Dim, ...]:
    columns = zip(spatial, window, strides, padding, dilation)
    return tuple(output_size(n, k, s, pad, d, ceil_mode) for n, k, s, pad, d in columns)


def _sizes(
    name: str, shape: Sequence[Dim], window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> tuple[Dim, ...]:
    rank = len(shape) - 2
    if not 1 <= rank <= 3:
        raise ShapeError(
            f"{name}: x has shape {show(tuple(shape))}; expected (N, C, *spatial) with 1 to 3 spatial dimensions; "
            "add a batch dimension with tw.expand_dims(x, axis=0)"
        )
    if len(window) != rank or min(window) < 1:
        raise ArgumentError(
            f"{name}: window {window}; expected {rank} positive sizes for x of shape {show(tuple(shape))}"
        )
    check_window(name, rank, strides, padding, dilation)
    for span, pair in zip(map(extent, window, dilation), padding):
        if max(pair) >= int(span):
            raise ArgumentError(
                f"{name}: padding {pair} is not smaller than the window's extent {span}: "
                "a window would hold padding only"
            )
    out = _outputs(shape[2:], window, strides, padding, dilation, ceil_mode)
    check_fits(name, shape, out, window)
    return out


def _max_infer(x: Spec, *, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool) -> Spec:
    if x.dtype.kind == "b":
        raise DtypeError("max_pool: dtype bool; expected a number; cast with .astype(tw.uint8)")
    return Spec((*x.shape[:2], *_sizes("max_pool", x.shape, window, strides, padding, dilation, ceil_mode)), x.dtype)


def _max_grad_infer(x: Spec, g: Spec, **attrs: Any) -> Spec:
    expected = _max_infer(x, **attrs)
    if g != expected:
        raise ShapeError(f"max_pool_grad: g is {g}; expected {expected} for x {x}")
    return x


def _max_pick_infer(x: Spec, c: Spec, **attrs: Any) -> Spec:
    if c != x:
        raise ShapeError(f"max_pool_pick: c is {c}; expected {x}, as x")
    return _max_infer(x, **attrs)


def _avg_infer(x: Spec, *, window: Ints, strides: Ints, padding: Pads, ceil_mode: bool, include_pad: bool) -> Spec:
    if not x.dtype.is_floating:
        raise DtypeError(f"avg_pool: dtype {x.dtype.name}; expected a floating dtype; cast with .astype(tw.float32)")
    return Spec(
        (*x.shape[:2], *_sizes("avg_pool", x.shape, window, strides, padding, (1,) * len(window), ceil_mode)), x.dtype
    )


def _avg_grad_infer(g: Spec, *, input_shape: tuple[Dim, ...], **attrs: Any) -> Spec:
    x = Spec((*g.shape[:2], *input_shape), g.dtype)
    expected = _avg_infer(x, **attrs)
    if g != expected:
        raise ShapeError(
            f"avg_pool_grad: g is {g}; expected {expected} for an input of spatial shape {show(input_shape)}"
        )
    return x


# ---- meaning in NumPy: one strided pass per tap of the window --------------------------------------------------------


def _plan(
    spatial: Any, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> tuple[Ints, Any]:
    """Output sizes, and the padding that holds every tap of every window (the overhang of ceil mode too)."""
    out: Ints = tuple(map(int, _outputs(spatial, window, strides, padding, dilation, ceil_mode)))
    reach = [(o - 1) * s + int(extent(k, d)) for o, s, k, d in zip(out, strides, window, dilation)]
    return out, [(low, max(0, r - n - low)) for n, r, (low, _) in zip(spatial, reach, padding)]


def _lowest(dtype: np.dtype) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _max_ref(
    x: np.ndarray, *, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> np.ndarray:
    out, pads = _plan(x.shape[2:], window, strides, padding, dilation, ceil_mode)
    wide = padded(x, pads, _lowest(x.dtype))
    best: np.ndarray | None = None
    for tap in taps(window):
        here = wide[tap_slices(tap, out, strides, dilation)]
        best = here.copy() if best is None else np.maximum(best, here, out=best)
    assert best is not None
    return best


def _winners(x: np.ndarray, out: Ints, pads: Any, window: Ints, strides: Ints, dilation: Ints) -> np.ndarray:
    """Number of the first tap that holds each window's maximum (a NaN counts as the largest)."""
    wide = padded(widen(x), pads, _lowest(x.dtype))
    best: np.ndarray | None = None
    winner = np.zeros((*x.shape[:2], *out), np.min_scalar_type(int(np.prod(window))))
    for number, tap in enumerate(taps(window)):
        here = wide[tap_slices(tap, out, strides, dilation)]
        if best is None:
            best = here.copy()
            continue
        better = ~(here <= best) & (best == best)
        np.copyto(winner, number, where=better, casting="unsafe")
        np.copyto(best, here, where=better)
    return winner


def _max_grad_ref(
    x: np.ndarray, g: np.ndarray, *, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> np.ndarray:
    out, pads = _plan(x.shape[2:], window, strides, padding, dilation, ceil_mode)
    winner, wide = _winners(x, out, pads, window, strides, dilation), widen(g)
    total = padded(np.zeros(x.shape, wide.dtype), pads)
    for number, tap in enumerate(taps(window)):
        total[tap_slices(tap, out, strides, dilation)] += np.where(winner == number, wide, wide.dtype.type(0))
    return cropped(total, pads, x.shape[2:]).astype(g.dtype, copy=False)


def _max_pick_ref(
    x: np.ndarray, c: np.ndarray, *, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> np.ndarray:
    out, pads = _plan(x.shape[2:], window, strides, padding, dilation, ceil_mode)
    winner, wide = _winners(x, out, pads, window, strides, dilation), padded(c, pads)
    picked = np.zeros(winner.shape, c.dtype)
    for number, tap in enumerate(taps(window)):
        np.copyto(picked, wide[tap_slices(tap, out, strides, dilation)], where=winner == number)
    return picked


def _counts(spatial: Any, out: Ints, window: Ints, strides: Ints, padding: Pads, include_pad: bool) -> np.ndarray:
    """How many positions each window averages over, shape ``out``."""
    total = np.ones((), np.float64)
    for n, o, k, s, (low, high) in zip(spatial, out, window, strides, padding):
        first, last = (-low, n + high) if include_pad else (0, n)
        start = np.arange(o) * s - low
        total = total[..., None] * (np.minimum(start + k, last) - np.maximum(start, first))
    return total


def _avg_ref(
    x: np.ndarray, *, window: Ints, strides: Ints, padding: Pads, ceil_mode: bool, include_pad: bool
) -> np.ndarray:
    ones = (1,) * len(window)
    out, pads = _plan(x.shape[2:], window, strides, padding, ones, ceil_mode)
    wide = padded(widen(x), pads)
    total = np.zeros((*x.shape[:2], *out), wide.dtype)
    for tap in taps(window):
        total += wide[tap_slices(tap, out, strides, ones)]
    total /= _counts(x.shape[2:], out, window, strides, padding, include_pad).astype(total.dtype)
    return total.astype(x.dtype, copy=False)


def _avg_grad_ref(
    g: np.ndarray, *, window: Ints, strides: Ints, padding: Pads, ceil_mode: bool, include_pad: bool, input_shape: Any
) -> np.ndarray:
    ones, wide = (1,) * len(window), widen(g)
    out, pads = _plan(input_shape, window, strides, padding, ones, ceil_mode)
    share = wide / _counts(input_shape, out, window, strides, padding, include_pad).astype(wide.dtype)
    total = padded(np.zeros((*g.shape[:2], *input_shape), wide.dtype), pads)
    for tap in taps(window):
        total[tap_slices(tap, out, strides, ones)] += share
    return cropped(total, pads, input_shape).astype(g.dtype, copy=False)


# ---- samples: (x, window, strides, padding, dilation, ceil_mode) -----------------------------------------------------
_CASES: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 4, 6), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False),
    ((1, 2, 6, 5), (3, 3), (2, 2), ((1, 1), (1, 0)), (1, 1), False),  # overlapping, asymmetric, remainder
    ((1, 2, 6, 5), (3, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), True),  # ceil mode with overhang
    ((1, 1, 7, 8), (2, 3), (3, 4), ((0, 1), (1, 1)), (1, 1), True),
    ((1, 1, 7, 6), (2, 2), (1, 2), ((1, 0), (0, 1)), (2, 3), False),  # dilation
    ((2, 2, 7), (3,), (2,), ((1, 1),), (1,), False),
    ((1, 2, 3, 4, 4), (2, 2, 2), (1, 2, 2), ((0, 0), (0, 0), (1, 1)), (1, 1, 1), True),
)


def _attrs(window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool) -> dict[str, Any]:
    return {"window": window, "strides": strides, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}


def _distinct(shape: Any) -> np.ndarray:
    """Numbers far enough apart that a small step of a numeric check changes no maximum."""
    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape) / 4.0


def _pooled(x: Any, attrs: dict[str, Any]) -> Ints:
    return (*x[:2], *_plan(x[2:], **attrs)[0])


def _max_samples() -> Iterator[Sample]:
    return (Sample((_distinct(x),), _attrs(*rest)) for x, *rest in _CASES)


def _max_grad_samples() -> Iterator[Sample]:
    return (Sample((_distinct(x), _pooled(x, _attrs(*rest))), _attrs(*rest)) for x, *rest in _CASES)


def _max_pick_samples() -> Iterator[Sample]:
    return (Sample((_distinct(x), x), _attrs(*rest)) for x, *rest in _CASES)


def _avg_cases() -> Iterator[tuple[Any, dict[str, Any]]]:
    for x, window, strides, padding, dilation, ceil_mode in _CASES:
        for include_pad in (True, False):
            if set(dilation) == {1}:
                yield x, {
                    "window": window, "strides": strides, "padding": padding,
                    "ceil_mode": ceil_mode, "include_pad": include_pad,
                }  # fmt: skip


def _avg_samples() -> Iterator[Sample]:
    return (Sample((x,), attrs) for x, attrs in _avg_cases())


def _avg_grad_samples() -> Iterator[Sample]:
    for x, attrs in _avg_cases():
        y = _avg_infer(Spec(x, _FLOAT), **attrs)
        yield Sample((y.shape,), {**attrs, "input_shape": x[2:]})


def _max_vjp(g: Value, _y: Value, x: Value, **attrs: Any) -> tuple[Any]:
    return (bind(MAX_POOL_GRAD, x, g, **attrs),)


def _max_grad_vjp(c: Value, _y: Value, x: Value, _g: Value, **attrs: Any) -> tuple[Any, Any]:
    return None, bind(MAX_POOL_PICK, x, c, **attrs)


def _max_pick_vjp(g: Value, _y: Value, x: Value, _c: Value, **attrs: Any) -> tuple[Any, Any]:
    return None, bind(MAX_POOL_GRAD, x, g, **attrs)


def _avg_vjp(g: Value, _y: Value, x: Value, **attrs: Any) -> tuple[Any]:
    return (bind(AVG_POOL_GRAD, g, input_shape=x.shape[2:], **attrs),)


def _avg_grad_vjp(c: Value, _y: Value, _g: Value, *, input_shape: Any, **attrs: Any) -> tuple[Any]:
    return (bind(AVG_POOL, c, **attrs),)


MAX_POOL = register(Op("max_pool", _max_infer, _max_ref, _max_vjp, _max_samples, "MaxPool", "pool"))
MAX_POOL_GRAD = register(
    Op("max_pool_grad", _max_grad_infer, _max_grad_ref, _max_grad_vjp, _max_grad_samples, kind="pool")
)
MAX_POOL_PICK = register(
    Op("max_pool_pick", _max_pick_infer, _max_pick_ref, _max_pick_vjp, _max_pick_samples, kind="pool")
)
AVG_POOL = register(Op("avg_pool", _avg_infer, _avg_ref, _avg_vjp, _avg_samples, "AveragePool", "pool"))
AVG_POOL_GRAD = register(
    Op("avg_pool_grad", _avg_grad_infer, _avg_grad_ref, _avg_grad_vjp, _avg_grad_samples, kind="pool")
)


def max_pool(x: Value, *, window: Ints, strides: Ints, padding: Pads, dilation: Ints, ceil_mode: bool = False) -> Value:
    """Largest element of each window; arguments per spatial dimension, padding as ``(low, high)`` pairs."""
    return bind(MAX_POOL, x, **_attrs(window, strides, padding, dilation, ceil_mode))


def avg_pool(
    x: Value, *, window: Ints, strides: Ints, padding: Pads, ceil_mode: bool = False, include_pad: bool = True
) -> Value:
    """Mean of each window; arguments per spatial dimension, padding as ``(low, high)`` pairs."""
    return bind(
        AVG_POOL, x, window=window, strides=strides, padding=padding, ceil_mode=ceil_mode, include_pad=include_pad
    )  # fmt: skip
