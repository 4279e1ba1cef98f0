"""Rows of convolutions and pools."""

from __future__ import annotations

from typing import Any

from twofold.base.dims import Sym
from twofold.io.onnx.export.emitter import Emitter
from twofold.io.onnx.export.rows import combined, exact
from twofold.ir import Node


def window_attributes(attrs: dict[str, Any], kernel: Any) -> dict[str, Any]:
    """Our window arguments under ONNX's names (pads: all lows, then all highs)."""
    padding = attrs["padding"]
    return {
        "kernel_shape": list(kernel),
        "strides": list(attrs["strides"]),
        "pads": [low for low, _ in padding] + [high for _, high in padding],
    }


def conv_attributes(node: Node, kernel: Any) -> dict[str, Any]:
    """Attributes of Conv and ConvTranspose."""
    attrs = node.attrs
    return {**window_attributes(attrs, kernel), "dilations": list(attrs["dilation"]), "group": attrs["groups"]}


@exact("conv")
def conv(e: Emitter, node: Node, x: str, w: str, *bias: str) -> str:
    """Conv, with a bias when a pattern found one."""
    return e.op("Conv", x, w, *bias, **conv_attributes(node, node.inputs[1].shape[2:]))


def output_padding(node: Node) -> list[int] | None:
    """What the forward convolution's floor division lost, per dimension; None where ConvTranspose cannot say it."""
    attrs, extra = node.attrs, []
    g, w = node.inputs
    rows = zip(attrs["input_shape"], g.shape[2:], w.shape[2:], attrs["strides"], attrs["padding"], attrs["dilation"])
    for size, g_size, k, stride, (low, high), dilation in rows:
        lost = size - (stride * (g_size - 1) + dilation * (k - 1) + 1 - low - high)
        if isinstance(lost, Sym) or lost < 0 or (lost and lost >= max(stride, dilation)):
            return None
        extra.append(lost)
    return extra


@exact("conv_input_grad")
def conv_transpose(e: Emitter, node: Node, g: str, w: str, *bias: str) -> str | None:
    """ConvTranspose, with a bias when a pattern found one."""
    extra = output_padding(node)
    if extra is None:
        return None
    attributes = conv_attributes(node, node.inputs[1].shape[2:])
    return e.op("ConvTranspose", g, w, *bias, **attributes, output_padding=extra if any(extra) else None)


@exact("max_pool")
def _max_pool(e: Emitter, node: Node, x: str) -> str:
    attrs = node.attrs
    return e.op("MaxPool", x, **window_attributes(attrs, attrs["window"]), dilations=list(attrs["dilation"]),
                ceil_mode=int(attrs["ceil_mode"]))  # fmt: skip


@exact("avg_pool")
def _avg_pool(e: Emitter, node: Node, x: str) -> str:
    attrs = node.attrs
    return e.op("AveragePool", x, **window_attributes(attrs, attrs["window"]), ceil_mode=int(attrs["ceil_mode"]),
                count_include_pad=int(attrs["include_pad"]))  # fmt: skip


@combined("batch_norm_train")
def _batch_norm_train(e: Emitter, node: Node, x: str, weight: str, bias: str) -> tuple[str, ...] | None:
    """Its two sums, and the rest elementwise; None (our own domain) where the channels are computed wider than ``x``."""
    spec, dtype = node.inputs[0].spec, node.outputs[1].dtype
    if any(v.dtype is not dtype for v in node.inputs):
        return None
    axes, laid = e.ints(0, *range(2, spec.ndim)), e.ints(-1, *(1,) * (spec.ndim - 2))
    mean = e.op("ReduceMean", x, axes, keepdims=1)
    centred = e.op("Sub", x, mean)
    variance = e.op("ReduceMean", e.op("Mul", centred, centred), axes, keepdims=1)
    root = e.op("Sqrt", e.op("Add", variance, e.constant(node.attrs["eps"], dtype.numpy)))
    scaled = e.op("Mul", e.op("Div", centred, root), e.op("Reshape", weight, laid))
    channels = e.ints(-1)
    return (
        e.op("Add", scaled, e.op("Reshape", bias, laid)),
        e.op("Reshape", mean, channels),
        e.op("Reshape", variance, channels),
    )
