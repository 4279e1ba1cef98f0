"""Reductions, argmax/argmin, running sums and products. 16-bit floats accumulate in float32 and are rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu.loops import Accumulator, Expr, Nest, Store, Var, acc, const, from_index, op, var
from twofold.backends.cpu.loops.expr import converted, select
from twofold.base.dtypes import DType, bool_, int64, sum_dtype
from twofold.ir import Node

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

COMBINE = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum", "any": "logical_or", "all": "logical_and"}

OF_BOOLS = {"sum": "logical_or", "prod": "logical_and", "max": "logical_or", "min": "logical_and"}


def lowest(dtype: DType, sign: int = -1) -> Expr:
    """The least value of a dtype (or, with ``sign`` 1, the largest)."""
    if dtype.is_floating:
        return const(dtype, sign * float("inf"))
    if dtype is bool_:
        return const(dtype, sign > 0)
    info = np.iinfo(dtype.numpy)
    return const(dtype, int(info.min if sign < 0 else info.max))


def _initial(name: str, dtype: DType) -> Expr:
    if name in ("max", "min"):
        return lowest(dtype, -1 if name == "max" else 1)
    return const(dtype, name in ("prod", "all"))


def _reduction(low: Lowering, node: Node) -> None:
    x, out, axes = node.inputs[0], node.outputs[0], node.attrs["axes"]
    name, target = node.op.name, low.allocate(out)
    dtype = sum_dtype(x.dtype)
    everything = [Var(int(d), "r" if i in axes else "i") for i, d in enumerate(x.shape)]
    kept = [v for i, v in enumerate(everything) if i not in axes]
    rdims = [v for i, v in enumerate(everything) if i in axes]
    variables = kept
    if node.attrs["keepdims"]:
        variables = [Var(1) if i in axes else v for i, v in enumerate(everything)]
    start = _initial(name, dtype)
    if any(r.extent == 0 for r in rdims):
        low.map(out.spec, target, lambda index: converted(start, out.dtype), [node])
    else:
        value = converted(low.at(x)([var(v) for v in everything]), dtype)
        combine = OF_BOOLS.get(name, COMBINE[name]) if dtype is bool_ else COMBINE[name]
        total = Accumulator(dtype, start, op(combine, dtype, acc(0, dtype), value), combine)
        by_channel = name == "sum" and x.ndim == 4 and variables == [everything[1]]
        if not (by_channel and low.waiting.total(value, everything, target, [node])):
            low.reduce(variables, rdims, [total], [(target, converted(acc(0, dtype), out.dtype))], [node])
    low.result(out, target)


def _arg(low: Lowering, node: Node) -> None:
    """Position of the first extremum; a NaN counts as the extremum."""
    x, out, axis = node.inputs[0], node.outputs[0], node.attrs["axis"]
    dtype, largest, target = x.dtype, node.op.name == "argmax", low.allocate(out)
    everything = [Var(int(d), "i") for d in x.shape]
    value = low.at(x)([var(v) for v in everything])
    best, place = acc(0, dtype), acc(1, int64)
    if dtype is bool_:
        better = op("logical_and", bool_, value if largest else op("logical_not", bool_, value),
                    op("logical_not", bool_, best) if largest else best)  # fmt: skip
    else:
        better = op("greater" if largest else "less", bool_, value, best)
    if dtype.is_floating:
        new_nan = op("logical_and", bool_, op("isnan", bool_, value), op("logical_not", bool_, op("isnan", bool_, best)))
        better = op("logical_or", bool_, better, new_nan)
    first = lowest(dtype, -1 if largest else 1)
    accumulators = [
        Accumulator(dtype, first, select(better, value, best)),
        Accumulator(int64, const(int64, 0), select(better, from_index(var(everything[axis]), int64), place)),
    ]
    variables = [v for i, v in enumerate(everything) if i != axis]
    if node.attrs["keepdims"]:
        variables = [Var(1) if i == axis else v for i, v in enumerate(everything)]
    low.reduce(variables, [everything[axis]], accumulators, [(target, place)], [node])
    low.result(out, target)


def _running(low: Lowering, node: Node) -> None:
    x, out, axis = node.inputs[0], node.outputs[0], node.attrs["axis"]
    dtype, target = sum_dtype(x.dtype), low.allocate(out)
    everything = [Var(int(d), "i") for d in x.shape]
    index = [var(v) for v in everything]
    name = "add" if node.op.name == "cumulative_sum" else "multiply"
    if dtype is bool_:
        name = "logical_or" if name == "add" else "logical_and"
    update = op(name, dtype, acc(0, dtype), converted(low.at(x)(index), dtype))
    total = Accumulator(dtype, const(dtype, name in ("multiply", "logical_and")), update)
    dims = [everything[d] for d in target.order if d != axis]
    each = [Store(target.buffer, target.address(index), converted(acc(0, dtype), out.dtype))]
    if 0 not in x.shape:
        low.nest(Nest(dims, [], [everything[axis]], [total], each), [node])
    low.result(out, target)


NESTS: dict[str, Any] = {
    **dict.fromkeys(COMBINE, _reduction), "argmax": _arg, "argmin": _arg,
    "cumulative_sum": _running, "cumulative_prod": _running,
}  # fmt: skip
