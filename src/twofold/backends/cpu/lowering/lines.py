"""Convolutions and pools of one spatial dimension as those of images one pixel high, for the kernels are made for images.

    %2 = conv(%0, %1) : f32[N,O,L]      becomes      %2 = reshape(conv(reshape(%0), reshape(%1)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, rebuild

# attributes that have an entry for each spatial dimension, and what it is in a dimension of one pixel
HEIGHT: dict[str, Any] = {
    "strides": 1, "dilation": 1, "padding": (0, 0), "window": 1, "kernel": 1, "input_shape": 1,
}  # fmt: skip


def as_images(graph: Graph) -> Graph:
    """``graph`` with its one-dimensional convolutions and pools in two dimensions; itself if there are none."""
    return rebuild(graph, _rule) if any(map(_is_line, graph.nodes)) else graph


def _is_line(node: Node) -> bool:
    return node.op.kind in ("conv", "pool") and node.inputs[0].ndim == 3


def _rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
    if not _is_line(node):
        return None

    def shaped(x: Value, shape: tuple[Any, ...]) -> Value:
        return new.emit("reshape", (x,), {"shape": shape}, node.scope)[0]

    images = [shaped(x, (*x.shape[:2], 1, x.shape[2])) for x in inputs]
    attrs = {name: (HEIGHT[name], *a) if name in HEIGHT else a for name, a in node.attrs.items()}
    wide = new.emit(node.op, images, attrs, node.scope)
    return [shaped(y, old.shape) for y, old in zip(wide, node.outputs)]
