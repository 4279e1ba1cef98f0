"""simplify: a table of patterns, each replaced by less work.

A row is a name, the ops it starts from, and a function of the match that gives the replacement, or None. Rows see
operands that are simplified already, so one run over the graph is enough for most chains. Rows are exact in floating
point up to the sign of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from twofold.base.shapes import Shape
from twofold.ir import Graph, Node, Value
from twofold.ir.interpret import interpret
from twofold.ir.rewrite import Rebuilt, map_subgraphs, rebuild
from twofold.passes.fold_constants import literal, scalar


class Match:
    """One node under consideration: its operands ``xs`` in the new graph, its attributes, and the type it must give.
    ``alone``: nobody else reads its first operand, or what that is a cast of."""

    def __init__(self, new: Rebuilt, node: Node, xs: tuple[Value, ...], alone: bool = False):
        self.new, self.node, self.xs, self.alone = new, node, xs, alone
        self.attrs: dict[str, Any] = node.attrs
        self.out = node.outputs[0].spec if node.outputs else None

    @property
    def x(self) -> Value:
        return self.xs[0]

    def emit(self, op: str, *xs: Value, **attrs: Any) -> Value:
        return self.new.emit(op, xs, attrs, self.node.scope)[0]

    def fit(self, x: Value | None) -> Value | None:
        """``x`` in the shape of the result, if it has its dtype."""
        if x is None or self.out is None or x.dtype is not self.out.dtype:
            return None
        return x if x.shape == self.out.shape else self.emit("broadcast_to", x, shape=self.out.shape)

    def beside(self, number: float) -> Value | None:
        """The other operand of a commutative op one of whose operands is ``number`` everywhere."""
        for i in (1, 0):
            if uniform(self.xs[i]) == number:
                return self.xs[1 - i]
        return None

    def inline(self, graph: Graph, xs: Sequence[Value]) -> list[Value]:
        return interpret(graph, xs, lambda node, inputs: self.new.copy(node, inputs))


def made_by(x: Value, op: str) -> Node | None:
    """The node that makes ``x``, if it is of this op."""
    return x.producer if x.producer is not None and x.producer.op.name == op else None


def uniform(x: Value) -> bool | int | float | None:
    """The number that every element of ``x`` is, if that can be seen."""
    if (node := made_by(x, "full")) is not None:
        return node.attrs["fill"]
    if (node := made_by(x, "constant")) is not None:
        array: np.ndarray = node.attrs["value"]
        if array.size and array.tobytes() == array.reshape(-1)[:1].tobytes() * array.size:
            return scalar(array.reshape(-1)[0])
    return None


def _undone(m: Match) -> Value | None:
    """f(f(x)) = x."""
    inner = made_by(m.x, m.node.op.name)
    return inner.inputs[0] if inner is not None and inner.attrs == m.attrs else None


def _absorbed(m: Match) -> Value | None:
    """f(f(x)) = f(x)."""
    return m.x if made_by(m.x, m.node.op.name) is not None else None


def _cast_back(m: Match) -> Value | None:
    """From a narrow dtype to a wide one of its kind, and back."""
    inner = made_by(m.x, "cast")
    if inner is None or (x := inner.inputs[0]).dtype is not m.attrs["dtype"] or x.dtype.kind != m.x.dtype.kind:
        return None
    wider = m.x.dtype.bits > x.dtype.bits and x.dtype.name != "bool"
    return x if wider else None


def _permute_twice(m: Match) -> Value | None:
    inner = made_by(m.x, "permute_dims")
    if inner is None:
        return None
    axes = tuple(inner.attrs["axes"][a] for a in m.attrs["axes"])
    return inner.inputs[0] if axes == tuple(range(len(axes))) else m.emit("permute_dims", inner.inputs[0], axes=axes)


def _product_transposed(m: Match) -> Value | None:
    """(a @ b)^T = b^T @ a^T: the transposes become views of the operands, the result is written in order. A product in 16
    bits may be cast before it is transposed."""
    cast, rank = made_by(m.x, "cast"), m.x.ndim
    inner = made_by(m.x if cast is None else cast.inputs[0], "matmul")
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    if inner is None or not m.alone or m.attrs["axes"] != swapped or {v.ndim for v in inner.inputs} != {rank}:
        return None
    a, b = (m.emit("permute_dims", v, axes=swapped) for v in inner.inputs)
    product = m.emit("matmul", b, a)
    return product if cast is None else m.emit("cast", product, **cast.attrs)


def _through(m: Match) -> Value | None:
    """f(f(x)) = f(x) with the outer attributes: reshape of reshape, broadcast of broadcast."""
    inner = made_by(m.x, m.node.op.name)
    return None if inner is None else m.emit(m.node.op.name, inner.inputs[0], **m.attrs)


def _same_type(m: Match) -> Value | None:
    return m.x if m.x.spec == m.out else None


def _moved_fill(m: Match) -> Value | None:
    """Moving or casting one repeated number gives it repeated elsewhere."""
    if m.out is None or m.x.producer is None or m.x.producer.op.name != "full":
        return None
    with np.errstate(all="ignore"):
        fill = np.full(1, m.x.producer.attrs["fill"], m.x.dtype.numpy).astype(m.out.dtype.numpy)[0]
    return m.emit("full", shape=m.out.shape, fill=scalar(fill), dtype=m.out.dtype)


def _is_whole(starts: Shape, stops: Shape, steps: Sequence[int], shape: Shape) -> bool:
    return not any(s != 0 for s in starts) and stops == shape and set(steps) <= {1}


def _no_padding(m: Match) -> Value | None:
    return m.x if not any(m.attrs["interior"]) and all(w == (0, 0) for w in m.attrs["widths"]) else None


def _flip_of_ones(m: Match) -> Value | None:
    return m.x if all(m.x.shape[a] == 1 for a in m.attrs["axes"]) else None


def _reduce_ones(m: Match) -> Value | None:
    """A reduction over dimensions of size one only moves elements."""
    if m.out is None or any(m.x.shape[a] != 1 for a in m.attrs["axes"]):
        return None
    return m.emit("reshape", m.x, shape=m.out.shape)


def _chosen(m: Match) -> Value | None:
    taken = uniform(m.xs[0])
    if taken is None:
        return m.fit(m.xs[1]) if m.xs[1] is m.xs[2] else None
    return m.fit(m.xs[1 if taken else 2])


def _power(m: Match) -> Value | None:
    base, exponent = m.xs[0], uniform(m.xs[1])
    if exponent == 1:
        return m.fit(base)
    if exponent == 2:
        return m.fit(m.emit("square", base))
    if exponent == 0 and m.out is not None:
        return (
            literal(m.new, np.ones((), m.out.dtype.numpy))
            if not m.out.shape
            else m.emit("full", shape=m.out.shape, fill=1.0 if m.out.dtype.is_floating else 1, dtype=m.out.dtype)
        )
    return m.fit(m.emit("reciprocal", base)) if exponent == -1 and base.dtype.is_floating else None


def _negated(m: Match, op: str) -> Value | None:
    """x + -y = x - y, and x - -y = x + y."""
    inner = made_by(m.xs[1], "negative")
    return None if inner is None else m.emit(op, m.xs[0], inner.inputs[0])


def _known_branch(m: Match) -> Sequence[Value] | None:
    taken = uniform(m.xs[0])
    return None if taken is None else m.inline(m.attrs["true" if taken else "false"], m.xs[1:])


def _own_results(m: Match) -> Sequence[Value]:
    first = m.attrs["args"]
    return m.xs[first : first + m.attrs["results"]]


def _unless(m: Match, number: float) -> Value | None:
    """The first operand, if the second is ``number`` everywhere."""
    return m.fit(m.x) if uniform(m.xs[1]) == number else None


def _times_minus_one(m: Match) -> Value | None:
    x = m.fit(m.beside(-1))
    return None if x is None else m.emit("negative", x)


class Row(NamedTuple):
    """One rewrite: what it is called, the ops it applies to, and what it gives."""

    name: str
    ops: tuple[str, ...]
    rewrite: Callable[[Match], Any]


# fmt: off
RULES: tuple[Row, ...] = (
    # ---- marks that have done their work once gradients are taken
    Row("identity",          ("identity", "detach"),            lambda m: m.x),
    Row("custom_vjp",        ("custom_vjp",),                   _own_results),
    Row("checkpoint",        ("checkpoint",),                   lambda m: m.inline(m.attrs["body"], m.xs)),
    Row("known branch",      ("cond",),                         _known_branch),
    # ---- arithmetic
    Row("x + 0",             ("add",),                          lambda m: m.fit(m.beside(0))),
    Row("x + -y",            ("add",),                          lambda m: _negated(m, "subtract")),
    Row("x - 0",             ("subtract",),                     lambda m: _unless(m, 0)),
    Row("x - -y",            ("subtract",),                     lambda m: _negated(m, "add")),
    Row("x * 1",             ("multiply",),                     lambda m: m.fit(m.beside(1))),
    Row("x * -1",            ("multiply",),                     _times_minus_one),
    Row("x / 1",             ("divide",),                       lambda m: _unless(m, 1)),
    Row("x ** n",            ("pow",),                          _power),
    Row("f(f(x)) = x",       ("negative", "logical_not", "bitwise_invert", "flip"), _undone),
    Row("f(f(x)) = f(x)",    ("relu", "abs", "sign", "floor", "ceil", "trunc", "round"), _absorbed),
    Row("where known",       ("where",),                        _chosen),
    # ---- moving
    Row("no change",         ("cast", "reshape", "broadcast_to"), _same_type),
    Row("cast back",         ("cast",),                         _cast_back),
    Row("twice",             ("reshape", "broadcast_to"),       _through),
    Row("permute twice",     ("permute_dims",),                 _permute_twice),
    Row("product transposed", ("permute_dims",),                _product_transposed),
    Row("permute nothing",   ("permute_dims",), lambda m: m.x if m.attrs["axes"] == tuple(range(m.x.ndim)) else None),
    Row("slice of all",      ("slice",), lambda m: m.x if _is_whole(**m.attrs, shape=m.x.shape) else None),
    Row("pad by nothing",    ("pad",),                          _no_padding),
    Row("flip of ones",      ("flip",),                         _flip_of_ones),
    Row("concat of one",     ("concat",),                       lambda m: m.x if len(m.xs) == 1 else None),
    Row("reduce ones",       ("sum", "prod", "max", "min"),     _reduce_ones),
    Row("moved fill",        ("cast", "reshape", "broadcast_to", "permute_dims", "slice", "flip"), _moved_fill),
)
# fmt: on

BY_OP: dict[str, list[Row]] = {op: [r for r in RULES if op in r.ops] for op in {o for r in RULES for o in r.ops}}


def simplify(graph: Graph) -> Graph:
    """``graph`` with every pattern of ``RULES`` replaced."""

    graph = map_subgraphs(graph, simplify)
    users, outputs = graph.users(), set(graph.all_outputs)

    def alone(value: Value) -> bool:
        cast = made_by(value, "cast")
        return len(users.get(value, ())) == 1 and value not in outputs and (cast is None or alone(cast.inputs[0]))

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        single = bool(node.inputs) and alone(node.inputs[0])
        for row in BY_OP.get(node.op.name, ()):
            found = row.rewrite(Match(new, node, inputs, single))
            if found is not None:
                return found if node.op.multi else (found,)
        return None

    return rebuild(graph, rule)
