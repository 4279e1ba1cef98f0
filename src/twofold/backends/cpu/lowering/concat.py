"""Concatenations of images along channels without copies: whoever makes a part writes it into its slice of the whole.

Channels-last, a slice of channels is the whole's memory with a larger distance between pixels, which kernels can write
and read. A concatenation whose parts lie side by side in a larger one already (DenseNet: every layer reads all before
it) is a view of it.

Gradients go the same way back: of the gradient of a concatenation the first channels are what is added to the gradient of its
first part. That sum lies in their place (``_added``), if nobody else reads them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import Placed, row_strides
from twofold.ir import Graph, Node, Value

NARROW = 4  # times fewer channels than lie between neighbouring pixels
IMAGES = frozenset(("conv", "pool"))
SAME_FORM = frozenset(("elementwise", "normalization"))


@dataclass
class Homes:
    """Where values lie that are parts of concatenations: ``of`` each value; ``slots`` of each concatenation's operands.
    ``early`` values are stored as soon as they are made, for others will be written over some of their channels."""

    of: dict[Value, Placed] = field(default_factory=dict)
    slots: dict[Node, list[Placed]] = field(default_factory=dict)
    early: set[Value] = field(default_factory=set)

    def scattered(self, value: Value) -> bool:
        """Whether a kernel had better read a copy: a few channels of a gradient that is summed in place. Far apart, the pixels
        of Winograd's tiles meet in few sets of the cache (DenseNet's weight gradients took 1.8 times as long)."""
        node = value.producer
        if node is None or node.op.name != "slice" or node.inputs[0] not in self.early:
            return False
        return NARROW * int(value.shape[1]) <= self.of[node.inputs[0]].strides[3]

    def parts(self, value: Value) -> list[tuple[Value, Placed]]:
        """The smallest parts of a concatenation and where they lie: parts that are concatenated there themselves are
        opened. Empty if ``value`` is no planned concatenation."""
        node = value.producer
        found: list[tuple[Value, Placed]] = []
        for part, slot in zip(node.inputs, self.slots.get(node, ())) if node is not None else ():
            inner = self.parts(part) if self.of.get(part) == slot else []
            found += inner or [(part, slot)]
        return found


def homes(graph: Graph) -> Homes:
    """Plan all concatenations of images, the largest first."""
    found = Homes()
    images = _images(graph)
    nodes = [n for n in graph.nodes if n.op.name == "concat" and n.outputs[0] in images and n.attrs["axis"] == 1]
    for node in sorted(nodes, key=lambda n: -int(n.outputs[0].shape[1])):
        if len(set(node.inputs)) == len(node.inputs):
            _plan(node, found)
    users, outputs = graph.users(), set(graph.all_outputs)
    for node in graph.nodes:
        if node.op.name == "add" and node.outputs[0] in images and node.outputs[0] not in found.of:
            whole = next((w for v in node.inputs if (w := _overwritten(v, users, outputs)) in images), None)
            if whole is not None and node.outputs[0] not in outputs:
                _added(node.outputs[0], whole, found)
    return found


def _overwritten(part: Value, users: Mapping[Value, Sequence[Node]], outputs: Collection[Value]) -> Value | None:
    """What ``part`` is the first channels of, if one node alone reads these."""
    node = part.producer
    if node is None or node.op.name != "slice" or len(users.get(part, ())) != 1 or part in outputs:
        return None
    whole, channels = node.inputs[0], int(part.shape[1])
    others = [user for user in users[whole] if user is not node]
    if whole in outputs or not _of_channels(node) or any(user.op.name != "slice" for user in others):
        return None
    return whole if node.attrs["starts"][1] == 0 and all(o.attrs["starts"][1] >= channels for o in others) else None


def _of_channels(node: Node) -> bool:
    """Whether a slice takes neighbouring channels of all pixels of images."""
    whole, part = node.inputs[0].shape, node.outputs[0].shape
    return len(part) == 4 and set(node.attrs["steps"]) == {1} and (part[0], *part[2:]) == (whole[0], *whole[2:])


def _added(total: Value, whole: Value, found: Homes) -> None:
    """Let ``total`` lie where the first channels of ``whole`` do, which are added to something else there."""
    place = found.of.setdefault(whole, _whole(whole))
    found.of[total] = replace(place, shape=tuple(map(int, total.shape)))
    found.early |= {total, whole}


def _images(graph: Graph) -> set[Value]:
    """The values that kernels make and read channels-last."""
    images: set[Value] = set()
    for node in graph.nodes:
        for out in node.outputs:
            if out.ndim != 4 or 0 in out.shape:
                continue
            same = node.op.kind in SAME_FORM and any(v in images and v.shape == out.shape for v in node.inputs)
            parts = node.op.name == "concat" and any(v in images for v in node.inputs)
            if node.op.kind in IMAGES or same or parts:
                images.add(out)
    return images


def _plan(node: Node, found: Homes) -> None:
    out = node.outputs[0]
    there = [found.of.get(v) for v in node.inputs]
    if all(p is not None for p in there) and _side_by_side(there) and out not in found.of:  # type: ignore[arg-type]
        first: Placed = there[0]  # type: ignore[assignment]
        found.of[out] = replace(first, shape=tuple(map(int, out.shape)))
        found.slots[node] = there  # type: ignore[assignment]
        return
    found.slots[node] = slices(found.of.setdefault(out, _whole(out)), node)
    for v, slot in zip(node.inputs, found.slots[node]):
        found.of.setdefault(v, slot)


def slices(whole: Placed, node: Node) -> list[Placed]:
    """Where the operands of a concatenation belong in the place of its result."""
    axis, slots, start = node.attrs["axis"], [], 0
    for v in node.inputs:
        shape = tuple(map(int, v.shape))
        slots.append(replace(whole, shape=shape, offset=whole.offset + start * whole.strides[axis]))
        start += shape[axis]
    return slots


def _whole(out: Value) -> Placed:
    shape = tuple(map(int, out.shape))
    return Placed(Buffer(out.dtype, math.prod(shape), "concat"), shape, row_strides(shape, CHANNELS_LAST))


def _side_by_side(places: list[Placed]) -> bool:
    """Whether the places are neighbouring slices of one buffer, in order."""
    pairs = itertools.pairwise(places)
    return all(b.buffer is a.buffer and b.strides == a.strides and b.offset == a.offset + a.shape[1] for a, b in pairs)
