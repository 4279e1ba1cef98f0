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
