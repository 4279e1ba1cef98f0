"""join_slices: what is done alike to all slices of a value is done to the value.

    a, b = slices of g, all of it; y = concat(p, q), whose parts lie as the slices do
    where(p > 0, a, 0) and where(q > 0, b, 0)    become    slices of where(y > 0, g, 0)
    and their sums over other axes               become    slices of its sums

These are the gradients of a concatenation of ReLUs, and of the biases before them: one mask and one sum that can be taken
where ``g`` is made. Joined are elementwise ops on slices and parts of a concatenation, and reductions of what was joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, map_subgraphs, rebuild
from twofold.ir.text import print_attribute

Parts = tuple[Value, ...]


@dataclass(eq=False)
class _Whole:
    """What parts are slices of, along ``axis``: a value of the graph, or what ``nodes``, each of which makes a part, make of
    other wholes (and of single numbers) together."""

    parts: Parts
    axis: int
    value: Value | None = None
    operands: Sequence[_Whole | Value] = ()
    done: Value | None = None  # in the new graph
    late: bool = False  # something it is made of came after one of its parts

    @property
    def node(self) -> Node:
        return self.parts[0].producer  # type: ignore[return-value]

    @property
    def is_concat(self) -> bool:
        """Whether a concatenation is in it."""
        if self.value is not None:
            return self.value.producer is not None and self.value.producer.op.name == "concat"
        return any(isinstance(o, _Whole) and o.is_concat for o in self.operands)


def join_slices(graph: Graph) -> Graph:
    """``graph`` with the slices after the work on them."""
    graph = map_subgraphs(graph, join_slices)
    joined = _Finder(graph).joined
    if not joined:
        return graph

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node not in joined or (out := _emit(new, whole := joined[node])) is None:
            return None
        start = sum(int(p.shape[whole.axis]) for p in whole.parts[: whole.parts.index(node.output)])
        starts, stops = [0] * out.ndim, list(out.shape)
        starts[whole.axis], stops[whole.axis] = start, start + int(node.output.shape[whole.axis])
        attrs = {"starts": tuple(starts), "stops": tuple(stops), "steps": (1,) * out.ndim}
        return new.emit("slice", (out,), attrs, node.scope)

    return rebuild(graph, rule)


def _emit(new: Rebuilt, whole: _Whole) -> Value | None:
    """The whole in the new graph; None if it is ``late``."""
    if whole.value is not None:
        return new.values.get(whole.value)
    if whole.done is None and not whole.late:
        operands = [_emit(new, o) if isinstance(o, _Whole) else new.values.get(o) for o in whole.operands]
        whole.late = any(o is None for o in operands)
        if whole.late:
            return None
        (whole.done,) = new.emit(whole.node.op, operands, whole.node.attrs, whole.node.scope)  # type: ignore[arg-type]
    return whole.done


class _Finder:
    """``joined`` has the nodes that are done together, and with what result."""

    def __init__(self, graph: Graph):
        self.users = graph.users()
        self.wholes: dict[Parts, _Whole] = {}
        self.joined: dict[Node, _Whole] = {}
        for node in graph.nodes:
            if node.op.name == "concat" and len(set(node.inputs)) == len(node.inputs) > 1:
                self.wholes[node.inputs] = _Whole(node.inputs, node.attrs["axis"], node.output)
        if self.wholes:
            for value in [*self.users]:
                for slices in self._slices(value):
                    self._follow(slices)

    def _slices(self, value: Value) -> Iterator[_Whole]:
        """The slices of a value, if they are neighbours along one axis and all of it."""
        found = [u for u in self.users[value] if u.op.name == "slice"]
        if len(found) < 2 or any(isinstance(d, str) or not isinstance(d, int) for d in value.shape):
            return
        cut = [a for a in range(value.ndim) if any(u.output.shape[a] != value.shape[a] for u in found)]
        if len(cut) != 1 or any(set(u.attrs["steps"]) != {1} for u in found):
            return
        (axis,), at = cut, 0
        found.sort(key=lambda u: u.attrs["starts"][axis])
        for u in found:
            if u.attrs["starts"][axis] != at:
                return
            at = u.attrs["stops"][axis]
        if at == value.shape[axis]:
            yield _Whole(tuple(u.output for u in found), axis, value)

    def _follow(self, whole: _Whole) -> None:
        """Join what is done alike to all of these parts, and what is done to that."""
        self.wholes[whole.parts] = whole
        for first in self.users.get(whole.parts[0], ()):
            others = [[u for u in self.users.get(p, ()) if _alike(u, first)] for p in whole.parts[1:]]
            if first in self.joined or any(len(found) != 1 for found in others):
                continue
            result = self._together((first, *(found[0] for found in others)))
            if result is not None and (result.is_concat or first.op.kind == "reduction"):
                self.joined.update((p.producer, result) for p in result.parts)  # type: ignore[misc]
                self._follow(result)

    def _together(self, nodes: tuple[Node, ...]) -> _Whole | None:
        """What these nodes, which are alike, make together, if every operand is a whole or one number for all."""
        parts = tuple(n.outputs[0] for n in nodes)
        operands: list[_Whole | Value] = []
        for column in zip(*(n.inputs for n in nodes)):
            same = len(set(column)) == 1 and column[0].ndim == 0
            operand = column[0] if same else self.wholes.get(column) or self._made(column)
            if operand is None:
                return None
            operands.append(operand)
        wholes = [o for o in operands if isinstance(o, _Whole)]
        axes = {o.axis for o in wholes}
        if len(axes) != 1 or len(set(parts)) < len(parts):
            return None
        axis = _axis_after(nodes[0], axes.pop())
        laid = [tuple(p.shape[wholes[0].axis] for p in w.parts) for w in wholes]
        if axis is None or len(set(laid)) != 1 or any(not isinstance(d, int) for d in parts[0].shape):
            return None
        return _Whole(parts, axis, operands=operands)

    def _made(self, column: Parts) -> _Whole | None:
        """What the producers of these values make together."""
        nodes = [v.producer for v in column]
        first = nodes[0]
        if first is None or first.op.kind != "elementwise" or any(n is None or not _alike(n, first) for n in nodes):
            return None
        return self._together(tuple(nodes))  # type: ignore[arg-type]


def _alike(a: Node, b: Node) -> bool:
    return a.op is b.op and _attributes(a) == _attributes(b)


def _attributes(node: Node) -> list[Any]:
    return [(name, print_attribute(item)) for name, item in sorted(node.attrs.items())]


def _axis_after(node: Node, axis: int) -> int | None:
    """Where the axis of a node's operands is in its result; None if that depends on all of the axis."""
    if node.op.kind == "elementwise":
        return axis if all(v.ndim in (0, node.output.ndim) for v in node.inputs) else None
    if node.op.kind != "reduction" or "axes" not in node.attrs or axis in node.attrs["axes"]:
        return None
    return axis if node.attrs["keepdims"] else axis - sum(a < axis for a in node.attrs["axes"])
