"""Outer products: few steps of k and a large result, such as the weight gradient of a linear layer at small batches.

ALGORITHM
    c[i, j] = sum over k of a[k, i] * b[k, j]
SCHEDULE
    Writing c is the work. Units (block of columns, strip of rows) are shared among the threads; the block of b stays in
    L1 while strips pass by, a tile has all of its k in registers. Tiles are whole lines, written past the caches if c is
    larger than they are: an ordinary store would first fetch the line.
"""

from __future__ import annotations

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Matmul, runs, split
from twofold.backends.cpu.kernels.tile import flatten, shaped, zeros
from twofold.backends.cpu.llvm import Index, Value
from twofold.backends.cpu.llvm.values import BITS
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

FEW = 16  # steps of k at most
LINE = 16  # float32 elements in a cache line


def fits(machine: Machine, shape: Matmul) -> bool:
    """Whether this kernel should do it: a transposed, few steps of k, and a result beyond L2."""
    if not shape.transpose_a or shape.transpose_b or shape.batch > 1 or not 0 < shape.k <= FEW:
        return False
    return 4 * shape.m * shape.n > 2 * machine.l2 and min(shape.m, shape.n) >= LINE


def matmul(machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int) -> Kernel:
    """Kernel (a, b, c, ...epilogue) for a shape that ``fits``."""
    return _Builder(machine, shape, epilogue, ldc).kernel()


class _Builder:
    def __init__(self, machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int):
        self.k = KernelBuilder(machine, "matmul_outer", ["a", "b", "c", *ep.params_of(epilogue)])
        self.f, self.machine, self.shape, self.epilogue, self.ldc = self.k.f, machine, shape, epilogue, ldc
        self.lanes, self.element = machine.lanes, ep.element(epilogue)
        self.line = 8 * 64 // BITS[self.element]  # elements of c in a cache line

    def _pieces(self, width: int) -> list[tuple[int, int, int]]:
        """The columns as (first block, how many, columns in each)."""
        n = self.shape.n
        kinds = [(0, n // width, width)] if n >= width else []
        return kinds + ([(n // width, 1, n % width)] if n % width else [])

    def kernel(self) -> Kernel:
        f, shape = self.f, self.shape
        most = self.machine.accumulators(self.line // self.lanes) // (self.line // self.lanes)
        block = min(max(LINE, self.machine.l1 // 2 // (4 * shape.k) // LINE * LINE), 1024)
        lines = self.ldc % self.line == 0 and 64 // self.line * shape.m * shape.n > self.machine.l3 // 2
        aligned = f.is_aligned(f.arg("c"), 64) if lines else None
        for first, count, columns in self._pieces(block):
            for row, strips, rows in runs(split(shape.m, most)):
                with f.loop(*f.share(count * strips, f.arg("tid"), f.arg("n"))) as loop:
                    number, strip = f.divmod_chain(loop.index, [count, strips])
                    column = f.mul(f.add(number, first), block)
                    at = f.add(f.mul(strip, rows), row)
                    whole = columns - columns % self.line
                    if whole:
                        with f.loop(0, whole, self.line) as line:
                            self._tile(at, rows, f.add(column, line.index), self.line, aligned)
                    if columns > whole:
                        self._tile(at, rows, f.add(column, whole), columns - whole, None)
        note = f"outer products in blocks of {block} columns" + (", whole lines past the caches" if lines else "")
        return self.k.finish(flops=shape.flops, note=note, once=True)

    def _tile(self, row: Index, rows: int, column: Index, columns: int, aligned: Value | None) -> None:
        f, shape, lanes = self.f, self.shape, self.lanes
        offsets = [(at, min(lanes, columns - at)) for at in range(0, columns, lanes)]
        tile = zeros(f, rows, len(offsets))
        a, b = f.gep(f.arg("a"), row), f.gep(f.arg("b"), column)
        with f.loop(0, shape.k, carry=flatten(tile)) as loop:
            inner = shaped(loop.carried, len(offsets))
            right = [f.vload(f.gep(b, f.add(f.mul(loop.index, shape.n), at)), wide) for at, wide in offsets]
            for i in range(rows):
                left = f.broadcast(f.gep(a, f.add(f.mul(loop.index, shape.m), i)))
                inner[i] = [f.fma(left, value, total) for value, total in zip(right, inner[i])]
            loop.carry(flatten(inner))
        tile = shaped(loop.results, len(offsets))
        for j, (at, wide) in enumerate(offsets):
            sites = [ep.Site(f.add(row, i), f.add(column, at), wide) for i in range(rows)]
            done = ep.finish_column(f, self.epilogue, [line[j] for line in tile], sites, 0)
            for i, value in enumerate(done):
                tile[i][j] = value
        lines = [f.gep(f.arg("c"), f.mul(f.add(row, i), self.ldc), self.element) for i in range(rows)]
        places = [[f.gep(start, f.add(column, at), self.element) for at, _ in offsets] for start in lines]

        def store() -> list[Value]:
            for line, to in zip(tile, places):
                for value, place, (_, wide) in zip(line, to, offsets):
                    f.vstore(value, place, wide)
            return []

        def stream() -> list[Value]:
            for value, place in zip(flatten(tile), flatten(places)):
                f.stream(value, place)
            return []

        if aligned is None:
            store()
        else:
            f.choose(aligned, stream, store)
