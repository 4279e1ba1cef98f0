"""Activation functions as composites over elementwise ops."""

from __future__ import annotations

import math
from typing import Any

from twofold.base.dtypes import sum_dtype
from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import axis_index, show
from twofold.ir import Value
from twofold.ops.composite import composite
from twofold.ops.convert import cast, value
from twofold.ops.elementwise import (
    abs_,
    clip,
    detach,
    erf,
    exp,
    expm1,
    isfinite,
    log,
    logaddexp,
    relu,
    sigmoid,
    tanh,
    where,
)
from twofold.ops.precision import beside, in_float32
from twofold.ops.reduction import max as max_
from twofold.ops.reduction import sum as sum_


def _centred(x: Value, axis: int) -> Value:
    """``x`` less its maximum along ``axis`` (a constant for gradients), so that ``exp`` cannot overflow."""
    peak = detach(max_(x, axis=axis, keepdims=True))
    return x - where(isfinite(peak), peak, 0.0)


@in_float32
@composite
def softmax(x: Any, axis: int = -1) -> Value:
    """``exp(x) / sum(exp(x))`` along ``axis``; does not overflow. 16-bit floats are computed in float32."""
    x = value(x)
    wide = widened(x)
    e = exp(_centred(wide, axis_index(axis, x.ndim)))
    return cast(e / sum_(e, axis=axis, keepdims=True), x.dtype)


@in_float32
@composite
def log_softmax(x: Any, axis: int = -1) -> Value:
    """``log(softmax(x))`` along ``axis``, without forming the softmax."""
    x = value(x)
    centred = _centred(widened(x), axis_index(axis, x.ndim))
    return cast(centred - log(sum_(exp(centred), axis=axis, keepdims=True)), x.dtype)


def widened(x: Value) -> Value:
    """16-bit floats as float32: what sums over many elements are computed in."""
    return cast(x, sum_dtype(x.dtype))


@composite
def gelu(x: Any, approximate: str = "none") -> Value:
    """``x * P(Z <= x)`` for a standard normal Z (Hendrycks and Gimpel 2016): exact, or ``approximate="tanh"``."""
    x = value(x)
    if approximate == "none":
        return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1.0)
    if approximate == "tanh":
        return x * 0.5 * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0)
    raise ArgumentError(f"gelu: approximate={approximate!r}; expected 'none' or 'tanh'")


@composite
def silu(x: Any) -> Value:
    """``x * sigmoid(x)``, also called swish."""
    x = value(x)
    return x * sigmoid(x)


@composite
def leaky_relu(x: Any, negative_slope: float = 0.01) -> Value:
    """``x`` where positive, else ``negative_slope * x``."""
    x = value(x)
    return where(x > 0, x, x * float(negative_slope))


@composite
def prelu(x: Any, weight: Any) -> Value:
    """Leaky ReLU with a learned slope: one for all, or one for each channel (dimension 1). He et al. 2015."""
    x = value(x)
    weight = beside(value(weight), x)
    if weight.size != 1 and (x.ndim < 2 or weight.shape != (x.shape[1],)) and weight.shape != x.shape:
        channels = x.shape[1] if x.ndim > 1 else "no"
        raise ShapeError(
            f"prelu: x has {channels} channels (shape {show(x.shape)}), the slopes have shape {show(weight.shape)}; "
            "expected one for all, or one for each channel; check num_parameters"
        )
    if weight.size != 1 and x.ndim > 2:
        weight = weight[(slice(None), *(None,) * (x.ndim - 2))]
    return where(x > 0, x, x * weight)


@composite
def elu(x: Any, alpha: float = 1.0) -> Value:
    """``x`` where positive, else ``alpha * (exp(x) - 1)`` (Clevert et al. 2015)."""
    x = value(x)
    return where(x > 0, x, expm1(where(x > 0, 0.0, x)) * float(alpha))


def selu(x: Any) -> Value:
    """Scaled ELU, whose activations keep mean 0 and variance 1 (Klambauer et al. 2017)."""
    return elu(x, 1.6732632423543772) * 1.0507009873554805


@composite
def softplus(x: Any, beta: float = 1.0) -> Value:
    """``log(1 + exp(beta * x)) / beta``, a smooth ReLU; does not overflow."""
    x = value(x)
    scaled = x * float(beta)
    return logaddexp(scaled, scaled * 0.0) * (1 / float(beta))


def softsign(x: Any) -> Value:
    """``x / (1 + |x|)``."""
    x = value(x)
    return x / (abs_(x) + 1.0)


def log_sigmoid(x: Any) -> Value:
    """``log(sigmoid(x))``; does not overflow."""
    return -softplus(-value(x))


@composite
def mish(x: Any) -> Value:
    """``x * tanh(softplus(x))``."""
    x = value(x)
    return x * tanh(softplus(x))


def relu6(x: Any) -> Value:
    """``min(max(x, 0), 6)``."""
    return clip(x, 0.0, 6.0)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    """``x`` limited to ``[min_val, max_val]``."""
    return clip(x, float(min_val), float(max_val))


def hardsigmoid(x: Any) -> Value:
    """``relu6(x + 3) / 6``."""
    return relu6(value(x) + 3.0) * (1 / 6)


@composite
def hardswish(x: Any) -> Value:
    """``x * relu6(x + 3) / 6``."""
    x = value(x)
    return x * hardsigmoid(x)


__all__ = [
    "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "log_softmax", "mish", "prelu",
    "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "tanh", "widened",
]  # fmt: skip
