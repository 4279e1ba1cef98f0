"""What is checked of a whole model before anything is built: known operators, bounded nesting, bounded expansion."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from twofold.base.errors import UnsafeFileError, UnsupportedOpError
from twofold.io.onnx.common import DOMAIN, MAX_NESTING, STANDARD
from twofold.io.onnx.load.rows import ROWS
from twofold.ir import OPS

MAX_NODES = 1_000_000  # after functions are expanded


def check_expansion(model: ModelProto) -> None:
    """UnsafeFileError if expanding the file's functions would never end, or give an absurd number of nodes."""
    functions = {(f.domain, f.name): f for f in model.functions}
    known: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > MAX_NESTING:
            raise UnsafeFileError(f"functions are nested more than {MAX_NESTING} deep")
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in known:
                known[key] = size(functions[key].node, depth + 1)
            total += 1 + known.get(key, 0)
            total += sum(size(a.g.node, depth + 1) for a in node.attribute if a.HasField("g"))
        return total

    if size(model.graph.node, 0) > MAX_NODES:
        raise UnsafeFileError(f"more than {MAX_NODES} nodes once functions are expanded")


def all_nodes(model: ModelProto) -> Iterable[tuple[NodeProto, int]]:
    """Every node of a model, sub-graphs and functions included, with its depth."""
    queue = deque((n, 0) for nodes in (model.graph.node, *(f.node for f in model.functions)) for n in nodes)
    while queue:
        node, depth = queue.popleft()
        yield node, depth
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            queue.extend((n, depth + 1) for g in graphs for n in g.node)


def refuse_unsupported(model: ModelProto) -> None:
    """UnsupportedOpError listing every operator without a row, with the nodes that use it."""
    functions = {(f.domain, f.name) for f in model.functions}
    missing: dict[str, list[str]] = {}
    for node, depth in all_nodes(model):
        if depth > MAX_NESTING:
            raise UnsafeFileError(f"graphs are nested more than {MAX_NESTING} deep")
        domain = "" if node.domain in STANDARD else node.domain
        known = (domain, node.op_type) in ROWS or (node.domain, node.op_type) in functions
        if not known and not (domain == DOMAIN and node.op_type in OPS):
            label = f"{domain}.{node.op_type}" if domain else node.op_type
            missing.setdefault(label, []).append(node.name or (node.output[0] if node.output else "?"))
    if missing:
        rows = [
            f"{op} (node{'s' if len(n) > 1 else ''} {', '.join(n[:4])}{', ...' if len(n) > 4 else ''})"
            for op, n in sorted(missing.items())
        ]
        raise UnsupportedOpError(f"operators without a translation: {'; '.join(rows)}")
