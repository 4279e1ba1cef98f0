"""Arrays between pages that nobody may touch."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE


class Guarded:
    """A buffer that touches a page without access: at its end (``after``), or at its start. ``freeze`` forbids writing."""

    def __init__(self, shape: int | tuple[int, ...], after: bool, dtype: Any = np.float32):
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        size = max(1, count * kind.itemsize)
        self._size = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, self._size + 2 * PAGE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for guard in (self._base, self._base + PAGE + self._size):
            self._protect(guard, PAGE, 0)
        start = PAGE + self._size - count * kind.itemsize if after else PAGE
        raw = np.frombuffer(self._map, np.uint8, count * kind.itemsize, start)
        self.array = raw.view(kind).reshape(shape)
        if kind.kind != "b":
            self.array[...] = np.asarray(0.5).astype(kind)

    def freeze(self) -> None:
        """From here on a write into the buffer ends the process."""
        self._protect(self._base + PAGE, self._size, mmap.PROT_READ)

    @staticmethod
    def _protect(address: int, size: int, rights: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), rights) == 0

    def __del__(self) -> None:
        self.array = None  # type: ignore[assignment]
