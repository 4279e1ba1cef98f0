"""Eager work worth a compiled program: single ops, and small graphs such as the gradients of one op (``tensor.pullback``).

``RULES`` says which: NumPy is quicker for small ones, compiling pays only for what comes again, and movement mostly stays
with NumPy's views. (Its BLAS is as quick in large products, but its threads go on spinning on the cores that ours then lack.)
A program is kept for each op, shapes, attributes and layout of the operands; images stay channels-last between programs.

How often something came does not change its bits: only ops that are ``EXACT`` go through NumPy first. Others do when
``MOST_ONCE`` programs were made that nobody came back for (sequences that grow by one, images all of other sizes): compiling
takes 5 to 50 ms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from twofold.base import locks
from twofold.base.dtypes import as_dtype
from twofold.base.recent import Recent
from twofold.ir import Builder, Graph, Op, Spec

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram

MOST_PROGRAMS = 1024  # those least recently used are dropped
MOST_ONCE = 64  # programs of rules with patience that were asked for once


class Rule(NamedTuple):
    """A program is made when an op of at least so much work comes, if it is exact after ``patience`` times through NumPy.

    Work is multiply-adds for convolutions and products, else the elements of the largest array.
    """

    least: int
    patience: int


RULES = {
    "conv": Rule(1 << 15, 0),
    "matmul": Rule(1 << 18, 1),
    "pool": Rule(1 << 12, 0),
    "normalization": Rule(1 << 10, 0),
    "elementwise": Rule(1 << 16, 2),
    "reduction": Rule(1 << 16, 2),
    "random": Rule(1 << 14, 2),
    "concat": Rule(1 << 18, 2),
    "pad": Rule(1 << 18, 2),
}
# ops whose program gives NumPy's bits
EXACT = frozenset((
    "negative", "abs", "sqrt", "square", "reciprocal", "sign", "floor", "ceil", "trunc", "round", "isfinite", "isinf", "isnan",
    "signbit", "logical_not", "bitwise_invert", "add", "subtract", "multiply", "divide", "remainder", "copysign",
    "floor_divide", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
    "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "where", "cast",
    "any", "all", "argmax", "argmin", "random_bits", "rng_next", "concat", "pad",
))  # fmt: skip
# kinds whose gradients are one program rather than one an op, and the least elements of the output's gradient
FUSED = {"conv": 1, "pool": 1, "normalization": 1, "elementwise": RULES["elementwise"].least, "composite": 1}
LARGE = 1 << 9  # elements of the largest operand of a function that may be worth a program
MANY = 6  # ops of a function: called one by one they take longer than one program, however small they are


def rule_for(op: Op, specs: Sequence[Spec], operands: Sequence[Any]) -> Rule | None:
    """The rule that sends an op through a program; None: NumPy does it. ``operands`` have shapes."""
    rule = RULES.get(op.kind) or RULES.get(op.name)
    if rule is None or _work(op, specs, operands) < rule.least:
        return None
    if op.kind != "random" and not _narrow_floats(specs[0], operands):
        return None
    if op.kind in ("conv", "pool") and len(specs[0].shape) > 4:  # plain loops: NumPy unfolds and multiplies
        return None
    return rule


_dtype = functools.cache(as_dtype)


def _narrow_floats(out: Spec, operands: Sequence[Any]) -> bool:
    """Whether an op is about floats of at most 32 bits."""
    dtypes = [out.dtype, *(_dtype(x.dtype) for x in operands)]
    return any(d.is_floating and d.bits <= 32 for d in dtypes) and not any(
        d.is_floating and d.bits > 32 for d in dtypes
    )


def _work(op: Op, specs: Sequence[Spec], operands: Sequence[Any]) -> int:
    size = max(math.prod(x.shape) for x in [*operands, *specs])
    if op.kind == "conv":
        gradient_of_weight = op.name == "conv_weight_grad"
        images = operands[1] if gradient_of_weight else specs[0] if op.name == "conv" else operands[0]
        weight = specs[0] if gradient_of_weight else operands[1]
        return math.prod(images.shape) * math.prod(weight.shape[1:])
    return math.prod(specs[0].shape) * operands[0].shape[-1] if op.kind == "matmul" else size


# ---- the programs ----------------------------------------------------------------------------------------------------


class _Made:
    """A program, and whether somebody has asked for it again."""

    __slots__ = ("again", "program")

    def __init__(self, program: Any):
        self.program, self.again = program, False


class Table:
    """Programs by key. Nobody waits for another's compilation, unless it is of the same program."""

    def __init__(self, most: int = MOST_PROGRAMS):
        self.most = most
        self._known = Recent(most)
        self._making: dict[Any, Any] = {}
        self._seen: dict[Any, int] = {}
        self._once: list[_Made] = []  # made without patience that was allowed
        self._lock = locks.renewed()

    def get(self, key: Any, patience: int, make: Callable[[], Any], exact: bool = True) -> Any:
        """What ``make`` gave for this key; None while it has not been asked for more than ``patience`` times. What is not
        ``exact`` is made at once, but where that has been in vain ``MOST_ONCE`` times."""
        found = self._known.get(key)
        if found is not None:
            found.again = True
            return found.program
        with self._lock:
            early = bool(patience) and not exact and not self._in_vain()
            if patience and not early and not self._is_due(key, patience):
                return None
            lock = self._making.setdefault(key, locks.renewed())
        with lock:
            found = self._known.get(key)
            if found is None:
                found = _Made(make())
                self._known.put(key, found)
                if early:
                    self._once.append(found)
        with self._lock:
            self._making.pop(key, None)
        return found.program

    def _in_vain(self) -> bool:
        self._once = [made for made in self._once if not made.again]
        return len(self._once) >= MOST_ONCE

    def _is_due(self, key: Any, patience: int) -> bool:
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if len(self._seen) > 8 * self.most:
            self._seen.clear()
        return seen > patience

    def __len__(self) -> int:
        return len(self._known)


PROGRAMS = Table()
_patience: dict[Graph, int | None] = {}  # of small graphs


def run(op: Op, buffers: Sequence[np.ndarray], attrs: dict[str, Any], specs: Sequence[Spec]) -> list[np.ndarray] | None:
    """The op's results by a compiled program; None if NumPy is as quick."""
    rule = rule_for(op, specs, buffers)
    if rule is None:
        return None
    key = (op, _layouts(buffers), tuple(attrs.items()))
    try:
        hash(key)
    except TypeError:  # an attribute that is an array
        return None
    program = PROGRAMS.get(key, rule.patience, lambda: _compile(_graph(op, buffers, attrs), buffers), op.name in EXACT)
    return program(buffers) if program is not None else None


def run_graph(graph: Graph, buffers: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The results of a small graph by a compiled program; None if its ops are as quick one by one. The graph, and not its
    text, is what programs are remembered by."""
    patience = _patience.get(graph, -1)
    if patience == -1:
        if len(_patience) > 4 * MOST_PROGRAMS:
            _patience.clear()
        patience = _patience[graph] = patience_for(graph)
    if patience is None:
        return None
    program = PROGRAMS.get((graph, _layouts(buffers)), patience, lambda: _compile(_optimised(graph), buffers), exact=False)
    return program(buffers) if program is not None else None


def may_pay(op: Op, g: np.ndarray) -> bool:
    """Whether the gradients of an op may be worth a program, seen from the size of its output's gradient."""
    return op.kind in FUSED and g.size >= FUSED[op.kind]


def large(buffers: Sequence[np.ndarray]) -> bool:
    """Whether a function of several ops on these may be worth a program."""
    return any(b.size >= LARGE for b in buffers)


def patience_for(graph: Graph) -> int | None:
    """After how many times a graph of ops gets a program: the least of its ops' rules; None: never."""
    if len(graph.nodes) >= MANY and all(not v.dtype.is_floating or v.dtype.bits <= 32 for v in graph.inputs):
        return 0
    rules = (rule_for(n.op, [v.spec for v in n.outputs], [v.spec for v in n.inputs]) for n in graph.nodes)
    return min((r.patience for r in rules if r is not None), default=None)


def _layouts(buffers: Sequence[np.ndarray]) -> tuple[Any, ...]:
    return tuple([(b.shape, b.dtype, order_of(b)) for b in buffers])


def order_of(array: np.ndarray) -> tuple[int, ...] | None:
    """The order of the dimensions in memory; None if they are in order. (Then nothing is copied, unless there are gaps.)"""
    if array.flags.c_contiguous:
        return None
    strides = array.strides
    order = tuple(sorted(range(array.ndim), key=lambda d: -abs(strides[d])))
    return None if order == tuple(range(array.ndim)) else order


def _graph(op: Op, buffers: Sequence[np.ndarray], attrs: dict[str, Any]) -> Graph:
    builder = Builder(op.name)
    inputs = [builder.input(Spec(b.shape, as_dtype(b.dtype))) for b in buffers]
    out = builder.append(op, inputs, dict(attrs))
    return builder.finish(out if op.multi else [out])


def _optimised(graph: Graph) -> Graph:
    from twofold.passes import optimise

    return optimise(graph)


def _compile(graph: Graph, buffers: Sequence[np.ndarray]) -> CpuProgram:
    from twofold.backends.cpu.backend import CpuProgram

    orders = {i: order for i, order in enumerate(map(order_of, buffers)) if order is not None}
    return CpuProgram(graph, orders=orders, borrows=True)
