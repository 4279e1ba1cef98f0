"""Matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.loops import Accumulator, Var, acc, const, op, var
from twofold.backends.cpu.loops.expr import converted
from twofold.backends.cpu.lowering.rules import native
from twofold.backends.cpu.lowering.rules.elementwise import broadcast_index
from twofold.base.dtypes import sum_dtype
from twofold.ir import Node

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering


def product_sum(dtype: Any, a: Any, b: Any) -> Accumulator:
    """The accumulator of a sum of products, in the wide dtype."""
    d = sum_dtype(dtype)
    a, b = converted(a, d), converted(b, d)
    if d.is_floating:
        return Accumulator(d, const(d, 0), op("fma", d, a, b, acc(0, d)), "add")
    return Accumulator(d, const(d, 0), op("add", d, acc(0, d), op("multiply", d, a, b)), "add")


def _matmul(low: Lowering, node: Node) -> None:
    """y[..., m, n] = sum over k of a[..., m, k] * b[..., k, n], by plain loops."""
    if native.matmul(low, node):
        return
    (a, b), out = node.inputs, node.outputs[0]
    target = low.allocate(out)
    variables, inner = [Var(int(d), "i") for d in out.shape], Var(int(a.shape[-1]), "k")
    if inner.extent == 0:
        zero = const(out.dtype, 0)
        low.map(out.spec, target, lambda index: zero, [node])
    else:
        *batch, m, n = [var(v) for v in variables]
        k = var(inner)
        left = low.placed(a).at([*broadcast_index(batch, a.shape[:-2]), m, k])  # type: ignore[arg-type]
        right = low.placed(b).at([*broadcast_index(batch, b.shape[:-2]), k, n])  # type: ignore[arg-type]
        total = product_sum(out.dtype, left, right)
        low.reduce(variables, [inner], [total], [(target, converted(acc(0, total.dtype), out.dtype))], [node])
    low.result(out, target)


NESTS: dict[str, Any] = {"matmul": _matmul}
