"""The backend: graphs become ``CpuProgram``s; single ops run through cached programs where that pays."""

from __future__ import annotations

import ctypes
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
        from twofold.backends.cpu.lowering.assemble import assemble
        from twofold.backends.cpu.lowering.donate import donate
        from twofold.backends.cpu.lowering.lower import lower
        from twofold.backends.cpu.lowering.merge import merge
        from twofold.backends.cpu.machine import host, num_threads

        self.name = graph.name
        self.threads = num_threads()
        plan = lower(graph, host(), compile_graph, orders)
        merge(plan)
        donate(plan, graph, donated)
        self._built = assemble(plan, host(), self.threads)
        self.donated = plan.donated
        self._lock = threading.Lock()
        self._arena = np.empty(0, np.uint8)
        self._errors = np.zeros(1, np.int32)
        given = orders or {}
        self._inputs = [(v.dtype.numpy, given.get(i)) for i, v in enumerate(graph.all_inputs)]
        self._constants = {b: np.ascontiguousarray(a) for b, a in plan.constants.items()}
        if flags.get("TWOFOLD_DEBUG") >= 2:
            debug.show(self)

    @property
    def arena_bytes(self) -> int:
        """Bytes of temporaries: known before the first run."""
        return self._built.arena

    @property
    def calls(self) -> Sequence[Any]:
        """The kernel calls, in order (of native parts)."""
        return self._built.calls

    @property
    def steps(self) -> Sequence[Any]:
        """The steps, in order."""
        return self._built.plan.steps

    def __call__(self, buffers: Sequence[Any]) -> list[np.ndarray]:
        plan, start = self._built.plan, time.perf_counter()
        with self._lock:
            pointers, arrays = self.pointers(buffers)
            for segment in self._built.segments:
                if hasattr(segment, "address"):
                    segment.run(pointers, self.threads)
                else:
                    self._run_host(segment, arrays, pointers[0])
            self._raise_errors()
        if flags.get("TWOFOLD_DEBUG") >= 1:
            debug.timing(self, time.perf_counter() - start)
        return [self._output(arrays, p, s) for p, s in zip(plan.outputs, plan.specs)]

    def pointers(self, buffers: Sequence[Any]) -> tuple[list[int], dict[Any, np.ndarray]]:
        """The pointer table for these inputs (new outputs are made), and the arrays it points to."""
        plan, built = self._built.plan, self._built
        arrays = {b: _dense(x, *kind) for b, x, kind in zip(plan.inputs, buffers, self._inputs)}
        if self._arena.nbytes < built.arena + 64:
            self._arena = np.empty(built.arena + 64, np.uint8)
        arrays.update(self._constants)
        for placed, spec in zip(plan.outputs, plan.specs):
            if placed.buffer not in arrays:
                arrays[placed.buffer] = np.empty([placed.shape[d] for d in placed.order], spec.dtype.numpy)
        pointers = [(self._arena.ctypes.data + 63) & ~63, self._errors.ctypes.data, *([0] * len(built.slots))]
        for buffer, slot in built.slots.items():
            pointers[slot] = arrays[buffer].ctypes.data
        return pointers, arrays

    def _output(self, arrays: dict[Any, np.ndarray], placed: Any, spec: Spec) -> np.ndarray:
        array = arrays[placed.buffer]
        if placed.buffer in self._constants:
            array = array.copy()
        if placed.is_rows:
            return array.reshape(spec.shape)
        return array.reshape([placed.shape[d] for d in placed.order]).transpose(np.argsort(placed.order))

    def _run_host(self, step: Any, arrays: dict[Any, np.ndarray], base: int) -> None:
        results = step.run(*(self._view(p, arrays, base) for p in step.inputs))
        for place, result in zip(step.outputs, results):
            self._view(place, arrays, base)[...] = result

    def _view(self, placed: Any, arrays: dict[Any, np.ndarray], base: int) -> np.ndarray:
        """A place as a NumPy array."""
        dtype = placed.buffer.dtype.numpy
        if placed.buffer in arrays:
            flat = arrays[placed.buffer].reshape(-1)
        else:
            address = base + self._built.offsets[placed.buffer]
            raw = (ctypes.c_char * max(1, placed.buffer.nbytes)).from_address(address)
            flat = np.frombuffer(raw, dtype, placed.buffer.size)
        strides = [s * dtype.itemsize for s in placed.strides]
        return np.lib.stride_tricks.as_strided(flat[placed.offset :], placed.shape, strides)

    def _raise_errors(self) -> None:
        code = int(self._errors[0])
        if code:
            self._errors[0] = 0
            message, node = self._built.plan.checks[code - 1]
            error = IndexRangeError(f"{node.op.name}: {message}")
            annotate(error, node.scope)
            raise error

    def report(self) -> str:
        built = self._built
        kernels = len({c.kernel.symbol for c in built.calls})
        lines = [
            f"{len(built.calls)} kernel calls ({kernels} different), {built.barriers} barriers, "
            f"{len(built.segments)} segments, {self.threads} threads, arena {built.arena / 2**20:.2f} MiB"
        ]
        lines += [f"  {c.kernel.symbol}: {c.kernel.note}" for c in built.calls]
        return "\n".join(lines + built.plan.notes)


def _dense(x: Any, dtype: np.dtype, order: Sequence[int] | None) -> np.ndarray:
    """A buffer as the program reads it: contiguous, its dimensions in ``order``."""
    array = np.asarray(x, dtype)
    if order is not None:
        array = array.transpose(order)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def compile_graph(graph: Graph) -> CpuProgram:
    """A program for a sub-graph."""
    return CpuProgram(graph)


class CpuBackend(HostBackend):
    """NumPy arrays as buffers; machine code through LLVM."""

    name = "cpu"

    def devices(self) -> list[Device]:
        return [Device("cpu"), Device("native")]

    def run(
        self, op: Op, buffers: Sequence[Any], attrs: dict[str, Any], specs: Sequence[Spec], device: Device
    ) -> Sequence[Any]:
        if eager.is_heavy(op, specs, attrs):
            return eager.program(op, buffers, attrs)(buffers)
        return super().run(op, buffers, attrs, specs, device)

    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        return CpuProgram(graph, donated)


BACKEND = CpuBackend()
