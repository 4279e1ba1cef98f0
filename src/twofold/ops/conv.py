"""Convolution and its two gradients: three bilinear ops, closed under differentiation.

    conv(x, w)             y[n, o, p]  = sum over c, k of x[n, c, p*stride + k*dilation - low] * w[o, c, k]
    conv_input_grad(g, w)  the transpose in x (also the "transposed convolution")
    conv_weight_grad(x, g) the transpose in w

``x`` is ``(N, C, *spatial)``, ``w`` is ``(out, C/groups, *kernel)``, one to three spatial dimensions.
It is cross-correlation, as everywhere in deep learning. The gradient of each with respect to an operand is another of
the three.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from twofold.base.dims import Dim
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

_CHUNK = 16 << 20  # bytes of unfolded input at a time: larger blocks fall out of the cache and gain nothing


# ---- type rules ------------------------------------------------------------------------------------------------------


def _check(name: str, a: Spec, b: Spec, strides: Ints, padding: Pads, dilation: Ints, groups: int) -> None:
    if a.ndim != b.ndim or not 3 <= a.ndim <= 5:
        raise ShapeError(
            f"{name}: operands have shapes {show(a.shape)} and {show(b.shape)}; expected 3, 4 or 5 dimensions in "
            "both: (N, C, *spatial) and (out, in/groups, *kernel); add a batch dimension with tw.expand_dims(x, axis=0)"
        )
    if a.dtype is not b.dtype or not a.dtype.is_floating:
        raise DtypeError(f"{name}: operands have dtypes {a.dtype.name} and {b.dtype.name}; expected one floating dtype")
    if groups < 1:
        raise ArgumentError(f"{name}: groups={groups}; expected at least 1")
    check_window(name, a.ndim - 2, strides, padding, dilation)


def _sizes(spatial: Any, kernel: Any, strides: Ints, padding: Pads, dilation: Ints) -> tuple[Dim, ...]:
    return tuple(map(output_size, spatial, kernel, strides, padding, dilation))


def _divides(name: str, channels: Dim, groups: int, what: str) -> None:
    if isinstance(channels, int) and channels % groups:
        raise ShapeError(f"{name}: {channels} {what} do not divide into {groups} groups")


def _conv_infer(x: Spec, w: Spec, *, strides: Ints, padding: Pads, dilation: Ints, groups: int) -> Spec:
    name = f"conv{x.ndim - 2}d"
    _check(name, x, w, strides, padding, dilation, groups)
    if x.shape[1] != w.shape[1] * groups:
        raise ShapeError(
            f"{name}: x has {x.shape[1]} channels (shape {show(x.shape)}), weight expects {w.shape[1] * groups} "
            f"(shape {show(w.shape)}, groups={groups}); check in_channels"
        )
    _divides(name, w.shape[0], groups, "output channels")
    out = _sizes(x.shape[2:], w.shape[2:], strides, padding, dilation)
    check_fits(name, x.shape, out, w.shape[2:])
    return Spec((x.shape[0], w.shape[0], *out), x.dtype)


def _input_grad_infer(
    g: Spec, w: Spec, *, strides: Ints, padding: Pads, dilation: Ints, groups: int, input_shape: Any
) -> Spec:
    name = f"conv_transpose{g.ndim - 2}d"
    _check(name, g, w, strides, padding, dilation, groups)
    if g.shape[1] != w.shape[0]:
        raise ShapeError(
            f"{name}: input has {g.shape[1]} channels (shape {show(g.shape)}), weight expects {w.shape[0]} "
            f"(shape {show(w.shape)}); check in_channels"
        )
    _divides(name, w.shape[0], groups, "input channels")
    expected = _sizes(input_shape, w.shape[2:], strides, padding, dilation)
    if expected != g.shape[2:]:
        raise ShapeError(
            f"{name}: spatial shape {show(g.shape[2:])} cannot come from "
            f"{show(input_shape)}, which gives {show(expected)}"
        )
    return Spec((g.shape[0], w.shape[1] * groups, *input_shape), g.dtype)


def _weight_grad_infer(
    x: Spec, g: Spec, *, strides: Ints, padding: Pads, dilation: Ints, groups: int, kernel: Any
) -> Spec:
    name = f"conv{x.ndim - 2}d weight gradient"
    _check(name, x, g, strides, padding, dilation, groups)
    expected = (x.shape[0], *_sizes(x.shape[2:], kernel, strides, padding, dilation))
    if expected != (g.shape[0], *g.shape[2:]):
        raise ShapeError(
            f"{name}: g has shape {show(g.shape)}; expected {expected[0]} items of spatial shape {show(expected[1:])}"
        )
    _divides(name, x.shape[1], groups, "input channels")
    _divides(name, g.shape[1], groups, "output channels")
    return Spec((g.shape[1], x.shape[1] // groups, *kernel), x.dtype)


# ---- meaning in NumPy: unfold windows into columns, then matrix products ---------------------------------------------


def _windows(x: np.ndarray, kernel: Any, strides: Ints, padding: Pads, dilation: Ints) -> np.ndarray:
    """A view ``(N, C, *kernel, *out)`` of the padded input."""
    rank = x.ndim - 2
    spans = tuple(int(extent(k, d)) for k, d in zip(kernel, dilation))
    view = sliding_window_view(padded(x, padding), spans, tuple(range(2, 2 + rank)))
    view = view[
        (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilation))
    ]
    return view.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))


def _chunks(items: int, column_bytes: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, column_bytes))
    return (slice(i, i + step) for i in range(0, items, step))


def _volume(shape: Any) -> int:
    return int(np.prod(shape, dtype=np.int64))


@np.errstate(all="ignore")  # infinities and NaNs are results like others
def _conv_ref(x: np.ndarray, w: np.ndarray, *, strides: Ints, padding: Pads, dilation: Ints, groups: int) -> np.ndarray:
    dtype, x, w = x.dtype, widen(x), widen(w)
    view = _windows(x, w.shape[2:], strides, padding, dilation)
    space, rows, depth = view.shape[x.ndim :], w.shape[0] // groups, _volume(w.shape[1:])
    matrix = w.reshape(groups, rows, depth)
    out = np.empty((len(x), groups, rows, _volume(space)), w.dtype)
    for part in _chunks(len(x), groups * depth * _volume(space) * w.itemsize):
        np.matmul(matrix, view[part].reshape(-1, groups, depth, _volume(space)), out=out[part])
    return out.reshape(len(x), w.shape[0], *space).astype(dtype, copy=False)


@np.errstate(all="ignore")
def _input_grad_ref(
    g: np.ndarray, w: np.ndarray, *, strides: Ints, padding: Pads, dilation: Ints, groups: int, input_shape: Any
) -> np.ndarray:
    dtype, g, w = g.dtype, widen(g), widen(w)
    kernel, space, rows = w.shape[2:], g.shape[2:], w.shape[0] // groups
    channels, volume = w.shape[1] * groups, _volume(space)
    matrix = w.reshape(groups, rows, -1).swapaxes(1, 2)
    full = tuple(n + low + high for n, (low, high) in zip(input_shape, padding))
    total = np.zeros((len(g), channels, *full), g.dtype)
    for part in _chunks(len(g), channels * _volume(kernel) * volume * g.itemsize):
        columns = matrix @ g[part].reshape(-1, groups, rows, volume)
        columns = columns.reshape(-1, channels, *kernel, *space)
        target = total[part]
        for tap in taps(kernel):
            target[tap_slices(tap, space, strides, dilation)] += columns[(slice(None), slice(None), *tap)]
    return cropped(total, padding, input_shape).astype(dtype, copy=False)


@np.errstate(all="ignore")
def _weight_grad_ref(
    x: np.ndarray, g: np.ndarray, *, strides: Ints, padding: Pads, dilation: Ints, groups: int, kernel: Any
) -> np.ndarray:
    dtype, x, g = x.dtype, widen(x), widen(g)
    rank, space, rows = len(kernel), g.shape[2:], g.shape[1] // groups
    channels, volume = x.shape[1], _volume(space)
    view = np.moveaxis(_windows(x, kernel, strides, padding, dilation), 0, 1 + rank)  # (C, *kernel, N, *out)
    heads = g.reshape(len(g), groups, rows, volume).transpose(1, 2, 0, 3)
    out = np.zeros((groups, rows, channels // groups * _volume(kernel)), x.dtype)
    for part in _chunks(len(x), channels * _volume(kernel) * volume * x.itemsize):
        columns = view[(slice(None),) * (1 + rank) + (part,)].reshape(groups, out.shape[2], -1)
        out += heads[:, :, part].reshape(groups, rows, -1) @ columns.swapaxes(1, 2)
    return out.reshape(g.shape[1], channels // groups, *kernel).astype(dtype, copy=False)


# ---- gradients -------------------------------------------------------------------------------------------------------


def _conv_vjp(g: Value, _y: Value, x: Value, w: Value, **attrs: Any) -> tuple[Any, Any]:
    return (
        lambda: bind(CONV_INPUT_GRAD, g, w, input_shape=x.shape[2:], **attrs),
        lambda: bind(CONV_WEIGHT_GRAD, x, g, kernel=w.shape[2:], **attrs),
    )


def _input_grad_vjp(c: Value, _y: Value, g: Value, w: Value, *, input_shape: Any, **attrs: Any) -> tuple[Any, Any]:
    return (
        lambda: bind(CONV, c, w, **attrs),
        lambda: bind(CONV_WEIGHT_GRAD, c, g, kernel=w.shape[2:], **attrs),
    )


def _weight_grad_vjp(c: Value, _y: Value, x: Value, g: Value, *, kernel: Any, **attrs: Any) -> tuple[Any, Any]:
    return (
        lambda: bind(CONV_INPUT_GRAD, g, c, input_shape=x.shape[2:], **attrs),
        lambda: bind(CONV, x, c, **attrs),
    )


# ---- samples: (x, w, strides, padding, dilation, groups) -------------------------------------------------------------
_CASES: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 2, 7, 6), (3, 2, 3, 2), (2, 3), ((0, 0), (0, 0)), (1, 1), 1),  # stride with a remainder
    ((2, 4, 5, 5), (6, 2, 3, 3), (2, 1), ((1, 0), (0, 2)), (1, 1), 2),  # groups, asymmetric padding
    ((1, 3, 6, 7), (3, 1, 2, 3), (1, 2), ((0, 1), (2, 2)), (2, 2), 3),  # depthwise, dilation
    ((2, 3, 4, 3), (2, 3, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 2, 7), (3, 2, 3), (2,), ((1, 1),), (1,), 1),
    ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), (1, 2, 1), ((1, 0), (0, 0), (0, 1)), (1, 1, 1), 1),
)


def _attrs(strides: Ints, padding: Pads, dilation: Ints, groups: int) -> dict[str, Any]:
    return {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}


def _output(x: Any, w: Any, *window: Any) -> tuple[int, ...]:
    return (x[0], w[0], *_sizes(x[2:], w[2:], *window[:3]))


def _conv_samples() -> Iterator[Sample]:
    return (Sample((x, w), _attrs(*window)) for x, w, *window in _CASES)


def _input_grad_samples() -> Iterator[Sample]:
    return (Sample((_output(x, w, *window), w), {**_attrs(*window), "input_shape": x[2:]}) for x, w, *window in _CASES)


def _weight_grad_samples() -> Iterator[Sample]:
    return (Sample((x, _output(x, w, *window)), {**_attrs(*window), "kernel": w[2:]}) for x, w, *window in _CASES)


CONV = register(Op("conv", _conv_infer, _conv_ref, _conv_vjp, _conv_samples, "Conv", "conv"))
CONV_INPUT_GRAD = register(
    Op("conv_input_grad", _input_grad_infer, _input_grad_ref, _input_grad_vjp, _input_grad_samples, None, "conv")
)
CONV_WEIGHT_GRAD = register(
    Op("conv_weight_grad", _weight_grad_infer, _weight_grad_ref, _weight_grad_vjp, _weight_grad_samples, None, "conv")
)


def conv(x: Value, w: Value, *, strides: Ints, padding: Pads, dilation: Ints, groups: int = 1) -> Value:
    """N-dimensional convolution; see the module's docstring. All window arguments are per spatial dimension."""
    return bind(CONV, x, w, **_attrs(strides, padding, dilation, groups))


def conv_input_grad(
    g: Value, w: Value, *, strides: Ints, padding: Pads, dilation: Ints, groups: int, input_shape: Any
) -> Value:
    """The transpose of ``conv`` in ``x``; ``input_shape`` is the spatial shape of the result."""
    return bind(CONV_INPUT_GRAD, g, w, **_attrs(strides, padding, dilation, groups), input_shape=tuple(input_shape))


def conv_weight_grad(
    x: Value, g: Value, *, strides: Ints, padding: Pads, dilation: Ints, groups: int, kernel: Any
) -> Value:
    """The transpose of ``conv`` in ``w``; ``kernel`` is the spatial shape of the result."""
    return bind(CONV_WEIGHT_GRAD, x, g, **_attrs(strides, padding, dilation, groups), kernel=tuple(kernel))
