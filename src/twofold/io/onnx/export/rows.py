"""The table of op rows: how each op of ours is written with standard operators.

A row takes (emitter, node, input names) and returns the output's name (a tuple for several). ``EXACT`` rows keep the
op's meaning to the bit, so a graph read back is the same program. ``COMBINED`` rows build the op out of several
operators (rounding may differ in the last place); they are used for inference files, not for training steps. A row that
returns None leaves this node to our own domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twofold.io.onnx.export.emitter import Emitter
from twofold.ir import OPS, Node

Row = Callable[..., Any]
EXACT: dict[str, Row] = {}
COMBINED: dict[str, Row] = {}


def exact(*names: str) -> Callable[[Row], Row]:
    """Register a row for ops by name."""
    return _register(EXACT, names)


def combined(*names: str) -> Callable[[Row], Row]:
    """Register a row made of several operators."""
    return _register(COMBINED, names)


def _register(table: dict[str, Row], names: tuple[str, ...]) -> Callable[[Row], Row]:
    def register(row: Row) -> Row:
        table.update(dict.fromkeys(names, row))
        return row

    return register


def emit(e: Emitter, node: Node) -> None:
    """One node: by its row, else in our own domain."""
    inputs = [e.name(v) for v in node.inputs]
    results = None
    row = EXACT.get(node.op.name) or (COMBINED.get(node.op.name) if e.portable else None)
    if row is not None:
        results = row(e, node, *inputs)
    if results is None:
        results = e.own(node, inputs)
    elif isinstance(results, str):
        results = (results,)
    e.names.update(zip(node.outputs, results))


def _one_to_one(op_type: str) -> Row:
    return lambda e, node, *inputs: e.op(op_type, *inputs)


# elementwise ops and a few others are the standard operator named in their record, with no attributes
for _name, _op in OPS.items():
    if _op.onnx is not None and _op.kind in ("elementwise", "matmul"):
        EXACT[_name] = _one_to_one(_op.onnx)
