"""Making graphs from graphs: the loop every pass shares, substitution of sizes, inlining, equality.

A pass never changes the graph it is given: ``rebuild`` runs through the nodes in order with an environment from old
values to new ones, as an interpreter does, and a rule decides what each node becomes::

    def rule(new, node, inputs):          # inputs: the node's operands, already in the new graph
        if node.op.name == "identity":
            return inputs                 # these values stand for the node's outputs
        return None                       # copied as it is
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from twofold.base.dims import Dim, Sym, substitute
from twofold.base.errors import GraphError, TwofoldError
from twofold.ir.builder import bind, context, current_builder, grad_mode, precision_mode, recording, scope
from twofold.ir.interpret import interpret
from twofold.ir.op import OPS, Op
from twofold.ir.values import Graph, Node, Spec, State, Value


class Rebuilt:
    """A graph being filled from another; ``values`` maps old values to new ones."""

    def __init__(self, name: str):
        self.graph = Graph(name)
        self.values: dict[Value, Value] = {}

    def leaf(self, old: Value, spec: Spec) -> Value:
        """An input standing for ``old``."""
        new = self.values[old] = Value(spec, None, 0, old.name)
        new.requires_grad, new.detached = old.requires_grad, old.detached
        return new

    def stand_for(self, old: Value, value: Value) -> None:
        """From here on ``value`` is read where ``old`` was."""
        self.values[old] = value
        if value.producer is not None:
            value.name = value.name or old.name
            value.requires_grad, value.detached = old.requires_grad, old.detached

    def emit(
        self, op: Op | str, inputs: Sequence[Value], attrs: Mapping[str, Any], scope: str = ""
    ) -> tuple[Value, ...]:
        """A new node; its types are inferred."""
        op = OPS[op] if isinstance(op, str) else op
        specs = op.specs(tuple(v.spec for v in inputs), dict(attrs))
        return self._node(op, tuple(inputs), dict(attrs), scope, specs)

    def constant(self, array: np.ndarray, scope: str = "") -> Value:
        """A constant node."""
        return self.emit("constant", (), {"value": array}, scope)[0]

    def copy(self, node: Node, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """The node again, with new inputs. Where their types are the old ones, so are the outputs'."""
        inputs = tuple(inputs)
        specs = tuple(v.spec for v in node.outputs)
        if any(a.spec != b.spec for a, b in zip(inputs, node.inputs)):
            specs = node.op.specs(tuple(v.spec for v in inputs), node.attrs)
        return self._node(node.op, inputs, node.attrs, node.scope, specs)

    def _node(
        self, op: Op, inputs: tuple[Value, ...], attrs: dict, scope: str, specs: Sequence[Spec]
    ) -> tuple[Value, ...]:
        node = Node(op, inputs, attrs, scope)
        node.outputs = tuple(Value(spec, node, i) for i, spec in enumerate(specs))
        self.graph.nodes.append(node)
        return node.outputs


Rule = Callable[[Rebuilt, Node, tuple[Value, ...]], "Sequence[Value | None] | None"]


def rebuild(graph: Graph, rule: Rule, spec: Callable[[Value], Spec] = lambda v: v.spec) -> Graph:
    """A new graph, each node put through ``rule``; inputs and state keep their names, types go through ``spec``.

    A rule may give None for an output that nobody reads.
    """
    new = Rebuilt(graph.name)
    new.graph.inputs = [new.leaf(v, spec(v)) for v in graph.inputs]
    for state in graph.state:
        value = new.leaf(state.input, spec(state.input))
        new.graph.state.append(State(state.name, value, value, state.variable))
    for node in graph.nodes:
        inputs = tuple(new.values[v] for v in node.inputs)
        outputs = rule(new, node, inputs)
        for old, output in zip(node.outputs, new.copy(node, inputs) if outputs is None else outputs, strict=True):
            if output is not None:
                new.stand_for(old, output)
    new.graph.outputs = [new.values[v] for v in graph.outputs]
    for copied, before in zip(new.graph.state, graph.state):
        copied.output = new.values[before.output]
    return new.graph


def map_subgraphs(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """``graph`` with every sub-graph replaced by ``change`` of it; itself if there is none."""
    if not any(True for node in graph.nodes for _ in node.graphs()):
        return graph

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if not any(True for _ in node.graphs()):
            return None
        attrs = {name: change(item) if isinstance(item, Graph) else item for name, item in node.attrs.items()}
        return new.emit(node.op, inputs, attrs, node.scope)

    return rebuild(graph, rule)


def specialise(graph: Graph, sizes: Mapping[str, Dim]) -> Graph:
    """The graph for given sizes of its symbolic dimensions; every type is inferred again.

    Symbols not named in ``sizes`` stay. A type rule that the sizes violate raises its ShapeError, with the layer path.

    >>> from twofold.ir.text import parse_graph
    >>> graph = parse_graph("graph f(%x: f32[N,3]) { %0 = exp(%x) : f32[N,3]  return %0 }")
    >>> print(specialise(graph, {"N": 8}))
    graph f(%x: f32[8,3]) {
      %0 = exp(%x) : f32[8,3]
      return %0
    }
    """

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        attrs = {name: _with_sizes(item, sizes) for name, item in node.attrs.items()}
        try:
            return new.emit(node.op, inputs, attrs, node.scope)
        except TwofoldError as error:
            if node.scope and error.args:
                error.args = (f"{node.scope}: {error.args[0]}", *error.args[1:])
            raise

    return rebuild(graph, rule, lambda v: Spec(tuple(substitute(d, sizes) for d in v.shape), v.dtype))


def _with_sizes(item: Any, sizes: Mapping[str, Dim]) -> Any:
    if isinstance(item, Sym):
        return substitute(item, sizes)
    if isinstance(item, tuple):
        return tuple(_with_sizes(i, sizes) for i in item)
    return specialise(item, sizes) if isinstance(item, Graph) else item


def inline(graph: Graph, arguments: Sequence[Value]) -> list[Value]:
    """Apply a graph to values, node by node: recorded where a builder is active, else computed.

    Returns its outputs, then the new values of its state. Gradients flow as they would through the original program.
    """
    if len(arguments) != len(graph.all_inputs):
        raise GraphError(f"graph {graph.name!r} takes {len(graph.all_inputs)} values; got {len(arguments)}")
    builder = current_builder(arguments)
    with precision_mode(None), recording(builder) if builder is not None else contextlib.nullcontext():
        return interpret(graph, arguments, _bind_node)


def _bind_node(node: Node, inputs: list[Value]) -> Sequence[Value]:
    recorded = context.grad_enabled and not all(v.detached for v in node.outputs)
    with grad_mode(recorded), scope(node.scope) if node.scope else contextlib.nullcontext():
        out = bind(node.op, *inputs, **node.attrs)
    return out if node.op.multi else (out,)


def fingerprint(graph: Graph) -> str:
    """A digest that two graphs share exactly when they do the same steps (names and layer paths aside): a cache key."""
    import hashlib

    from twofold.ir.text import print_graph  # with json and re: loaded when first used

    return hashlib.sha256(print_graph(graph, bare=True).encode()).hexdigest()


def structurally_equal(a: Graph, b: Graph) -> bool:
    """Whether two graphs do the same steps on inputs of the same types; names and layer paths do not matter."""
    from twofold.ir.text import print_graph

    return print_graph(a, bare=True) == print_graph(b, bare=True)
