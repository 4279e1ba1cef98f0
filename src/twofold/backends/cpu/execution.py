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

from twofold.backends.cpu import room, team
from twofold.backends.cpu.assembled import ARENA, CLOCK, ERRORS, FIRST, KEPT, Assembled, Segment
from twofold.backends.cpu.lowering.steps import HostStep, Placed
from twofold.backends.cpu.program import ALONE, TEAM
from twofold.backends.cpu.recycle import POOL


class Execution:
    """The memory of one program. One call at a time: the caller holds a lock.

    ``shapes`` are the inputs'; ``orders`` gives the order in memory of the dimensions of those that are not row-major; ``name``
    and ``batch`` (0: unknown) are for errors. The first ``arguments`` of the inputs are no state. One that ``borrows`` takes
    its arena anew for each call from what all such programs share.
    """

    def __init__(
        self,
        built: Assembled,
        threads: int,
        shapes: Sequence[tuple[int, ...]],
        orders: Mapping[int, Sequence[int]],
        name: str = "program",
        batch: int = 0,
        borrows: bool = False,
        arguments: int = 0,
    ):
        self.built, self.threads, self.name, self.batch, self._borrows = built, threads, name, batch, borrows
        plan = built.plan
        taken = {*plan.inputs, *plan.constants}
        self._results = [_Result(p, tuple(map(int, s.shape))) for p, s in zip(plan.outputs, plan.specs)]
        self._made = {
            r.buffer: (r.shape, r.buffer.dtype.numpy) for r in reversed(self._results) if r.buffer not in taken
        }
        self._constants = {b: np.ascontiguousarray(a) for b, a in plan.constants.items()}
        # what a call works with: the inputs, the outputs it makes, the constants
        self._at = {b: i for i, b in enumerate([*plan.inputs, *self._made, *self._constants])}
        known = [*(s if i not in orders else None for i, s in enumerate(shapes)), *(s for s, _ in self._made.values())]
        for r in self._results:
            r.at, r.copied = self._at[r.buffer], r.buffer in self._constants
            r.plain = not r.copied and r.axes is None and known[r.at] == r.shape
        self._inputs = [(built.places[b].slot, b.dtype.numpy, orders.get(i)) for i, b in enumerate(plan.inputs)]
        self._fresh = [(built.places[b].slot, POOL.maker(*kind)) for b, kind in self._made.items()]
        self._known: list[Callable[[], Any]] = [_nobody] * len(self._inputs)
        self._table = (ctypes.c_void_p * (FIRST + len(self._at)))()
        self._address = ctypes.addressof(self._table)
        self._memory: dict[int, np.ndarray] = {}  # slot -> bytes
        self._version: int | None = None  # of the state that the kept results were made of
        self._bound: int | None = None  # of the state that the table points to, if ``again`` may be asked for it
        first, self._arguments = len(plan.inputs), arguments
        self._outputs = [(r, r.at - first) for r in self._results[: arguments - first or None]]
        self._repeats = (
            not borrows
            and not any(isinstance(segment, HostStep) for segment in built.segments)
            and all(0 <= at < len(self._made) for _, at in self._outputs)
        )
        self._errors = (ctypes.c_int64 * 2)()
        self._table[ERRORS] = ctypes.addressof(self._errors)
        for buffer, array in self._constants.items():
            self._table[built.places[buffer].slot] = address_of(array)

    def call(self, buffers: Sequence[Any], version: int | None) -> list[np.ndarray]:
        """The outputs; prepares first what is not up to date (see ``Program``)."""
        arrays = self.bind(buffers, version)
        self._run(self.built.segments, arrays)
        if self._borrows:
            self._memory.pop(ARENA, None)
        return [arrays[r.at] if r.plain else r.of(arrays[r.at]) for r in self._results]

    def again(self, arguments: Sequence[Any], version: int) -> list[np.ndarray] | None:
        """The graph's outputs for these inputs and the state of the last call; None if that had another version, or if there
        is more to it than to point at the inputs, and run."""
        if version != self._bound:
            return None
        held = [self._point(i, x) for i, x in enumerate(arguments) if self._known[i]() is not x]
        made = self._make()
        self._run(self.built.segments, held)
        return [made[at] if r.plain else r.of(made[at]) for r, at in self._outputs]

    def record(self, buffers: Sequence[Any], segments: Sequence[Segment], clock: int) -> None:
        """Run ``segments`` in the place of the program's own: such as store times at the address ``clock``. On all
        threads."""
        arrays = self.bind(buffers)
        self._table[CLOCK] = clock
        with team.get(self.threads).whole():
            self._run(segments, arrays)

    def bind(self, buffers: Sequence[Any], version: int | None = None) -> list[np.ndarray]:
        """Point the table at these inputs and at fresh outputs, see that what is kept is up to date; the arrays that the
        table points to."""
        arrays, self._bound = list(buffers), None
        for i, known in enumerate(self._known):
            if known() is not arrays[i]:
                arrays[i] = self._point(i, arrays[i])
        arrays += self._make()
        arrays += self._constants.values()
        if ARENA not in self._memory:
            self._reserve_all()
        if self.built.prepare and (version is None or version != self._version):
            self._prepare(arrays, version)
        prepared = not self.built.prepare or self._version == version  # not so if a check failed in it
        if self._repeats and prepared and not any(known is _nobody for known in self._known[self._arguments :]):  # nor copies
            self._bound = version
        return arrays

    def _make(self) -> list[np.ndarray]:
        """Fresh outputs, to which the table points."""
        table, made = self._table, []
        for slot, make in self._fresh:
            array, table[slot] = make()
            made.append(array)
        return made

    @property
    def failed(self) -> tuple[int, int] | None:
        """What kernels left in the error word: which of the plan's checks failed (from 1), and the index that did."""
        if not self._errors[0]:
            return None
        code, index = self._errors
        return code, index

    def forgive(self) -> None:
        """Clear the error word."""
        self._errors[0] = 0

    @property
    def pointers(self) -> list[int]:
        """The table as numbers, after ``bind``."""
        return [p or 0 for p in self._table]

    def _point(self, i: int, x: Any) -> np.ndarray:
        """Point input ``i`` at a buffer, or at a dense copy."""
        slot, dtype, order = self._inputs[i]
        array = dense(x, dtype, order)
        self._table[slot] = address_of(array)
        self._known[i] = weakref.ref(x) if array is x else _nobody
        return array

    def _prepare(self, arrays: list[np.ndarray], version: int | None) -> None:
        """Work out what is kept, in an arena that is given back at once."""
        self._version, arena = None, self._table[ARENA]
        scratch = _bytes(self.built.prepare_arena)
        self._table[ARENA] = _aligned(scratch)
        try:
            self._run(self.built.prepare, arrays)
        finally:
            self._table[ARENA] = arena
        self._version = None if self.failed else version

    def _reserve_all(self) -> None:
        """What the program works in, and what it keeps."""
        built = self.built
        if KEPT not in self._memory:
            results = [(b.nbytes, shape[:1] == (self.batch,)) for b, (shape, _) in self._made.items()]
            fixed = built.kept + sum(size for size, grows in results if not grows)
            needed = max(built.arena, built.prepare_arena) + fixed + sum(size for size, grows in results if grows)
            room.require(self.name, needed, self.batch, fixed)
            self._reserve(KEPT, _bytes(built.kept))
        self._reserve(ARENA, POOL.empty((built.arena + 64,), _BYTE) if self._borrows else _bytes(built.arena))

    def _reserve(self, slot: int, memory: np.ndarray) -> None:
        self._memory[slot] = memory
        self._table[slot] = _aligned(self._memory[slot])

    def _run(self, segments: Sequence[Segment], arrays: list[np.ndarray]) -> None:
        for segment in segments:
            if self._errors[0]:  # what comes after would work with numbers that are not there
                return
            if isinstance(segment, HostStep):
                results = segment.run(*(self._view(p, arrays) for p in segment.inputs))
                for place, result in zip(segment.outputs, results):
                    self._view(place, arrays)[...] = result
            elif segment.crew == TEAM:
                team.get(self.threads).run(segment.address, self._address)
            elif segment.crew == ALONE or not team.get(self.threads).run_awake(segment.address, self._address):
                segment.run_alone(self._address)

    def _view(self, placed: Placed, arrays: list[np.ndarray]) -> np.ndarray:
        """A place as a NumPy array."""
        buffer, dtype = placed.buffer, placed.buffer.dtype.numpy
        if buffer in self._at:
            flat = arrays[self._at[buffer]].reshape(-1)
        else:
            slot, offset = self.built.places[buffer]
            raw = (ctypes.c_char * max(1, buffer.nbytes)).from_address((self._table[slot] or 0) + offset)
            flat = np.frombuffer(raw, dtype, buffer.size)  # type: ignore[call-overload]
        strides = [s * dtype.itemsize for s in placed.strides]
        return np.lib.stride_tricks.as_strided(flat[placed.offset :], placed.shape, strides)


class _Result:
    """How an output is seen in the array that holds it, number ``at`` of a call; a ``plain`` one is that array."""

    __slots__ = ("at", "axes", "buffer", "copied", "plain", "shape")

    def __init__(self, placed: Placed, shape: tuple[int, ...]):
        self.buffer, self.shape = placed.buffer, shape
        self.axes: Sequence[int] | None = None
        self.at, self.copied, self.plain = 0, False, False
        if not placed.is_rows:
            self.shape = tuple(placed.shape[d] for d in placed.order)
            self.axes = tuple(map(int, np.argsort(placed.order)))

    def of(self, array: np.ndarray) -> np.ndarray:
        """The output; where it fills an input's place, the very buffer that came in."""
        if self.copied:
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


_BYTE = np.dtype(np.uint8)


def _bytes(size: int) -> np.ndarray:
    return np.empty(size + 64, _BYTE)


def _aligned(memory: np.ndarray) -> int:
    """The first address in it at which a cache line starts."""
    return (address_of(memory) + 63) & ~63


def _nobody() -> None:
    """A weak reference to nothing."""
