"""Elementwise operators, activations, casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.base.dtypes import DType, as_dtype, bool_, float32, float64
from twofold.base.errors import DtypeError, FormatError
from twofold.io.onnx.common import from_onnx
from twofold.io.onnx.load.known import Known
from twofold.io.onnx.load.rows import ROWS, check_arity, row
from twofold.ir import OPS, Value, bind
from twofold.ops import activation, cast, clip, identity, where
from twofold.ops import elementwise as el

# operators that are one op of ours: read off the op table, whose records name them
ONE_TO_ONE = {
    op.onnx: name for name, op in OPS.items() if op.onnx and op.kind == "elementwise" and name not in ("where", "cast")
}


def _one_to_one(name: str) -> Callable[[Any], Value]:
    def read(c: Any) -> Value:
        check_arity(OPS[name], len(c))
        return bind(OPS[name], *el.together(*c.values()))

    return read


for _onnx, _name in ONE_TO_ONE.items():
    ROWS["", _onnx] = _one_to_one(_name)
ROWS["", "Identity"] = lambda c: c.inputs[0] if not hasattr(c.inputs[0], "producer") else identity(c.value(0))


def _applied(function: Callable[..., Value]) -> Callable[[Any], Value]:
    return lambda c: function(*c.values())


def like(x: Value, number: float) -> Value:
    """A constant of the dtype of ``x``."""
    return el.constant(np.asarray(number, x.dtype.numpy), near=(x,))


def fold_values(function: Callable[[Any, Any], Value], xs: list[Value]) -> Value:
    """A binary function over a list."""
    total = xs[0]
    for x in xs[1:]:
        total = function(total, x)
    return total


ROWS["", "Sum"] = lambda c: fold_values(el.add, c.values())
ROWS["", "Max"] = lambda c: fold_values(el.maximum, c.values())
ROWS["", "Min"] = lambda c: fold_values(el.minimum, c.values())
ROWS["", "Mean"] = lambda c: fold_values(el.add, c.values()) / float(len(c))
ROWS["", "Where"] = lambda c: where(c.value(0), c.value(1), c.value(2))


@row("Not")
def _not(c: Any) -> Value:
    """Not(Equal(a, b)) and Not(Or(IsNaN, IsInf)) are not rebuilt: each operator is one op."""
    return el.logical_not(c.value(0))


@row("Div")
def _div(c: Any) -> Value:
    """Integers truncate towards zero."""
    a, b = c.values()
    if a.dtype.is_floating:
        return el.divide(a, b)
    quotient = el.floor_divide(a, b)
    if a.dtype.kind == "u":
        return quotient
    inexact = el.not_equal(quotient * b, a)
    return where(el.logical_and(inexact, quotient < 0), quotient + 1, quotient)


@row("Mod")
def _mod(c: Any) -> Value:
    """fmod=0: the sign of the divisor; fmod=1: the sign of the dividend, as in C."""
    a, b = c.values()
    rest = el.remainder(a, b)
    if not c.attr("fmod", 0):
        return rest
    if a.dtype.is_floating:
        return a - el.trunc(a / b) * b
    if a.dtype.kind == "u":
        return rest
    return where(el.logical_and(el.not_equal(rest, 0), el.not_equal(rest < 0, a < 0)), rest - b, rest)


@row("Pow")
def _pow(c: Any) -> Value:
    """The result has the base's dtype, whatever the exponent's."""
    a, b = c.values()
    if a.dtype is b.dtype:
        return el.pow_(a, b)
    if a.dtype.is_floating:
        return el.pow_(a, cast(b, a.dtype))
    if b.dtype.is_floating:
        return cast(el.pow_(cast(a, float64), cast(b, float64)), a.dtype)
    return el.pow_(a, cast(b, a.dtype))


_BITS: dict[str, Callable[..., Value]] = {
    "BitwiseAnd": el.bitwise_and,
    "BitwiseOr": el.bitwise_or,
    "BitwiseXor": el.bitwise_xor,
    "BitwiseNot": el.bitwise_invert,
}
for _onnx, _function in _BITS.items():
    ROWS["", _onnx] = _applied(_function)


@row("BitShift")
def _shift(c: Any) -> Value:
    shift = {"LEFT": el.bitwise_left_shift, "RIGHT": el.bitwise_right_shift}[c.attr("direction")]
    return shift(c.value(0), c.value(1))


@row("IsNaN")
def _isnan(c: Any) -> Value:
    return el.isnan(c.value(0))


@row("IsInf")
def _isinf(c: Any) -> Value:
    x = c.value(0)
    low, high = c.attr("detect_negative", 1), c.attr("detect_positive", 1)
    if low and high:
        return el.isinf(x)
    return el.logical_and(el.isinf(x), x > 0 if high else x < 0) if low or high else el.isnan(x) & False


@row("Cast", "CastLike")
def _cast(c: Any) -> Any:
    given = c.inputs[0]
    if c.op == "CastLike" and isinstance(given, Known) and not (given.parameter or given.symbolic):
        return Known(given.array.astype(c.value(1).dtype.numpy))
    x = c.value(0)
    dtype = c.value(1).dtype if c.op == "CastLike" else from_onnx(c.attr("to"), "Cast")
    return to_dtype(x, dtype)


def to_dtype(x: Value, dtype: DType) -> Value:
    """Cast as ONNX means it: to bool is "not zero"."""
    return el.not_equal(x, like(x, 0)) if dtype is bool_ and x.dtype is not bool_ else cast(x, dtype)


@row("Clip")
def _clip(c: Any) -> Value:
    x = c.value(0)
    if c.opset < 11:
        return clip(x, c.attr("min", None), c.attr("max", None))
    return clip(x, c.maybe(1), c.maybe(2))


# ---- activations: name -> (function of x and attributes, attributes with their defaults) -----------------------------
def _selu(x: Value, alpha: float, gamma: float) -> Value:
    return activation.elu(x, alpha) * gamma


def _celu(x: Value, alpha: float) -> Value:
    return el.maximum(x, like(x, 0)) + el.minimum(el.expm1(x / alpha) * alpha, like(x, 0))


def _shrink(x: Value, bias: float, lambd: float) -> Value:
    return where(x < -lambd, x + bias, where(x > lambd, x - bias, like(x, 0)))


ACTIVATIONS: dict[str, tuple[Callable[..., Value], dict[str, float]]] = {
    "LeakyRelu": (activation.leaky_relu, {"alpha": 0.01}),
    "Elu": (activation.elu, {"alpha": 1.0}),
    "Celu": (_celu, {"alpha": 1.0}),
    "Selu": (_selu, {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "ThresholdedRelu": (lambda x, alpha: where(x > alpha, x, like(x, 0)), {"alpha": 1.0}),
    "HardSigmoid": (lambda x, alpha, beta: clip(x * alpha + beta, 0.0, 1.0), {"alpha": 0.2, "beta": 0.5}),
    "HardSwish": (lambda x: x * clip(x * (1 / 6) + 0.5, 0.0, 1.0), {}),
    "Swish": (lambda x, alpha: x * el.sigmoid(x * alpha), {"alpha": 1.0}),
    "Softplus": (activation.softplus, {}),
    "Softsign": (activation.softsign, {}),
    "Mish": (activation.mish, {}),
    "Shrink": (_shrink, {"bias": 0.0, "lambd": 0.5}),
}


def _activation(function: Callable[..., Value], defaults: dict[str, float]) -> Callable[[Any], Value]:
    return lambda c: _real(function, c.value(0), [c.attr(k, v) for k, v in defaults.items()])


def _real(function: Callable[..., Value], x: Value, attrs: list[float]) -> Value:
    """Integers are computed as float32."""
    return function(x, *attrs) if x.dtype.is_floating else cast(function(cast(x, float32), *attrs), x.dtype)


for _onnx, (_function, _defaults) in ACTIVATIONS.items():
    ROWS["", _onnx] = _activation(_function, _defaults)


@row("PRelu")
def _prelu(c: Any) -> Value:
    x, slope = c.values()
    if c.opset < 7:
        return activation.prelu(x, slope)
    return where(x < 0, x * slope, x)


@row("Gelu")
def _gelu(c: Any) -> Value:
    return activation.gelu(c.value(0), c.attr("approximate", "none"))


@row("Dropout")
def _dropout(c: Any) -> Any:
    """Identity: inference. In training mode only a ratio of 0 is taken."""
    x = c.value(0)
    training = c.number(2, False) if c.opset >= 12 else False
    ratio = c.number(1, 0.5) if c.opset >= 12 else 0.0
    if training and ratio:
        raise DtypeError("training mode draws random numbers, which differ between runtimes; export in eval mode")
    return (identity(x), el.equal(x, x) if x.dtype is bool_ else _ones(x))[: max(1, c.outputs())]


def _ones(x: Value) -> Value:
    from twofold.ops.creation import full

    return full(x.shape, True, bool_, like=x)


@row("EyeLike")
def _eye(c: Any) -> Any:
    x = c.value(0)
    if x.ndim != 2 or not all(isinstance(d, int) for d in x.shape):
        raise FormatError(f"EyeLike: {x.spec}; expected a matrix of known size")
    code = c.attr("dtype", None)
    dtype = x.dtype if code is None else from_onnx(code, "EyeLike")
    rows, columns = x.shape
    return Known(np.eye(rows, columns, c.attr("k", 0), dtype.numpy))


_ = as_dtype
