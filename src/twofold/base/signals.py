"""Signals that wait: what must not be half done is done first, then Ctrl-C (or the scheduler's SIGTERM) takes effect."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal of ``ENDING`` that comes within the block has its handler called at the block's end; a second one, of a user
    who will not wait, at once. Handlers run in the main thread, so in others there is nothing to hold."""
    present = {int(number): signal.getsignal(number) for number in ENDING} if _main() else {}
    handlers = {number: handler for number, handler in present.items() if callable(handler)}
    waiting: list[tuple[int, FrameType | None]] = []
    over = False

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))
        if over or len(waiting) > 1:
            waiting.clear()
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, wait)
        yield
    finally:
        over = True  # should a signal break off what follows, those that are left here hold nothing back
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in waiting[:1]:
            handlers[number](number, frame)


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """Within the block SIGTERM, where it would end the process on the spot, raises SystemExit with the exit code that the
    shell gives such an end (143), so that what is to be put away is."""
    if not _main() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _main() -> bool:
    return threading.current_thread() is threading.main_thread()
