"""Rewriting nests: another buffer in the place of one."""

from __future__ import annotations

from twofold.backends.cpu.loops import Accumulator, Buffer, Expr, Nest, Store, load
from twofold.backends.cpu.loops.expr import rewrite_loads


def replace_buffer(nest: Nest, old: Buffer, new: Buffer) -> Nest:
    """The nest reading and writing ``new`` where it read and wrote ``old``."""

    def change(l: Expr) -> Expr:
        return load(new, l.extra[1], *l.args) if l.extra[0] is old else l

    def expr(e: Expr) -> Expr:
        return rewrite_loads(e, change)

    def store(s: Store) -> Store:
        guard = expr(s.guard) if s.guard is not None else None
        return Store(new if s.buffer is old else s.buffer, s.address, expr(s.value), guard)

    return Nest(
        nest.dims, [store(s) for s in nest.stores], nest.rdims,
        [Accumulator(a.dtype, expr(a.init), expr(a.update), a.combine) for a in nest.accumulators],
        [store(s) for s in nest.each], nest.note,
    )  # fmt: skip
