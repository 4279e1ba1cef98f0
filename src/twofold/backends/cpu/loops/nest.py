"""A loop nest: the unit of code.

    for kept in dims:                          shared among the threads
        accumulators = init
        for reduced in rdims:                  in order
            accumulators = update
            each stores                        (running sums, scatters)
        stores                                 may read the accumulators

``dims`` are listed from the outermost of the output's memory to the innermost; the emitter chooses which one to vectorise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from twofold.backends.cpu.loops.expr import Buffer, Expr, loads
from twofold.backends.cpu.loops.index import Affine, Var, constant, var
from twofold.base.dtypes import DType


@dataclass
class Store:
    """``buffer[address] = value`` (where ``guard`` holds)."""

    buffer: Buffer
    address: Affine
    value: Expr
    guard: Expr | None = None

    def substitute(self, values: dict[Var, Affine]) -> Store:
        guard = self.guard.substitute(values) if self.guard is not None else None
        return Store(self.buffer, self.address.substitute(values), self.value.substitute(values), guard)


@dataclass
class Accumulator:
    """``init`` at the start, ``update`` (an expression over ``acc``) at every step.

    ``combine`` names the op that joins two partial results, which lets the reduction be split and vectorised; None where
    only the order given is right.
    """

    dtype: DType
    init: Expr
    update: Expr
    combine: str | None = None


@dataclass
class Nest:
    """See the module's text."""

    dims: list[Var]
    stores: list[Store]
    rdims: list[Var] = field(default_factory=list)
    accumulators: list[Accumulator] = field(default_factory=list)
    each: list[Store] = field(default_factory=list)
    note: str = ""

    @property
    def size(self) -> int:
        return math.prod(d.extent for d in self.dims)

    @property
    def work(self) -> int:
        """Innermost iterations."""
        return self.size * math.prod(d.extent for d in self.rdims)

    def all_stores(self) -> list[Store]:
        return self.stores + self.each

    def roots(self) -> list[Expr]:
        """Every expression computed."""
        out = [a.update for a in self.accumulators] + [a.init for a in self.accumulators]
        for s in self.all_stores():
            out += [s.value] if s.guard is None else [s.value, s.guard]
        return out

    def loads(self) -> list[Expr]:
        """Every load, once."""
        seen: set[Expr] = set()
        found = [l for e in self.roots() for l in loads(e, seen)]
        for s in self.all_stores():
            from twofold.backends.cpu.loops.expr import computed

            for e in computed(s.address):
                found += loads(e, seen)
        return found

    def reads(self) -> list[Buffer]:
        return list(dict.fromkeys(l.extra[0] for l in self.loads()))

    def writes(self) -> list[Buffer]:
        return list(dict.fromkeys(s.buffer for s in self.all_stores()))

    def substitute(self, values: dict[Var, Affine], dims: list[Var], rdims: list[Var]) -> Nest:
        """The same computation over other loop variables."""
        accumulators = [
            Accumulator(a.dtype, a.init.substitute(values), a.update.substitute(values), a.combine) for a in self.accumulators
        ]
        stores, each = [s.substitute(values) for s in self.stores], [s.substitute(values) for s in self.each]
        return Nest(dims, stores, rdims, accumulators, each, self.note)


def simplified(nest: Nest) -> Nest:
    """Without loops of one round, and with neighbours merged where all addresses run through both as through one."""
    dims = [d for d in nest.dims if d.extent != 1]
    rdims = [d for d in nest.rdims if d.extent != 1]
    single = {d: constant(0) for d in nest.dims + nest.rdims if d.extent == 1}
    nest = nest.substitute(single, dims, rdims)
    if nest.each and not nest.rdims and not nest.accumulators:  # a single round: what it stores is stored once
        nest = Nest(nest.dims, [*nest.each, *nest.stores], [], [], [], nest.note)
    for reduced in (False, True):
        at = 0
        while True:
            group = nest.rdims if reduced else nest.dims
            if at + 1 >= len(group):
                break
            merged = _merge(nest, group[at], group[at + 1], reduced)
            if merged is None:
                at += 1
            else:
                nest = merged
    return nest


def _merge(nest: Nest, outer: Var, inner: Var, reduced: bool) -> Nest | None:
    """The nest with two adjacent loops made one, if every address agrees."""
    if not all(_runs_through(a, outer, inner) for a in addresses(nest)):
        return None
    joined = Var(outer.extent * inner.extent, outer.name)
    values = {outer: constant(0), inner: var(joined)}
    group = nest.rdims if reduced else nest.dims
    at = group.index(outer)
    new = [*group[:at], joined, *group[at + 2 :]]
    return nest.substitute(values, nest.dims if reduced else new, new if reduced else nest.rdims)


def _runs_through(a: Affine, outer: Var, inner: Var) -> bool:
    if a.hides(outer) or a.hides(inner):
        return False
    return a.coefficient(outer) == a.coefficient(inner) * inner.extent


def addresses(nest: Nest) -> list[Affine]:
    """Every index expression of the nest: addresses, ranges, indices used as numbers."""
    from twofold.backends.cpu.loops.expr import affines, computed

    seen: set[Expr] = set()
    out: list[Affine] = [s.address for s in nest.all_stores()]

    def visit(e: Expr) -> None:
        if e in seen:
            return
        seen.add(e)
        for a in affines(e):
            out.append(a)
            for inner in computed(a):
                visit(inner)
        for arg in e.args:
            visit(arg)

    for root in nest.roots():
        visit(root)
    for s in nest.all_stores():
        for e in computed(s.address):
            visit(e)
    return out
