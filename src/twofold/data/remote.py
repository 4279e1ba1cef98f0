"""What is known of a file on the net before it is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]  # file name, bytes so far, bytes in all (0: unknown)


class Remote(NamedTuple):
    """A file on the net. ``sha256`` is that of the *decompressed* content, as mirrors compress differently; with
    ``as_it_comes`` that of the file itself (an archive whose publisher states only this one)."""

    name: str
    urls: tuple[str, ...]
    sha256: str
    max_bytes: int  # of the file as it comes, and of its content
    as_it_comes: bool = False
