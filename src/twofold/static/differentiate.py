"""Gradients through a compiled program: its graph is split into a forward and a backward program.

joint     = forward nodes, then the nodes that ``gradients`` adds for given cotangents
residuals = forward values that backward nodes read
forward   : inputs -> outputs, residuals          backward : residuals, cotangents -> gradients of the inputs
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twofold import autodiff
from twofold.backends import Device
from twofold.ir import Builder, Graph, Node, Op, State, Value, bind, context, precision_mode, recording, scope
from twofold.ir.builder import SymbolicValue
from twofold.static.runner import GraphRunner
from twofold.tensor.eager import Array, Outputs


def replay(nodes: Sequence[Node], environment: dict[Value, Value]) -> None:
    """Apply the nodes again to the values in ``environment``: recorded or computed, whatever is going on. Dtypes and
    layer paths stay."""
    for node in nodes:
        with precision_mode(None), scope(node.scope) if node.scope else contextlib.nullcontext():
            results = bind(node.op, *(environment[v] for v in node.inputs), **node.attrs)
        for old, new in zip(node.outputs, results if node.op.multi else (results,)):
            new.detached = new.detached or old.detached
            environment[old] = new


@dataclass
class Split:
    """The two programs, and which inputs (of ``graph.all_inputs``) and outputs gradients run between."""

    forward: Graph
    backward: Graph
    wanted: list[int]
    reached: list[bool]  # for each wanted input, whether any output depends on it
    residuals: int


def split(graph: Graph, wanted: list[int], outputs: list[int]) -> Split:
    """Split ``graph`` for gradients of ``outputs`` with respect to the inputs at ``wanted``."""
    joint = Builder(graph.name)
    environment: dict[Value, Value] = {v: joint.input(v.spec, v.name) for v in graph.inputs}
    for s in graph.state:
        environment[s.input] = SymbolicValue(joint, s.input.spec, None, 0, s.name)
    with recording(joint):
        replay(graph.nodes, environment)
        count = len(joint.graph.nodes)
        ys = [environment[graph.outputs[i]] for i in outputs]
        seeds = [SymbolicValue(joint, y.spec, None, 0, f"grad{i}") for i, y in enumerate(ys)]
        xs = [environment[graph.all_inputs[i]] for i in wanted]
        gs = autodiff.gradients(ys, xs, seeds)
    before, after = joint.graph.nodes[:count], joint.graph.nodes[count:]
    made = {v for node in after for v in node.outputs} | set(seeds)
    read = [v for node in after for v in node.inputs] + [g for g in gs if g is not None]
    residuals = list(dict.fromkeys(v for v in read if v not in made))
    state = [State(s.name, environment[s.input], environment[s.output], s.variable) for s in graph.state]
    forward = Graph(graph.name, joint.graph.inputs, before, [environment[v] for v in graph.outputs] + residuals, state)
    backward = _backward(f"{graph.name}_backward", residuals, seeds, after, [g for g in gs if g is not None])
    return Split(forward, backward, wanted, [g is not None for g in gs], len(residuals))


def _backward(name: str, residuals: list[Value], seeds: Sequence[Value], nodes: list[Node], gs: list[Value]) -> Graph:
    builder = Builder(name)
    environment: dict[Value, Value] = {v: builder.input(v.spec, v.name) for v in [*residuals, *seeds]}
    with recording(builder):
        replay(nodes, environment)
    return builder.finish([environment[g] for g in gs])


class DifferentiableRunner:
    """Calls the forward program and leaves one node in the eager record, whose gradient is the backward program."""

    def __init__(
        self, graph: Graph, variables: Sequence[Any], wanted: list[int], outputs: list[int], device: Device | None,
        verify: bool = False,
    ):  # fmt: skip
        self.graph = graph
        self.outputs = outputs
        self.split = split(graph, wanted, outputs)
        self.forward = GraphRunner(self.split.forward, variables, device, verify=verify)
        self.backward = GraphRunner(self.split.backward, [], device, verify=verify)

    def report(self) -> str:
        """What was compiled of either half."""
        kept = "forward, and what backward() needs of it; inside no_grad() a program without that is compiled"
        halves = {kept: self.forward.report(), "backward": self.backward.report()}
        return "\n\n".join(f"# {self.graph.name}: {what}\n{text}" for what, text in halves.items() if text)

    def __call__(self, arguments: Sequence[Array]) -> list[Array]:
        inputs: list[Array] = [*arguments, *(v._own for v in self.forward.variables)]
        results = self.forward(arguments)
        count = len(self.graph.outputs)
        outs, residuals = results[:count], results[count:]
        op = Op(self.graph.name, lambda *s: (), lambda *a: (), self._vjp(residuals), multi=True)
        where = outs[self.outputs[0]].device
        node = Node(op, tuple(inputs), {}, ".".join(context.scope))
        node.outputs = Outputs(node, [o.spec for o in outs], [None] * count, where)  # type: ignore[assignment]
        for i in self.outputs:
            outs[i].producer, outs[i].index, outs[i].requires_grad = node, i, True
        return outs

    def _vjp(self, residuals: list[Array]) -> Callable[..., Any]:
        def vjp(gs: Sequence[Value], _ys: Any, *xs: Value) -> list[Value | None]:
            seeds = [gs[i] for i in self.outputs]
            if context.grad_enabled:  # gradients of gradients: go through the ops one by one
                found = self._again(xs, seeds)
            else:
                reached = iter(self.backward([*residuals, *seeds]))  # type: ignore[list-item]
                found = [next(reached) if there else None for there in self.split.reached]
            out: list[Value | None] = [None] * len(xs)
            for i, g in zip(self.split.wanted, found):
                out[i] = g
            return out

        return vjp

    def _again(self, xs: Sequence[Value], seeds: Sequence[Value]) -> list[Value | None]:
        environment = dict(zip(self.graph.all_inputs, xs))
        replay(self.graph.nodes, environment)
        ys = [environment[self.graph.outputs[i]] for i in self.outputs]
        return autodiff.gradients(ys, [xs[i] for i in self.split.wanted], seeds)
