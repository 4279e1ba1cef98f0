"""Memory for results, used again as soon as nobody looks at it: a large array made afresh costs page faults, about a quarter
of a millisecond for each MB, which is more than most ops take to fill it.

An array that is given out is a view of a block's memory, which only the block and such views hold. NumPy hangs every view of
a view, every memoryview and every DLPack capsule on that memory, so while anybody can reach it, it has more references than
the block's. Needs CPython with its interpreter lock; elsewhere every array is new.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from twofold.base import locks

LEAST = 128 << 10  # bytes: smaller arrays come quickly enough from NumPy
FEW = 4  # small arrays that a maker gives out again
IDLE = 5.0  # seconds since a block was given out, after which it is let go if nobody uses it
LINE = 64  # bytes: blocks begin at a cache line, so that no vector of a dense array lies across two
_COUNTED = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


class _Block:
    """Memory that is given out again and again, and where its first cache line begins."""

    __slots__ = ("address", "memory", "start", "used")

    def __init__(self, size: int):
        self.memory = np.empty(size + LINE, np.uint8)
        self.start = -self.memory.ctypes.data % LINE
        self.address = self.memory.ctypes.data + self.start
        self.used = 0.0  # when it was last given out


def line_up(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """A new row-major array of any size that begins at a cache line, not from the pool: for what is kept."""
    block = _Block(math.prod(shape) * dtype.itemsize)
    return np.ndarray(shape, dtype, block.memory, block.start)


class Pool:
    """Blocks by size. Safe to use from several threads."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[_Block]] = {}
        self._looked = 0.0
        self._lock = locks.renewed()

    def maker(self, shape: Sequence[int], dtype: np.dtype) -> Callable[[], tuple[np.ndarray, int]]:
        """What makes such arrays again and again, and says where they lie: small ones without a look at the pool. One thread
        at a time."""
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST or not _COUNTED:
            return _Small(shape, dtype)
        return functools.partial(self._large, shape, dtype, _rounded(size))

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A row-major array with any content."""
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST or not _COUNTED:
            return np.empty(shape, dtype)
        return self._large(shape, dtype, _rounded(size))[0]

    def _large(self, shape: Sequence[int], dtype: np.dtype, size: int) -> tuple[np.ndarray, int]:
        """An array in a block of ``size`` bytes, and where it lies."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > IDLE:
                self._looked = now
                self._drop(now - IDLE)
            blocks = self._blocks.setdefault(size, [])
            block = next(filter(_is_idle, blocks), None)
            if block is None:
                block = _Block(size)
                blocks.append(block)
            block.used = now
            return np.ndarray(shape, dtype, block.memory, block.start), block.address

    def release(self) -> None:
        """Give back every block that nobody uses."""
        with self._lock:
            self._drop(math.inf)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, in use or not."""
        with self._lock:
            return sum(size * len(blocks) for size, blocks in self._blocks.items())

    def _drop(self, before: float) -> None:
        kept = {
            size: [b for b in blocks if b.used >= before or not _is_idle(b)] for size, blocks in self._blocks.items()
        }
        self._blocks = {size: blocks for size, blocks in kept.items() if blocks}


class _Small:
    """Gives out views of a few small arrays, again when nobody looks at them: they and where they lie are known."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype):
        self.shape, self.dtype = shape, dtype
        self._few: list[tuple[np.ndarray, int]] = []

    def __call__(self) -> tuple[np.ndarray, int]:
        for pair in self._few:
            if _holders(pair) == _NOBODY:
                return pair[0].view(), pair[1]
        array = np.empty(self.shape, self.dtype)
        address = array.ctypes.data
        if len(self._few) < FEW and _COUNTED:
            self._few.append((array, address))
            return array.view(), address
        return array, address


def _holders(pair: tuple[np.ndarray, int]) -> int:
    return sys.getrefcount(pair[0])


_NOBODY = _holders((np.empty(0), 0))


def _references(block: _Block) -> int:
    return sys.getrefcount(block.memory)


_ALONE = _references(_Block(1))


def _is_idle(block: _Block) -> bool:
    """Whether nothing refers to the memory but its block."""
    return _references(block) == _ALONE


def _rounded(size: int) -> int:
    """Up to a size of which there are eight from one power of two to the next: so that nearly equal ones share blocks."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


POOL = Pool()
