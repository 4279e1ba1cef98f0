"""Elementwise ops, casts and creation: every op of that kind by its name; operands broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.backends.cpu.loops import Affine, Expr, const, constant, from_index, op
from twofold.backends.cpu.loops.expr import select
from twofold.backends.cpu.lowering.steps import At
from twofold.ir import Node
from twofold.ops import ELEMENTWISE

LARGEST_TABLE = 1  # constants up to this size are numbers in the code


def broadcast_index(index: Sequence[Affine], shape: Sequence[int]) -> tuple[Affine, ...]:
    """The index into an operand of ``shape`` that stands at ``index`` of the broadcast result."""
    tail = index[len(index) - len(shape) :]
    return tuple(constant(0) if d == 1 else i for i, d in zip(tail, shape))


def _elementwise(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    args = [at(broadcast_index(index, v.shape)) for at, v in zip(ats, node.inputs)]  # type: ignore[arg-type]
    if node.op.name == "where":
        return select(*args)
    return op(node.op.name, node.outputs[0].dtype, *args)


def _cast(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    x = ats[0](index)
    dtype = node.attrs["dtype"]
    return x if x.dtype is dtype else op("cast", dtype, x)


def _full(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    dtype = node.attrs["dtype"]
    return const(dtype, np.asarray(node.attrs["fill"]).astype(dtype.numpy))


def _iota(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    from twofold.base.dtypes import int64

    dtype = node.attrs["dtype"]
    return op("cast", dtype, from_index(index[0], int64)) if dtype.is_floating else from_index(index[0], dtype)


def _dim_size(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    dtype = node.attrs["dtype"]
    return const(dtype, np.asarray(node.attrs["dim"]).astype(dtype.numpy))


def _same(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    return ats[0](index)


INLINE: dict[str, Any] = dict.fromkeys(ELEMENTWISE, _elementwise)
INLINE |= {"cast": _cast, "full": _full, "iota": _iota, "dim_size": _dim_size, "detach": _same, "identity": _same}
