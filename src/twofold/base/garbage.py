"""Python's search for cycles of dead objects, put off while a compiler makes many that live."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """In the block nobody looks for cycles: a graph's nodes and its plan all stay, and to walk over them again and again
    took a sixteenth of a compilation's time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
