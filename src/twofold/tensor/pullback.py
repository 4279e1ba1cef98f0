"""The gradients of one recorded op as a small graph: traced once for each op, shapes and inputs wanted, so that a backend may
run it as one program. The sums with what arrived before from other users are part of it.

Without such a program, ``vjp`` runs op by op: so it is when gradients are themselves recorded, and for small arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.backends import Device
from twofold.base.recent import Recent
from twofold.ir import OPS, Builder, Graph, Node, Value, context, recording
from twofold.ir.builder import eager_pull_back
from twofold.tensor.composite import KIND
from twofold.tensor.eager import Array, Outputs

MOST_PLANS = 2048  # those least recently used are dropped


@dataclass(frozen=True, eq=False)
class Plan:
    """A traced ``vjp``. ``reads`` are the positions, among all values around the node, of the graph's inputs; ``results``
    has for each wanted input ("is", a position), ("made", an output's number), or None: no gradient."""

    graph: Graph
    reads: list[int]
    results: list[tuple[str, int] | None]


_plans = Recent(MOST_PLANS)


def pull_back(
    node: Node,
    gs: Sequence[Value | None],
    wanted: Sequence[int],
    before: Sequence[Value | None],
    vjp: Callable[..., Any],
) -> list[Value | None] | None:
    """New cotangents of the ``wanted`` inputs, those ``before`` added, or None: do it op by op.

    ``gs`` are the cotangents of the outputs; ``vjp(node's gs, outputs, inputs)`` gives those of the inputs.
    """
    first = next(g for g in gs if g is not None)
    if context.builders or context.grad_enabled or not isinstance(first, Array):
        return None
    where = first.device
    if not where.backend.runs_graphs(node.op, first.buffer) or not isinstance(node.outputs, Outputs):
        return None
    known = node.op.kind == KIND or OPS.get(node.op.name) is node.op
    if not known or len({node.inputs[i].key for i in wanted}) < len(wanted):
        return None
    around: list[Any] = [*gs, *before, *node.inputs]
    try:
        key = (
            node.op,
            tuple(wanted),
            tuple([None if v is None else v.spec for v in around]),
            tuple(node.attrs.items()),
        )
        plan = _plans.get(key)
    except TypeError:  # an attribute that does not hash
        return None
    if plan is None:
        plan = _traced(node, gs, wanted, before, vjp)
        _plans.put(key, plan)
    buffers = _buffers(plan, around, node.outputs, where)
    if buffers is None:
        return None
    made: Sequence[Any] = ()
    if plan.graph.outputs:
        found = where.backend.run_graph(plan.graph, buffers, where)
        if found is None:
            return None
        made = [Array(v.spec, buffer, where) for v, buffer in zip(plan.graph.outputs, found)]
    return [None if r is None else around[r[1]] if r[0] == "is" else made[r[1]] for r in plan.results]


def _buffers(plan: Plan, around: Sequence[Any], outputs: Outputs, where: Device) -> list[Any] | None:
    """What the graph reads; None if something of it is elsewhere."""
    buffers = []
    for at in plan.reads:
        if at >= len(around):
            buffers.append(outputs.buffers[at - len(around)])
        else:
            value = around[at]
            if value.device is not where and value.device != where:
                return None
            buffers.append(value.buffer)
    return None if any(b is None for b in buffers) else buffers


def _traced(
    node: Node,
    gs: Sequence[Value | None],
    wanted: Sequence[int],
    before: Sequence[Value | None],
    vjp: Callable[..., Any],
) -> Plan:
    builder = Builder(f"{node.op.name}_vjp")
    around = [*gs, *before, *node.inputs, *node.outputs]
    symbols = [None if v is None else builder.input(v.spec) for v in around]
    first, last = len(gs), len(gs) + len(before)
    inputs = symbols[last : last + len(node.inputs)]
    with recording(builder):
        found = vjp(symbols[:first], symbols[last + len(inputs) :], inputs, wanted)
        olds = symbols[first:last]
        sums = [old if g is None else g if old is None else old + g for g, old in zip(found, olds, strict=True)]
    places = {id(v): i for i, v in enumerate(symbols) if v is not None}
    made = list(dict.fromkeys(v for v in sums if v is not None and id(v) not in places))
    results = [
        None if v is None else ("is", places[id(v)]) if id(v) in places else ("made", made.index(v)) for v in sums
    ]
    graph = builder.finish(made)
    used = {id(v) for n in graph.nodes for v in n.inputs}
    reads = [i for i, v in enumerate(symbols) if v is not None and id(v) in used]
    graph.inputs = [v for v in graph.inputs if id(v) in used]
    return Plan(graph, reads, results)


eager_pull_back.append(pull_back)
