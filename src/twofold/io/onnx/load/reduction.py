"""Reductions, arg-reductions, running sums, softmax family, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.base.dtypes import bool_, float32, int32
from twofold.base.shapes import axis_index, axis_tuple, product, without
from twofold.io.onnx.load.elementwise import like
from twofold.io.onnx.load.rows import ROWS, row
from twofold.ir import Value, bind
from twofold.ops import cast, identity, where
from twofold.ops import elementwise as el
from twofold.ops import reduction as red
from twofold.ops.activation import log_softmax, softmax
from twofold.ops.creation import full
from twofold.ops.gather import one_hot
from twofold.ops.movement import FLIP, expand_dims, pad, permute_dims, reshape, slice_along


def _sum(x: Value, **how: Any) -> Value:
    return red.sum(x, dtype=x.dtype, **how)


def _mean(x: Value, **how: Any) -> Value:
    if x.dtype.is_floating:
        return red.mean(x, **how)
    return cast(el.trunc(red.mean(cast(x, float32), **how)), x.dtype)


def _floats(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    return lambda x: function(x) if x.dtype.is_floating else cast(function(cast(x, float32)), x.dtype)


REDUCTIONS: dict[str, Callable[..., Value]] = {
    "ReduceSum": _sum,
    "ReduceProd": lambda x, **how: red.prod(x, dtype=x.dtype, **how),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, **how: _extremum(red.max, x, how, smallest=False),
    "ReduceMin": lambda x, **how: _extremum(red.min, x, how, smallest=True),
    "ReduceL1": lambda x, **how: _sum(el.abs_(x), **how),
    "ReduceL2": lambda x, **how: _floats(el.sqrt)(_sum(x * x, **how)),
    "ReduceSumSquare": lambda x, **how: _sum(x * x, **how),
    "ReduceLogSum": lambda x, **how: el.log(_sum(x, **how)),
    "ReduceLogSumExp": lambda x, **how: _logsumexp(x, **how),
}


def _logsumexp(x: Value, **how: Any) -> Value:
    return red.logsumexp(x, **how) if product(x.shape) != 0 else el.log(_sum(el.exp(x), **how))


def _extremum(function: Callable[..., Value], x: Value, how: dict[str, Any], smallest: bool) -> Value:
    """Over nothing a maximum (minimum) is the lowest (highest) number of the dtype."""
    if product(x.shape) != 0:
        return cast(function(cast(x, int32), **how), bool_) if x.dtype is bool_ else function(x, **how)
    shape = without(x.shape, axis_tuple(how["axis"], x.ndim), how["keepdims"])
    if x.dtype is bool_:
        return full(shape, smallest, bool_, like=x)
    info = np.iinfo(x.dtype.numpy) if x.dtype.is_integer else None
    number = (info.max if smallest else info.min) if info else (np.inf if smallest else -np.inf)
    return full(shape, number, x.dtype, like=x)


def _reduction(name: str) -> Callable[[Any], Value]:
    def read(c: Any) -> Value:
        x = c.value(0)
        axes = c.ints_of(1, "axes", None)
        if not axes and c.attr("noop_with_empty_axes", 0):
            return REDUCTIONS[name](x, axis=(), keepdims=True)
        if x.ndim == 0:
            x, scalar = reshape(x, (1,)), True
            return reshape(REDUCTIONS[name](x, axis=(0,), keepdims=not scalar), ())
        return REDUCTIONS[name](x, axis=tuple(axes) if axes else None, keepdims=bool(c.attr("keepdims", 1)))

    return read


for _name in REDUCTIONS:
    ROWS["", _name] = _reduction(_name)


@row("ArgMax", "ArgMin")
def _arg(c: Any) -> Value:
    x, axis, keep = c.value(0), c.attr("axis", 0), bool(c.attr("keepdims", 1))
    function = red.argmax if c.op == "ArgMax" else red.argmin
    if not c.attr("select_last_index", 0):
        return function(x, axis=axis, keepdims=keep)
    axis = axis_index(axis, x.ndim)
    return x.shape[axis] - 1 - function(bind(FLIP, x, axes=(axis,)), axis=axis, keepdims=keep)


@row("CumSum", "CumProd")
def _cumulative(c: Any) -> Value:
    op, start = (red.CUMSUM, 0.0) if c.op == "CumSum" else (red.CUMPROD, 1.0)
    x = c.value(0)
    axis = axis_index(int(c.number(1)), x.ndim)
    x = bind(FLIP, x, axes=(axis,)) if c.attr("reverse", 0) else x
    out = bind(op, x, axis=axis)
    if c.attr("exclusive", 0):
        widths = [(1, 0) if i == axis else (0, 0) for i in range(x.ndim)]
        out = slice_along(pad(out, widths, start), axis, 0, x.shape[axis])
    return bind(FLIP, out, axes=(axis,)) if c.attr("reverse", 0) else out


# ---- softmax family --------------------------------------------------------------------------------------------------
def _hardmax(x: Value, axis: int) -> Value:
    axis = axis_index(axis, x.ndim)
    hot = one_hot(red.argmax(x, axis=axis), int(x.shape[axis]), dtype=x.dtype)
    order = [*range(axis), x.ndim - 1, *range(axis, x.ndim - 1)]
    return permute_dims(hot, order)


_SOFT = {"Softmax": softmax, "LogSoftmax": log_softmax, "Hardmax": _hardmax}


@row(*_SOFT)
def _soft(c: Any) -> Value:
    """Before operator set 13 all dimensions from ``axis`` on are one."""
    x, function = c.value(0), _SOFT[c.op]
    if c.opset >= 13:
        return function(x, c.attr("axis", -1))
    axis = c.attr("axis", 1)
    axis = axis_index(axis, x.ndim) if axis < 0 else axis_index(axis, x.ndim + 1)
    flat = reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return reshape(function(flat, 1), x.shape)


# ---- losses ----------------------------------------------------------------------------------------------------------
@row("NegativeLogLikelihoodLoss")
def _nll(c: Any) -> Value:
    return _picked_loss(c, c.value(0), c.value(1), c.maybe(2))


@row("SoftmaxCrossEntropyLoss")
def _cross_entropy(c: Any) -> Any:
    logs = log_softmax(c.value(0), 1)
    loss = _picked_loss(c, logs, c.value(1), c.maybe(2))
    return (loss, logs) if c.outputs() > 1 else loss


def _picked_loss(c: Any, logs: Value, labels: Value, weight: Value | None) -> Value:
    """-weight[label] * logs[label], averaged by weight; labels equal to ``ignore_index`` count nothing."""
    from twofold.ops.gather import take, take_along_axis

    ignored = c.attr("ignore_index", None)
    kept = None if ignored is None else el.not_equal(labels, like(labels, ignored))
    safe = labels if kept is None else where(kept, labels, 0)
    loss = -reshape(take_along_axis(logs, expand_dims(safe, 1), axis=1), labels.shape)
    scale = take(weight, safe, axis=0) if weight is not None else identity(loss * 0.0 + 1.0)
    if kept is not None:
        scale = where(kept, scale, like(scale, 0))
    how = c.attr("reduction", "mean")
    total = where(kept, loss * scale, like(loss, 0)) if kept is not None else loss * scale
    if how == "none":
        return total
    return red.sum(total) if how == "sum" else red.sum(total) / red.sum(scale)
