"""Rows of elementwise ops that are not one standard operator."""

from __future__ import annotations

import math
from typing import Any

from twofold.base.dtypes import bool_, float32, int32
from twofold.io.onnx.common import TO_ONNX
from twofold.io.onnx.export.emitter import Emitter
from twofold.io.onnx.export.rows import COMBINED, EXACT, combined, exact
from twofold.ir import Node

EXACT["maximum"] = lambda e, node, a, b: e.op("Max", a, b)
EXACT["minimum"] = lambda e, node, a, b: e.op("Min", a, b)
EXACT["pow"] = lambda e, node, a, b: e.op("Pow", a, b)
EXACT["not_equal"] = lambda e, node, a, b: e.op("Not", e.op("Equal", a, b))
EXACT["square"] = lambda e, node, x: e.op("Mul", x, x)
EXACT["cast"] = lambda e, node, x: e.op("Cast", x, to=TO_ONNX[node.attrs["dtype"]])
EXACT["detach"] = EXACT["identity"] = lambda e, node, x: x  # the value itself: no node
COMBINED["barrier"] = lambda e, node, *xs: xs

_BITS = {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor", "bitwise_invert": "Not"}


@exact(*_BITS)
def _bitwise(e: Emitter, node: Node, *xs: str) -> str:
    name = _BITS[node.op.name]
    return e.op(name if node.inputs[0].dtype is bool_ else f"Bitwise{name}", *xs)


@exact("bitwise_left_shift", "bitwise_right_shift")
def _shift(e: Emitter, node: Node, x: str, by: str) -> str | None:
    if node.inputs[0].dtype.kind != "u":
        return None
    return e.op("BitShift", x, by, direction="LEFT" if node.op.name == "bitwise_left_shift" else "RIGHT")


@exact("isnan", "isinf")
def _is(e: Emitter, node: Node, x: str) -> str | None:
    return e.op("IsNaN" if node.op.name == "isnan" else "IsInf", x) if node.inputs[0].dtype.is_floating else None


@exact("isfinite")
def _isfinite(e: Emitter, node: Node, x: str) -> str | None:
    if not node.inputs[0].dtype.is_floating:
        return None
    return e.op("Not", e.op("Or", e.op("IsNaN", x), e.op("IsInf", x)))


@exact("remainder")
def _remainder(e: Emitter, node: Node, a: str, b: str) -> str | None:
    if node.outputs[0].dtype.is_floating:  # the sign follows the divisor; Mod with fmod=1 follows the dividend
        return e.op("Sub", a, e.op("Mul", e.op("Floor", e.op("Div", a, b)), b)) if e.portable else None
    return e.op("Mod", a, b, fmod=0)


@combined("floor_divide")
def _floor_divide(e: Emitter, node: Node, a: str, b: str) -> str | None:
    return e.op("Floor", e.op("Div", a, b)) if node.outputs[0].dtype.is_floating else None


def scalar(e: Emitter, node: Node, number: Any) -> str:
    """A constant of the node's dtype."""
    return e.constant(number, node.inputs[0].dtype.numpy)


@combined("expm1")
def _expm1(e: Emitter, node: Node, x: str) -> str:
    """2 tanh(x/2) / (1 - tanh(x/2)): keeps its digits near 0, where exp(x) - 1 does not."""
    half = e.op("Tanh", e.op("Mul", x, scalar(e, node, 0.5)))
    near = e.op("Div", e.op("Mul", half, scalar(e, node, 2)), e.op("Sub", scalar(e, node, 1), half))
    far = e.op("Sub", e.op("Exp", x), scalar(e, node, 1))
    return e.op("Where", e.op("Less", e.op("Abs", x), scalar(e, node, 0.5)), near, far)


@combined("log1p")
def _log1p(e: Emitter, node: Node, x: str) -> str:
    """log(u) * x / (u - 1) with u = 1 + x, and x where u rounds to 1 (Kahan): keeps its digits near 0."""
    one = scalar(e, node, 1)
    u = e.op("Add", x, one)
    flat, less_one = e.op("Equal", u, one), e.op("Sub", u, one)
    ratio = e.op("Div", x, e.op("Where", flat, one, less_one))
    infinite = e.op("IsInf", u)
    return e.op("Where", flat, x, e.op("Mul", e.op("Log", u), e.op("Where", infinite, one, ratio)))


@combined("log2", "log10")
def _log(e: Emitter, node: Node, x: str) -> str:
    return e.op("Div", e.op("Log", x), scalar(e, node, math.log(2 if node.op.name == "log2" else 10)))


@combined("trunc")
def _trunc(e: Emitter, node: Node, x: str) -> str | None:
    if not node.outputs[0].dtype.is_floating:
        return e.op("Identity", x)
    return e.op("Mul", e.op("Sign", x), e.op("Floor", e.op("Abs", x)))


@combined("hypot", "logaddexp")
def _over_a_pair(e: Emitter, node: Node, a: str, b: str) -> str:
    """A reduction over the two operands, stacked: neither overflows where the plain formula would."""
    pair = e.op("Concat", *[e.op("Unsqueeze", x, e.ints(0)) for x in _expanded(e, node, a, b)], axis=0)
    return e.op("ReduceL2" if node.op.name == "hypot" else "ReduceLogSumExp", pair, e.ints(0), keepdims=0)


def _expanded(e: Emitter, node: Node, *names: str) -> list[str]:
    shape = node.outputs[0].shape
    return [n if v.shape == shape else e.op("Expand", n, e.dims(shape)) for n, v in zip(names, node.inputs)]


@exact("any", "all")
def _any_all(e: Emitter, node: Node, x: str) -> str:
    axes, keep = e.ints(*node.attrs["axes"]), int(node.attrs["keepdims"])
    number = e.op("Cast", x, to=TO_ONNX[int32])
    reduced = e.op("ReduceMax" if node.op.name == "any" else "ReduceMin", number, axes, keepdims=keep)
    return e.op("Cast", reduced, to=TO_ONNX[bool_])


@exact("one_hot")
def _one_hot(e: Emitter, node: Node, indices: str) -> str:
    dtype = node.attrs["dtype"]
    written = dtype if dtype is not bool_ else float32
    out = e.op("OneHot", indices, e.ints(node.attrs["depth"]), e.constant([0, 1], written.numpy), axis=-1)
    return out if written is dtype else e.op("Cast", out, to=TO_ONNX[dtype])
