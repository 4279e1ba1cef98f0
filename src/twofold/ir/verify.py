"""``verify(graph)``: is this a well-formed graph? Run after every pass.

Each value is assigned once and before it is used, nothing comes from outside, every type is what the op's own rule
infers, state enters and leaves with one type, and the same holds in every sub-graph.
"""

from __future__ import annotations

from collections.abc import Iterable

from twofold.base.errors import GraphError, TwofoldError
from twofold.ir.values import Graph, Node, Value


def verify(graph: Graph, after: str = "") -> Graph:
    """Return ``graph``, or raise a GraphError that names the node, its layer path and the pass (``after``)."""
    _Verifier(f"after {after}: " if after else "", graph).run()
    return graph


class _Verifier:
    """Checks one graph; ``where`` begins every message."""

    def __init__(self, where: str, graph: Graph):
        self.graph = graph
        self.where = f"{where}graph {graph.name!r}: "
        self.after = where
        self.defined: set[Value] = set()

    def fail(self, message: str) -> None:
        raise GraphError(self.where + message)

    def define(self, values: Iterable[Value], what: str) -> None:
        for value in values:
            if value in self.defined:
                self.fail(f"{what}: {value!r} is assigned twice")
            self.defined.add(value)

    def run(self) -> None:
        for value in self.graph.inputs:
            self.define([value], "inputs")
        self.state_inputs()
        for number, node in enumerate(self.graph.nodes):
            self.node(node, describe(node, number))
        for i, value in enumerate(self.graph.outputs):
            if value not in self.defined:
                self.fail(f"output {i}, {value!r}, is no value of this graph")
        self.state_outputs()

    def state_inputs(self) -> None:
        names: set[str] = set()
        for state in self.graph.state:
            if state.name in names:
                self.fail(f"two states are called {state.name!r}")
            names.add(state.name)
            self.define([state.input], f"state {state.name!r}")

    def state_outputs(self) -> None:
        for state in self.graph.state:
            if state.output not in self.defined:
                self.fail(f"state {state.name!r}: its next value {state.output!r} is no value of this graph")
            if state.output.spec != state.input.spec:
                self.fail(f"state {state.name!r} enters as {state.input.spec} and leaves as {state.output.spec}")

    def node(self, node: Node, what: str) -> None:
        for i, value in enumerate(node.inputs):
            if value not in self.defined:
                self.fail(f"{what}: operand {i}, {value!r}, is used before it is defined, or belongs to another graph")
        for sub in node.graphs():
            if sub.state:
                self.fail(f"{what}: its sub-graph {sub.name!r} has state; only the outermost graph may")
            _Verifier(f"{self.after}{what}: ", sub).run()
        try:
            expected = node.op.specs(tuple(v.spec for v in node.inputs), node.attrs)
        except TwofoldError as error:
            raise GraphError(f"{self.where}{what}: {error}") from error
        given = tuple(v.spec for v in node.outputs)
        if given != tuple(expected):
            self.fail(
                f"{what}: outputs are {', '.join(map(str, given))}; the op infers {', '.join(map(str, expected))}"
            )
        for i, value in enumerate(node.outputs):
            if value.producer is not node or value.index != i:
                self.fail(f"{what}: output {i} does not point back to its node")
        self.define(node.outputs, what)


def describe(node: Node, number: int) -> str:
    """A node in a message: ``node 12, conv(f32[N,1,28,28], f32[6,1,5,5]) in features.0``."""
    where = f" in {node.scope}" if node.scope else ""
    return f"node {number}, {node.op.name}({', '.join(str(v.spec) for v in node.inputs)}){where}"
