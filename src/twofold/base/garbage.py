"""Python's search for cycles of dead objects, put off while a compiler makes many that live."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator


class _State:
    put_off = False


def _resume() -> None:
    if _State.put_off:
        _State.put_off = False
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume)  # nobody ends the block of a thread that the child does not have


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """In the block nobody looks for cycles: a graph's nodes and its plan all stay, and to walk over them again and again
    took a sixteenth of a compilation's time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    _State.put_off = True
    try:
        yield
    finally:
        _resume()
