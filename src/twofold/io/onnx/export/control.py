"""Rows of control flow: cond -> If, while_loop -> Loop, scan -> Scan. Sub-graphs read values of the graphs around them
by name, so what ours pass as operands needs no input there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, helper

from twofold.base.dtypes import bool_, int64
from twofold.io.onnx.export.emitter import Emitter, value_info
from twofold.io.onnx.export.rows import exact
from twofold.ir import Graph, Node, Spec


def inline(e: Emitter, graph: Graph, inputs: Sequence[str]) -> list[str]:
    """The nodes of ``graph`` among those of ``e``, applied to ``inputs``; the names of its results."""
    from twofold.io.onnx.export.graph import emit_nodes

    child = Emitter(graph, e, portable=e.portable)
    child.names.update(zip(graph.inputs, inputs, strict=True))
    emit_nodes(child)
    e.nodes += child.nodes
    return [child.name(v) for v in graph.outputs]


class Body:
    """A sub-graph being made: its own inputs, and outputs that are each made by one of its nodes."""

    def __init__(self, e: Emitter, name: str):
        self.emitter = Emitter(Graph(e.fresh(name)), e, portable=e.portable)
        self.inputs: list = []
        self.outputs: list = []

    def input(self, spec: Spec, hint: str) -> str:
        """The name of a new input."""
        name = self.emitter.fresh(hint)
        self.inputs.append(value_info(name, spec))
        return name

    def output(self, name: str, spec: Spec) -> None:
        """A result. Identity gives it a name of its own: it may be an input, a value from outside, or used twice."""
        self.outputs.append(value_info(self.emitter.op("Identity", name), spec))

    def proto(self) -> GraphProto:
        """The finished GraphProto."""
        return helper.make_graph(self.emitter.nodes, self.emitter.graph.name, self.inputs, self.outputs)


def _operator(e: Emitter, op_type: str, inputs: Sequence[str], count: int, **attrs: Any) -> tuple[str, ...]:
    results = e.op(op_type, *inputs, outputs=count, **attrs)
    return results if isinstance(results, tuple) else (results,)


@exact("cond")
def _cond(e: Emitter, node: Node, pred: str, *operands: str) -> tuple[str, ...]:
    graphs = {}
    for branch, key in (("then_branch", "true"), ("else_branch", "false")):
        graph: Graph = node.attrs[key]
        body = Body(e, branch)
        for name, value in zip(inline(body.emitter, graph, operands), graph.outputs):
            body.output(name, value.spec)
        graphs[branch] = body.proto()
    return _operator(e, "If", [pred], len(node.outputs), **graphs)


@exact("while_loop")
def _while(e: Emitter, node: Node, *operands: str) -> tuple[str, ...]:
    """The test is written twice: before the loop, and at the end of its body."""
    attrs, carries = node.attrs, node.attrs["carries"]
    test, graph = attrs["cond"], attrs["body"]
    limit = attrs["max_iterations"]
    body = Body(e, "body")
    body.input(Spec((), int64), "iteration")
    body.input(Spec((), bool_), "go_on")
    carry = [body.input(v.spec, "carry") for v in graph.inputs[:carries]]
    after = inline(body.emitter, graph, [*carry, *operands[carries:]])
    (again,) = inline(body.emitter, test, [*after, *operands[carries:]])
    body.output(again, Spec((), bool_))
    for name, value in zip(after, graph.outputs):
        body.output(name, value.spec)
    (first,) = inline(e, test, operands)
    count = "" if limit is None else e.constant(limit, np.int64)
    return _operator(e, "Loop", [count, first, *operands[:carries]], carries, body=body.proto())


@exact("scan")
def _scan(e: Emitter, node: Node, *operands: str) -> tuple[str, ...] | None:
    attrs, carries, xs = node.attrs, node.attrs["carries"], node.attrs["xs"]
    graph: Graph = attrs["body"]
    sequences = list(operands[carries : carries + xs])
    body = Body(e, "body")
    taken = [body.input(v.spec, "carry") for v in graph.inputs[:carries]]
    slices = [body.input(v.spec, "x") for v in graph.inputs[carries : carries + xs]]
    if not xs:  # Scan needs something to go along
        body.input(Spec((), int64), "step")
        stop = e.op("Squeeze", e.size(attrs["length"]), e.ints(0))
        sequences = [e.op("Range", e.constant(0, np.int64), stop, e.constant(1, np.int64))]
    results = inline(body.emitter, graph, [*taken, *slices, *operands[carries + xs :]])
    stacked = zip(results, graph.outputs)
    for name, value in [*stacked, *(zip(taken, graph.inputs) if attrs["saved"] else ())]:
        body.output(name, value.spec)
    backward = int(attrs["reverse"])
    return _operator(
        e, "Scan", [*operands[:carries], *sequences], len(node.outputs), body=body.proto(),
        num_scan_inputs=len(sequences), scan_input_directions=[backward] * len(sequences),
        scan_output_directions=[backward] * (len(node.outputs) - carries),
    )  # fmt: skip
