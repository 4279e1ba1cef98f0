"""The backend: graphs become ``CpuProgram``s; single ops run through cached programs where that pays."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu import debug, eager
from twofold.backends.host import HostBackend
from twofold.backends.interface import Device, Memory, Program, written_state
from twofold.base import flags, locks
from twofold.base.errors import IndexRangeError
from twofold.ir import Graph, Op, Spec
from twofold.ir.builder import annotate
from twofold.passes import optimise

if TYPE_CHECKING:
    from twofold.backends.cpu.assembled import Assembled


class CpuProgram(Program):
    """A graph as machine code. Safe to call from several threads (calls take turns).

    ``built`` is what it is made of, if that is known from disk; ``again`` then makes the program anew, for those who want
    to look inside. One that ``borrows`` keeps no working memory between calls; one that ``packs`` may have ``layouts``.
    """

    def __init__(
        self,
        graph: Graph,
        donated: Sequence[int] = (),
        orders: Mapping[int, Sequence[int]] | None = None,
        built: Assembled | None = None,
        again: Callable[[], CpuProgram] | None = None,
        borrows: bool = False,
        packs: bool = False,
    ):
        from twofold.backends.cpu.execution import Execution
        from twofold.backends.cpu.machine import num_threads

        self.name = graph.name
        self.threads = num_threads()
        self._built = built or _assembled(graph, donated, orders, self.threads, packs)
        self._again = again
        self.donated, self.layouts = self._built.plan.donated, self._built.plan.layouts
        shapes: list[Any] = [v.shape for v in graph.all_inputs]
        for i, blocks in self.layouts.items():
            shapes[i] = (blocks.size,)
        self._arguments = len(graph.inputs)
        sizes = {shape[0] for shape in shapes[: self._arguments] if shape}
        batch = sizes.pop() if len(sizes) == 1 else 0
        name = f"{self.name} on the CPU"
        self._execution = Execution(self._built, self.threads, shapes, orders or {}, name, batch, borrows, self._arguments)
        self._lock = locks.renewed()
        self._timed = flags.get("TWOFOLD_DEBUG") >= 1
        if flags.get("TWOFOLD_DEBUG") >= 2:
            debug.show(self)

    @property
    def memory(self) -> Memory:
        plan, taken = self._built.plan, set(self._built.plan.inputs)
        arguments, state = plan.inputs[: self._arguments], plan.inputs[self._arguments :]
        made = {p.buffer for p in plan.outputs} - taken
        total = lambda buffers: sum(b.nbytes for b in buffers)
        return Memory(
            arguments=total(arguments),
            state=total(state),
            results=total(made),
            temporaries=self._built.arena,
            kept=self._built.kept,
            preparing=self._built.prepare_arena,
        )

    @functools.cached_property
    def opened(self) -> CpuProgram:
        """This program with all that it was made of: made anew, if it came from disk."""
        return self._again() if self._again else self

    @property
    def calls(self) -> Sequence[Any]:
        """The kernel calls, in order (of native parts)."""
        return self.opened._built.calls

    @property
    def steps(self) -> Sequence[Any]:
        """The steps, in order."""
        return self.opened._built.plan.steps

    def __call__(self, buffers: Sequence[Any], version: int | None = None) -> list[np.ndarray]:
        start = time.perf_counter() if self._timed else 0.0
        with self._lock:
            results = self._execution.call(buffers, version)
            if failed := self._execution.failed:
                self._raise_error(*failed)
        if self._timed:
            debug.timing(self, time.perf_counter() - start)
        return results

    def again(self, arguments: Sequence[Any], version: int) -> list[np.ndarray] | None:
        if self._timed:
            return None
        with self._lock:
            results = self._execution.again(arguments, version)
            if failed := self._execution.failed:
                self._raise_error(*failed)
        return results

    @property
    def segments(self) -> Sequence[Any]:
        """The native parts and the parts in Python, in order."""
        return self.opened._built.segments

    @property
    def parts(self) -> Sequence[Any]:
        """What is done once, then ``segments``."""
        return [*self.opened._built.prepare, *self.segments]

    def record(self, buffers: Sequence[Any], segments: Sequence[Any], clock: int) -> None:
        """Run ``segments`` in the place of the program's own; see ``Execution.record``."""
        with self._lock:
            self._execution.record(buffers, segments, clock)

    def _raise_error(self, code: int, index: int) -> None:
        """Raise what a kernel left in the error word."""
        check = self._built.plan.checks[code - 1]
        self._execution.forgive()
        error = IndexRangeError(check.message.format(index=index))
        annotate(error, check.scope)
        raise error

    def report(self) -> str:
        built = self._built
        kernels = len({c.kernel.symbol for c in built.calls})
        lines = [
            f"{len(built.calls)} kernel calls ({kernels} different), {built.barriers} barriers, "
            f"{len(built.segments)} segments, {self.threads} threads, arena {built.arena / 2**20:.2f} MiB; "
            f"{len(built.plan.prepare)} steps done once, {built.kept / 2**20:.2f} MiB kept"
        ]
        lines += [f"  {c}" for c in built.calls]
        return "\n".join(lines + built.plan.notes)


def _assembled(
    graph: Graph,
    donated: Sequence[int],
    orders: Mapping[int, Sequence[int]] | None,
    threads: int,
    packs: bool,
) -> Assembled:
    """A graph lowered, compiled and linked."""
    from twofold.backends.cpu.lowering.assemble import assemble
    from twofold.backends.cpu.lowering.between import kept_packed, with_kernels
    from twofold.backends.cpu.lowering.donate import donate
    from twofold.backends.cpu.lowering.flat import laid_flat
    from twofold.backends.cpu.lowering.lines import as_images
    from twofold.backends.cpu.lowering.lower import lower
    from twofold.backends.cpu.lowering.merge import merge
    from twofold.backends.cpu.lowering.prepare import prepared
    from twofold.backends.cpu.lowering.widen import widened
    from twofold.backends.cpu.machine import host

    graph = laid_flat(widened(as_images(graph), host()), host())
    graph, packed = kept_packed(graph, host()) if packs else (graph, {})
    plan = lower(graph, host(), compile_graph, orders)
    plan.layouts = with_kernels(packed, host())
    merge(plan)
    donate(plan, graph, donated)
    first = len(graph.inputs)
    constant = [plan.inputs[first + i] for i, state in enumerate(graph.state) if not state.written]
    return assemble(prepared(plan, constant), host(), threads)


def compile_graph(graph: Graph) -> CpuProgram:
    """A program for a sub-graph."""
    return CpuProgram(graph)


class CpuBackend(HostBackend):
    """NumPy arrays as buffers; machine code through LLVM."""

    name = "cpu"

    def devices(self) -> list[Device]:
        return [Device("cpu")]

    def run(
        self, op: Op, buffers: Sequence[Any], attrs: dict[str, Any], specs: Sequence[Spec], device: Device
    ) -> Sequence[Any]:
        results = eager.run(op, buffers, attrs, specs)
        return super().run(op, buffers, attrs, specs, device) if results is None else results

    def runs_graphs(self, op: Op, buffer: Any) -> bool:
        return eager.may_pay(op, buffer)

    def runs_composites(self, buffers: Sequence[Any]) -> bool:
        return eager.large(buffers)

    def run_graph(self, graph: Graph, buffers: Sequence[Any], device: Device) -> Sequence[Any] | None:
        return eager.run_graph(graph, buffers)

    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        return CpuProgram(graph, donated)

    def remembered(self, graph: Graph, passes: Callable[[Graph], Graph], device: Device) -> tuple[Program, Graph]:
        from twofold.backends.cpu import batches
        from twofold.backends.cpu.machine import rooms
        from twofold.backends.cpu.staged import StagedProgram

        found = batches.stages(graph, *rooms())
        if not found:
            return self.whole(graph, passes)
        return StagedProgram(graph, found, [self.whole(stage.graph, passes)[0] for stage in found]), graph

    def whole(self, graph: Graph, passes: Callable[[Graph], Graph]) -> tuple[CpuProgram, Graph]:
        """A program in one piece, from disk or for it."""
        from twofold.backends.cpu import apart, remember
        from twofold.backends.cpu.machine import num_threads

        def anew() -> tuple[CpuProgram, Graph]:
            optimised = passes(graph)
            return CpuProgram(optimised, written_state(optimised), packs=True), optimised

        name = None if flags.get("TWOFOLD_DEBUG") >= 2 else remember.key(graph, num_threads())
        if name is None:
            return anew()
        built = remember.recall(name, written_state(graph))
        if built is None and passes is optimise and apart.make(graph):
            built = remember.recall(name, written_state(graph))
            if built is None:
                apart.in_vain()
        if built is not None:
            return CpuProgram(graph, built=built, again=lambda: anew()[0]), graph
        program, optimised = anew()
        remember.store(name, program._built, written_state(optimised))
        return program, optimised


BACKEND = CpuBackend()
