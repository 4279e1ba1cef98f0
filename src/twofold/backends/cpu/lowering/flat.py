"""Images laid flat for a linear layer as they lie in memory, pixel by pixel, with the layer's weights in that order.

    %2 = matmul(reshape(%image), permute_dims(%weight))        %image: f32[N,C,H,W], %weight: f32[O,C*H*W]
becomes
    %2 = matmul(reshape(permute_dims(%image)), permute_dims(%turned))

where ``%turned`` is made of the weights once: so the image need not be copied. Only of weights that no step changes, and few:
they are kept twice, and next to the time that others take to be read a copy of the image takes none.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.machine import Machine
from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, rebuild

IMAGES = frozenset(("conv", "pool"))  # what leaves channels last


def laid_flat(graph: Graph, machine: Machine) -> Graph:
    """``graph`` with such linear layers; itself if there are none."""
    reads = Counter(v for node in graph.nodes for v in node.inputs) + Counter(graph.all_outputs)
    fixed = {state.input for state in graph.state if not state.written}
    shapes: dict[Node, tuple[int, ...]] = {}  # of the image, for the nodes that bring the two into order
    for node in graph.nodes:
        if node.op.name == "matmul" and all(reads[x] == 1 and x.producer is not None for x in node.inputs):
            image, weights = (x.producer for x in node.inputs)
            assert image is not None and weights is not None
            if _is_flat(image) and _is_turned(weights) and weights.inputs[0] in fixed and _is_small(weights, machine):
                shapes[image] = shapes[weights] = tuple(map(int, image.inputs[0].shape[1:]))
    return rebuild(graph, functools.partial(_rule, shapes)) if shapes else graph


def _is_flat(node: Node) -> bool:
    """Whether a node lays images flat that have channels and pixels to be put in order."""
    x = node.inputs[0] if node.op.name == "reshape" else None
    if x is None or x.ndim != 4 or x.producer is None or x.producer.op.kind not in IMAGES:
        return False
    channels, pixels = int(x.shape[1]), int(x.shape[2]) * int(x.shape[3])
    return node.outputs[0].shape == (x.shape[0], channels * pixels) and channels > 1 and pixels > 1


def _is_turned(node: Node) -> bool:
    return node.op.name == "permute_dims" and tuple(node.attrs["axes"]) == (1, 0)


def _is_small(node: Node, machine: Machine) -> bool:
    x = node.outputs[0]
    return math.prod(map(int, x.shape)) * x.dtype.itemsize <= machine.l2


def _rule(
    shapes: dict[Node, tuple[int, ...]], new: Rebuilt, node: Node, inputs: tuple[Value, ...]
) -> Sequence[Value] | None:
    shape = shapes.get(node)
    if shape is None:
        return None

    def emit(op: str, x: Value, **attrs: object) -> Value:
        return new.emit(op, (x,), attrs, node.scope)[0]

    [x] = inputs
    rows = x.shape[0]
    x = emit("permute_dims", emit("reshape", x, shape=(rows, *shape)), axes=CHANNELS_LAST)
    flat = emit("reshape", x, shape=(rows, math.prod(shape)))
    return [flat if node.op.name == "reshape" else emit("permute_dims", flat, axes=(1, 0))]
