"""Reading bytes of files nobody vouches for: plain or gzip, never more than the file and its claims justify."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from twofold.base.errors import FormatError, UnsafeFileError

CHUNK = 1 << 20
DEFLATE_LIMIT = 1032  # no deflate stream grows by more than this factor (zlib's technical notes)
_GZIP_MAGIC = b"\x1f\x8b"


class BoundedReader:
    """A binary stream that gives at most ``limit`` bytes in all and says so; gzip's errors become FormatError."""

    def __init__(self, stream: BinaryIO, path: Path, limit: int, capacity: int):
        self._stream, self.path, self._left, self.limit, self.capacity = stream, path, limit, limit, capacity

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, all up to the limit if negative; fewer only at the end."""
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        parts = []
        try:
            while wanted > 0 and (part := self._stream.read(min(wanted, CHUNK))):
                parts.append(part)
                wanted -= len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError(f"{self.path}: cannot be read: {error}; the file is damaged, fetch it again") from error
        data = b"".join(parts)
        self._left -= len(data)
        if self._left < 0:
            raise UnsafeFileError(f"{self.path}: holds more than the {self.limit:,} bytes expected at most; refused")
        return data

    def exactly(self, size: int, what: str) -> bytes:
        """``size`` bytes, or FormatError saying how many were there; nothing is allocated that cannot be there."""
        if size > self.capacity:
            raise FormatError(f"{self.path}: {what} claims {size:,} bytes; the file can hold {self.capacity:,} at most")
        data = self.read(size)
        if len(data) != size:
            raise FormatError(f"{self.path}: truncated: {what} needs {size:,} bytes, {len(data):,} are there")
        return data

    def end(self) -> None:
        """FormatError unless the stream ends here."""
        if self.read(1):
            raise FormatError(f"{self.path}: has bytes after its declared end; expected none")


@contextlib.contextmanager
def open_bounded(path: str | os.PathLike, limit: int) -> Iterator[BoundedReader]:
    """Open a file, through gzip if its first bytes say so, for reading at most ``limit`` bytes."""
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        compressed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not compressed:
            yield BoundedReader(file, path, limit, size)
            return
        import gzip

        with gzip.GzipFile(fileobj=file) as stream:
            yield BoundedReader(stream, path, limit, size * DEFLATE_LIMIT)  # type: ignore[arg-type]
