"""Memory for results, used again as soon as nobody looks at it: a large array made afresh costs page faults, about a quarter
of a millisecond for each MB, which is more than most ops take to fill it.

An array that is given out is a view of a *block*, which only the pool and such views hold. NumPy hangs every view of a view,
every memoryview and every DLPack capsule on the block, so while anybody can reach the memory the block has more references
than the pool's. Needs CPython with its interpreter lock; elsewhere every array is new.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import numpy as np

from twofold.backends.cpu import locks

LEAST = 128 << 10  # bytes: smaller arrays come quickly enough from NumPy
IDLE = 5.0  # seconds after which a block that nobody uses is given back
LINE = 64  # bytes: blocks begin at a cache line, so that no vector of a dense array lies across two
_COUNTED = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


class Pool:
    """Blocks by size. Safe to use from several threads."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[np.ndarray]] = {}
        self._starts: dict[int, list[int]] = {}  # size -> where each block's first cache line is
        self._used: dict[int, float] = {}  # size -> when a block of it was last asked for
        self._looked = 0.0
        self._lock = locks.renewed()

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A row-major array with any content."""
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST or not _COUNTED:
            return np.empty(shape, dtype)
        size = _rounded(size)
        with self._lock:
            now = self._used[size] = time.monotonic()
            if now - self._looked > IDLE:
                self._looked = now
                self._drop(now - IDLE)
            blocks = self._blocks.setdefault(size, [])
            at = _idle(blocks)
            if at is None:
                at = len(blocks)
                blocks.append(np.empty(size + LINE, np.uint8))
                self._starts.setdefault(size, []).append(-blocks[at].ctypes.data % LINE)
            return np.ndarray(shape, dtype, blocks[at], self._starts[size][at])

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
        for size, blocks in list(self._blocks.items()):
            if self._used[size] < before:
                while (at := _idle(blocks)) is not None:
                    del blocks[at], self._starts[size][at]
                if not blocks:
                    del self._blocks[size], self._used[size], self._starts[size]


def _idle(blocks: list[np.ndarray]) -> int | None:
    """The first block to which nothing refers but the list."""
    return next((at for at in range(len(blocks)) if _references(blocks, at) == _ALONE), None)


def _references(blocks: list[np.ndarray], at: int) -> int:
    return sys.getrefcount(blocks[at])


_ALONE = _references([np.empty(1)], 0)


def _rounded(size: int) -> int:
    """Up to a size of which there are eight from one power of two to the next: so that nearly equal ones share blocks."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


POOL = Pool()
