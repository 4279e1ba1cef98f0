"""Running an assembled plan: the memory it works in, the table of pointers that machine code reads, its Python parts.

What is found out about a buffer (that it is dense, where it lies) is remembered with a weak reference to it: state that is
updated in place costs one comparison at the next call.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from twofold.backends.cpu import team
from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.assemble import ARENA, ERRORS, FIRST, KEPT, Assembled, Segment
from twofold.backends.cpu.lowering.steps import HostStep, Placed


class Execution:
    """The memory of one program. One call at a time: the caller holds a lock.

    ``orders`` gives the order in memory of the dimensions of inputs that are not row-major.
    """

    def __init__(self, built: Assembled, threads: int, orders: Mapping[int, Sequence[int]]):
        self.built, self.threads, self.orders = built, threads, orders
        plan = built.plan
        self._slots = {
            b: built.places[b].slot for b in (*plan.inputs, *(p.buffer for p in plan.outputs), *plan.constants)
        }
        self._inputs = [(b, self._slots[b], orders.get(i)) for i, b in enumerate(plan.inputs)]
        self._known: list[Callable[[], Any]] = [_nobody] * len(self._inputs)
        self._constants = {b: np.ascontiguousarray(a) for b, a in plan.constants.items()}
        self._results = [_Result(p, tuple(map(int, s.shape))) for p, s in zip(plan.outputs, plan.specs)]
        taken = {*self._constants, *plan.inputs}
        self._made = {r.buffer: r.shape for r in reversed(self._results) if r.buffer not in taken}
        self._table = (ctypes.c_void_p * (FIRST + len(self._slots)))()
        self._address = ctypes.addressof(self._table)
        self._memory: dict[int, np.ndarray] = {}  # slot -> bytes
        self._version: int | None = None  # of the state that the kept results were made of
        self.errors = np.zeros(1, np.int32)
        self._table[ERRORS] = address_of(self.errors)
        for buffer, array in self._constants.items():
            self._table[self._slots[buffer]] = address_of(array)

    def call(self, buffers: Sequence[Any], version: int | None) -> list[np.ndarray]:
        """The outputs; prepares first what is not up to date (see ``Program``)."""
        arrays = self.bind(buffers, version)
        self._run(self.built.segments, arrays)
        return [result.of(arrays[result.buffer], result.buffer in self._constants) for result in self._results]

    def bind(self, buffers: Sequence[Any], version: int | None = None) -> dict[Buffer, np.ndarray]:
        """Point the table at these inputs and at fresh outputs, see that what is kept is up to date; the arrays."""
        table, known = self._table, self._known
        arrays = dict(self._constants)
        for i, ((buffer, slot, order), x) in enumerate(zip(self._inputs, buffers, strict=True)):
            if known[i]() is not x:
                array = dense(x, buffer.dtype.numpy, order)
                table[slot] = address_of(array)
                known[i] = weakref.ref(x) if array is x else _nobody
                x = array
            arrays[buffer] = x
        for buffer, shape in self._made.items():
            array = arrays[buffer] = np.empty(shape, buffer.dtype.numpy)
            table[self._slots[buffer]] = address_of(array)
        if ARENA not in self._memory:
            self._reserve(ARENA, self.built.arena)
            self._reserve(KEPT, self.built.kept)
        if self.built.prepare and (version is None or version != self._version):
            self._prepare(arrays, version)
        return arrays

    @property
    def pointers(self) -> list[int]:
        """The table as numbers, after ``bind``."""
        return [p or 0 for p in self._table]

    def _prepare(self, arrays: dict[Buffer, np.ndarray], version: int | None) -> None:
        """Work out what is kept, in an arena that is given back at once."""
        self._version, arena = None, self._table[ARENA]
        scratch = _bytes(self.built.prepare_arena)
        self._table[ARENA] = _aligned(scratch)
        try:
            self._run(self.built.prepare, arrays)
        finally:
            self._table[ARENA] = arena
        self._version = None if self.errors[0] else version

    def _reserve(self, slot: int, size: int) -> None:
        self._memory[slot] = _bytes(size)
        self._table[slot] = _aligned(self._memory[slot])

    def _run(self, segments: Sequence[Segment], arrays: dict[Buffer, np.ndarray]) -> None:
        for segment in segments:
            if isinstance(segment, HostStep):
                results = segment.run(*(self._view(p, arrays) for p in segment.inputs))
                for place, result in zip(segment.outputs, results):
                    self._view(place, arrays)[...] = result
            else:
                team.get(self.threads).run(segment.address, self._address)

    def _view(self, placed: Placed, arrays: dict[Buffer, np.ndarray]) -> np.ndarray:
        """A place as a NumPy array."""
        buffer, dtype = placed.buffer, placed.buffer.dtype.numpy
        if buffer in arrays:
            flat = arrays[buffer].reshape(-1)
        else:
            slot, offset = self.built.places[buffer]
            raw = (ctypes.c_char * max(1, buffer.nbytes)).from_address((self._table[slot] or 0) + offset)
            flat = np.frombuffer(raw, dtype, buffer.size)  # type: ignore[call-overload]
        strides = [s * dtype.itemsize for s in placed.strides]
        return np.lib.stride_tricks.as_strided(flat[placed.offset :], placed.shape, strides)


class _Result:
    """How an output is seen in the buffer that holds it."""

    def __init__(self, placed: Placed, shape: tuple[int, ...]):
        self.buffer, self.shape = placed.buffer, shape
        self.axes: Sequence[int] | None = None
        if not placed.is_rows:
            self.shape = tuple(placed.shape[d] for d in placed.order)
            self.axes = tuple(map(int, np.argsort(placed.order)))

    def of(self, array: np.ndarray, copied: bool) -> np.ndarray:
        """The output; where it fills an input's place, the very buffer that came in."""
        if copied:
            array = array.copy()
        if array.shape != self.shape:
            array = array.reshape(self.shape)
        return array if self.axes is None else array.transpose(self.axes)


def dense(x: Any, dtype: np.dtype, order: Sequence[int] | None) -> np.ndarray:
    """A buffer as machine code reads it: contiguous, its dimensions in ``order``."""
    array = np.asarray(x, dtype)
    if order is not None:
        array = array.transpose(order)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def address_of(array: np.ndarray) -> int:
    """Where an array's numbers lie; by way of the buffer protocol, which is quicker than ``array.ctypes``."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, empty, or of a dtype that the protocol does not know
        return array.ctypes.data


def _bytes(size: int) -> np.ndarray:
    return np.empty(size + 64, np.uint8)


def _aligned(memory: np.ndarray) -> int:
    """The first address in it at which a cache line starts."""
    return (address_of(memory) + 63) & ~63


def _nobody() -> None:
    """A weak reference to nothing."""
