"""common_subexpressions: what is computed twice is computed once.

Two nodes are one if they apply the same pure op with equal attributes to the same values. Barriers are not pure: what
is computed from a barrier's result (a checkpoint's second computation) stays apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, map_subgraphs, rebuild
from twofold.ir.text import print_attribute


def common_subexpressions(graph: Graph) -> Graph:
    """``graph`` with equal nodes merged into the first of them."""
    seen: dict[Any, tuple[Value, ...]] = {}

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if not node.op.pure:
            return None
        # attributes by their text: 1 and 1.0 and True, or 0.0 and -0.0, are equal to Python and different here
        key = (node.op.name, inputs, tuple((name, print_attribute(item)) for name, item in sorted(node.attrs.items())))
        if key not in seen:
            seen[key] = new.copy(node, inputs)
        return seen[key]

    return rebuild(map_subgraphs(graph, common_subexpressions), rule)
