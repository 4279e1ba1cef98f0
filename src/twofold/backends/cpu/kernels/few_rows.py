"""Products of few rows with a large matrix as it lies, such as a linear layer's data gradient at small batches.

ALGORITHM
    c[i, j] = sum over k of a[i, k] * b[k, j]
SCHEDULE
    Reading b is the work. A thread has a part of the columns, and goes along a few rows of b in all of them, then along the
    next: few long streams. Its sums rest in a scratch in L2, ``[columns of a tile][row]``: rows of c lie the same power of two
    apart as often as not. A tile is some rows x a few vectors, for those few steps of k; the rows of b that come next are
    asked for into L2 meanwhile. a is copied first, ``[k][row]``, for the same reason.
    No sum depends on how the columns are shared.
"""

from __future__ import annotations

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Matmul, runs, split
from twofold.backends.cpu.kernels.tile import LINE, Operands, accumulate, best_shape, most_pixels
from twofold.backends.cpu.llvm import Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

ROWS = 16  # at most
STEPS = 8  # rows of b side by side: what the hardware's prefetchers follow
COLUMNS = 8192  # of a block at most


def fits(machine: Machine, shape: Matmul) -> bool:
    """Whether this kernel should do it: few rows, and a matrix beyond L2 with long rows."""
    if shape.transpose_a or shape.transpose_b or shape.batch > 1 or shape.m > ROWS:
        return False
    return 4 * shape.k * shape.n > machine.l2 and shape.n >= 512 and shape.k >= STEPS


def matmul(machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int) -> Kernel:
    """Kernel (a, b, c, ...epilogue, workspace, scratch) for a shape that ``fits``."""
    return _Builder(machine, shape, epilogue, ldc).kernel()


class _Builder:
    def __init__(self, machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int):
        self.machine, self.shape, self.epilogue, self.ldc, self.lanes = machine, shape, epilogue, ldc, machine.lanes
        vectors = best_shape(machine, shape.m, COLUMNS, 0).vectors
        self.rows = split(shape.m, most_pixels(machine, vectors))
        self.width = vectors * self.lanes
        self.tiles = shape.n // self.width
        self.block = max(1, min(machine.l2 // 4 // (4 * shape.m), COLUMNS, shape.n) // self.width)
        self.scratch = 4 * shape.m * self.block * self.width
        self.k = KernelBuilder(machine, "matmul_rows", ["a", "b", "c", *ep.params_of(epilogue), "workspace", "scratch"])
        self.f = self.k.f

    def kernel(self) -> Kernel:
        f, shape = self.f, self.shape
        whole = shape.n - shape.n % self.width
        self.sums = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
        self._copy()
        self.k.barrier()
        low, high = f.share(self.tiles, f.arg("tid"), f.arg("n"))
        mine = f.sub(high, low)
        parts = f.div(f.add(mine, self.block - 1), self.block)
        with f.loop(0, parts) as part:
            start, stop = (f.mul(f.add(low, at), self.width) for at in f.share(mine, part.index, parts))
            self._unit(start, stop, self.width)
        if whole < shape.n:
            with f.loop(*f.share(1, f.arg("tid"), f.arg("n"))):
                self._unit(whole, shape.n, shape.n - whole)
        note = f"{self.rows[0]}x{self.width} tiles, {STEPS} rows of b at a time, up to {self.block * self.width} columns"
        return self.k.finish(
            flops=shape.flops, workspace=4 * shape.m * shape.k, scratch=self.scratch, note=note, once=True
        )

    def _copy(self) -> None:
        """a -> [k][row]."""
        f, shape = self.f, self.shape
        low, high = f.share(shape.k, f.arg("tid"), f.arg("n"))
        with f.loop(0, shape.m) as row, f.loop(low, high) as k:
            value = f.load("float", f.gep(f.arg("a"), f.add(f.mul(row.index, shape.k), k.index)))
            f.store(value, f.gep(f.arg("workspace"), f.add(f.mul(k.index, shape.m), row.index)))

    def _unit(self, start: Index, stop: Index, columns: int) -> None:
        """All rows of c, from column ``start`` to ``stop`` in tiles of ``columns``."""
        f, shape, lanes = self.f, self.shape, self.lanes
        counts = tuple(min(lanes, columns - at) for at in range(0, columns, lanes))
        room = f.mul(f.sub(stop, start), shape.m) if columns == self.width else self.width * shape.m
        with f.loop(0, room, lanes) as place:
            f.vstore(const(f.vec(), 0.0), f.gep(self.sums, place.index))
        whole = shape.k - shape.k % STEPS
        with f.loop(0, whole, STEPS) as step:
            self._down(step.index, STEPS, start, stop, counts)
        if whole < shape.k:
            self._down(whole, shape.k - whole, start, stop, counts)
        with f.loop(start, stop, self.width) as tile:
            self._finish(f.sub(tile.index, start), tile.index, counts)

    def _down(self, k: Index, steps: int, start: Index, stop: Index, counts: tuple[int, ...]) -> None:
        """Add ``steps`` of k to the sums of a unit."""
        f, shape = self.f, self.shape
        with f.loop(start, stop, self.width) as tile:
            b = f.gep(f.arg("b"), f.add(f.mul(k, shape.n), tile.index))
            for step in range(steps):
                for at in range(0, self.width, LINE):
                    f.prefetch(f.gep(b, (steps + step) * shape.n + at), 2)
            for first, number, size in runs(self.rows):
                with f.loop(0, number) as part:
                    row = f.add(f.mul(part.index, size), first)
                    places = self._places(f.sub(tile.index, start), row, size, len(counts))
                    a = f.gep(f.arg("workspace"), f.add(f.mul(k, shape.m), row))
                    sums = [[f.vload(place) for place in line] for line in places]
                    sums = accumulate(f, sums, Operands(a, b, shape.m, 1, shape.n, counts), steps, range(size), steps)
                    for line, to in zip(sums, places):
                        for value, place in zip(line, to):
                            f.vstore(value, place)

    def _places(self, column: Index, row: Index, rows: int, vectors: int) -> list[list[Value]]:
        """Where the sums of a tile rest that begins ``column`` columns into the unit."""
        f = self.f
        base = f.gep(self.sums, f.add(f.mul(column, self.shape.m), f.mul(row, self.width)))
        return [[f.gep(base, i * self.width + j * self.lanes) for j in range(vectors)] for i in range(rows)]

    def _finish(self, at: Index, column: Index, counts: tuple[int, ...]) -> None:
        """Results of all rows in the columns of a tile."""
        f = self.f
        places = self._places(at, 0, self.shape.m, len(counts))
        for j, count in enumerate(counts):
            sites = [ep.Site(row, f.add(column, j * self.lanes), count) for row in range(self.shape.m)]
            values = ep.finish_column(f, self.epilogue, [f.vload(line[j]) for line in places], sites, 0)
            for value, site in zip(values, sites):
                place = f.add(f.mul(site.pixel, self.ldc), site.channel)
                f.vstore(value, f.gep(f.arg("c"), place, ep.element(self.epilogue)), count)
