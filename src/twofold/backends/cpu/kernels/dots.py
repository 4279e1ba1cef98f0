"""Products of few rows with a transposed matrix, such as a linear layer at small batches: dot products along contiguous memory.

ALGORITHM
    c[b, i, j] = sum over k of a[b, i, k] * b[b, j, k]
SCHEDULE
    Reading b is the work, and vectors run along k: sums of vectors, which are added up across at the end. A unit is as many
    columns (rows of b) as a vector has elements; units are shared among the threads. The tile is a few rows x a few columns.
    All rows of a tile pass by each line of b while it is near. With so many rows that a does not stay in L1, k goes in
    blocks of which it does, and the unit's sums rest in a scratch in between. a is copied first, ``[vector of k][row]``: its
    rows and b's lie the same power of two apart as often as not, and would meet in one set of L1. Without blocks and copy 8
    rows ran at half of what memory gives.
    b is asked for well ahead, into L2: the columns that come next or, without blocks, what follows in the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Matmul, runs, split
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

ROWS = 16  # up to so many rows, dot products beat packing b
NARROW, WIDE = (3, 4), (8, 3)  # rows x columns of a tile: 12 sums + 3 + 1 operands fit 16 registers, 24 + 3 + 1 fit 32
AHEAD = 512  # elements
Multiply = Callable[[Value, Value, Value], Value]  # (a, b, sum)


def fits(shape: Matmul) -> bool:
    """Whether this kernel should do it."""
    return shape.transpose_b and shape.m <= ROWS and (not shape.transpose_a or shape.m == 1)


def matmul(machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int, pairs: bool) -> Kernel:
    """Kernel (a, b, c, ...epilogue[, workspace, scratch]) for a shape that ``fits``; with ``pairs`` a and b are bfloat16."""
    return _Builder(machine, shape, epilogue, ldc, pairs).kernel(shape.flops)


class _Builder:
    def __init__(self, machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int, pairs: bool):
        self.shape = replace(shape, k=shape.k // 2) if pairs else shape  # k counts pairs, then
        self.epilogue, self.ldc, self.lanes = epilogue, ldc, machine.lanes
        tile = WIDE if machine.registers >= 32 and shape.m > NARROW[0] else NARROW
        self.rows, self.columns = split(shape.m, tile[0]), tile[1]
        block = machine.l1 // 2 // (4 * shape.m) // machine.lanes * machine.lanes
        self.block = block if shape.m > NARROW[0] and self.shape.k > block + block // 2 else self.shape.k
        self.blocked = self.block < self.shape.k
        self.scratch = 4 * shape.m * self.lanes**2 if self.blocked else 0
        self.vectors = -(-self.shape.k // machine.lanes)  # of a row of a
        self.copies = shape.batch if shape.a_batch else 1
        self.workspace = 4 * self.copies * self.vectors * shape.m * self.lanes if self.blocked else 0
        names = ["a", "b", "c", *ep.params_of(epilogue), *(["workspace", "scratch"] if self.blocked else [])]
        self.k = KernelBuilder(machine, "matmul_dots", names)
        self.f: Function = self.k.f
        self.multiply: Multiply = self.f.dot_onto if pairs else self.f.fma

    def kernel(self, flops: int) -> Kernel:
        f, shape, lanes = self.f, self.shape, self.lanes
        if self.blocked:
            self.sums = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
            self._copy()
            self.k.barrier()
        for start, count, columns in ((0, shape.n // lanes, lanes), (shape.n - shape.n % lanes, 1, shape.n % lanes)):
            if not count or not columns:
                continue
            with f.loop(*f.share(shape.batch * count, f.arg("tid"), f.arg("n"))) as loop:
                batch, number = f.divmod_chain(loop.index, [shape.batch, count])
                column = f.add(f.mul(number, lanes), start)
                self._unit(batch, column, columns)
        note = "dot products along k" + (f", in blocks of {self.block}" if self.blocked else "")
        return self.k.finish(flops=flops, workspace=self.workspace, scratch=self.scratch, note=note)

    def _copy(self) -> None:
        """a -> [batch][vector of k][row], zeros beyond the last element."""
        f, shape, lanes = self.f, self.shape, self.lanes
        whole, rest = shape.k // lanes, shape.k % lanes
        with f.loop(*f.share(self.copies * shape.m, f.arg("tid"), f.arg("n"))) as loop:
            batch, row = f.divmod_chain(loop.index, [self.copies, shape.m])
            source = f.gep(f.arg("a"), f.mul(loop.index, shape.k))
            target = f.gep(f.arg("workspace"), f.mul(f.add(f.mul(batch, self.vectors * shape.m), row), lanes))
            with f.loop(0, whole) as vector:
                value = f.vload(f.gep(source, f.mul(vector.index, lanes)))
                f.vstore(value, f.gep(target, f.mul(vector.index, shape.m * lanes)))
            if rest:
                f.vstore(f.vload(f.gep(source, whole * lanes), rest), f.gep(target, whole * shape.m * lanes))

    def _unit(self, batch: Index, column: Index, columns: int) -> None:
        """A vector of columns, all rows."""
        f, shape = self.f, self.shape
        first = f.add(f.mul(batch, shape.n * shape.k) if shape.b_batch else 0, f.mul(column, shape.k))
        own, b = batch if shape.a_batch else 0, f.gep(f.arg("b"), first)
        if self.blocked:
            self._blocks(f.gep(f.arg("workspace"), f.mul(own, self.vectors * shape.m * self.lanes)), b, columns)
        a = f.gep(f.arg("a"), f.mul(own, shape.m * shape.k))
        row = 0
        for size in self.rows:
            if self.blocked:
                values = [self._across(f.gep(self.sums, (row + i) * self.lanes**2), columns) for i in range(size)]
            else:
                values = self._whole(f.gep(a, row * shape.k), size, b, columns)
            place = f.add(f.mul(batch, shape.m), row)
            sites = [ep.Site(f.add(place, i), column, columns) for i in range(size)]
            for value, site in zip(ep.finish_column(f, self.epilogue, values, sites, 0), sites):
                to = f.gep(f.arg("c"), f.dot([(site.pixel, self.ldc), (column, 1)]), ep.element(self.epilogue))
                f.vstore(value, to, columns)
            row += size

    def _whole(self, a: Value, rows: int, b: Value, columns: int) -> list[Value]:
        """For each of ``rows`` rows of a, the vector of its products with ``columns`` columns, k at once."""
        f, shape, done = self.f, self.shape, 0
        results = [const(f.vec(), 0.0)] * rows
        for size in split(columns, self.columns):
            sums = self._tile(a, f.gep(b, done * shape.k), rows, size, shape.k, AHEAD, [const(f.vec(), 0.0)] * (rows * size))
            for i in range(rows):
                for j in range(size):
                    results[i] = f.insert(results[i], f.reduce(f.fadd, sums[i * size + j]), done + j)
            done += size
        return results

    def _blocks(self, a: Value, b: Value, columns: int) -> None:
        """The sums of a unit, ``[row][column]`` vectors, block after block of k."""
        f, whole, rest = self.f, self.shape.k // self.block, self.shape.k % self.block
        with f.loop(0, self.shape.m * self.lanes) as place:
            f.vstore(const(f.vec(), 0.0), f.gep(self.sums, f.mul(place.index, self.lanes)))
        with f.loop(0, whole) as part:
            start = f.mul(part.index, self.block)
            self._block(f.gep(a, f.mul(start, self.shape.m)), f.gep(b, start), columns, self.block)
        if rest:
            start = whole * self.block
            self._block(f.gep(a, start * self.shape.m), f.gep(b, start), columns, rest)

    def _block(self, a: Value, b: Value, columns: int, steps: int) -> None:
        """Add ``steps`` of k to the unit's sums."""
        f, shape, lanes = self.f, self.shape, self.lanes
        for first, count, size in runs(split(columns, self.columns)):
            with f.loop(0, count) as group:
                column, row = f.add(f.mul(group.index, size), first), 0
                near = f.gep(b, f.mul(column, shape.k))
                for rows in self.rows:
                    base = f.gep(self.sums, f.mul(f.add(column, row * lanes), lanes))
                    places = [f.gep(base, (i * lanes + j) * lanes) for i in range(rows) for j in range(size)]
                    ahead = size * shape.k if not row else 0
                    sums = [f.vload(place) for place in places]
                    sums = self._tile(f.gep(a, row * lanes), near, rows, size, steps, ahead, sums)
                    for value, place in zip(sums, places):
                        f.vstore(value, place)
                    row += rows

    def _tile(
        self, a: Value, b: Value, rows: int, columns: int, steps: int, ahead: int, sums: list[Value]
    ) -> list[Value]:
        """``sums`` and ``steps`` of k of a tile; what lies ``ahead`` of b's elements is prefetched."""
        f, lanes, step = self.f, self.lanes, self.shape.m if self.blocked else 1
        whole = steps - steps % lanes
        if whole:
            with f.loop(0, whole, lanes, carry=sums) as loop:
                near = f.gep(b, loop.index)
                for j in range(columns if ahead else 0):
                    f.prefetch(f.gep(near, j * self.shape.k + ahead), 2)
                loop.carry(self._step(f.gep(a, f.mul(loop.index, step)), near, columns, lanes, loop.carried))
            sums = loop.results
        if steps % lanes:
            sums = self._step(f.gep(a, whole * step), f.gep(b, whole), columns, steps % lanes, sums)
        return sums

    def _step(self, a: Value, b: Value, columns: int, count: int, sums: list[Value]) -> list[Value]:
        """Add ``count`` lanes of the products of all rows of a with ``columns`` rows of b."""
        f, k = self.f, self.shape.k
        apart = self.lanes if self.blocked else k
        right = [f.vload(f.gep(b, j * k), count) for j in range(columns)]
        out = list[Value]()
        for i in range(len(sums) // columns):
            left = f.vload(f.gep(a, i * apart), count)
            out += [self.multiply(left, column, sums[i * columns + j]) for j, column in enumerate(right)]
        return out

    def _across(self, sums: Value, columns: int) -> Value:
        """The vector of the sums of ``columns`` vectors' elements."""
        f, lanes = self.f, self.lanes
        vectors = [f.vload(f.gep(sums, j * lanes)) for j in range(columns)]
        vectors += [const(f.vec(), 0.0)] * (lanes - len(vectors))
        total, *others = f.transposed(vectors)
        for other in others:
            total = f.fadd(total, other)
        return total
