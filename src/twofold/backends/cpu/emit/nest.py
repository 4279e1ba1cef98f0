"""One nest as a kernel: threads share units of the outer loops, the rest is walked, the innermost is made of vectors.

for unit in this thread's share of (shared loops x chunks of the vector loop):
    for inner loops:
        vectors of the vector loop, then its tail under a mask:
            reduction loops with accumulators in registers; stores
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from twofold.backends.cpu.emit.body import Body
from twofold.backends.cpu.emit.functions import ROWS
from twofold.backends.cpu.emit.schedule import CHUNK, ROW_BLOCK, ROW_WIDTH, UNITS, Schedule, by_rows, gathered, schedule
from twofold.backends.cpu.llvm import Value, const, vector
from twofold.backends.cpu.llvm.types import register_type
from twofold.backends.cpu.loops import Buffer, Nest, Var
from twofold.backends.cpu.loops.expr import Expr
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder
from twofold.base.dtypes import float32

ERRORS = "errors"


def nest_kernel(machine: Machine, nest: Nest, name: str = "nest") -> tuple[Kernel, list[Buffer]]:
    """The kernel of a (simplified) nest, and the buffers its parameters stand for; a last parameter ``errors`` if the nest
    checks indices: two i64, the code of the check that failed first and the index that did."""
    buffers = list(dict.fromkeys([*nest.writes(), *nest.reads()]))
    params = [f"p{i}" for i in range(len(buffers))]
    if checks_indices(nest):
        params.append(ERRORS)
    k = KernelBuilder(machine, name, params)
    pointers = {b: k.f.arg(f"p{i}") for i, b in enumerate(buffers)}
    errors = k.f.arg(ERRORS) if params[-1:] == [ERRORS] else None
    body = Body(k.f, pointers, set(nest.writes()), machine.lanes, errors)
    body.past = _past(machine, nest)
    _Emitter(body, nest, schedule(nest, machine.lanes)).emit()
    return k.finish(note=nest.note), buffers


def _past(machine: Machine, nest: Nest) -> frozenset[Buffer]:
    """What is written past the caches: what they do not keep, and is not read here."""
    if not machine.stores_lines:
        return frozenset()
    written = set(nest.writes()) - set(nest.reads())
    return frozenset(b for b in written if b.dtype is float32 and machine.overflows(b.nbytes))


def checks_indices(nest: Nest) -> bool:
    """Whether some expression may leave an error."""
    seen: set[Expr] = set()

    def visit(e: Expr) -> bool:
        from twofold.backends.cpu.loops.expr import affines, computed

        if e in seen:
            return False
        seen.add(e)
        if e.kind == "op" and e.extra.startswith("checked:"):
            return True
        return any(map(visit, e.args)) or any(visit(x) for a in affines(e) for x in computed(a))

    from twofold.backends.cpu.loops.expr import computed as inside

    return any(map(visit, nest.roots())) or any(visit(e) for s in nest.all_stores() for e in inside(s.address))


class _Emitter:
    def __init__(self, body: Body, nest: Nest, plan: Schedule):
        self.body, self.nest, self.plan, self.f = body, nest, plan, body.f
        self.roots = nest.roots()
        self.by_rows = by_rows(nest, plan)

    def emit(self) -> None:
        """All of it."""
        plan, f = self.plan, self.f
        units = [d.extent for d in plan.shared]
        chunks, vectors = 1, 0
        if plan.vector is not None and not plan.reduced:
            vectors = plan.vector.extent // plan.lanes
            if self.by_rows:
                chunks = max(1, -(-vectors // ROW_WIDTH))
            elif not plan.inner and math.prod(units) < UNITS:
                chunks = max(1, -(-vectors // CHUNK))
        low, high = f.share(math.prod(units) * chunks, f.arg("tid"), f.arg("n"))
        with self.body.block():
            self.body.hoist(self.roots)
            with f.loop(low, high) as unit, self.body.block():
                *places, chunk = f.divmod_chain(unit.index, [*units, chunks])
                self.body.values.update(zip(plan.shared, places))
                self._walk(list(plan.inner), chunk, chunks, vectors)

    def _walk(self, inner: list[Var], chunk: Any, chunks: int, vectors: int) -> None:
        """The inner loops, one by one."""
        self.body.hoist(self.roots)
        if inner:
            with self.f.loop(0, inner[0].extent) as loop, self.body.block():
                self.body.values[inner[0]] = loop.index
                self._walk(inner[1:], chunk, chunks, vectors)
        elif self.plan.vector is None:
            self._point(None, None, 1)
        elif self.plan.reduced:
            self._reduce_vectors()
        elif self.plan.across is not None:
            self._squares(chunk, chunks, vectors)
        else:
            self._vectors(chunk, chunks, vectors)

    # ---- a vector loop over results -------------------------------------------------------------------------------
    def _vectors(self, chunk: Any, chunks: int, vectors: int) -> None:
        f, plan = self.f, self.plan
        lanes, tail = plan.lanes, plan.vector.extent % plan.lanes  # type: ignore[union-attr]
        if self.by_rows:
            self._rows(chunk, chunks, vectors)
            if tail:
                with f.when(f.icmp("eq", f.index(chunk), chunks - 1)):
                    self._point(vectors * lanes, tail, 1)
            return
        if chunks == 1:
            whole = vectors - vectors % plan.unroll
            self._vector_loop(0, whole, plan.unroll)
            self._vector_loop(whole, vectors, 1)
            if tail:
                self._point(vectors * lanes, tail, 1)
            return
        size = -(-vectors // chunks)
        start = f.mul(chunk, size)
        self._vector_loop(start, f.imin(f.add(start, size), vectors), 1)
        if tail:
            with f.when(f.icmp("eq", f.index(chunk), chunks - 1)):
                self._point(vectors * lanes, tail, 1)

    def _vector_loop(self, start: Any, stop: Any, step: int) -> None:
        if isinstance(start, int) and isinstance(stop, int) and start >= stop:
            return
        with self.f.loop(start, stop, step) as loop, self.body.block():
            self._point(self.f.mul(loop.index, self.plan.lanes), None, step)

    def _point(self, base: Any, count: int | None, copies: int) -> None:
        """One round of the loops over results: ``copies`` vectors from ``base`` on (or one element)."""
        body, vectorised = self.body, base is not None
        with body.block(), body.vectorised(self.plan.vector if vectorised else None, count):
            if vectorised:
                body.values[self.plan.vector] = base  # type: ignore[index]
            if self.nest.rdims or self.nest.accumulators:
                body.vector_accumulators = vectorised
                shape = body.lanes
                start = [[self._spread_init(a.init, shape)] * copies for a in self.nest.accumulators]
                body.accumulators = self._reduce(list(self.plan.rdims), start, copies)
            for copy in range(copies):
                body.store_all(self.nest.stores, copy)
            body.vector_accumulators = False

    # ---- transposed copies ----------------------------------------------------------------------------------------
    def _squares(self, chunk: Any, chunks: int, vectors: int) -> None:
        """Squares of vectors: rows are read as they lie, turned in registers, and stored as columns."""
        f, body, plan = self.f, self.body, self.plan
        across, lanes = plan.across, plan.lanes
        rest = across.extent % lanes  # type: ignore[union-attr]
        size = -(-vectors // chunks)
        start = f.mul(chunk, size)
        with f.loop(start, f.imin(f.add(start, size), vectors)) as loop, body.block():
            base = f.mul(loop.index, lanes)
            with f.loop(0, across.extent - rest, lanes) as along, body.block():  # type: ignore[union-attr]
                self._square(base, along.index)
            for i in range(rest):
                with body.block():
                    body.values[across] = across.extent - rest + i  # type: ignore[index, union-attr]
                    self._point(base, None, 1)

    def _square(self, base: Any, first: Any) -> None:
        f, body, plan = self.f, self.body, self.plan
        with body.vectorised(plan.vector, None):
            columns = {}
            for l in gathered(self.nest, plan.vector):  # type: ignore[arg-type]
                with body.block():
                    body.values.update({plan.vector: base, plan.across: first})  # type: ignore[dict-item]
                    step, place = l.extra[1].coefficient(plan.vector), body.pointer(*l.extra)
                    rows = [f.load(f.vec(), f.gep(place, i * step)) for i in range(plan.lanes)]
                columns[l] = f.transposed(rows)
            for i in range(plan.lanes):
                with body.block():
                    body.values.update({plan.vector: base, plan.across: f.add(first, i)})  # type: ignore[dict-item]
                    for l, values in columns.items():
                        body.know(l, values[i])
                    body.store_all(self.nest.stores)

    # ---- results side by side, reduced row after row --------------------------------------------------------------
    def _rows(self, chunk: Any, chunks: int, vectors: int) -> None:
        """Vectors of results whose accumulators lie in the stack: a few rows of the innermost reduced loop at a time, all
        of their columns before the next rows, so that memory is read in long runs."""
        f, nest = self.f, self.nest
        size = -(-vectors // chunks)
        start = f.mul(chunk, size)
        stop = f.imin(f.add(start, size), vectors)
        kinds = [register_type(a.dtype) for a in nest.accumulators]
        rows = [f.stack(size * self.plan.lanes, kind) for kind in kinds]

        def places(index: Any) -> list[Value]:
            at = f.mul(f.sub(index, start), self.plan.lanes)
            return [f.gep(row, at, kind) for row, kind in zip(rows, kinds)]

        def each(step: int, act: Any) -> None:
            """``act(accumulators' places)`` at every vector; ``step`` of them at once."""
            body = self.body
            whole = f.sub(stop, f.rem(f.sub(stop, start), step))
            for low, high, copies in ((start, whole, step), (whole, stop, 1))[: 1 if step == 1 else 2]:
                if isinstance(low, int) and isinstance(high, int) and low >= high:
                    continue
                with f.loop(low, high, copies) as loop, body.block(), body.vectorised(self.plan.vector, None):
                    body.values[self.plan.vector] = f.mul(loop.index, self.plan.lanes)  # type: ignore[index]
                    body.vector_accumulators = True
                    act(places(loop.index), copies)
                    body.vector_accumulators = False

        def begin(at: list[Value], copies: int) -> None:
            for place, a in zip(at, nest.accumulators):
                f.store(self._spread_init(a.init, self.plan.lanes), place)

        def finish(at: list[Value], copies: int) -> None:
            self.body.accumulators = self._from_rows(at, 1)
            self.body.store_all(nest.stores)

        each(1, begin)
        self._row_loops(list(self.plan.rdims), each)
        each(1, finish)

    def _from_rows(self, places: Sequence[Value], copies: int) -> list[list[Value]]:
        f, lanes = self.f, self.plan.lanes
        kinds = [register_type(a.dtype) for a in self.nest.accumulators]
        return [
            [f.load(vector(kind, lanes), f.gep(place, i * lanes, kind)) for i in range(copies)]
            for place, kind in zip(places, kinds)
        ]

    def _row_loops(self, rdims: list[Var], each: Any) -> None:
        f, body = self.f, self.body
        if len(rdims) > 1:
            with f.loop(0, rdims[0].extent) as loop, body.block():
                body.values[rdims[0]] = loop.index
                self._row_loops(rdims[1:], each)
            return
        (row,) = rdims
        rest = row.extent % ROW_BLOCK
        if row.extent >= ROW_BLOCK:
            with f.loop(0, row.extent - rest, ROW_BLOCK) as loop, body.block():
                each(2, lambda at, copies: self._block_of_rows(row, loop.index, ROW_BLOCK, at, copies))
        if rest:
            each(2, lambda at, copies: self._block_of_rows(row, row.extent - rest, rest, at, copies))

    def _block_of_rows(self, row: Var, first: Any, count: int, at: list[Value], copies: int) -> None:
        """A cache line of accumulators taken through ``count`` rows, while the next rows are fetched."""
        f, body, lanes = self.f, self.body, self.plan.lanes
        for copy in range(copies):
            body.hoist(self.roots, copy)
        now = self._from_rows(at, copies)
        streams = [l.extra for l in self.nest.loads() if row in l.extra[1].vars]
        for j in range(count):
            with body.block():
                body.values[row] = f.add(first, j + ROW_BLOCK)
                for buffer, address in streams:
                    f.prefetch(body.pointer(buffer, address))
            with body.block():
                body.values[row] = f.add(first, j)
                now = self._step(now, copies)
        for place, values in zip(at, now):
            for i, value in enumerate(values):
                f.store(value, f.gep(place, i * lanes, value.element))

    def _spread_init(self, init: Expr, lanes: int) -> Value:
        x = self.body.emit(init)
        if init.kind == "const" and lanes:
            return const(vector(x.element, lanes), _number(init))
        return self.f.splat(x, lanes) if lanes and not x.lanes else x

    def _reduce(self, rdims: list[Var], accumulators: list[list[Value]], copies: int) -> list[list[Value]]:
        """The reduction loops, the accumulators carried through them."""
        body = self.body
        if not rdims:
            return self._step(accumulators, copies)
        with self.f.loop(0, rdims[0].extent, carry=_flat(accumulators)) as loop, body.block():
            body.values[rdims[0]] = loop.index
            if len(rdims) > 1:
                body.hoist(self.roots)
            carried = _shaped(loop.carried, copies)
            loop.carry(_flat(self._reduce(rdims[1:], carried, copies)))
        return _shaped(loop.results, copies)

    def _step(self, accumulators: list[list[Value]], copies: int) -> list[list[Value]]:
        """One step of the reduction, for all copies."""
        body, out = self.body, [list(row) for row in accumulators]
        with body.block():
            body.accumulators = accumulators
            for copy in range(copies):
                for k, a in enumerate(self.nest.accumulators):
                    x = body.emit(a.update, copy)
                    out[k][copy] = body.spread(x) if body.vector_accumulators else x
            if self.nest.each:
                body.accumulators = out
                for copy in range(copies):
                    body.store_all(self.nest.each, copy)
        return out

    # ---- a vector loop that is reduced ----------------------------------------------------------------------------
    def _reduce_vectors(self) -> None:
        body, plan, lanes = self.body, self.plan, self.plan.lanes
        with body.block():
            body.vector_accumulators = True
            start = [[self._spread_init(a.init, lanes)] * plan.unroll for a in self.nest.accumulators]
            rows = self._reduce_outer(list(plan.rdims), start)
            body.vector_accumulators = False
            body.accumulators = [[self._fold(k, row)] for k, row in enumerate(rows)]
            body.store_all(self.nest.stores)

    def _reduce_outer(self, rdims: list[Var], accumulators: list[list[Value]]) -> list[list[Value]]:
        body, copies = self.body, self.plan.unroll
        if not rdims:
            return self._reduce_inner(accumulators)
        with self.f.loop(0, rdims[0].extent, carry=_flat(accumulators)) as loop, body.block():
            body.values[rdims[0]] = loop.index
            body.hoist(self.roots)
            loop.carry(_flat(self._reduce_outer(rdims[1:], _shaped(loop.carried, copies))))
        return _shaped(loop.results, copies)

    def _reduce_inner(self, accumulators: list[list[Value]]) -> list[list[Value]]:
        """The vectors of the reduced loop: unrolled, single, and the tail under a mask."""
        plan = self.plan
        vectors, tail = divmod(plan.vector.extent, plan.lanes)  # type: ignore[union-attr]
        whole = vectors - vectors % plan.unroll
        rows = self._reduce_range(0, whole, plan.unroll, accumulators)
        rest = self._reduce_range(whole, vectors, 1, [[row[0]] for row in rows])
        rows = [[first[0], *row[1:]] for first, row in zip(rest, rows)]
        if tail:
            base = vectors * plan.lanes
            with self.body.block(), self.body.vectorised(plan.vector, tail):
                self.body.values[plan.vector] = base  # type: ignore[index]
                done = self._step([[row[0]] for row in rows], 1)
                used = ", ".join(f"i1 {'true' if i < tail else 'false'}" for i in range(plan.lanes))
                mask = Value(vector("i1", plan.lanes), f"<{used}>")
                firsts = [self.f.select(mask, new[0], old[0]) for new, old in zip(done, rows)]
            rows = [[first, *row[1:]] for first, row in zip(firsts, rows)]
        return rows

    def _reduce_range(self, start: int, stop: int, copies: int, accumulators: list[list[Value]]) -> list[list[Value]]:
        if start >= stop:
            return accumulators
        body = self.body
        loops = self.f.loop(start, stop, copies, carry=_flat(accumulators))
        with loops as loop, body.block(), body.vectorised(self.plan.vector, None):
            body.values[self.plan.vector] = self.f.mul(loop.index, self.plan.lanes)  # type: ignore[index]
            loop.carry(_flat(self._step(_shaped(loop.carried, copies), copies)))
        return _shaped(loop.results, copies)

    def _fold(self, k: int, copies: Sequence[Value]) -> Value:
        """All lanes of all copies combined, in a fixed order."""
        a = self.nest.accumulators[k]
        combine = lambda x, y: ROWS[a.combine or ""](self.f, a.dtype, x, y)
        total = copies[0]
        for other in copies[1:]:
            total = combine(total, other)
        return self.f.reduce(combine, total)


def _flat(rows: list[list[Value]]) -> list[Value]:
    return [x for row in rows for x in row]


def _shaped(values: Sequence[Value], copies: int) -> list[list[Value]]:
    return [list(values[at : at + copies]) for at in range(0, len(values), copies)]


def _number(init: Expr) -> Any:
    return float.fromhex(init.extra) if isinstance(init.extra, str) else init.extra


__all__ = ["nest_kernel", "register_type"]
