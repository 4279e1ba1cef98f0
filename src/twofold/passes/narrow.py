"""What ops of several values can do without: the part of dead_code that looks into control flow.

    barrier      values that nobody reads
    cond         outputs that nobody reads; operands that neither branch reads
    scan         stacked outputs that nobody reads; sequences and invariants that the body does not read;
    while_loop   carries that, at the end, nobody reads, and on the way only serve themselves

Each row gives the outputs of the narrower node (None for those that are gone), or None if there is nothing to narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt

Outputs = Sequence["Value | None"] | None
Narrow = Callable[[Rebuilt, Node, tuple[Value, ...], list[bool]], Outputs]


def needed(graph: Graph, outputs: Iterable[Value]) -> tuple[set[Value], list[Node]]:
    """The values that some outputs, and the nodes with effects, depend on; and the nodes that make them, in order."""
    live, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        effect = not node.op.pure and node.op.name != "barrier"
        if effect or any(v in live for v in node.outputs):
            live.update(node.inputs)
            nodes.append(node)
    return live, nodes[::-1]


def inputs_read(graph: Graph, outputs: Sequence[bool]) -> list[bool]:
    """Which inputs of a graph the chosen outputs depend on."""
    live, _ = needed(graph, compress(graph.outputs, outputs))
    return [v in live for v in graph.inputs]


def restricted(graph: Graph, inputs: Sequence[bool], outputs: Sequence[bool]) -> Graph:
    """The graph with some of its inputs and outputs, and the nodes that those need."""
    kept = list(compress(graph.outputs, outputs))
    return Graph(graph.name, list(compress(graph.inputs, inputs)), needed(graph, kept)[1], kept)


def _emit(
    new: Rebuilt,
    node: Node,
    inputs: Sequence[Value],
    keep_in: Sequence[bool],
    keep_out: Sequence[bool],
    attrs: dict[str, Any],
) -> Outputs:
    """The node with fewer inputs and outputs."""
    outputs = iter(new.emit(node.op, list(compress(inputs, keep_in)), attrs, node.scope))
    return [next(outputs) if keep else None for keep in keep_out]


def _barrier(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Outputs:
    return None if all(read) else _emit(new, node, inputs, read, read, node.attrs)


def _cond(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Outputs:
    branches: dict[str, Graph] = node.attrs
    used = [any(pair) for pair in zip(*(inputs_read(branch, read) for branch in branches.values()))]
    if all(used) and all(read):
        return None
    attrs = {name: restricted(branch, used, read) for name, branch in branches.items()}
    return _emit(new, node, inputs, [True, *used], read, attrs)


def _live_inputs(live: list[bool], read_by: Callable[[list[bool]], list[bool]]) -> list[bool]:
    """The inputs that a loop reads; ``read_by`` says which ones an iteration reads for some of its carries.

    A carry is live if it is wanted at the end (``live``), or read for something else that is live.
    """
    while True:
        used = read_by(live)
        grown = [a or b for a, b in zip(live, used)]
        if grown == live:
            return [*live, *used[len(live) :]]
        live = grown


def _while(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Outputs:
    cond, body = node.attrs["cond"], node.attrs["body"]
    always = inputs_read(cond, [True])
    keep = _live_inputs(read, lambda live: [a or b for a, b in zip(always, inputs_read(body, live))])
    if all(keep):
        return None
    carries = keep[: len(read)]
    attrs = {
        **node.attrs, "cond": restricted(cond, keep, [True]), "body": restricted(body, keep, carries), "carries": sum(carries),
    }  # fmt: skip
    return _emit(new, node, inputs, keep, carries, attrs)


def _scan(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Outputs:
    body, count, xs = node.attrs["body"], node.attrs["carries"], node.attrs["xs"]
    saved = node.attrs["saved"] and any(read[len(body.outputs) :])
    stacked = read[count : len(body.outputs)]
    live = [True] * count if saved else read[:count]
    keep = _live_inputs(live, lambda live: inputs_read(body, [*live, *stacked]))
    carries = keep[:count]
    if all(keep) and all(stacked) and saved == node.attrs["saved"]:
        return None
    attrs = {
        **node.attrs, "body": restricted(body, keep, [*carries, *stacked]), "carries": sum(carries),
        "xs": sum(keep[count : count + xs]), "saved": saved,
    }  # fmt: skip
    hidden = [saved] * count if node.attrs["saved"] else []
    return _emit(new, node, inputs, keep, [*carries, *stacked, *hidden], attrs)


NARROW: dict[str, Narrow] = {"barrier": _barrier, "cond": _cond, "scan": _scan, "while_loop": _while}
