"""Rewriting nests: another buffer in the place of one; the same nest from where its buffers are read or written first."""

from __future__ import annotations

from collections.abc import Callable

from twofold.backends.cpu.loops import Accumulator, Affine, Buffer, Expr, Nest, Store, load
from twofold.backends.cpu.loops.expr import rewrite_loads


def replace_buffer(nest: Nest, old: Buffer, new: Buffer) -> Nest:
    """The nest reading and writing ``new`` where it read and wrote ``old``."""
    return _moved(nest, lambda b, address: (new if b is old else b, address))


def from_first_elements(nest: Nest) -> tuple[Nest, dict[Buffer, int]]:
    """The nest with addresses relative to the given element of each buffer: what is done to two slices is one kernel."""
    stores = [(s.buffer, s.address) for s in nest.all_stores()]
    firsts: dict[Buffer, int] = {}
    for buffer, address in [*stores, *(l.extra for l in nest.loads())]:
        firsts[buffer] = min(address.const, firsts.get(buffer, address.const))
    firsts = {b: max(0, first) for b, first in firsts.items()}
    if not any(firsts.values()):
        return nest, firsts
    return _moved(nest, lambda b, address: (b, address - firsts[b])), firsts


def _moved(nest: Nest, place: Callable[[Buffer, Affine], tuple[Buffer, Affine]]) -> Nest:
    """The nest reading and writing ``place(buffer, address)``."""

    def change(l: Expr) -> Expr:
        return load(*place(*l.extra), *l.args)

    def expr(e: Expr) -> Expr:
        return rewrite_loads(e, change)

    def store(s: Store) -> Store:
        guard = expr(s.guard) if s.guard is not None else None
        return Store(*place(s.buffer, s.address), expr(s.value), guard)

    return Nest(
        nest.dims, [store(s) for s in nest.stores], nest.rdims,
        [Accumulator(a.dtype, expr(a.init), expr(a.update), a.combine) for a in nest.accumulators],
        [store(s) for s in nest.each], nest.note,
    )  # fmt: skip
