"""One row for each op of the table.

``INLINE``  formula of one element: ``rule(node, ats, index) -> Expr`` (fuses into whatever reads it)
``NESTS``   loops or kernels of its own: ``rule(lowering, node)``
``HOST``    runs in Python between native parts: rare ops off the hot path
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
    "searchsorted": "a binary search for each element",
    "solve": "an LU factorisation",
}
VIEWS = movement.VIEWS

__all__ = ["HOST", "INLINE", "NESTS", "VIEWS"]
