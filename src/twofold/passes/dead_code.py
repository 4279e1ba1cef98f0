"""dead_code: what no output and no state needs is left out.

Nodes with effects (ops that are not pure) stay. Barriers and control flow are narrowed to what is read of them (see
``narrow``), and then whatever only that needed goes too.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, map_subgraphs, rebuild
from twofold.passes.narrow import NARROW, needed


def dead_code(graph: Graph) -> Graph:
    """``graph`` without what nobody needs."""
    graph = _dropped(map_subgraphs(graph, dead_code))
    if not any(node.op.name in NARROW for node in graph.nodes):
        return graph
    read = set(graph.all_outputs) | {v for node in graph.nodes for v in node.inputs}
    narrowed: list[Node] = []

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value | None] | None:
        if node.op.name not in NARROW:
            return None
        outputs = NARROW[node.op.name](new, node, inputs, [v in read for v in node.outputs])
        if outputs is not None:
            narrowed.append(node)
        return outputs

    smaller = rebuild(graph, rule)
    return dead_code(smaller) if narrowed else graph


def _dropped(graph: Graph) -> Graph:
    kept = Graph(graph.name, graph.inputs, needed(graph, graph.all_outputs)[1], graph.outputs, graph.state)
    return rebuild(kept, lambda new, node, inputs: None)
