"""Philox bits, computed in the kernel that uses them, and the state of the next draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twofold.backends.cpu.loops import Affine, Expr, const, constant, from_index, in_range, op
from twofold.backends.cpu.loops.expr import select
from twofold.backends.cpu.lowering.steps import At, row_strides
from twofold.base.dtypes import uint32, uint64
from twofold.ir import Node


def _words(ats: Sequence[At]) -> list[Expr]:
    return [ats[0]([constant(k)]) for k in range(4)]


def _bits(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    flat = constant(0)
    for i, stride in zip(index, row_strides(node.attrs["shape"])):
        flat = flat + i * stride
    return op("philox", uint32, from_index(flat, uint64), *_words(ats))


def _next(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    key0, key1, low, high = _words(ats)
    one = const(uint32, 1)
    raised = op("add", uint32, low, one)
    carried = op("add", uint32, high, select(op("equal", _bool(), raised, const(uint32, 0)), one, const(uint32, 0)))
    out = carried
    for k, word in ((2, raised), (1, key1), (0, key0)):
        out = select(in_range(index[0], k, k + 1), word, out)
    return out


def _bool() -> Any:
    from twofold.base.dtypes import bool_

    return bool_


INLINE: dict[str, Any] = {"random_bits": _bits, "rng_next": _next}
