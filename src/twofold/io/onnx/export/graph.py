"""Emitting a graph's nodes: composites are raised to standard operators first, and only what is needed is written."""

from __future__ import annotations

from typing import Any

from twofold.io.onnx.export import control, elementwise, layers, movement, raising
from twofold.io.onnx.export.emitter import Emitter, value_info
from twofold.io.onnx.export.rows import emit
from twofold.ir import Node, Value


def emit_nodes(e: Emitter) -> None:
    """All nodes of the emitter's graph that its outputs need."""
    raised, needed = _plan(e)
    for node in e.graph.nodes:
        if node not in needed:
            continue
        e.scope = node.scope.replace(".", "/")
        if node in raised:
            found = raised[node]
            e.names[node.output] = found.rule.write(e, *[e.name(v) for v in found.inputs], found.match)
        else:
            emit(e, node)
        for value in node.outputs:
            _describe(e, value)
    e.scope = ""


def _plan(e: Emitter) -> tuple[dict[Node, raising.Raised], set[Node]]:
    """Which nodes are written, walking back from the outputs, and which of them as the root of a raised pattern."""
    raised: dict[Node, Any] = {}
    needed: set[Node] = set()
    wanted = {v.producer for v in e.graph.all_outputs}
    for node in reversed(e.graph.nodes):
        if node not in wanted and node.op.pure:
            continue
        needed.add(node)
        found = raising.find(node) if e.portable else None
        if found is not None:
            raised[node] = found
        wanted |= {v.producer for v in (found.inputs if found else node.inputs)}
    return raised, needed


def _describe(e: Emitter, value: Value) -> None:
    """Type and shape of an intermediate value, for readers and viewers."""
    name = e.names[value]
    if e.parent is None and name not in e.described:
        e.described.add(name)
        e.infos.append(value_info(name, value.spec))


_ = (control, elementwise, layers, movement)  # their rows are registered on import
