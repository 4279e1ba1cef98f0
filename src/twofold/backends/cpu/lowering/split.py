"""Long reductions to few results are cut into parts that threads share; a second nest joins the parts.

The number of parts follows from the shape alone, so the bits of a result do not depend on the number of threads.
"""

from __future__ import annotations

from twofold.backends.cpu.loops import Accumulator, Affine, Buffer, Expr, Nest, Store, Var, acc, load, op, var
from twofold.backends.cpu.loops.expr import in_range, select, with_guard

PARTS = 32  # at most: more would cost more to join than cores could use
LEAST_WORK = 1 << 14  # iterations under which one unit is quicker than two nests


def split_reduction(nest: Nest) -> list[Nest]:
    """``nest``, or two nests that do the same in parts."""
    if not nest.rdims or nest.each or nest.work < LEAST_WORK or not all(a.combine for a in nest.accumulators):
        return [nest]
    results = nest.size
    if results * 8 > nest.work or results >= 4096:
        return [nest]
    longest = max(nest.rdims, key=lambda r: r.extent)
    first = nest.rdims[0] if nest.rdims[0].extent >= 8 else longest
    parts = min(PARTS, first.extent)
    if parts < 2:
        return [nest]
    return _split(nest, first, parts)


def _split(nest: Nest, cut: Var, parts: int) -> list[Nest]:
    length = -(-cut.extent // parts)
    part, step = Var(-(-cut.extent // length), "p"), Var(length, "r")
    place = var(part) * length + var(step)
    inside = in_range(place, 0, cut.extent)
    accumulators = []
    for k, a in enumerate(nest.accumulators):
        update = with_guard(a.update.substitute({cut: place}), inside)
        accumulators.append(Accumulator(a.dtype, a.init, select(inside, update, acc(k, a.dtype)), a.combine))
    rdims = [step if r is cut else r for r in nest.rdims]
    buffers = [Buffer(a.dtype, part.extent * nest.size, "parts") for a in nest.accumulators]
    at = _flat([part, *nest.dims])
    stores = [Store(b, at, acc(k, b.dtype)) for k, b in enumerate(buffers)]
    partial = Nest([part, *nest.dims], stores, rdims, accumulators, [], f"{nest.note} (parts)")
    return [partial, _join(nest, part, buffers, at)]


def _join(nest: Nest, part: Var, buffers: list[Buffer], at: Affine) -> Nest:
    joined = []
    for k, (a, b) in enumerate(zip(nest.accumulators, buffers)):
        update: Expr = op(a.combine or "", a.dtype, acc(k, a.dtype), load(b, at))
        joined.append(Accumulator(a.dtype, a.init, update, a.combine))
    return Nest(nest.dims, nest.stores, [part], joined, [], f"{nest.note} (join)")


def _flat(variables: list[Var]) -> Affine:
    total = var(variables[0])
    for v in variables[1:]:
        total = total * v.extent + var(v)
    return total
