"""fold_constants: what is known now is computed now, as long as the result is small.

    %0 = constant() {value=f32[]{2.0}} : f32[]
    %1 = sqrt(%0) : f32[]                          becomes    %1 = constant() {value=f32[]{1.4142135}} : f32[]

Results of one repeated number become ``full``, which takes no room. Control flow is left alone: it might not end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twofold.base.dims import Sym
from twofold.base.dtypes import as_dtype
from twofold.base.errors import TwofoldError
from twofold.base.shapes import is_static
from twofold.ir import Graph, Node, Value
from twofold.ir.interpret import run_reference
from twofold.ir.rewrite import Rebuilt, map_subgraphs, rebuild

MAX_ELEMENTS = 4096  # of each operand and result: 16 KB of float32, less than the text of one small kernel
KNOWN = ("constant", "full", "iota", "dim_size")


def fold_constants(graph: Graph) -> Graph:
    """``graph`` with small known results as constants."""
    known: dict[Value, np.ndarray] = {}

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if not _foldable(node, inputs, known):
            return None
        try:
            arrays = [np.asarray(a) for a in run_reference(node, [known[v] for v in inputs])]
        except TwofoldError:  # an index out of range, say: let it be reported when the program runs
            return None
        stays = node.op.name in KNOWN and node.op.name != "dim_size"
        outputs = new.copy(node, inputs) if stays else [literal(new, a, node.scope) for a in arrays]
        known.update(zip(outputs, arrays))
        return outputs

    return rebuild(map_subgraphs(graph, fold_constants), rule)


def _foldable(node: Node, inputs: Sequence[Value], known: dict[Value, np.ndarray]) -> bool:
    if not node.op.pure or node.op.kind == "control" or not all(v in known for v in inputs):
        return False
    if not inputs and node.op.name not in KNOWN:
        return False
    static = all(is_static(v.shape) for v in node.outputs) and not _symbolic(node)
    return static and all(int(v.size) <= MAX_ELEMENTS for v in node.outputs)


def _symbolic(node: Node) -> bool:
    """Whether an attribute holds a size that is not known yet."""
    flat = [i for a in node.attrs.values() for i in (a if isinstance(a, tuple) else (a,))]
    return any(isinstance(i, Sym) for i in flat)


def literal(new: Rebuilt, array: np.ndarray, scope: str = "") -> Value:
    """An array as a node: ``full`` if it repeats one number, else a constant."""
    first = array.reshape(-1)[:1]
    if array.ndim and array.size and array.tobytes() == first.tobytes() * array.size:
        attrs = {"shape": array.shape, "fill": scalar(first[0]), "dtype": as_dtype(array.dtype)}
        return new.emit("full", (), attrs, scope)[0]
    return new.constant(np.ascontiguousarray(array).reshape(array.shape), scope)


def scalar(element: np.generic) -> bool | int | float:
    """A NumPy scalar as the Python number that ``full`` takes."""
    return element.item() if element.dtype.kind in "biu" else float(element)
