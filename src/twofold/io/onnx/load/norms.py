"""Normalisations."""

from __future__ import annotations

from typing import Any

from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.base.shapes import axis_index
from twofold.io.onnx.common import from_onnx
from twofold.io.onnx.load.elementwise import like
from twofold.io.onnx.load.rows import row
from twofold.ir import Value, bind
from twofold.ops import cast, where
from twofold.ops import elementwise as el
from twofold.ops import reduction as red
from twofold.ops.movement import FLIP, reshape
from twofold.ops.normalization import batch_norm, local_response_norm


def along_channels(v: Value, rank: int) -> Value:
    """One number per channel, laid along dimension 1 of an array of ``rank`` dimensions."""
    return reshape(v, (1, v.shape[0], *(1,) * (rank - 2)))


def _affine(x: Value, mean: Value, var: Value, scale: Value, bias: Value, eps: float) -> Value:
    return (x - mean) / el.sqrt(var + eps) * scale + bias


@row("BatchNormalization")
def _batch_norm(c: Any) -> Any:
    """With the running statistics; ``training_mode=1`` with the batch's, and gives the new running ones."""
    x, scale, bias, mean, var = c.values()
    eps, momentum = c.attr("epsilon", 1e-5), c.attr("momentum", 0.9)
    if c.opset < 7 and not c.attr("is_test", 0):
        raise UnsupportedOpError(f"training mode of operator set {c.opset}; expected is_test=1")
    if c.opset < 9 and not c.attr("spatial", 1):
        raise UnsupportedOpError("spatial=0 (statistics per element); expected per channel")
    lay = lambda v: cast(along_channels(v, x.ndim), x.dtype)
    if not c.attr("training_mode", 0):
        return batch_norm(x, mean, var, scale, bias, eps)
    axes = tuple(i for i in range(x.ndim) if i != 1)
    batch_mean, batch_var = red.mean(x, axis=axes), red.var(x, axis=axes)
    y = _affine(x, lay(batch_mean), lay(batch_var), lay(scale), lay(bias), eps)
    blend = lambda old, new: old * momentum + cast(new, old.dtype) * (1 - momentum)
    return y, blend(mean, batch_mean), blend(var, batch_var)


@row("InstanceNormalization")
def _instance_norm(c: Any) -> Value:
    x, scale, bias = c.values()
    axes = tuple(range(2, x.ndim))
    lay = lambda v: along_channels(v, x.ndim)
    mean, var = red.mean(x, axis=axes, keepdims=True), red.var(x, axis=axes, keepdims=True)
    return _affine(x, mean, var, lay(scale), lay(bias), c.attr("epsilon", 1e-5))


@row("GroupNormalization")
def _group_norm(c: Any) -> Value:
    """Before operator set 21 there was one scale per group."""
    x, scale, bias = c.values()
    groups, eps = c.attr("num_groups"), c.attr("epsilon", 1e-5)
    channels = x.shape[1]
    if groups < 1 or not isinstance(channels, int) or channels % groups:
        raise FormatError(f"{channels} channels do not divide into {groups} groups")
    parts = reshape(x, (x.shape[0], groups, channels // groups, *x.shape[2:]))
    axes = tuple(range(2, parts.ndim))
    normed = (parts - red.mean(parts, axis=axes, keepdims=True)) / el.sqrt(
        red.var(parts, axis=axes, keepdims=True) + eps
    )
    if c.opset < 21:
        lay = lambda v: reshape(v, (1, groups, 1, *(1,) * (x.ndim - 2)))
        return reshape(normed * lay(scale) + lay(bias), x.shape)
    return reshape(normed, x.shape) * along_channels(scale, x.ndim) + along_channels(bias, x.ndim)


@row("LayerNormalization")
def _layer_norm(c: Any) -> Any:
    x, axis = c.value(0), c.attr("axis", -1)
    axes = tuple(range(axis_index(axis, x.ndim), x.ndim))
    wide = from_onnx(c.attr("stash_type", 1), "stash_type")
    work = cast(x, wide)
    mean = red.mean(work, axis=axes, keepdims=True)
    inverse = el.reciprocal(el.sqrt(red.var(work, axis=axes, keepdims=True) + c.attr("epsilon", 1e-5)))
    y = cast((work - mean) * inverse, x.dtype) * c.value(1)
    y = y + c.value(2) if c.has(2) else y
    return (y, mean, inverse)[: max(1, c.outputs())]


@row("RMSNormalization")
def _rms_norm(c: Any) -> Value:
    x = c.value(0)
    axes = tuple(range(axis_index(c.attr("axis", -1), x.ndim), x.ndim))
    work = cast(x, from_onnx(c.attr("stash_type", 1), "stash_type"))
    root = el.sqrt(red.mean(work * work, axis=axes, keepdims=True) + c.attr("epsilon", 1e-5))
    return cast(work / root, x.dtype) * c.value(1)


@row("LRN")
def _lrn(c: Any) -> Value:
    """ONNX puts the longer side of an even window after the channel, our composite before it."""
    x, size = c.value(0), c.attr("size")
    if not 0 < size <= 4096:
        raise FormatError(f"size {size}; expected a small positive number of channels")
    how = {"alpha": c.attr("alpha", 1e-4), "beta": c.attr("beta", 0.75), "k": c.attr("bias", 1.0)}
    if size % 2:
        return local_response_norm(x, size, **how)
    mirrored = bind(FLIP, x, axes=(1,))
    return bind(FLIP, local_response_norm(mirrored, size, **how), axes=(1,))


@row("LpNormalization")
def _lp_norm(c: Any) -> Value:
    """A vector of zeros stays zeros."""
    x, axis, p = c.value(0), c.attr("axis", -1), c.attr("p", 2)
    norm = (
        red.sum(el.abs_(x), axis=axis, keepdims=True) if p == 1 else el.sqrt(red.sum(x * x, axis=axis, keepdims=True))
    )
    zero = el.equal(norm, like(norm, 0))
    return where(zero, like(x, 0), x / where(zero, like(x, 1), norm))


@row("MeanVarianceNormalization")
def _mean_variance(c: Any) -> Value:
    x, axes = c.value(0), tuple(c.attr("axes", None) or (0, 2, 3))
    return (x - red.mean(x, axis=axes, keepdims=True)) / (red.std(x, axis=axes, keepdims=True) + 1e-9)
