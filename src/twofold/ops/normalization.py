"""Normalisations: batch norm in training is an op, the others are composites. Statistics of 16-bit floats are computed in
float32; variances in two passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dtypes import as_dtype, sum_dtype
from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.base.shapes import product, show
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.activation import widened
from twofold.ops.composite import composite
from twofold.ops.convert import cast, dim_value, value
from twofold.ops.creation import full
from twofold.ops.elementwise import pow_, sqrt
from twofold.ops.movement import broadcast_to, pad, permute_dims, reshape, slice_along
from twofold.ops.reduction import mean
from twofold.ops.reduction import sum as sum_


def per_channel(v: Value, rank: int) -> Value:
    """A vector of one number per channel, laid out to meet ``(N, C, ...)`` of ``rank`` dimensions."""
    return reshape(v, (v.shape[0], *(1,) * (rank - 2)))


def _check_channels(name: str, x: Value | Spec, *vectors: Value | Spec | None) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{name}: x has shape {show(x.shape)}; expected (N, C) or (N, C, *spatial)")
    for v in vectors:
        if v is not None and v.shape != (x.shape[1],):
            raise ShapeError(
                f"{name}: x has {x.shape[1]} channels (shape {show(x.shape)}), a parameter has shape {show(v.shape)}; "
                "check num_features"
            )


def _affine(y: Value, weight: Value | None, bias: Value | None) -> Value:
    """``y * weight + bias`` per channel; either may be missing."""
    if weight is not None:
        y = y * cast(per_channel(weight, y.ndim), y.dtype)
    return y if bias is None else y + cast(per_channel(bias, y.ndim), y.dtype)


# ---- batch norm in training: one op, so that its backward is the closed formula -------------------------------------


def _train_infer(x: Spec, weight: Spec, bias: Spec, *, eps: float) -> tuple[Spec, Spec, Spec]:
    _check_channels("batch_norm", x, weight, bias)
    sums = sum_dtype(x.dtype)
    if not x.dtype.is_floating or {weight.dtype, bias.dtype} - {x.dtype, sums}:
        raise DtypeError(
            f"batch_norm_train: x has dtype {x.dtype.name}, weight {weight.dtype.name}, bias {bias.dtype.name}; expected a "
            f"floating x, and parameters of its dtype or of {sums.name}"
        )
    channels = Spec((x.shape[1],), sums)
    return x, channels, channels


@np.errstate(all="ignore")
def _train_ref(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, eps: float) -> tuple[np.ndarray, ...]:
    axes, shape = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    sums = sum_dtype(as_dtype(x.dtype)).numpy
    values, weight, bias = (a.astype(sums, copy=False) for a in (x, weight, bias))
    average = values.mean(axis=axes)
    centred = values - average.reshape(shape)
    variance = (centred * centred).mean(axis=axes)
    scale = weight / np.sqrt(variance + np.asarray(eps, weight.dtype))
    y = centred * scale.reshape(shape) + bias.reshape(shape)
    return y.astype(x.dtype, copy=False), average, variance


def _train_vjp(gs: Any, ys: Any, x: Value, weight: Value, _bias: Value, *, eps: float) -> tuple[Any, ...]:
    """Ioffe and Szegedy 2015, section 3, gathered: two sums per channel, then one pass over ``x`` and ``g``."""
    g, g_average, g_variance = gs
    average, variance = ys[1], ys[2]
    axes = (0, *range(2, x.ndim))
    laid = lambda v: per_channel(v, x.ndim)
    count = dim_value(product(x.shape[a] for a in axes), average.dtype)
    centred = cast(x, average.dtype) - laid(average)
    inverse = 1.0 / sqrt(variance + eps)
    parts, d_weight, d_bias = [], None, None
    if g is not None:
        given, scale = cast(g, average.dtype), cast(weight, average.dtype) * inverse
        d_bias, with_x = sum_(given, axis=axes), sum_(given * centred, axis=axes)
        d_weight = with_x * inverse
        slope = with_x * scale * inverse * inverse / count
        parts += [given * laid(scale), -laid(d_bias * scale / count), -(centred * laid(slope))]
    if g_average is not None:
        parts.append(laid(g_average / count))
    if g_variance is not None:
        parts.append(centred * laid(g_variance * (2.0 / count)))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return cast(broadcast_to(total, x.shape), x.dtype), d_weight, d_bias


BATCH_NORM_TRAIN = register(
    Op(
        "batch_norm_train", _train_infer, _train_ref, _train_vjp,
        lambda: (
            Sample(((4, 3, 2, 3), (3,), (3,)), {"eps": 1e-5}),
            Sample(((5, 2), (2,), (2,)), {"eps": 1e-3}),
            Sample(((2, 9, 3, 3), (9,), (9,)), {"eps": 1e-5}),
        ),
        kind="normalization", multi=True, sparse=True, reads=(1, 2),
        doc="x (N, C, ...) normalised per channel by its own statistics, scaled and shifted; also the batch's mean and "
            "biased variance.",
    )
)  # fmt: skip


def batch_norm_train(
    x: Value, weight: Value | None, bias: Value | None, eps: float = 1e-5
) -> tuple[Value, Value, Value]:
    """``x`` ``(N, C, *spatial)`` normalised per channel by its own statistics; also the batch mean and the *biased*
    variance, each ``(C,)``. Ioffe and Szegedy 2015."""
    _check_channels("batch_norm", x, weight, bias)
    dtype = sum_dtype(x.dtype)
    channels = (x.shape[1],)
    weight = full(channels, 1.0, dtype, like=x) if weight is None else cast(weight, dtype)
    bias = full(channels, 0.0, dtype, like=x) if bias is None else cast(bias, dtype)
    return bind(BATCH_NORM_TRAIN, x, weight, bias, eps=float(eps))


def batch_norm_train_in_parts(
    x: Value, weight: Value | None, bias: Value | None, eps: float, parts: int
) -> tuple[Value, Value, Value]:
    """``batch_norm_train`` of each of ``parts`` equal parts of the batch by itself; the means, over the parts, of their
    means and biased variances. The parts become channels, so that a batch split over devices stays where it is."""
    _check_channels("batch_norm", x, weight, bias)
    n, c, *rest = x.shape
    order = (1, 0, *range(2, x.ndim + 1))
    apart = permute_dims(reshape(x, (parts, n // parts, c, *rest)), order)
    apart = reshape(apart, (n // parts, parts * c, *rest))
    weight, bias = (None if v is None else _repeated(v, parts) for v in (weight, bias))
    y, average, variance = batch_norm_train(apart, weight, bias, eps)
    y = reshape(permute_dims(reshape(y, (n // parts, parts, c, *rest)), order), x.shape)
    average, variance = (mean(reshape(v, (parts, c)), axis=0) for v in (average, variance))
    return y, average, variance


def _repeated(v: Value, times: int) -> Value:
    return reshape(broadcast_to(reshape(v, (1, *v.shape)), (times, *v.shape)), (times * v.shape[0],))


@composite
def batch_norm(
    x: Value, average: Value, variance: Value, weight: Value | None, bias: Value | None, eps: float = 1e-5
) -> Value:
    """``x`` normalised per channel by given statistics: one multiply and one add per element."""
    _check_channels("batch_norm", x, average, variance, weight, bias)
    wide = widened(x)
    scale = 1.0 / sqrt(cast(variance, wide.dtype) + eps)
    if weight is not None:
        scale = scale * cast(weight, wide.dtype)
    shift = -cast(average, wide.dtype) * scale
    if bias is not None:
        shift = shift + cast(bias, wide.dtype)
    return cast(_affine(wide, scale, shift), x.dtype)


@composite
def layer_norm(x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Value:
    """``x`` normalised over its last dimensions, of shape ``normalized_shape``, then scaled and shifted elementwise."""
    x = value(x)
    shape = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ShapeError(f"layer_norm: x has shape {show(x.shape)}; expected its last dimensions to be {show(shape)}")
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    wide = widened(x)
    centred = wide - mean(wide, axis=axes, keepdims=True)
    y = centred / sqrt(mean(centred * centred, axis=axes, keepdims=True) + eps)
    if weight is not None:
        y = y * cast(weight, y.dtype)
    if bias is not None:
        y = y + cast(bias, y.dtype)
    return cast(y, x.dtype)


@composite
def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Value:
    """``x`` ``(N, C, *spatial)`` normalised over ``num_groups`` groups of channels of each item (Wu, He 2018)."""
    x = value(x)
    _check_channels("group_norm", x, weight, bias)
    if num_groups < 1 or (isinstance(x.shape[1], int) and x.shape[1] % num_groups):
        raise ArgumentError(f"group_norm: {x.shape[1]} channels do not divide into {num_groups} groups")
    groups = reshape(widened(x), (x.shape[0], num_groups, product(x.shape[1:]) // num_groups))
    y = reshape(layer_norm(groups, groups.shape[2:], eps=eps), x.shape)
    return cast(_affine(y, weight, bias), x.dtype)


@composite
def local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Value:
    """``x / (k + alpha/size * sum of x**2 over size neighbouring channels)**beta``; ``x`` is ``(N, C, ...)``.

    PyTorch's and Caffe's constants: ``alpha`` is divided by ``size``. For the formula of the AlexNet paper (section
    3.3: n=5, alpha=1e-4, k=2) pass ``size=5, alpha=5e-4, k=2``. Windows are clipped at the first and last channel.
    """
    x = value(x)
    if size < 1:
        raise ArgumentError(f"local_response_norm: size={size}; expected at least 1")
    _check_channels("local_response_norm", x)
    wide, channels = widened(x), x.shape[1]
    around = [(0, 0), (size // 2, (size - 1) // 2), *[(0, 0)] * (x.ndim - 2)]
    squares = pad(wide * wide, around)
    total = slice_along(squares, 1, 0, channels)
    for i in range(1, size):
        total = total + slice_along(squares, 1, i, channels + i)
    return cast(wide / pow_(total * (alpha / size) + k, beta), x.dtype)


__all__ = ["batch_norm", "batch_norm_train", "group_norm", "layer_norm", "local_response_norm"]
