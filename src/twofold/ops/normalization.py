"""Normalisations as composites. Statistics of 16-bit floats are computed in float32; variances in two passes."""

from __future__ import annotations

from typing import Any

from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import product, show
from twofold.ir import Value
from twofold.ops.activation import widened
from twofold.ops.convert import cast, value
from twofold.ops.elementwise import pow_, sqrt
from twofold.ops.movement import pad, reshape, slice_along
from twofold.ops.reduction import mean


def per_channel(v: Value, rank: int) -> Value:
    """A vector of one number per channel, laid out to meet ``(N, C, ...)`` of ``rank`` dimensions."""
    return reshape(v, (v.shape[0], *(1,) * (rank - 2)))


def _check_channels(name: str, x: Value, *vectors: Value | None) -> None:
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


def batch_norm_train(
    x: Value, weight: Value | None, bias: Value | None, eps: float = 1e-5
) -> tuple[Value, Value, Value]:
    """``x`` ``(N, C, *spatial)`` normalised per channel by its own statistics; also the batch mean and the *biased*
    variance, each ``(C,)``. Ioffe and Szegedy 2015."""
    _check_channels("batch_norm", x, weight, bias)
    axes = (0, *range(2, x.ndim))
    wide = widened(x)
    average = mean(wide, axis=axes, keepdims=True)
    centred = wide - average
    variance = mean(centred * centred, axis=axes, keepdims=True)
    scale = 1.0 / sqrt(variance + eps)
    if weight is not None:
        scale = scale * cast(per_channel(weight, x.ndim), wide.dtype)
    y = _affine(centred * scale, None, bias)
    channels = (x.shape[1],)
    return cast(y, x.dtype), reshape(average, channels), reshape(variance, channels)


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


def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Value:
    """``x`` ``(N, C, *spatial)`` normalised over ``num_groups`` groups of channels of each item (Wu, He 2018)."""
    x = value(x)
    _check_channels("group_norm", x, weight, bias)
    if num_groups < 1 or (isinstance(x.shape[1], int) and x.shape[1] % num_groups):
        raise ArgumentError(f"group_norm: {x.shape[1]} channels do not divide into {num_groups} groups")
    groups = reshape(widened(x), (x.shape[0], num_groups, product(x.shape[1:]) // num_groups))
    y = reshape(layer_norm(groups, groups.shape[2:], eps=eps), x.shape)
    return cast(_affine(y, weight, bias), x.dtype)


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
