"""The bytes of one weight file, every range checked against the bytes really there before allocating."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from twofold.base.errors import FormatError

SMALL_FILE = 16 << 20  # below this a copy costs less than the surprises of a mapped file
ALIGNMENT = 8
BLOCK = 4 << 20  # elements copied at a time out of a mapped file


class ByteSource:
    """A file opened for reading: ``data`` (the whole file, mapped) and ``array`` (a checked piece of it).

    The mapping is copy-on-write: arrays cut from it are writable and never change the file. It lives as long as the
    last array that shares it; while one does, truncating the file *in place* is not allowed (replacing it is).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.is_dir():
            raise FormatError(f"{self.path} is a folder; expected a .safetensors or .pth file")
        self._stream = open(self.path, "rb")  # noqa: SIM115 (closed by __exit__)
        self.size = os.fstat(self._stream.fileno()).st_size
        if self.size == 0:
            self._stream.close()
            raise FormatError("the file is empty; download or copy it again")
        self.data = mmap.mmap(self._stream.fileno(), self.size, access=mmap.ACCESS_COPY)

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def check(self, start: int, count: int, what: str) -> None:
        """Raise FormatError unless bytes [start, start + count) lie inside the file."""
        if start < 0 or count < 0 or start + count > self.size:
            raise FormatError(
                f"{what} takes bytes {start} to {start + count}, but the file has {self.size}: truncated or corrupt"
            )

    def bytes(self, start: int, count: int, what: str) -> bytes:
        """A copy of ``count`` bytes from ``start``."""
        self.check(start, count, what)
        return self.data[start : start + count]

    def array(self, start: int, count: int, what: str) -> np.ndarray:
        """Bytes [start, start + count) as a writable, 8-byte aligned uint8 array.

        A view of the mapped file where the file is large and the place aligned; else read into fresh memory.
        """
        self.check(start, count, what)
        if count and self.size >= SMALL_FILE and start % ALIGNMENT == 0:
            return np.frombuffer(self.data, np.uint8, count, start)
        fresh = np.empty(count, np.uint8)
        self._stream.seek(start)
        if self._stream.readinto(fresh.data) != count:
            raise FormatError(f"{what} could not be read whole: the file shrank while it was read")
        return fresh


def read_out(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A row-major copy in ``dtype``. Pages of a mapped file are given back as they are copied: file and copy are not both
    in memory. (What was written into a view of the file is lost by that: it is for views that nobody has changed.)
    """
    out = np.empty(array.shape, dtype)
    if not array.flags.c_contiguous:
        out[...] = array
        return out
    source, target = array.reshape(-1), out.reshape(-1)
    for start in range(0, source.size, BLOCK):
        block = source[start : start + BLOCK]
        target[start : start + BLOCK] = block
        _give_back(block)
    return out


def _give_back(view: np.ndarray) -> None:
    """Tell the system that the whole pages under a view of a mapped file are not needed for now."""
    base: object = view
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
        return
    begin = view.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, last = -(-begin // mmap.PAGESIZE), (begin + view.nbytes) // mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)
