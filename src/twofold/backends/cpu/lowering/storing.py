"""When a formula is stored: where it is an output, where a kernel reads it, where more than one nest does, and where a
consumer would compute its elements many times over.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from twofold.backends.cpu.loops import Var, var
from twofold.backends.cpu.loops.expr import loads, work
from twofold.backends.cpu.lowering.rules import VIEWS
from twofold.backends.cpu.lowering.steps import size_of
from twofold.ir import Graph, Node, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

FREE = frozenset(("constant", "full", "iota", "dim_size"))  # formulas of indices alone: never worth a place
SINGLE_READ = frozenset(("elementwise", "movement", "reduction", "other", "indexing"))  # kinds that may read a formula
CHEAP = 12  # operations on an element up to which it is computed again rather than stored
PACKED = frozenset(("conv", "conv_input_grad"))  # ops that read their second input packed


def count_reads(graph: Graph, outputs: Collection[Value]) -> dict[Value, int]:
    """How many nests read each value, through index maps and what is widened wherever it is read."""
    reads: dict[Value, int] = dict.fromkeys(outputs, 1)
    for node in reversed(graph.nodes):
        through = node.op.name in VIEWS or _widens(node)
        own = reads.get(node.outputs[0], 0) if through else 1
        for value in node.inputs:
            reads[value] = reads.get(value, 0) + own
    return reads


def why_stored(low: Lowering, node: Node, out: Value) -> str:
    """Why a formula should be stored; empty if it should not."""
    if out in low.outputs:
        return "it is an output"
    if out in low.homes.early:
        return "it shares its place with a sum"
    if node.op.name in FREE or node.op.name in VIEWS:
        return ""
    if node.op.name == "cast" and out.dtype.bits == 16 and _waits(low, node.inputs[0]):
        return "the kernel that makes it narrows it"
    if low.reads.get(out, 0) > 1 and not _is_wider(low, node) and not _is_cheap(low, out):
        return "it is read more than once"
    return _why_repeated(low, out, size_of(out.spec))


def _waits(low: Lowering, value: Value) -> bool:
    """Whether a kernel that makes the value is not called yet."""
    placed = low.places.get(value)
    return placed is not None and placed.buffer in low.waiting


def _is_wider(low: Lowering, node: Node) -> bool:
    """Whether a node is the float32 form of what lies, or is to lie, in 16 bits: half as much to read as if stored."""
    return _widens(node) and node.inputs[0] in low.places


def _widens(node: Node) -> bool:
    return node.op.name == "cast" and node.inputs[0].dtype.bits == 16


def _is_cheap(low: Lowering, value: Value) -> bool:
    """Whether computing the formula again costs less than storing it: little arithmetic on one array in memory."""
    e = low.formulas[value]([var(Var(int(d), "i")) for d in value.shape])
    large = {l.extra for l in loads(e) if 2 * l.extra[0].size > size_of(value.spec)}
    waits = any(buffer in low.waiting for buffer, _ in large)
    return len(large) <= 1 and not waits and work(e) <= CHEAP


def _why_repeated(low: Lowering, value: Value, size: int) -> str:
    for user in low.users.get(value, ()):
        if user.op.name in VIEWS:
            reason = _why_repeated(low, user.outputs[0], size)
            if reason:
                return reason
        elif user.op.name in PACKED and value is user.inputs[1] and value in low.unchanging:
            continue  # a kernel's weights are packed once, from the formula
        elif user.op.kind not in SINGLE_READ:
            return f"{user.op.name} reads it many times"
        elif size > 1 and size_of(user.outputs[0].spec) > size and user.op.kind != "reduction":
            return f"{user.op.name} would compute it again for each of {size_of(user.outputs[0].spec)} elements"
    return ""


__all__ = ["count_reads", "why_stored"]
