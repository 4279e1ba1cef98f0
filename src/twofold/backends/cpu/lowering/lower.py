"""Lowering: one walk over the graph. A value either stays a *formula* (read through by its consumers: fusion) or is *placed*
in memory by a nest or a kernel.

When a formula is placed, ``storing`` says. Movement ops are never a reason: they are index maps. Kernels wait to be called
until their result is read (``waiting``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twofold.backends.cpu import jit
from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.loops import (
    Accumulator,
    Affine,
    Buffer,
    Expr,
    Nest,
    Store,
    Var,
    const,
    in_range,
    select,
    var,
    with_guard,
)
from twofold.backends.cpu.lowering.concat import homes
from twofold.backends.cpu.lowering.rules import HOST, INLINE, NESTS, OWN, VIEWS
from twofold.backends.cpu.lowering.rules.native import interleaved
from twofold.backends.cpu.lowering.rules.normalization import Moments
from twofold.backends.cpu.lowering.steps import (
    At,
    Check,
    HostStep,
    KernelStep,
    NestStep,
    Placed,
    Plan,
    Step,
    remembered,
    row_strides,
    size_of,
)
from twofold.backends.cpu.lowering.storing import count_reads, why_stored
from twofold.backends.cpu.lowering.views import pixel_distance, view
from twofold.backends.cpu.lowering.waiting import Waiting
from twofold.backends.cpu.program import Kernel
from twofold.base.errors import UnsupportedOpError
from twofold.ir import Graph, Node, Spec, Value
from twofold.ir.interpret import run_reference


def lower(graph: Graph, machine: Any, compile_graph: Any, orders: Mapping[int, Sequence[int]] | None = None) -> Plan:
    """The plan of a graph whose shapes are all concrete. ``compile_graph`` compiles sub-graphs of control flow; ``orders``
    gives the order in memory of the dimensions of inputs that are not row-major."""
    return Lowering(graph, machine, compile_graph).run(orders or {})


# inputs that kernels read as images: channels-last
IMAGES = {
    "conv": (0,), "conv_input_grad": (0,), "conv_weight_grad": (0, 1), "max_pool": (0,), "avg_pool": (0,),
    "max_pool_grad": (0, 1), "avg_pool_grad": (0,),
}  # fmt: skip


class Lowering:
    """The state of the walk; rules call ``at``, ``placed``, ``allocate`` and ``nest``."""

    def __init__(self, graph: Graph, machine: Any, compile_graph: Any):
        self.graph, self.machine, self.compile_graph = graph, machine, compile_graph
        self.plan = Plan([], [], [], [v.spec for v in graph.all_outputs], {})
        self.formulas: dict[Value, At] = {}
        self.places: dict[Value, Placed] = {}
        self.users = graph.users()
        self.outputs = set(graph.all_outputs)
        self.unchanging = graph.unchanging()  # what is made of these is worked out once
        self.reads = count_reads(graph, self.outputs)
        self.orders: dict[Value, tuple[int, ...]] = {}  # the order in memory that a value should have
        self.waiting = Waiting(self)
        self.homes = homes(graph)
        self.plan.pitches = {p.buffer: p.strides[3] for p in self.homes.of.values()}
        self.filled: set[Placed] = set()  # slices of concatenations that are written
        self.moments: dict[Buffer, Moments] = {}  # of concatenations
        self.packs: dict[Any, Buffer] = {}
        self.copies: dict[Any, Placed] = {}
        self.overwrites = any(state.written for state in graph.state)
        self.checked: dict[Any, Placed] = {}  # indices that are looked at before state is overwritten

    def run(self, orders: Mapping[int, Sequence[int]]) -> Plan:
        """Walk the graph."""
        for i, value in enumerate(self.graph.all_inputs):
            buffer = Buffer(value.dtype, size_of(value.spec), value.name or f"in{i}")
            self.plan.inputs.append(buffer)
            strides = row_strides(value.shape, orders.get(i))  # type: ignore[arg-type]
            self.result(value, Placed(buffer, tuple(value.shape), strides))  # type: ignore[arg-type]
        for node in self.graph.nodes:
            self._lower(node)
        self.plan.outputs = [self.whole(v) for v in self.graph.outputs]
        self.plan.outputs += [self.rows(s.output) for s in self.graph.state]
        self.plan.values = self.places
        self.plan.checked = {p.buffer for p in self.checked.values()}
        return self.plan

    def _lower(self, node: Node) -> None:
        name = node.op.name
        if name in INLINE:
            ats = [(self.again if name == "greater" else self.at)(v) for v in node.inputs]
            self.formula(node, node.outputs[0], lambda index: INLINE[name](node, ats, tuple(index)))
        elif name in NESTS:
            NESTS[name](self, node)
        elif name in OWN:
            OWN[name](self, node)
        elif name in HOST:
            self.host(node, name, lambda *xs: run_reference(node, list(xs)), HOST[name])
        else:
            raise UnsupportedOpError(f"the CPU backend has no rule for op {name!r}; run the graph on device 'reference'")

    # ---- what rules use -------------------------------------------------------------------------------------------
    def at(self, value: Value) -> At:
        """A function from an index to the element there, reading memory or computing the formula."""
        placed = self.places.get(value)
        return placed.at if placed is not None else self.formulas[value]

    def again(self, value: Value) -> At:
        """``at``; but what ReLU left of a batch norm is computed once more from the image that was normalised, though it is
        stored. This is for the mask of ReLU's gradient: batch norm's gradient, which follows, reads that image anyway."""
        relu = value.producer
        norm = relu.inputs[0].producer if relu is not None and relu.op.name == "relu" else None
        if norm is None or norm.op.name != "batch_norm_train":
            return self.at(value)
        image = self.places.get(norm.inputs[0])
        return self.formulas[value] if image is not None and image.order == CHANNELS_LAST else self.at(value)

    def formula(self, node: Node, out: Value, at: At) -> None:
        """An output given by a formula of one element; stored now if that pays."""
        self.formulas[out] = remembered(at)
        self._inherit_order(node, out)
        self.settle(node, out)

    def settle(self, node: Node, out: Value) -> None:
        """Store the output of a node, a formula, now if that pays."""
        reason = why_stored(self, node, out)
        if reason:
            self.placed(out, reason)

    def placed(self, value: Value, reason: str = "a kernel reads it", order: Sequence[int] | None = None) -> Placed:
        """The value in memory, put there now if it was a formula."""
        if value not in self.places:
            at = self.formulas[value]
            target = self.allocate(value, order or self.order_of(value))
            self.map(value.spec, target, at, [value.producer] if value.producer else [])
            self.result(value, target)
            if value.producer is not None:
                layer = f" of {value.producer.scope}" if value.producer.scope else ""
                self.plan.notes.append(f"{value.producer.op.name} {value.spec}{layer} is stored: {reason}")
        return self.places[value]

    def viewed(self, value: Value) -> Placed:
        """The value in memory with whatever strides it has there: movement ops on placed values are views."""
        if value not in self.places and value.producer is not None and value.producer.op.name in VIEWS:
            source = self.viewed(value.producer.inputs[0])
            seen = view(value.producer, source)
            if seen is not None:
                return seen
        return self.placed(value)

    def channels_last(self, value: Value) -> tuple[Placed, int]:
        """The (N, C, H, W) value lying channels-last, and its distance of pixels; copied (once) if it lies otherwise."""
        if value not in self.places and value.producer is not None and value.producer.op.name not in VIEWS:
            self.placed(value, "a kernel reads it", CHANNELS_LAST)
        placed = self.viewed(value)
        ld = pixel_distance(placed)
        if ld is None or self.homes.scattered(value):
            if value not in self.copies:
                copy = self.temporary(value.spec, "channels_last", CHANNELS_LAST)
                if not interleaved(self, placed, copy):
                    self.map(value.spec, copy, placed.at, [])
                self.copies[value] = copy
                self.plan.notes.append(f"{value.spec} is copied to channels-last")
            placed = self.copies[value]
            ld = int(value.shape[1])
        return placed, ld

    def channel_pairs(self, value: Value) -> tuple[Placed, int]:
        """``channels_last`` of which pairs of channels can be read: pixels lie an even number of elements apart, and after
        an odd number of channels comes a zero."""
        n, c, h, w = map(int, value.shape)
        if c % 2 == 0:
            placed, ld = self.channels_last(value)
            if placed.offset % 2 == ld % 2 == 0:
                return placed, ld
        even = c + c % 2
        if (value, "pairs") not in self.copies:
            at, spec = self.at(value), Spec((n, even, h, w), value.dtype)
            target = self.temporary(spec, "channel_pairs", CHANNELS_LAST)

            def padded(index: Sequence[Affine]) -> Expr:
                inside = in_range(index[1], 0, c)
                return select(inside, with_guard(at(index), inside), const(value.dtype, 0))

            self.map(spec, target, padded, [])
            self.copies[value, "pairs"] = target
            self.plan.notes.append(f"{value.spec} is copied to pairs of channels")
        return self.copies[value, "pairs"], even

    def dense(self, value: Value) -> Placed:
        """The value dense and row-major, copied if it lies otherwise."""
        placed = self.viewed(value)
        if placed.is_rows:
            return placed
        target = self.temporary(value.spec, "rows")
        self.map(value.spec, target, placed.at, [])
        return target

    def whole(self, value: Value) -> Placed:
        """The value in memory, filling a buffer; its dimensions may lie in another order."""
        placed = self.placed(value, "it is an output")
        if placed.offset or placed.strides != row_strides(placed.shape, placed.order):
            return self.rows(value)
        self.waiting.flush([placed.buffer])
        return placed

    def rows(self, value: Value) -> Placed:
        """The value in memory, dense and row-major."""
        placed = self.placed(value, "it is an output")
        if placed.is_rows:
            self.waiting.flush([placed.buffer])
            return placed
        target = self.temporary(value.spec, "rows")
        self.map(value.spec, target, placed.at, [])
        return target

    def allocate(self, value: Value, order: Sequence[int] | None = None) -> Placed:
        """A place for a value: its slice of a concatenation, or a new one; its dimensions lie in ``order``."""
        home = self.homes.of.get(value)
        if home is not None and order == CHANNELS_LAST:
            return home
        name = value.producer.op.name if value.producer else "value"
        return self.temporary(value.spec, name, order)

    def temporary(self, spec: Spec, name: str = "temporary", order: Sequence[int] | None = None) -> Placed:
        """A new place that belongs to no value."""
        shape = tuple(map(int, spec.shape))
        return Placed(Buffer(spec.dtype, size_of(spec), name), shape, row_strides(shape, order))

    def constant_array(self, array: np.ndarray, spec: Spec, name: str = "constant") -> Placed:
        """An array fixed at compile time."""
        placed = self.temporary(spec, name)
        self.plan.constants[placed.buffer] = np.ascontiguousarray(array)
        return placed

    def map(self, spec: Spec, target: Placed, at: At, nodes: list[Node]) -> None:
        """A nest that stores ``at(index)`` for every index."""
        variables = [Var(d, "i") for d in target.shape]
        index = [var(v) for v in variables]
        value = at(index)
        if not self.waiting.into_epilogue(value, variables, target, nodes):
            dims = [variables[d] for d in target.order]
            self.nest(Nest(dims, [Store(target.buffer, target.address(index), value)]), nodes)

    def reduce(
        self, variables: Sequence[Var], rdims: Sequence[Var], accumulators: list[Accumulator],
        results: Sequence[tuple[Placed, Expr]], nodes: list[Node],
    ) -> None:  # fmt: skip
        """A nest that reduces over ``rdims`` and stores ``results`` (expressions of accumulators) at ``variables``."""
        index = [var(v) for v in variables]
        dims = [variables[d] for d in results[0][0].order]
        stores = [Store(p.buffer, p.address(index), e) for p, e in results]
        self.nest(Nest(dims, stores, list(rdims), accumulators), nodes)

    def nest(self, nest: Nest, nodes: list[Node], note: str = "") -> None:
        """Append a nest, unless it has no iterations."""
        if nest.size:
            nest.note = note or ", ".join(n.op.name for n in nodes)
            self.append(NestStep(nest, nodes))

    def append(self, step: Step) -> None:
        """Append a step, after whatever it reads."""
        self.waiting.flush(step.reads())
        self.plan.steps.append(step)

    def kernel(
        self, kernel: Kernel, operands: Sequence[Placed | Buffer], result: Placed | Buffer, nodes: Sequence[Node] = (),
        extra: Sequence[tuple[Buffer, int]] = (),
    ) -> None:  # fmt: skip
        """Append a generated kernel; it is compiled while the walk goes on. ``extra`` are the places of its epilogue."""
        jit.begin(kernel.ir, self.machine, kernel.level)
        given = [*operands, result]
        places = [(p.buffer, p.offset) if isinstance(p, Placed) else (p, 0) for p in given]
        widths = {i: p.shape[1] for i, p in enumerate(given) if isinstance(p, Placed) and len(p.shape) == 4}
        written = [places[-1][0]]
        self.append(KernelStep(kernel, [*places, *extra], written, len(operands), widths, list(nodes)))

    def result(self, value: Value, placed: Placed) -> None:
        """Say where a node's output lies."""
        self.places[value] = placed
        if placed.order == CHANNELS_LAST:
            self.orders[value] = CHANNELS_LAST

    def host(self, node: Node, name: str, run: Any, why: str = "branches and loops are driven from there") -> None:
        """A step in Python."""
        inputs = [self.rows(v) for v in node.inputs]
        outputs = [self.allocate(v) for v in node.outputs]
        for value, place in zip(node.outputs, outputs):
            self.places[value] = place
        self.append(HostStep(name, run, inputs, outputs, [node]))
        self.plan.notes.append(f"{name} runs in Python between native parts: {why}")

    def check(self, message: str, node: Node) -> int:
        """A code for the error word, and what it means."""
        self.plan.checks.append(Check(message, node.scope))
        return len(self.plan.checks)

    # ---- layout ---------------------------------------------------------------------------------------------------
    def _inherit_order(self, node: Node, out: Value) -> None:
        """A formula of channels-last operands is channels-last where it is stored."""
        if node.op.name == "cast" and (turned := self._turned(node.inputs[0])):
            self.orders[out] = turned
        elif node.op.name not in VIEWS or node.op.name in ("detach", "identity"):
            for v in node.inputs:
                if v.shape == out.shape and v in self.orders:
                    self.orders[out] = self.orders[v]

    def _turned(self, value: Value) -> tuple[int, ...] | None:
        """The order in memory of a matrix transposed by a view: its cast is read in that order, and lies in it."""
        node = value.producer
        if value.ndim != 2 or value in self.places or node is None or node.op.name != "permute_dims":
            return None
        source = self.places.get(node.inputs[0])
        return tuple(node.attrs["axes"]) if source is not None and source.is_rows else None

    def order_of(self, value: Value) -> tuple[int, ...] | None:
        """The order in memory in which a value is best stored."""
        if value.ndim != 4 or value in self.orders:
            return self.orders.get(value)
        for user in self.users.get(value, ()):
            places = IMAGES.get(user.op.name, ())
            if any(user.inputs[i] is value for i in places):
                return CHANNELS_LAST
        return None


__all__ = ["Lowering", "lower"]
