"""Kernels that wait: a kernel's result is asked for before the kernel is called, so that what is done with it next can be
done in the kernel's epilogue, while the result is in registers. It is called when something else first reads the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.kernels.epilogue import Rounded, Statistics, Stored
from twofold.backends.cpu.kernels.pool import Pool
from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.loops import Accumulator, Affine, Buffer, Expr, Var, acc, const, op, var
from twofold.backends.cpu.loops.expr import converted, loads
from twofold.backends.cpu.lowering.epilogue import Formula, beside, formula, totals
from twofold.backends.cpu.lowering.steps import KernelStep, Placed
from twofold.backends.cpu.lowering.views import pixel_distance
from twofold.base.dtypes import float32, float64
from twofold.ir import Node, Spec, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

Emit = Callable[[Any, Placed, list[tuple[Buffer, int]], list[Node]], None]
Pools = Callable[[Pool, "Pending", Placed, list[Node]], bool]


@dataclass
class Pending:
    """A kernel not yet called: where its result will lie, and ``emit(epilogue, place, epilogue's places, nodes)``.

    ``value`` is what the result is (None: nothing that has a name). ``steps`` are already its epilogue, ``extra`` the
    places of their parameters, ``aligned`` the buffers that they read just where they write. ``parts`` says how many parts
    its epilogue's sums would have (None: it takes none), ``narrows`` whether it can store what its epilogue makes in
    another dtype. ``sums`` are those that it gathers besides: their parts, where they go, and the nodes that ask for them.
    ``others`` are results that it stores besides, and ``made`` their values.
    ``number`` is its place among the kernels that ever waited: it reads nothing of later ones.
    ``pooled`` emits it with a max pooling of its result in it, if there is such a kernel, and says so; one that ``joins`` may
    become such a part of the kernel it reads, which has to wait for it.
    """

    number: int
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
    others: list[tuple[Placed, Formula]] = field(default_factory=list)
    made: set[Value] = field(default_factory=set)
    pooled: Pools | None = None
    joins: bool = False


class Waiting:
    """The kernels of a lowering that are not yet called, by where their results will lie."""

    def __init__(self, low: Lowering):
        self.low = low
        self.pending: dict[Buffer, list[Pending]] = {}
        self.besides: dict[Buffer, Buffer] = {}  # what else a kernel which waits will write, and where its result will lie
        self._numbers, self._before = itertools.count(), math.inf

    def __contains__(self, buffer: Buffer) -> bool:
        """Whether a kernel that waits will write the buffer."""
        return buffer in self.pending

    def defer(
        self, node: Node, target: Placed, emit: Emit, parts: Callable[[], int] | None = None, narrows: bool = True,
        pooled: Pools | None = None, joins: bool = False,
    ) -> None:  # fmt: skip
        """The result of a kernel that takes an epilogue: ``emit`` is called when the result is first read."""
        dtype = node.outputs[0].dtype
        steps = (Rounded(dtype),) if dtype.bits == 16 else ()
        number, made = next(self._numbers), node.outputs[0]
        waiting = Pending(number, target, emit, made, [node], parts, steps, narrows=narrows, pooled=pooled, joins=joins)
        self._wait(waiting)
        self.low.result(node.outputs[0], target)

    def flush(self, buffers: Sequence[Buffer]) -> None:
        """Emit kernels that are waiting, as they are. While a kernel is emitted that reads these buffers, later ones go on
        waiting: they write another slice of a concatenation, and may read what it makes."""
        for buffer in buffers:
            written = self.besides.get(buffer, buffer)
            while ready := [p for p in self.pending.get(written, ()) if p.number < self._before]:
                first = self._deepest(min(ready, key=_number))
                self._stop_waiting(first)
                self._call(first)

    def _deepest(self, waiting: Pending) -> Pending:
        """What is to be called first for a kernel: of those that it reads, and these read, one that reads none which waits.
        (Each would call the ones before it from within, which ends a chain of hundreds of layers at Python's limit.)"""
        while below := [p for b in self._operands(waiting) for p in self.pending.get(b, ()) if p.number < waiting.number]:
            waiting = min(below, key=_number)
        return waiting

    def _operands(self, waiting: Pending) -> list[Buffer]:
        """Where the kernels to be called before a waiting one write their results: those that it reads."""
        if waiting.joins:
            return []
        read = [b for b, _ in waiting.extra]
        values, seen = [v for n in waiting.nodes for v in n.inputs], set[Value]()
        while values:
            value = values.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self.low.places:
                read.append(self.low.places[value].buffer)
            elif value.producer is not None:
                values += value.producer.inputs
        return list(dict.fromkeys(self.besides.get(b, b) for b in read))

    def _call(self, waiting: Pending) -> KernelStep:
        others = [place.buffer for place, _ in waiting.others]
        for buffer in others:
            self.besides.pop(buffer)
        if others:
            waiting = self._with_others(waiting)
        dtype = waiting.target.buffer.dtype
        steps = (*waiting.steps, Stored(dtype)) if dtype.bits == 16 else waiting.steps
        outer, self._before = self._before, waiting.number
        waiting.emit(steps, waiting.target, waiting.extra, waiting.nodes)
        self._before = outer
        step: KernelStep = self.low.plan.steps[-1]
        step.aligned = waiting.aligned.difference(b for b, _ in step.places[: step.result])  # its operands
        step.besides += _besides(waiting.steps)
        step.written += [parts.buffer for parts, _, _ in waiting.sums]
        step.written += [buffer for buffer in others if buffer not in step.written]
        for parts, target, nodes in waiting.sums:
            self.besides.pop(target.buffer)
            self._join(parts, target, nodes)
        return step

    def _with_others(self, waiting: Pending) -> Pending:
        """``waiting`` with its other results stored by its epilogue; the last of them in the place of its own, if nobody else
        reads that."""
        others, target, value = waiting.others, waiting.target, None
        fits = waiting.narrows or others[-1][0].buffer.dtype is target.buffer.dtype
        if fits and waiting.value is not None and self._in_registers(waiting.value, waiting.made):
            *others, (target, value) = others
        step = beside(value, others, len(waiting.steps))
        extra = [*waiting.extra, *((b, 0) for b in step.buffers)]
        return replace(waiting, target=target, steps=(*waiting.steps, step), extra=extra)

    def _in_registers(self, value: Value, made: set[Value]) -> bool:
        """Whether all that is made of ``value`` is what a kernel has ``made``."""
        low = self.low

        def inside(out: Value) -> bool:
            return out in made or (out in low.formulas and out not in low.places and self._in_registers(out, made))

        return value not in low.outputs and all(inside(out) for user in low.users.get(value, ()) for out in user.outputs)

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
        placed = self.low.places.get(value)
        known = self.pending.get(placed.buffer, ()) if placed is not None else ()
        waiting = next((p for p in known if p.value is value), None)
        if waiting is None or waiting.parts is None:
            return None
        channels = int(value.shape[1])
        parts = self.low.temporary(Spec((waiting.parts(), Statistics.rows, channels), float32), "statistics")
        waiting.steps += (Statistics(channels),)
        waiting.extra.append((parts.buffer, 0))
        self._stop_waiting(waiting)
        self._call(waiting).written.append(parts.buffer)
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
            parts = self.low.temporary(Spec((waiting.parts(), out.shape[1]), float32), "sums")
            waiting.steps += (step,)
            waiting.extra += [*((b, 0) for b in step.buffers), (parts.buffer, 0)]
            waiting.aligned = _aligned_too(waiting, value, out, variables)
            waiting.nodes = [*waiting.nodes, *nodes]
            waiting.sums.append((parts, target, nodes))
            self.besides[target.buffer] = out.buffer
            self.low.plan.notes.append(f"sum {nodes[0].outputs[0].spec} is gathered by the kernel that makes {out.shape}")
            return True
        return False

    def into_epilogue(self, value: Expr, variables: list[Var], target: Placed, nodes: list[Node]) -> bool:
        """Let a kernel that waits compute ``value`` from its result, if it can; it goes on waiting."""
        read = {l.extra[0] for l in loads(value)}
        if target.buffer in _aligned(value, target, [var(v) for v in variables]):
            return False  # a kernel might store parts of its sums there first
        found = [p for b, waiting in self.pending.items() if b in read for p in waiting]
        for waiting in reversed(found):
            out = waiting.target
            alone = waiting.value is not None and self.low.reads.get(waiting.value, 0) <= 1
            dtypes = (value.dtype, out.buffer.dtype)
            fits = dtypes[0] is dtypes[1] or (waiting.narrows and all(d.is_floating and d.bits <= 32 for d in dtypes))
            if not _same_form(out, target) or not alone or not fits or waiting.sums or waiting.others:
                continue
            step = formula(value, variables, out, len(waiting.steps))
            if step is None:
                continue
            self._stop_waiting(waiting)
            self.flush(step.buffers)
            extra = [*waiting.extra, *((b, 0) for b in step.buffers)]
            made = next((v for n in nodes for v in n.outputs if v.spec.shape == target.shape), None)
            steps, made_by = (*waiting.steps, step), [*waiting.nodes, *nodes]
            aligned = _aligned_too(waiting, value, target, variables)
            self._wait(replace(waiting, target=target, value=made, nodes=made_by, steps=steps, extra=extra, aligned=aligned))
            return True
        return self._beside(value, variables, target, nodes)

    def _beside(self, value: Expr, variables: list[Var], target: Placed, nodes: list[Node]) -> bool:
        """Let a kernel that waits store ``value``, an output of the graph, besides its result, if it can; it goes on waiting.
        So parameters and an optimizer's state are updated in the kernel that makes their gradient."""
        made = {v for n in nodes for v in n.outputs if v in self.low.outputs}
        read = {self.besides.get(l.extra[0], l.extra[0]) for l in loads(value)}
        for waiting in reversed([p for b, known in self.pending.items() if made and b in read for p in known]):
            out = waiting.target
            same = out.shape == target.shape and out.strides == target.strides and not out.offset and not target.offset
            if not same or value.dtype is not target.buffer.dtype or not (value.dtype.is_floating and value.dtype.bits <= 32):
                continue
            step = formula(value, variables, out, len(waiting.steps), waiting.others)
            if step is None:
                continue
            self.flush(step.buffers)
            if waiting not in self.pending.get(out.buffer, ()):
                return False  # something that it would read came after it
            waiting.aligned = _aligned_too(waiting, value, target, variables)
            waiting.others.append((target, step))
            waiting.made |= made
            waiting.nodes = [*waiting.nodes, *nodes]
            self.besides[target.buffer] = out.buffer
            spec, source = nodes[0].outputs[0].spec, waiting.nodes[0].op.name
            self.low.plan.notes.append(f"{nodes[0].op.name} {spec} is made in the epilogue of {source}, besides its result")
            return True
        return False

    def into_pool(self, x: Value, node: Node, pool: Pool, place: Placed, nodes: list[Node]) -> bool:
        """Let the kernel that waits with ``x`` leave the max pooling of it at ``place``, if nobody else reads it."""
        placed = self.low.places.get(x)
        known = self.pending.get(placed.buffer, []) if placed is not None else []
        if placed is None or len(known) != 1 or known[0].pooled is None or known[0].target != placed:
            return False
        if known[0].sums or known[0].others:
            return False
        if x in self.low.outputs or any(user is not node for user in self.low.users.get(x, ())):
            return False
        if not known[0].pooled(pool, known[0], place, nodes):
            return False
        del self.pending[placed.buffer]
        self.low.plan.steps[-1].besides += _besides(known[0].steps)
        self.low.plan.notes.append(f"{x.spec} is pooled by the kernel that makes it, and not stored")
        return True

    def _join(self, parts: Placed, target: Placed, nodes: list[Node]) -> None:
        """The sums of all parts, added up in order."""
        part, channel = (Var(d, name) for d, name in zip(parts.shape, "pc"))
        value = converted(parts.at([var(part), var(channel)]), float64)
        total = Accumulator(float64, const(float64, 0), op("add", float64, acc(0, float64), value), "add")
        self.low.reduce([channel], [part], [total], [(target, converted(acc(0, float64), target.buffer.dtype))], nodes)


def _number(waiting: Pending) -> int:
    return waiting.number


def _besides(steps: Sequence[Any]) -> list[tuple[Buffer, Affine]]:
    """What the steps of an epilogue read."""
    return [l.extra for s in steps if isinstance(s, Formula) for value in s.values for l in loads(value)]


def _aligned(value: Expr, target: Placed, index: Sequence[Affine]) -> frozenset[Buffer]:
    """The buffers that ``value`` reads only where ``target`` has the same element."""
    own, read = target.address(index), loads(value)
    return frozenset(l.extra[0] for l in read) - {l.extra[0] for l in read if l.extra[1] != own}


def _aligned_too(waiting: Pending, value: Expr, target: Placed, variables: Sequence[Var]) -> frozenset[Buffer]:
    """The buffers that a kernel's epilogue reads only where it writes the same element, once it computes ``value`` as well."""
    so = _aligned(value, target, [var(v) for v in variables])
    before = {b for b, _ in waiting.extra}.union(*(step.buffers for _, step in waiting.others))
    apart = (before - waiting.aligned) | ({l.extra[0] for l in loads(value)} - so)
    return (waiting.aligned | so) - apart


def _same_form(a: Placed, b: Placed) -> bool:
    """Whether a kernel that writes ``a`` could write ``b``: images with any distance of pixels, else the same strides."""
    if a.shape != b.shape:
        return False
    if len(a.shape) == 4 and a.order == CHANNELS_LAST == b.order:
        return pixel_distance(a) is not None and pixel_distance(b) is not None
    return a.strides == b.strides and b.offset == 0


__all__ = ["Pending", "Waiting"]
