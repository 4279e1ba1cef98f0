"""The backend: graphs become ``CpuProgram``s; single ops run through cached programs where that pays."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twofold.backends.cpu import debug, eager
from twofold.backends.host import HostBackend
from twofold.backends.interface import Device, Program
from twofold.base import flags
from twofold.base.errors import IndexRangeError
from twofold.ir import Graph, Op, Spec
from twofold.ir.builder import annotate


class CpuProgram(Program):
    """A graph as machine code. Safe to call from several threads (calls take turns)."""

    def __init__(self, graph: Graph, donated: Sequence[int] = (), orders: Mapping[int, Sequence[int]] | None = None):
        from twofold.backends.cpu.execution import Execution
        from twofold.backends.cpu.lowering.assemble import assemble
        from twofold.backends.cpu.lowering.donate import donate
        from twofold.backends.cpu.lowering.lower import lower
        from twofold.backends.cpu.lowering.merge import merge
        from twofold.backends.cpu.lowering.prepare import prepared
        from twofold.backends.cpu.lowering.widen import widened
        from twofold.backends.cpu.machine import host, num_threads

        self.name = graph.name
        self.threads = num_threads()
        graph = widened(graph)
        plan = lower(graph, host(), compile_graph, orders)
        merge(plan)
        donate(plan, graph, donated)
        self.donated = plan.donated
        first = len(graph.inputs)
        constant = [plan.inputs[first + i] for i, state in enumerate(graph.state) if not state.written]
        self._built = assemble(prepared(plan, constant), host(), self.threads)
        shapes: list[Any] = [v.shape for v in graph.all_inputs]
        self._execution = Execution(self._built, self.threads, shapes, orders or {})
        self._lock = threading.Lock()
        self._timed = flags.get("TWOFOLD_DEBUG") >= 1
        if flags.get("TWOFOLD_DEBUG") >= 2:
            debug.show(self)

    @property
    def arena_bytes(self) -> int:
        """Bytes of temporaries: known before the first run."""
        return self._built.arena

    @property
    def kept_bytes(self) -> int:
        """Bytes of results that stay between calls: packed weights and the like."""
        return self._built.kept

    @property
    def calls(self) -> Sequence[Any]:
        """The kernel calls, in order (of native parts)."""
        return self._built.calls

    @property
    def steps(self) -> Sequence[Any]:
        """The steps, in order."""
        return self._built.plan.steps

    def __call__(self, buffers: Sequence[Any], version: int | None = None) -> list[np.ndarray]:
        start = time.perf_counter() if self._timed else 0.0
        with self._lock:
            results = self._execution.call(buffers, version)
            if self._execution.failed:
                self._raise_error()
        if self._timed:
            debug.timing(self, time.perf_counter() - start)
        return results

    def pointers(self, buffers: Sequence[Any]) -> tuple[list[int], Any]:
        """The pointer table for these inputs, and what it points to: for running parts of the program by themselves."""
        arrays = self._execution.bind(buffers)
        return self._execution.pointers, arrays

    def _raise_error(self) -> None:
        """Raise what a kernel left in the error word."""
        message, node = self._built.plan.checks[self._execution.failed - 1]
        self._execution.failed = 0
        error = IndexRangeError(f"{node.op.name}: {message}")
        annotate(error, node.scope)
        raise error

    def report(self) -> str:
        built = self._built
        kernels = len({c.kernel.symbol for c in built.calls})
        lines = [
            f"{len(built.calls)} kernel calls ({kernels} different), {built.barriers} barriers, "
            f"{len(built.segments)} segments, {self.threads} threads, arena {built.arena / 2**20:.2f} MiB; "
            f"{len(built.plan.prepare)} steps done once, {built.kept / 2**20:.2f} MiB kept"
        ]
        lines += [f"  {c.kernel.symbol}: {c.kernel.note}" for c in built.calls]
        return "\n".join(lines + built.plan.notes)


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
        if eager.is_heavy(op, specs, attrs):
            return eager.program(op, buffers, attrs)(buffers)
        return super().run(op, buffers, attrs, specs, device)

    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        return CpuProgram(graph, donated)


BACKEND = CpuBackend()
