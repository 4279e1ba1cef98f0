"""dead_code: what no output and no state needs is left out.

Nodes with effects (ops that are not pure) stay. A barrier keeps only the values that are read. In control flow,
branch and scan outputs that nobody reads go too, and then whatever only they needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, map_subgraphs, rebuild

Narrow = Callable[[Rebuilt, Node, tuple[Value, ...], list[bool]], Sequence["Value | None"]]


def dead_code(graph: Graph) -> Graph:
    """``graph`` without what nobody needs."""
    graph = _dropped(map_subgraphs(graph, dead_code))
    read = set(graph.all_outputs) | {v for node in graph.nodes for v in node.inputs}
    if not any(_narrowable(node, read) for node in graph.nodes):
        return graph

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value | None] | None:
        if not _narrowable(node, read):
            return None
        return NARROW[node.op.name](new, node, inputs, [v in read for v in node.outputs])

    return dead_code(rebuild(graph, rule))


def _dropped(graph: Graph) -> Graph:
    live = set(graph.all_outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        effect = not node.op.pure and node.op.name != "barrier"
        if effect or any(v in live for v in node.outputs):
            live.update(node.inputs)
            nodes.append(node)
    kept = Graph(graph.name, graph.inputs, nodes[::-1], graph.outputs, graph.state)
    return rebuild(kept, lambda new, node, inputs: None)


def _narrowable(node: Node, read: set[Value]) -> bool:
    if node.op.name not in NARROW:
        return False
    return not all(v in read for v in node.outputs[node.attrs.get("carries", 0) :])


def _narrow_barrier(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Sequence[Value | None]:
    outputs = iter(new.emit(node.op, [v for v, r in zip(inputs, read) if r], node.attrs, node.scope))
    return [next(outputs) if r else None for r in read]


def _narrow_cond(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Sequence[Value | None]:
    attrs = {name: _with_outputs(branch, read) for name, branch in node.attrs.items()}
    outputs = iter(new.emit(node.op, inputs, attrs, node.scope))
    return [next(outputs) if r else None for r in read]


def _narrow_scan(new: Rebuilt, node: Node, inputs: tuple[Value, ...], read: list[bool]) -> Sequence[Value | None]:
    carries = node.attrs["carries"]
    keep = [i < carries or r for i, r in enumerate(read)]
    saved = node.attrs["saved"] and any(keep[len(keep) - carries :])
    if saved:
        keep[len(keep) - carries :] = [True] * carries
    body_outputs = len(node.attrs["body"].outputs)
    attrs = {**node.attrs, "body": _with_outputs(node.attrs["body"], keep[:body_outputs]), "saved": saved}
    outputs = iter(new.emit(node.op, inputs, attrs, node.scope))
    return [next(outputs) if k else None for k in keep]


def _with_outputs(graph: Graph, keep: Sequence[bool]) -> Graph:
    return Graph(graph.name, graph.inputs, graph.nodes, [v for v, k in zip(graph.outputs, keep) if k], graph.state)


# ops of several outputs that can do without some of them
NARROW: dict[str, Narrow] = {"barrier": _narrow_barrier, "cond": _narrow_cond, "scan": _narrow_scan}
