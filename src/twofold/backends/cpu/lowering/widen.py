"""Products, some pools and running sums of 16-bit floats as float32 ones between casts, for their kernels are float32.

    %2 = conv(%0, %1) : bf16[...]      becomes      %2 = cast(conv(cast(%0), cast(%1)))

The numbers are the same: these ops are computed in float32 and rounded once wherever they run. 16 bits are thus a way to
store here, not to compute: what waits for the backward pass takes half the room, and each cast takes time. Batch norm has
no kernel of its own and reads 16 bits as they are: a float32 copy for it would be read again on the way back. What
kernels take stays as it is: most pools, and where the machine multiplies pairs of bfloat16, products (``native.takes``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from twofold.backends.cpu.lowering.rules import native
from twofold.backends.cpu.machine import Machine
from twofold.base.dtypes import sum_dtype
from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, rebuild

KINDS = frozenset(("conv", "matmul", "pool", "scan"))


def widened(graph: Graph, machine: Machine) -> Graph:
    """``graph`` with its 16-bit nodes of ``KINDS`` in float32, but those that ``machine`` computes; itself if there are
    none. Two readers of one value get a cast each: merged, the float32 copy would live from the forward pass to the
    backward."""
    wanted = {node for node in graph.nodes if _is_narrow(node) and not native.takes(machine, node)}
    return rebuild(graph, functools.partial(_rule, wanted)) if wanted else graph


def _is_narrow(node: Node) -> bool:
    return node.op.kind in KINDS and any(sum_dtype(v.dtype) is not v.dtype for v in node.inputs)


def _rule(wanted: set[Node], new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
    if node not in wanted:
        return None

    def cast(x: Value, dtype: object) -> Value:
        return x if x.dtype is dtype else new.emit("cast", (x,), {"dtype": dtype}, node.scope)[0]

    wide = new.emit(node.op, [cast(x, sum_dtype(x.dtype)) for x in inputs], node.attrs, node.scope)
    return [cast(y, old.dtype) for y, old in zip(wide, node.outputs)]
