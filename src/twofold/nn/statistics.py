"""Over which part of a batch batch-norm statistics are taken."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from twofold.base.errors import ArgumentError
from twofold.ir import context


class _Parts(threading.local):
    def __init__(self) -> None:
        self.parts = 1
        self.traced = False  # set within the program that is being traced: nothing outside can change it


_current = _Parts()


@contextlib.contextmanager
def batch_statistics(parts: int) -> Iterator[None]:
    """Within the block, batch norms in training take statistics over each of ``parts`` equal parts of the batch by itself,
    as if each were on a device of its own; running statistics move towards the mean of the parts'. A batch that does not
    divide is one part. (Known as ghost batch norm: Hoffer et al. 2017.)

    >>> import numpy as np
    >>> import twofold as tw
    >>> from twofold.nn.statistics import batch_statistics
    >>> norm, x = tw.nn.BatchNorm1d(3), tw.tensor(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    >>> with batch_statistics(2):
    ...     y = norm(x)
    >>> bool(abs(y[:4].mean(axis=0)).max() < 1e-6)
    True
    """
    if parts < 1:
        raise ArgumentError(f"batch_statistics: parts={parts}; expected at least 1")
    before = _current.parts, _current.traced
    _current.parts, _current.traced = parts, bool(context.builders)
    try:
        yield
    finally:
        _current.parts, _current.traced = before


def parts_for(batch: object) -> int:
    """The parts that a batch of this size is taken in. A trace is made again when the answer would change."""
    if context.builders and not _current.traced:
        context.builders[0].guards.append((_current, "parts", _current.parts))
    return _current.parts if isinstance(batch, int) and batch % _current.parts == 0 else 1
