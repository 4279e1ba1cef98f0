"""Matrix products: both transposes, batches with broadcasting, skinny and ragged shapes.

ALGORITHM
    c[b, i, j] = sum over k of a[b, i, k] * b[b, k, j]        (a and b transposed or not)
SCHEDULE
    The tile is that of the convolutions: MR rows of a (broadcast) x NV vectors of b's columns. b is first copied into
    panels of NV vectors (one barrier), unless it is already so contiguous, or is used too little to repay it. Units
    (batch, 8*MR rows, panel) are shared among the threads; the rows stay in L2 while panels go by. Long sums are cut
    in blocks of K so that a panel stays in L2 as well; between blocks the sums rest in c.
    A large b and rows that are not too many: no panel is shared. A thread copies a block of one of its panels into a scratch
    of its own, lets all rows pass by, and asks for the next panel's block meanwhile; so b is read once, and not written.
    A transposed a, whose columns lie far apart, is copied into strips of MR rows in the same way.
    With few k and a large result, writing that is the work (``outer.py``); with few rows and a large b, reading b: vectors run
    along k if b is transposed (``dots.py``), else along its rows (``few_rows.py``).
    ``pairs`` of bfloat16 along k stand for single elements where the machine adds their products in one instruction. In
    operands stored (k, ...) the two lie in neighbouring rows, so these are always packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from twofold.backends.cpu.kernels import dots, few_rows, outer
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Matmul, runs, split
from twofold.backends.cpu.kernels.tile import LINE, Fetch, Operands, Tile, accumulate, best_shape, most_pixels, zeros
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

UNROLL = 2
OWN_ROWS = 512  # up to so many rows, and
OWN_PANELS = 32  # from so many panels on, threads need not share the panels of a large b
STREAMS = 8  # rows of b read side by side when it is not packed: what the hardware's prefetchers follow


def matmul(
    machine: Machine, shape: Matmul, epilogue: ep.Epilogue = (), ldc: int = 0, pairs: bool = False
) -> Kernel:
    """Kernel (a, b, c, ...epilogue[, workspace]); a Site's pixel is batch*m + row, its channel the column. With
    ``pairs`` a and b are bfloat16 (k even), else float32. 16-bit results (``epilogue.Stored``) want ``once``."""
    ldc = ldc or shape.n
    if not pairs and outer.fits(machine, shape):
        return outer.matmul(machine, shape, epilogue, ldc)
    if dots.fits(shape):
        return dots.matmul(machine, shape, epilogue, ldc, pairs)
    if not pairs and few_rows.fits(machine, shape):
        return few_rows.matmul(machine, shape, epilogue, ldc)
    return _Product(machine, shape, epilogue, ldc, pairs).kernel()


def once(machine: Machine, shape: Matmul) -> bool:
    """Whether a float32 product keeps its sums in registers to the end, so that c may be of another dtype."""
    if outer.fits(machine, shape) or dots.fits(shape) or few_rows.fits(machine, shape):
        return True
    return _Product(machine, shape, (), shape.n, False).k_block >= shape.k


class _Product:
    def __init__(self, machine: Machine, shape: Matmul, epilogue: ep.Epilogue, ldc: int, pairs: bool):
        self.machine, self.epilogue, self.ldc, self.pairs = machine, epilogue, ldc, pairs
        self.flops = shape.flops
        self.shape = shape = replace(shape, k=shape.k // 2) if pairs else shape  # k counts pairs, then
        self.pitch = 0 if shape.transpose_a else 4 * shape.k  # from row to row of a tile
        best = best_shape(machine, min(shape.m, 96), shape.n, self.pitch)
        self.width = best.vectors * machine.lanes
        self.most = most_pixels(machine, best.vectors, self.pitch)
        self.rows = min(shape.m, 8 * self.most)
        self.panels = -(-shape.n // self.width)
        self.panel_batches = shape.batch if shape.b_batch else 1
        near = machine.l2 if shape.transpose_b else machine.l3 // 4  # rows in the caches are read as quickly in any order
        large = 4 * self.panel_batches * self.panels * self.panel_size > near
        few = shape.m <= OWN_ROWS and self.panel_batches == shape.batch
        self.own = large and few and shape.batch * self.panels >= OWN_PANELS
        self.packs = shape.transpose_b or pairs or self.own or (shape.m > 32 and shape.n > 2 * self.width)
        self.packs_a = shape.transpose_a and (pairs or (shape.k >= 64 and shape.n >= 2 * self.width))
        self.a_batches = shape.batch if shape.a_batch else 1
        # A panel of k_block rows fills a quarter of L2. Unpacked rows longer than a page are walked a few at a time.
        far = not self.packs and shape.n >= 1024
        self.k_block = STREAMS if far else max(1, min(shape.k, max(64, machine.l2 // 4 // (4 * self.width))))
        if pairs:  # c is no place for sums
            self.k_block = shape.k

    @property
    def panel_size(self) -> int:
        return self.shape.k * self.width

    def kernel(self) -> Kernel:
        names = ["a", "b", "c", *ep.params_of(self.epilogue)]
        self.strips_at = self.panel_batches * self.panels * self.panel_size if self.packs and not self.own else 0
        workspace = 4 * (self.strips_at + (self.a_batches * self.shape.m * self.shape.k if self.packs_a else 0))
        scratch = 4 * self.k_block * self.width if self.own else 0
        names += [name for name, size in (("workspace", workspace), ("scratch", scratch)) if size]
        self.k = KernelBuilder(self.machine, "matmul", names)
        self.f = self.k.f
        if self.packs and not self.own:
            self._pack()
        if self.packs_a:
            self._pack_a()
        if workspace:
            self.k.barrier()
        whole = self.shape.k // self.k_block
        rest = self.shape.k % self.k_block
        if not self.shape.k:
            self._sweep(0, 0, True, True)
        elif whole + bool(rest) == 1:
            self._sweep(0, self.shape.k, True, True)
        else:
            last = rest or self.k_block
            middle = whole - (0 if rest else 1)
            self._sweep(0, self.k_block, True, False)
            if middle > 1:
                with self.f.loop(1, middle) as block:
                    self._sweep(self.f.mul(block.index, self.k_block), self.k_block, False, False)
            self._sweep(self.shape.k - last, last, False, True)
        parts = (("a", self.packs_a), ("b", self.packs and not self.own), ("blocks of b", self.own))
        packed = " and ".join(name for name, flag in parts if flag) or "nothing"
        note = f"{self.most}x{self.width} tiles, {packed} packed, k in {self.k_block}"
        once = whole + bool(rest) == 1
        return self.k.finish(flops=self.flops, workspace=workspace, scratch=scratch, note=note, once=once)

    def _kinds(self) -> list[tuple[int, int, int]]:
        """Panels as (first, how many, columns)."""
        n, width = self.shape.n, self.width
        kinds = [(0, n // width, width)] if n >= width else []
        return kinds + ([(n // width, 1, n % width)] if n % width else [])

    def _pack(self) -> None:
        """b -> [batch][panel][k][width], zeros beyond the last column."""
        f, shape, lanes = self.f, self.shape, self.machine.lanes
        for first, count, columns in self._kinds():
            low, high = f.share(self.panel_batches * count * shape.k, f.arg("tid"), f.arg("n"))
            with f.loop(low, high) as loop:
                batch, panel, row = f.divmod_chain(loop.index, [self.panel_batches, count, shape.k])
                panel = f.add(panel, first)
                place = f.add(f.mul(f.add(f.mul(batch, self.panels), panel), self.panel_size), f.mul(row, self.width))
                line, column = f.add(f.mul(batch, shape.k), row), f.mul(panel, self.width)
                start = f.dot([(f.add(f.mul(batch, shape.n), column), shape.k), (row, 1)])
                for at in range(0, self.width, lanes):
                    read = max(0, min(lanes, columns - at))
                    if shape.transpose_b:
                        value = self._columns(start, at, read)
                    else:
                        value = self._row("b", line, shape.n, f.add(column, at), read)
                    f.vstore(value, f.gep(f.arg("workspace"), f.add(place, at)))

    def _bands(self) -> list[tuple[int, int, int]]:
        """Rows of a as (first, bands, rows of each)."""
        m, rows = self.shape.m, self.rows
        return [(0, m // rows, rows)] + ([(m - m % rows, 1, m % rows)] if m % rows else [])

    def _tiles(self, rows: int, vectors: int) -> list[int]:
        """The tiles of a band of rows over a panel of so many vectors; over strips, the strips."""
        return split(rows, self.most if self.packs_a else most_pixels(self.machine, vectors, self.pitch))

    def _pack_a(self) -> None:
        """a, stored (k, m), -> [batch][strip of a tile's rows][k][row]: dense, where its columns lie far apart."""
        f, shape, lanes = self.f, self.shape, self.machine.lanes
        for row, count, rows in self._bands():
            with f.loop(*f.share(self.a_batches * count * shape.k, f.arg("tid"), f.arg("n"))) as loop:
                batch, band, k = f.divmod_chain(loop.index, [self.a_batches, count, shape.k])
                first = f.add(f.mul(band, rows), row)
                base = f.mul(batch, shape.m * shape.k)
                line = f.add(f.mul(batch, shape.k), k)  # of a, or pair of lines
                target = f.gep(f.arg("workspace"), f.add(self.strips_at, f.add(base, f.mul(first, shape.k))))

                def strip(at: Index, size: int) -> None:
                    place = f.gep(target, f.add(f.mul(at, shape.k), f.mul(k, size)))  # noqa: B023
                    for i in range(0, size, lanes):
                        count = min(lanes, size - i)
                        value = self._row("a", line, shape.m, f.add(f.add(first, at), i), count)  # noqa: B023
                        f.vstore(value, f.gep(place, i), count)

                _walk(f, self._tiles(rows, 0), strip)

    def _row(self, name: str, line: Index, width: int, at: Index, count: int) -> Value:
        """``count`` elements from ``at`` on of line ``line`` of an operand stored (k, width), or of its pair of lines."""
        f, pointer = self.f, self.f.arg(name)
        if not count:
            return const(f.vec(), 0.0)
        if not self.pairs:
            return f.vload(f.gep(pointer, f.add(f.mul(line, width), at)), count)
        first = f.gep(pointer, f.add(f.mul(line, 2 * width), at), "i16")
        return f.paired(f.vload(first, count, "i16"), f.vload(f.gep(first, width, "i16"), count, "i16"))

    def _columns(self, start: Index, at: int, count: int) -> Value:
        """A vector of b's columns from ``at`` on, in one row; b is stored (n, k)."""
        f = self.f
        value = const(f.vec(), 0.0)
        for lane in range(count):
            place = f.gep(f.arg("b"), f.add(start, (at + lane) * self.shape.k))
            value = f.insert(value, f.load("float", place), lane)
        return value

    def _b(self, row: Index, column: Index) -> Index:
        """Where an element of b lies within its matrix."""
        if self.shape.transpose_b:
            return self.f.add(self.f.mul(column, self.shape.k), row)
        return self.f.add(self.f.mul(row, self.shape.n), column)

    def _sweep(self, start: Index, steps: int, first: bool, last: bool) -> None:
        """All units over ``steps`` of k from ``start``: begin at zero if ``first``, finish the results if ``last``."""
        f, shape = self.f, self.shape
        if self.own:
            self._sweep_own(start, steps, first, last)
            return
        for row, count, rows in self._bands():
            for first_panel, panels, columns in self._kinds():
                low, high = f.share(shape.batch * count * panels, f.arg("tid"), f.arg("n"))
                with f.loop(low, high) as loop:
                    batch, band, panel = f.divmod_chain(loop.index, [shape.batch, count, panels])
                    at = f.add(f.mul(band, self.rows), row)
                    self._unit(batch, at, rows, f.add(panel, first_panel), columns, (start, steps, first, last))

    def _sweep_own(self, start: Index, steps: int, first: bool, last: bool) -> None:
        """The same, where each thread has panels of its own."""
        f, shape = self.f, self.shape
        self.block = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.k_block * self.width))
        for first_panel, panels, columns in self._kinds():
            with f.loop(*f.share(shape.batch * panels, f.arg("tid"), f.arg("n"))) as unit:
                batch, panel = f.divmod_chain(unit.index, [shape.batch, panels])
                panel, before = f.add(panel, first_panel), 0
                self._pack_own(batch, panel, columns, start, steps)
                for row, count, rows in self._bands():
                    tiles = len(self._tiles(rows, -(-columns // self.machine.lanes)))
                    with f.loop(0, count) as band:
                        self.number = f.add(f.mul(band.index, tiles), before)  # of tiles before this band's
                        at = f.add(f.mul(band.index, self.rows), row)
                        self._unit(batch, at, rows, panel, columns, (start, steps, first, last))
                    before += count * tiles

    def _pack_own(self, batch: Index, panel: Index, columns: int, start: Index, steps: int) -> None:
        """A block of a panel -> [k][width], zeros beyond the last column."""
        f, shape, lanes = self.f, self.shape, self.machine.lanes
        column = f.mul(panel, self.width)
        if not shape.transpose_b:
            with f.loop(0, steps) as k:
                line, to = f.add(f.add(f.mul(batch, shape.k), start), k.index), f.mul(k.index, self.width)
                for at in range(0, self.width, lanes):
                    value = self._row("b", line, shape.n, f.add(column, at), max(0, min(lanes, columns - at)))
                    f.vstore(value, f.gep(self.block, f.add(to, at)))
            return
        b = f.gep(f.arg("b"), f.add(f.mul(batch, shape.n * shape.k), f.add(f.mul(column, shape.k), start)))

        def square(k: Index, count: int) -> None:
            for at in range(0, self.width, lanes):
                rows = [f.gep(b, f.add(k, (at + lane) * shape.k)) for lane in range(min(lanes, columns - at))]
                vectors = [f.vload(row, count) for row in rows]
                turned = f.transposed([*vectors, *[const(f.vec(), 0.0)] * (lanes - len(vectors))])
                for i, value in enumerate(turned[:count]):
                    f.vstore(value, f.gep(self.block, f.add(f.mul(f.add(k, i), self.width), at)))

        with f.loop(0, steps // lanes) as number:
            square(f.mul(number.index, lanes), lanes)
        if steps % lanes:
            square(steps - steps % lanes, steps % lanes)

    def _next_block(self, panel: Index, batch: Index, start: Index, steps: int, tile: Index, tiles: int) -> Fetch:
        """Prefetches a share of the next panel's block into L2 with every round of a tile."""
        f, shape = self.f, self.shape
        along, lines = (steps, self.width) if shape.transpose_b else (self.width, steps)
        pieces = -(-along // LINE)  # lines of cache in one of b
        rounds = max(1, steps // UNROLL)
        share = -(-lines * pieces // (tiles * rounds))
        first, pitch = f.mul(f.add(panel, 1), self.width), shape.k if shape.transpose_b else shape.n
        corner = f.dot([(first, shape.k), (start, 1)] if shape.transpose_b else [(start, shape.n), (first, 1)])
        b = f.gep(f.arg("b"), f.add(f.mul(batch, shape.n * shape.k), corner))

        def fetch(step: Index) -> None:
            begin = f.mul(f.add(f.mul(tile, rounds), f.div(step, UNROLL)), share)
            for k in range(share):
                number = f.add(begin, k)
                place = f.add(f.mul(f.div(number, pieces), pitch), f.mul(f.rem(number, pieces), LINE))
                f.prefetch(f.gep(b, place), 2)

        return fetch

    def _unit(self, batch: Index, row: Index, rows: int, panel: Index, columns: int, part: tuple) -> None:
        f, shape, lanes = self.f, self.shape, self.machine.lanes
        start = part[0]
        counts = tuple(min(lanes, columns - at) for at in range(0, columns, lanes))
        base = f.mul(batch, shape.m * shape.k) if shape.a_batch else 0
        own = batch if shape.b_batch else 0
        if self.own:
            w, w_step, read = self.block, self.width, (lanes,) * len(counts)
        elif self.packs:
            place = f.add(f.mul(f.add(f.mul(own, self.panels), panel), self.panel_size), f.mul(start, self.width))
            w, w_step, read = f.gep(f.arg("workspace"), place), self.width, (lanes,) * len(counts)
        else:
            place = f.add(f.mul(own, shape.k * shape.n), self._b(start, f.mul(panel, self.width)))
            w, w_step, read = f.gep(f.arg("b"), place), shape.n, counts
        column, out_row = f.mul(panel, self.width), f.add(f.mul(batch, shape.m), row)
        in_all = sum(count * len(self._tiles(size, len(counts))) for _, count, size in self._bands())

        def tile(at: Index, size: int) -> None:
            first = f.add(row, at)
            if self.packs_a:
                place = f.add(self.strips_at, f.add(base, f.dot([(first, shape.k), (start, size)])))
                x, x_step, row_step = f.gep(f.arg("workspace"), place), size, 1
            else:
                x_step, row_step = (shape.m, 1) if shape.transpose_a else (1, shape.k)
                x = f.gep(f.arg("a"), f.add(base, f.dot([(first, row_step), (start, x_step)])))
            ops = Operands(x, w, x_step, row_step, w_step, read, pairs=self.pairs)
            fetch = None
            if self.own:  # (pieces of a band differ by one row at most)
                number = f.add(self.number, f.div(at, max(1, rows // len(self._tiles(rows, len(counts))))))
                fetch = self._next_block(panel, batch, start, part[1], number, in_all)
            self._tile(ops, f.add(out_row, at), column, size, counts, part, fetch)

        _walk(f, self._tiles(rows, len(counts)), tile)

    def _tile(
        self, ops: Operands, row: Index, column: Index, size: int, counts: tuple[int, ...], part: tuple, fetch: Fetch | None
    ) -> None:
        f, lanes = self.f, self.machine.lanes
        _, steps, first, last = part
        kind = ep.element(self.epilogue)
        c = f.gep(f.arg("c"), f.dot([(row, self.ldc), (column, 1)]), kind)
        places = [[f.gep(c, p * self.ldc + j * lanes, kind) for j in range(len(counts))] for p in range(size)]
        if first:
            tile: Tile = zeros(f, size, len(counts))
        else:
            tile = [[f.vload(place, count) for place, count in zip(line, counts)] for line in places]
        tile = accumulate(f, tile, ops, steps, range(size), UNROLL, fetch)
        for j, count in enumerate(counts):
            values = [line[j] for line in tile]
            if last:
                sites = [ep.Site(f.add(row, p), f.add(column, j * lanes), count) for p in range(size)]
                values = ep.finish_column(f, self.epilogue, values, sites, 0)
            for value, line in zip(values, places):
                f.vstore(value, line[j], count)


def _walk(f: Function, sizes: list[int], body: Callable[[Index, int], None]) -> None:
    """``body(start, size)`` for consecutive pieces; equal neighbours become a loop."""
    for at, count, size in runs(sizes):
        if count == 1:
            body(at, size)
        else:
            with f.loop(0, count) as loop:
                body(f.add(f.mul(loop.index, size), at), size)


__all__ = ["Matmul", "matmul"]
