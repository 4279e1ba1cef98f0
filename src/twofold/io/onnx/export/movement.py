"""Rows of ops that make, move and pick elements."""

from __future__ import annotations

import numpy as np

from twofold.base.dims import Sym
from twofold.base.dtypes import float32, float64, int16, int32, int64
from twofold.io.onnx.common import TO_ONNX
from twofold.io.onnx.export.emitter import Emitter, tensor
from twofold.io.onnx.export.rows import EXACT, combined, exact
from twofold.ir import Node

SMALL = 64  # elements; a larger constant fill is written as an operator
_RANGE = (int16, int32, int64, float32, float64)


@exact("constant")
def _constant(e: Emitter, node: Node) -> str:
    return e.constant(node.attrs["value"], hint=node.outputs[0].name or "const")


@exact("full")
def _full(e: Emitter, node: Node) -> str:
    shape, fill = node.attrs["shape"], np.asarray(node.attrs["fill"], node.attrs["dtype"].numpy)
    if not any(isinstance(d, Sym) for d in shape) and np.prod(shape, dtype=object) <= SMALL:
        return e.constant(np.full(shape, fill))
    return e.op("ConstantOfShape", e.dims(shape), value=tensor(fill.reshape(1), "value"))


@exact("iota")
def _iota(e: Emitter, node: Node) -> str:
    dtype = node.attrs["dtype"]
    stop = e.op("Squeeze", e.size(node.attrs["size"]), e.ints(0))
    numbers = e.op("Range", e.constant(0, np.int64), stop, e.constant(1, np.int64))
    return numbers if dtype is int64 else e.op("Cast", numbers, to=TO_ONNX[dtype])


@exact("dim_size")
def _dim_size(e: Emitter, node: Node) -> str:
    size = e.op("Squeeze", e.size(node.attrs["dim"]), e.ints(0))
    dtype = node.attrs["dtype"]
    return size if dtype is int64 else e.op("Cast", size, to=TO_ONNX[dtype])


@exact("reshape")
def _reshape(e: Emitter, node: Node, x: str) -> str:
    """Sizes that are the input's are 0 ("copy"), one other symbolic size is -1: any batch size reads well."""
    old, new = node.inputs[0].shape, node.attrs["shape"]
    if len(old) > 2 and len(new) == 2 and new[0] == old[0] and 0 not in new:
        return e.op("Flatten", x, axis=1)
    if 0 in new:
        return e.op("Reshape", x, e.dims(new), allowzero=1)
    sizes = [0 if isinstance(d, Sym) and i < len(old) and old[i] == d else d for i, d in enumerate(new)]
    symbolic = [i for i, d in enumerate(sizes) if isinstance(d, Sym)]
    if len(symbolic) > 1:
        return e.op("Reshape", x, e.dims(new))
    return e.op("Reshape", x, e.ints(*[-1 if i in symbolic else int(d) for i, d in enumerate(sizes)]))


EXACT["permute_dims"] = lambda e, node, x: e.op("Transpose", x, perm=list(node.attrs["axes"]))
EXACT["broadcast_to"] = lambda e, node, x: e.op("Expand", x, e.dims(node.attrs["shape"]))
EXACT["concat"] = lambda e, node, *xs: e.op("Concat", *xs, axis=node.attrs["axis"])


@exact("slice")
def _slice(e: Emitter, node: Node, x: str) -> str:
    starts, stops, steps = (node.attrs[k] for k in ("starts", "stops", "steps"))
    shape = node.inputs[0].shape
    axes = [i for i, d in enumerate(shape) if (starts[i], stops[i], steps[i]) != (0, d, 1)]
    if not axes:
        return e.op("Identity", x)
    pick = lambda row: e.dims([row[i] for i in axes])
    return e.op("Slice", x, pick(starts), pick(stops), e.ints(*axes), pick(steps))


@exact("flip")
def _flip(e: Emitter, node: Node, x: str) -> str:
    axes = node.attrs["axes"]
    count = len(axes)
    return e.op(
        "Slice", x, e.ints(*[-1] * count), e.ints(*[-(2**63) + 1] * count), e.ints(*axes), e.ints(*[-1] * count)
    )


@exact("pad")
def _pad(e: Emitter, node: Node, x: str) -> str | None:
    if any(node.attrs["interior"]):
        return None
    widths = node.attrs["widths"]
    pads = e.dims([low for low, _ in widths] + [high for _, high in widths])
    return e.op("Pad", x, pads, e.constant(node.attrs["fill"], node.inputs[0].dtype.numpy))


def _standard(node: Node) -> str:
    """The operator named in the op's record."""
    return node.op.onnx or node.op.name


@exact("sum", "prod", "max", "min")
def _reduce(e: Emitter, node: Node, x: str) -> str:
    return e.op(_standard(node), x, e.ints(*node.attrs["axes"]), keepdims=int(node.attrs["keepdims"]))


@exact("argmax", "argmin")
def _arg(e: Emitter, node: Node, x: str) -> str:
    return e.op(_standard(node), x, axis=node.attrs["axis"], keepdims=int(node.attrs["keepdims"]))


EXACT["cumulative_sum"] = lambda e, node, x: e.op("CumSum", x, e.constant(node.attrs["axis"], np.int64))
EXACT["gather"] = lambda e, node, x, i: e.op("Gather", x, _signed(e, node, i), axis=node.attrs["axis"])
EXACT["take_along_axis"] = lambda e, node, x, i: e.op("GatherElements", x, _signed(e, node, i), axis=node.attrs["axis"])
EXACT["gather_nd"] = lambda e, node, x, i: e.op("GatherND", x, _signed(e, node, i))
EXACT["scatter_nd"] = lambda e, node, x, i, u: e.op("ScatterND", x, _signed(e, node, i), u)


def _signed(e: Emitter, node: Node, indices: str) -> str:
    """Indices in a dtype that the standard allows."""
    return indices if node.inputs[1].dtype in (int32, int64) else e.op("Cast", indices, to=TO_ONNX[int64])


@exact("topk")
def _topk(e: Emitter, node: Node, x: str) -> tuple[str, ...]:
    attrs = node.attrs
    return e.op("TopK", x, e.ints(attrs["k"]), outputs=2, axis=attrs["axis"], largest=int(attrs["largest"]), sorted=1)


# ---- sorts and sums at places, of several operators ------------------------------------------------------------------


@combined("sort")
def _sort(e: Emitter, node: Node, x: str) -> str | None:
    """The top of all. (``argsort`` is not: TopK does not say how it orders equal elements.)"""
    axis, size = node.attrs["axis"], node.inputs[0].shape[node.attrs["axis"]]
    if isinstance(size, Sym) or size == 0:
        return None
    values, _ = e.op("TopK", x, e.ints(size), outputs=2, axis=axis, largest=int(node.attrs["descending"]), sorted=1)
    return values


def _zeros(e: Emitter, node: Node) -> str:
    zero = tensor(np.zeros(1, node.outputs[0].dtype.numpy), "value")
    return e.op("ConstantOfShape", e.dims(node.outputs[0].shape), value=zero)


@combined("add_along_axis")
def _add_along(e: Emitter, node: Node, updates: str, indices: str) -> str:
    places = _signed(e, node, indices)
    return e.op("ScatterElements", _zeros(e, node), places, updates, axis=node.attrs["axis"], reduction="add")


@combined("add_nd")
def _add_nd(e: Emitter, node: Node, updates: str, indices: str) -> str:
    return e.op("ScatterND", _zeros(e, node), _signed(e, node, indices), updates, reduction="add")
