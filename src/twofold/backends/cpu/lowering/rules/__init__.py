"""One row for each op of the table.

``INLINE``  formula of one element: ``rule(node, ats, index) -> Expr`` (fuses into whatever reads it)
``NESTS``   loops or kernels of its own: ``rule(lowering, node)``
``HOST``    the gaps, and why: they run in Python between native parts. ``f.report()`` names those of a program;
            docs/devices.md lists them, and a test holds the two together
``OWN``     as ``NESTS``, for ops that no graph of a user has: the backend puts them there
``VIEWS``   the inline ops that only map indices
"""

from __future__ import annotations

from twofold.backends.cpu.lowering.rules import (
    control,
    conv,
    elementwise,
    indexing,
    matmul,
    movement,
    native,
    normalization,
    pool,
    random,
    reduction,
)

INLINE = {**elementwise.INLINE, **movement.INLINE, **indexing.INLINE, **random.INLINE}
NESTS = {
    **movement.NESTS, **reduction.NESTS, **indexing.NESTS, **matmul.NESTS, **conv.NESTS, **pool.NESTS, **control.NESTS,
    **normalization.NESTS,
}  # fmt: skip
HOST = {
    "sort": "needs a sorting network",
    "argsort": "needs a sorting network",
    "topk": "needs a selection",
    "solve": "needs an LU factorisation",
}
OWN = native.OWN
VIEWS = movement.VIEWS

__all__ = ["HOST", "INLINE", "NESTS", "OWN", "VIEWS"]
