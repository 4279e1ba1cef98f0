"""Lowering: one walk over the graph. A value either stays a *formula* (read through by its consumers: fusion) or is *placed*
in memory by a nest or a kernel.

A formula is placed when it is an output, when a kernel or a host step needs it in memory, when more than one nest reads
it, or when a consumer would compute its elements many times over. Movement ops are never a reason: they are index maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from twofold.backends.cpu import jit
from twofold.backends.cpu.kernels.epilogue import Rounded, Statistics, Stored
from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.loops import (
    Accumulator,
    Affine,
    Buffer,
    Expr,
    Nest,
    Store,
    Var,
    acc,
    const,
    constant,
    in_range,
    op,
    select,
    var,
    with_guard,
)
from twofold.backends.cpu.loops.expr import converted, loads, work
from twofold.backends.cpu.lowering.concat import homes
from twofold.backends.cpu.lowering.epilogue import formula, totals
from twofold.backends.cpu.lowering.rules import HOST, INLINE, NESTS, VIEWS
from twofold.backends.cpu.lowering.steps import (
    At,
    Check,
    HostStep,
    KernelStep,
    NestStep,
    Placed,
    Plan,
    Step,
    row_strides,
)
from twofold.backends.cpu.lowering.views import pixel_distance, view
from twofold.backends.cpu.program import Kernel
from twofold.base.dtypes import DType, float32, float64
from twofold.base.errors import UnsupportedOpError
from twofold.ir import Graph, Node, Spec, Value
from twofold.ir.interpret import run_reference

FREE = frozenset(("constant", "full", "iota", "dim_size"))  # formulas of indices alone: never worth a place
SINGLE_READ = frozenset(("elementwise", "movement", "reduction", "other", "indexing"))  # kinds that may read a formula


def lower(graph: Graph, machine: Any, compile_graph: Any, orders: Mapping[int, Sequence[int]] | None = None) -> Plan:
    """The plan of a graph whose shapes are all concrete. ``compile_graph`` compiles sub-graphs of control flow; ``orders``
    gives the order in memory of the dimensions of inputs that are not row-major."""
    return Lowering(graph, machine, compile_graph).run(orders or {})


CHEAP = 12  # operations on an element up to which it is computed again rather than stored

# inputs that kernels read as images: channels-last
IMAGES = {
    "conv": (0,), "conv_input_grad": (0,), "conv_weight_grad": (0, 1), "max_pool": (0,), "avg_pool": (0,),
    "max_pool_grad": (0, 1), "avg_pool_grad": (0,),
}  # fmt: skip
PACKED = frozenset(("conv", "conv_input_grad"))  # ops that read their second input packed
Emit = Callable[[Any, Placed, list[tuple[Buffer, int]], list[Node]], None]


@dataclass
class Pending:
    """A kernel not yet called: where its result will lie, and ``emit(epilogue, place, epilogue's places, nodes)``.

    ``value`` is what the result is (None: nothing that has a name). ``steps`` are already its epilogue, ``extra`` the
    places of their parameters, ``aligned`` the buffers that they read just where they write. ``parts`` says how many parts
    its epilogue's sums would have (None: it takes none), ``narrows`` whether it can store what its epilogue makes in
    another dtype. ``sums`` are those that it gathers besides: their parts, where they go, and the nodes that ask for them.
    """

    target: Placed
    emit: Emit
    value: Value | None
    nodes: list[Node]
    parts: Callable[[], int] | None = None
    steps: tuple[Any, ...] = ()
    extra: list[tuple[Buffer, int]] = field(default_factory=list)
    aligned: frozenset[Buffer] = frozenset()
    narrows: bool = True
    sums: list[tuple[Placed, Placed, list[Node]]] = field(default_factory=list)


@dataclass
class Moments:
    """Means and variances of the channels of one buffer of images, and the first channels of the parts that are there."""

    mean: Placed
    variance: Placed
    done: set[int] = field(default_factory=set)


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
        self.reads = self._count_reads()
        self.orders: dict[Value, tuple[int, ...]] = {}  # the order in memory that a value should have
        self.pending: dict[Buffer, list[Pending]] = {}
        self.summed: dict[Buffer, Buffer] = {}  # sums that a kernel which waits gathers, and where its result will lie
        self.homes = homes(graph)
        self.filled: set[Placed] = set()  # slices of concatenations that are written
        self.moments: dict[Buffer, Moments] = {}
        self.packs: dict[Any, Buffer] = {}
        self.copies: dict[Any, Placed] = {}

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
        return self.plan

    def _lower(self, node: Node) -> None:
        name = node.op.name
        if name in INLINE:
            ats = [(self.again if name == "greater" else self.at)(v) for v in node.inputs]
            self.formula(node, node.outputs[0], lambda index: INLINE[name](node, ats, tuple(index)))
        elif name in NESTS:
            NESTS[name](self, node)
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
        self.formulas[out] = _remembered(at)
        self._inherit_order(node, out)
        reason = self._why_place(node, out)
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
        if ld is None:
            if value not in self.copies:
                copy = self.temporary(value.spec, "channels_last", CHANNELS_LAST)
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
        self.flush([placed.buffer])
        return placed

    def rows(self, value: Value) -> Placed:
        """The value in memory, dense and row-major."""
        placed = self.placed(value, "it is an output")
        if placed.is_rows:
            self.flush([placed.buffer])
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
        if not self._into_epilogue(value, variables, target, nodes):
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
        self.flush(step.reads())
        self.plan.steps.append(step)

    def kernel(self, kernel: Kernel, places: list[tuple[Buffer, int]], written: Buffer, nodes: Sequence[Node] = ()) -> None:
        """Append a generated kernel; it is compiled while the walk goes on."""
        jit.begin(kernel.ir, self.machine, kernel.level)
        self.append(KernelStep(kernel, places, [written], list(nodes)))

    def defer(
        self, node: Node, target: Placed, emit: Emit, parts: Callable[[], int] | None = None, narrows: bool = True
    ) -> None:
        """The result of a kernel that takes an epilogue: ``emit`` is called when the result is first read."""
        dtype = node.outputs[0].dtype
        steps = (Rounded(dtype),) if dtype.bits == 16 else ()
        self._wait(Pending(target, emit, node.outputs[0], [node], parts, steps, narrows=narrows))
        self.result(node.outputs[0], target)

    def flush(self, buffers: Sequence[Buffer]) -> None:
        """Emit kernels that are waiting, as they are."""
        for buffer in buffers:
            for waiting in self.pending.pop(self.summed.get(buffer, buffer), ()):
                self._call(waiting)

    def _call(self, waiting: Pending) -> KernelStep:
        dtype = waiting.target.buffer.dtype
        steps = (*waiting.steps, Stored(dtype)) if dtype.bits == 16 else waiting.steps
        waiting.emit(steps, waiting.target, waiting.extra, waiting.nodes)
        step: KernelStep = self.plan.steps[-1]
        step.aligned = waiting.aligned
        step.written += [parts.buffer for parts, _, _ in waiting.sums]
        for parts, target, nodes in waiting.sums:
            self.summed.pop(target.buffer)
            self._join(parts, target, nodes)
        return step

    def _wait(self, waiting: Pending) -> None:
        self.pending.setdefault(waiting.target.buffer, []).append(waiting)

    def _stop_waiting(self, waiting: Pending) -> None:
        buffer = waiting.target.buffer
        self.pending[buffer].remove(waiting)
        if not self.pending[buffer]:
            del self.pending[buffer]

    def statistics(self, value: Value) -> Placed | None:
        """The parts of the value's statistics per channel, float32 [part][4][channel] (``kernels.epilogue.Statistics``),
        if the kernel that makes it still waits and can gather them."""
        placed = self.places.get(value)
        known = self.pending.get(placed.buffer, ()) if placed is not None else ()
        waiting = next((p for p in known if p.value is value), None)
        if waiting is None or waiting.parts is None:
            return None
        channels = int(value.shape[1])
        parts = self.temporary(Spec((waiting.parts(), Statistics.rows, channels), float32), "statistics")
        waiting.steps += (Statistics(channels),)
        waiting.extra.append((parts.buffer, 0))
        waited = self.pending.pop(waiting.target.buffer)
        at = waited.index(waiting)
        for earlier in waited[:at]:
            self._call(earlier)
        self._call(waiting).written.append(parts.buffer)
        if later := waited[at + 1 :]:  # they may read what this one writes
            self.pending[waiting.target.buffer] = later
        return parts

    def total(self, value: Expr, variables: list[Var], target: Placed, nodes: list[Node]) -> bool:
        """Let a kernel that waits add up ``value``, over an image's index, for every channel, if it can; it goes on
        waiting. So batch norm's backward needs no pass over memory for its sums."""
        read = {l.extra[0] for l in loads(value)}
        for waiting in reversed([p for b, known in self.pending.items() if b in read for p in known]):
            out = waiting.target
            same = out.shape == tuple(v.extent for v in variables)
            step = totals(value, variables, out, len(waiting.steps)) if same and waiting.parts is not None else None
            if step is None or waiting.parts is None or value.dtype is not float32:
                continue
            self.flush(step.buffers)
            if waiting not in self.pending.get(out.buffer, ()):
                return False  # something that it would read came after it
            parts = self.temporary(Spec((waiting.parts(), out.shape[1]), float32), "sums")
            read_so = _aligned(value, out, [var(v) for v in variables])
            waiting.steps += (step,)
            waiting.extra += [*((b, 0) for b in step.buffers), (parts.buffer, 0)]
            waiting.aligned = (waiting.aligned | read_so) - (set(step.buffers) - read_so)
            waiting.nodes = [*waiting.nodes, *nodes]
            waiting.sums.append((parts, target, nodes))
            self.summed[target.buffer] = out.buffer
            self.plan.notes.append(f"sum {nodes[0].outputs[0].spec} is gathered by the kernel that makes {out.shape}")
            return True
        return False

    def _join(self, parts: Placed, target: Placed, nodes: list[Node]) -> None:
        """The sums of all parts, added up in order."""
        part, channel = (Var(d, name) for d, name in zip(parts.shape, "pc"))
        value = converted(parts.at([var(part), var(channel)]), float64)
        total = Accumulator(float64, const(float64, 0), op("add", float64, acc(0, float64), value), "add")
        self.reduce([channel], [part], [total], [(target, converted(acc(0, float64), target.buffer.dtype))], nodes)

    def moments_of(self, buffer: Buffer, dtype: DType) -> Moments:
        """Where the means and variances of a concatenation's channels lie."""
        if buffer not in self.moments:
            channels = Spec((max(p.offset + p.shape[1] for p in self.homes.of.values() if p.buffer is buffer),), dtype)
            self.moments[buffer] = Moments(self.temporary(channels, "means"), self.temporary(channels, "variances"))
        return self.moments[buffer]

    def _into_epilogue(self, value: Expr, variables: list[Var], target: Placed, nodes: list[Node]) -> bool:
        """Let a kernel that waits compute ``value`` from its result, if it can; it goes on waiting."""
        read = {l.extra[0] for l in loads(value)}
        found = [p for b, waiting in self.pending.items() if b in read for p in waiting]
        for waiting in reversed(found):
            out = waiting.target
            alone = waiting.value is not None and self.reads.get(waiting.value, 0) <= 1
            dtypes = (value.dtype, out.buffer.dtype)
            fits = dtypes[0] is dtypes[1] or (waiting.narrows and all(d.is_floating and d.bits <= 32 for d in dtypes))
            if not _same_form(out, target) or not alone or not fits or waiting.sums:
                continue
            step = formula(value, variables, out, len(waiting.steps))
            if step is None:
                continue
            self._stop_waiting(waiting)
            self.flush(step.buffers)
            extra = [*waiting.extra, *((b, 0) for b in step.buffers)]
            made = next((v for n in nodes for v in n.outputs if v.spec.shape == target.shape), None)
            steps, made_by = (*waiting.steps, step), [*waiting.nodes, *nodes]
            aligned = waiting.aligned | _aligned(value, target, [var(v) for v in variables])
            self._wait(replace(waiting, target=target, value=made, nodes=made_by, steps=steps, extra=extra, aligned=aligned))
            return True
        return False

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

    # ---- when to store --------------------------------------------------------------------------------------------
    def _count_reads(self) -> dict[Value, int]:
        """How many nests read each value, through index maps."""
        reads: dict[Value, int] = dict.fromkeys(self.outputs, 1)
        for node in reversed(self.graph.nodes):
            own = reads.get(node.outputs[0], 0) if node.op.name in VIEWS else 1
            for value in node.inputs:
                reads[value] = reads.get(value, 0) + own
        return reads

    def _why_place(self, node: Node, out: Value) -> str:
        """Why a formula should be stored; empty if it should not."""
        if out in self.outputs:
            return "it is an output"
        if node.op.name in FREE or node.op.name in VIEWS:
            return ""
        if node.op.name == "cast" and out.dtype.bits == 16 and self._waits(node.inputs[0]):
            return "the kernel that makes it narrows it"
        if self.reads.get(out, 0) > 1 and not self._is_wider(node) and not self._is_cheap(out):
            return "it is read more than once"
        return self._why_repeated(out, size_of(out.spec))

    def _waits(self, value: Value) -> bool:
        """Whether a kernel that makes the value is not called yet."""
        placed = self.places.get(value)
        return placed is not None and placed.buffer in self.pending

    def _is_wider(self, node: Node) -> bool:
        """Whether a node is the float32 form of what lies, or is to lie, in 16 bits: half as much to read as if stored."""
        return node.op.name == "cast" and node.inputs[0].dtype.bits == 16 and node.inputs[0] in self.places

    def _is_cheap(self, value: Value) -> bool:
        """Whether computing the formula again costs less than storing it: little arithmetic on one array in memory."""
        e = self.formulas[value]([var(Var(int(d), "i")) for d in value.shape])
        large = {l.extra for l in loads(e) if 2 * l.extra[0].size > size_of(value.spec)}
        waits = any(buffer in self.pending for buffer, _ in large)
        return len(large) <= 1 and not waits and work(e) <= CHEAP

    def _why_repeated(self, value: Value, size: int) -> str:
        for user in self.users.get(value, ()):
            if user.op.name in VIEWS:
                reason = self._why_repeated(user.outputs[0], size)
                if reason:
                    return reason
            elif user.op.name in PACKED and value is user.inputs[1] and value in self.unchanging:
                continue  # a kernel's weights are packed once, from the formula
            elif user.op.kind not in SINGLE_READ:
                return f"{user.op.name} reads it many times"
            elif size > 1 and size_of(user.outputs[0].spec) > size and user.op.kind != "reduction":
                return f"{user.op.name} would compute it again for each of {size_of(user.outputs[0].spec)} elements"
        return ""


def _aligned(value: Expr, target: Placed, index: Sequence[Affine]) -> frozenset[Buffer]:
    """The buffers that ``value`` reads only where ``target`` has the same element."""
    own, read = target.address(index), loads(value)
    return frozenset(l.extra[0] for l in read) - {l.extra[0] for l in read if l.extra[1] != own}


def _same_form(a: Placed, b: Placed) -> bool:
    """Whether a kernel that writes ``a`` could write ``b``: images with any distance of pixels, else the same strides."""
    if a.shape != b.shape:
        return False
    if len(a.shape) == 4 and a.order == CHANNELS_LAST == b.order:
        return pixel_distance(a) is not None and pixel_distance(b) is not None
    return a.strides == b.strides and b.offset == 0


def size_of(spec: Spec) -> int:
    """Elements of a concrete spec."""
    return int(np.prod(spec.shape, dtype=np.int64))  # type: ignore[arg-type]


def _remembered(at: At) -> At:
    """The formula, computed once for each index asked for."""
    known: dict[tuple[Affine, ...], Expr] = {}

    def recall(index: Sequence[Affine]) -> Expr:
        key = tuple(index)
        if key not in known:
            known[key] = at(key)
        return known[key]

    return recall


__all__ = ["Lowering", "constant", "lower", "size_of"]
