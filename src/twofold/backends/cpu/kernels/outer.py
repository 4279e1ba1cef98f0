"""Outer products: few steps of k and a large result, such as the weight gradient of a linear layer at small batches.

ALGORITHM
    c[i, j] = sum over k of a[k, i] * b[k, j]
SCHEDULE
    Writing c is the work, and whatever else an epilogue reads and writes of each element: an optimizer's state, say. So a
    thread goes along two rows at a time, few streams of whole lines, with their elements of a in registers and the block of b
    in L1. Units (strip of rows, block of columns) are shared among the threads. What the epilogue reads of the next two rows
    is prefetched into L2. If it reads nothing of the kind and c is larger than the caches, c is written past them: an ordinary
    store would first fetch the line.
"""

from __future__ import annotations

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Matmul
from twofold.backends.cpu.kernels.tile import LINE
from twofold.backends.cpu.llvm import Index, Value, const
from twofold.backends.cpu.llvm.values import BITS
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

FEW = 16  # steps of k at most
STRIP = 128  # rows of a unit


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
        self.rows = 2 if 2 * shape.k + 8 <= machine.registers else 1  # with the elements of a, the sums and an epilogue's
        self.block = min(max(LINE, machine.l1 // 2 // (4 * shape.k) // LINE * LINE), 1024)
        self.reads = [stream for stream in ep.streams(epilogue, ldc) if not stream.written]
        self.lines = not self.reads and ldc % self.line == 0 and machine.overflows(64 // self.line * shape.m * shape.n)

    def kernel(self) -> Kernel:
        m, n = self.shape.m, self.shape.n
        aligned = self.f.is_aligned(self.f.arg("c"), 64) if self.lines else None
        for top, bottom, rows in _pieces(m, self.rows):
            for left, right, columns in _pieces(n, self.line):
                self._area((top, bottom, rows), (left, right, columns), aligned if columns == self.line else None)
        note = f"outer products in blocks of {self.block} columns" + (", whole lines past the caches" if self.lines else "")
        return self.k.finish(flops=self.shape.flops, note=note, once=True)

    def _area(self, down: tuple[int, int, int], along: tuple[int, int, int], aligned: Value | None) -> None:
        """The units of an area of c; ``down`` and ``along`` are (start, stop, step)."""
        f, (top, bottom, rows), (left, right, columns) = self.f, down, along
        strips, blocks = -(-(bottom - top) // STRIP), -(-(right - left) // self.block)
        with f.loop(*f.share(strips * blocks, f.arg("tid"), f.arg("n"))) as unit:
            strip, block = f.divmod_chain(unit.index, [strips, blocks])
            row, column = f.add(f.mul(strip, STRIP), top), f.add(f.mul(block, self.block), left)
            with f.loop(row, f.imin(f.add(row, STRIP), bottom), rows) as tile:
                a = self._broadcast(tile.index, rows)
                with f.loop(column, f.imin(f.add(column, self.block), right), columns) as line:
                    self._fetch(f.add(tile.index, self.rows), rows, line.index)
                    self._line(a, tile.index, line.index, columns, aligned)

    def _broadcast(self, row: Index, rows: int) -> list[list[Value]]:
        """The elements of a that meet ``rows`` rows of c."""
        f, shape = self.f, self.shape
        a = f.gep(f.arg("a"), row)
        return [[f.broadcast(f.gep(a, k * shape.m + i)) for k in range(shape.k)] for i in range(rows)]

    def _fetch(self, row: Index, rows: int, column: Index) -> None:
        """Prefetch what the epilogue reads for a line of c in each of ``rows`` rows."""
        for stream in self.reads:
            for i in range(rows):
                for at in range(0, self.line, LINE):
                    stream.fetch(self.f, self.f.add(row, i), self.f.add(column, at))

    def _line(self, a: list[list[Value]], row: Index, column: Index, columns: int, aligned: Value | None) -> None:
        """Up to a line of c in each of some rows, written past the caches if that is ``aligned``."""
        f, shape, parts = self.f, self.shape, list[tuple[Value, Value, int]]()
        for at in range(0, columns, self.lanes):
            place, count = f.add(column, at), min(self.lanes, columns - at)
            sums = [const(f.vec(), 0.0)] * len(a)
            for k in range(shape.k):
                b = f.vload(f.gep(f.arg("b"), f.add(place, k * shape.n)), count)
                sums = [f.fma(left[k], b, total) for left, total in zip(a, sums)]
            sites = [ep.Site(f.add(row, i), place, count) for i in range(len(a))]
            for value, site in zip(ep.finish_column(f, self.epilogue, sums, sites, 0), sites):
                to = f.gep(f.arg("c"), f.add(f.mul(site.pixel, self.ldc), place), self.element)
                parts.append((value, to, count))

        def store() -> list[Value]:
            for value, to, count in parts:
                f.vstore(value, to, count)
            return []

        def stream() -> list[Value]:
            for value, to, _ in parts:
                f.stream(value, to)
            return []

        if aligned is None:
            store()
        else:
            f.choose(aligned, stream, store)


def _pieces(total: int, step: int) -> list[tuple[int, int, int]]:
    """A range in steps and what is left of it, as (start, stop, step)."""
    whole = total - total % step
    return [piece for piece in ((0, whole, step), (whole, total, total - whole)) if piece[0] < piece[1]]
