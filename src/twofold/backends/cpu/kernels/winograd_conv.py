"""3x3 and 5x5 convolutions and their data gradients by Winograd's algorithm; see winograd.py.

ALGORITHM
    v = B' x B for every tile;  m[point] = v[point] @ u[point] (one matrix product over the channels each);  y = A' m A
SCHEDULE
    *blocked* (many tiles): a thread takes blocks of tiles whose v and m stay near its L2, and does all three stages.
    *staged* (few tiles, or weights larger than all of v and m): all threads do one stage, with barriers between;
    in the products they share out (point, block of outputs), so that every weight is read by one thread, once.
    A row of v has 16 elements more than its channels, so that the rows of a tile fall into different cache sets. The
    panel of weights that is next is prefetched while one is used, an equal piece with every run of tiles: all of it with the
    first run would come faster than memory gives it.
    *inside* (staged, F(4x4)): plain weights come in, a quarter of the bytes. A thread takes whole blocks of outputs and goes
    through their inputs in stretches: it transforms the weights of one into L2, multiplies, and adds to m.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import winograd as wg
from twofold.backends.cpu.kernels.partition import idle
from twofold.backends.cpu.kernels.shapes import Conv, blocks, runs, split
from twofold.backends.cpu.kernels.tile import LINE, Fetch, Operands, accumulate, most_pixels, passing, zeros
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder
from twofold.base.dtypes import DType, float32

ENOUGH_BLOCKS = 8  # blocks are made smaller to be as many
FEWEST_BLOCKS = 4  # with fewer, threads would stand idle
FEWEST_TILES = 12  # of a block: with fewer, weights would be read for little
FEW_BLOCKS = 32  # with more, one block does not matter
UNEVEN = 0.06  # more than an even share, of the thread with most blocks
UNROLL = 2  # steps of the products' loop written out
SHORTEST = 16  # inputs of a stretch: with fewer, sums would go to memory and back too often


@dataclass(frozen=True)
class Plan:
    """Blocks of tiles: ``sizes`` as (first tile, blocks, tiles in each)."""

    grid: wg.TileGrid
    sizes: list[tuple[int, int, int]]
    staged: bool

    @property
    def largest(self) -> int:
        return max(size for _, _, size in self.sizes)

    @property
    def parts(self) -> int:
        """Parts of an epilogue's Statistics: blocks, or in the staged schedule tiles."""
        return self.grid.count if self.staged else sum(count for _, count, _ in self.sizes)


def forward(
    machine: Machine,
    conv: Conv,
    packed: Packed,
    epilogue: ep.Epilogue = (),
    ldx: int = 0,
    ldy: int = 0,
    scheme: wg.Scheme = wg.F4,
    dtype: DType = float32,
    inside: bool = False,
) -> Kernel:
    """Kernel (x, u, y, ...epilogue, workspace, scratch): x of ``dtype``, ``u`` from ``transform_weights`` of the same scheme;
    with ``inside`` (see ``stretch``) packed weights."""
    plan = plan_forward(machine, conv, scheme)
    ends = ldx or conv.c, ldy or conv.o, dtype
    return _Builder(machine, "winograd", plan, conv, packed, epilogue, *ends, inside).kernel(conv.flops)


def data_gradient(
    machine: Machine,
    conv: Conv,
    packed: Packed,
    epilogue: ep.Epilogue = (),
    ldx: int = 0,
    ldy: int = 0,
    scheme: wg.Scheme = wg.F4,
    dtype: DType = float32,
    inside: bool = False,
) -> Kernel:
    """Kernel (dy, u, dx, ...epilogue, workspace, scratch) named (x, u, y, ...); ``u`` is flipped, from backward packing, or
    that itself if ``inside``.
    """
    back = reversed_conv(conv)
    plan = plan_forward(machine, back, scheme)
    ends = ldx or conv.o, ldy or conv.c, dtype
    return _Builder(machine, "winograd_dx", plan, back, packed, epilogue, *ends, inside, True).kernel(conv.flops)


def reversed_conv(conv: Conv) -> Conv:
    """The data gradient of a convolution without stride, as the forward convolution that it is."""
    (top, bottom), (left, right) = conv.pad
    v, h = conv.kh - 1, conv.kw - 1
    return Conv(conv.n, conv.oh, conv.ow, conv.o, conv.c, conv.kh, conv.kw, pad=((v - top, v - bottom), (h - left, h - right)))


def stretch(machine: Machine, conv: Conv, packed: Packed, scheme: wg.Scheme, threads: int) -> int:
    """Inputs whose weights a thread transforms at a time, where kernels do that *inside*: if tiles are few, so that all the
    transformed weights would be read for little, and each of ``threads`` has blocks of outputs of its own. Else 0."""
    if scheme is not wg.F4 or 4 * wg.weights_size(packed, scheme) <= machine.l2:
        return 0
    if not plan_forward(machine, conv, scheme).staged:
        return 0
    if idle([(count, outs) for _, count, outs in packed.kinds()], threads) > UNEVEN:
        return 0
    rows = _stretch(machine, packed, scheme)
    return rows if rows >= SHORTEST else 0


def _stretch(machine: Machine, packed: Packed, scheme: wg.Scheme) -> int:
    most = 3 * machine.l2 // 8 // (4 * scheme.points * packed.block)
    return max(rows for rows in range(1, packed.ins + 1) if packed.ins % rows == 0 and rows <= max(1, most))


def plan_forward(machine: Machine, conv: Conv, scheme: wg.Scheme = wg.F4) -> Plan:
    """Cut the tiles into blocks: v and m of one fill L2, but there are enough for a few threads. Staged, if blocks would be too
    few or too small, or weights, which each of them reads, are more than all of v and m."""
    grid = wg.TileGrid(conv, scheme)
    per_tile = scheme.points * 4 * (conv.c + 16 + conv.o + 16)
    target = max(16, min(96, machine.l2 // per_tile))
    weights = scheme.points * 4 * conv.c * conv.o
    count = -(-grid.count // target)
    if count < ENOUGH_BLOCKS:
        count = min(ENOUGH_BLOCKS, grid.count // FEWEST_TILES // 2 * 2)
        target = -(-grid.count // max(1, count))
    if count < FEWEST_BLOCKS or weights > per_tile * grid.count:
        return Plan(grid, [(0, 1, grid.count)], True)
    return Plan(grid, _even(grid.count, blocks(grid.count, target)), False)


def _even(tiles: int, sizes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """An even number of blocks where they are few: of seven, one of two threads would do four."""
    number = sum(count for _, count, _ in sizes)
    return runs(split(tiles, -(-tiles // (number + 1)))) if number % 2 and number < FEW_BLOCKS else sizes


class _Builder:
    def __init__(
        self,
        machine: Machine,
        name: str,
        plan: Plan,
        conv: Conv,
        packed: Packed,
        epilogue: ep.Epilogue,
        ldx: int,
        ldy: int,
        dtype: DType,
        inside: bool = False,
        flip: bool = False,
    ):
        self.dtype, self.inside, self.flip = dtype, inside, flip
        self.machine, self.plan, self.conv, self.packed = machine, plan, conv, packed
        self.scheme = plan.grid.scheme
        self.epilogue, self.ldx, self.ldy, self.lanes = epilogue, ldx, ldy, machine.lanes
        self.memory = "workspace" if plan.staged else "scratch"
        own = ["scratch"] * inside
        self.k = KernelBuilder(machine, name, ["x", "u", "y", *ep.params_of(epilogue), self.memory, *own])
        self.f: Function = self.k.f
        self.v_pitch = -(-conv.c // 16) * 16 + 16
        self.m_pitch = packed.whole * packed.block + packed.rest_width + 16
        self.v_size = self.scheme.points * wg.apart(plan.largest * self.v_pitch)
        self.bytes = -(-4 * (self.v_size + self.scheme.points * wg.apart(plan.largest * self.m_pitch)) // 64) * 64

    def kernel(self, flops: int) -> Kernel:
        f, plan = self.f, self.plan
        if plan.staged:
            self._place(f.arg("workspace"))
            self._stages(0, plan.grid.count, 0)
            scratch = 4 * self.scheme.points * self._apart() if self.inside else 0
            note = f"Winograd {self.scheme}, {'weights inside' if self.inside else 'staged'}, {plan.grid.count} tiles"
            return self.k.finish(flops=flops, workspace=self.bytes, scratch=scratch, note=note)
        self._place(f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.bytes), "i8"))
        part = 0
        low, high = f.share(plan.parts, f.arg("tid"), f.arg("n"))
        for first, count, size in plan.sizes:
            start, stop = f.sub(f.imax(low, part), part), f.sub(f.imin(high, part + count), part)
            with f.loop(start, stop) as block:
                self._stages(f.add(f.mul(block.index, size), first), size, f.add(block.index, part))
            part += count
        return self.k.finish(
            flops=flops, scratch=self.bytes, note=f"Winograd {self.scheme}, blocks of {plan.largest} tiles"
        )

    def _place(self, memory: Value) -> None:
        self.v, self.m = memory, self.f.gep(memory, self.v_size)

    def _share(self, total: int) -> tuple[Index, Index]:
        """This thread's part of a stage: all of it, when blocked."""
        return self.f.share(total, self.f.arg("tid"), self.f.arg("n")) if self.plan.staged else (0, total)

    def _stages(self, first: Index, tiles: int, part: Index) -> None:
        self._transform_input(first, tiles)
        if self.plan.staged:
            self.k.barrier()
        if self.inside:
            self._products_inside(tiles)
        else:
            self._products(tiles)
        if self.plan.staged:
            self.k.barrier()
        self._transform_output(first, tiles, part)

    def _transform_input(self, first: Index, tiles: int) -> None:
        f, conv, grid = self.f, self.conv, self.plan.grid
        zero = wg.zero_row(f, conv.c)
        with f.loop(*self._share(tiles)) as tile:
            image, row, column = grid.position(f, f.add(tile.index, first))
            corner = (f.sub(row, grid.pad[0]), f.sub(column, grid.pad[1]))
            side, dtype = self.scheme.side, self.dtype
            pixels = wg.gather_pointers(f, f.arg("x"), grid.inputs, self.ldx, corner, image, side, zero, dtype)
            target = f.gep(self.v, f.mul(tile.index, self.v_pitch))
            size, step = wg.apart(tiles * self.v_pitch), (self.scheme.out, self.ldx)
            wg.emit_transform(f, self.scheme.bt, pixels, step, conv.c, target, size, dtype)

    def _products(self, tiles: int) -> None:
        f, packed = self.f, self.packed
        for first, count, outs in packed.kinds():
            vectors = -(-outs // self.lanes)
            width = vectors * self.lanes
            most = most_pixels(self.machine, vectors)
            with f.loop(*self._share(self.scheme.points * count)) as unit:
                point, block = f.divmod_chain(unit.index, [self.scheme.points, count])
                block = f.add(block, first)
                u = f.gep(f.arg("u"), f.dot([(point, wg.panel_size(packed)), (block, packed.ins * packed.block)]))
                v = f.gep(self.v, f.mul(point, wg.apart(tiles * self.v_pitch)))
                m = f.gep(self.m, f.dot([(point, wg.apart(tiles * self.m_pitch)), (block, packed.block)]))
                cuts = split(tiles, most)
                piece = -(-width // len(cuts))
                following, passed = f.gep(u, packed.ins * width), 0
                for at, many, size in runs(cuts):
                    with f.loop(0, many) as run:
                        row = f.add(f.mul(run.index, size), at)
                        ahead = f.gep(following, f.mul(f.add(run.index, passed), packed.ins * piece))
                        self._product(
                            f.gep(v, f.mul(row, self.v_pitch)),
                            u,
                            f.gep(m, f.mul(row, self.m_pitch)),
                            size,
                            width,
                            passing(f, ahead, piece, UNROLL),
                        )
                    passed += many

    def _apart(self) -> int:
        """Elements from a point's transformed weights of a stretch to the next's."""
        return wg.apart(_stretch(self.machine, self.packed, self.scheme) * self.packed.block)

    def _products_inside(self, tiles: int) -> None:
        f, packed, scheme = self.f, self.packed, self.scheme
        rows = _stretch(self.machine, packed, scheme)
        own = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), 4 * scheme.points * self._apart()), "i8")
        between = wg.apart(tiles * self.m_pitch)
        for first, count, outs in packed.kinds():
            vectors = -(-outs // self.lanes)
            width = vectors * self.lanes
            cuts = split(tiles, most_pixels(self.machine, vectors))
            with f.loop(*self._share(count)) as unit:
                block = f.add(unit.index, first)
                w = f.gep(f.arg("u"), packed.panel(f, 0, block))
                results = f.gep(self.m, f.mul(block, packed.block))
                self._clear(results, tiles, vectors)
                with f.loop(0, packed.ins, rows) as part:
                    source = f.gep(w, f.mul(part.index, width))
                    wg.emit_weights(f, packed, self.flip, scheme, source, rows, width, own, wg.apart(rows * width))
                    following = f.gep(source, rows * width)
                    with f.loop(0, scheme.points) as point:
                        u = f.gep(own, f.mul(point.index, wg.apart(rows * width)))
                        v = f.gep(self.v, f.add(f.mul(point.index, wg.apart(tiles * self.v_pitch)), part.index))
                        m, passed = f.gep(results, f.mul(point.index, between)), 0
                        for at, many, size in runs(cuts):
                            with f.loop(0, many) as run:
                                row = f.add(f.mul(run.index, size), at)
                                number = f.add(f.mul(point.index, len(cuts)), f.add(run.index, passed))
                                ahead = self._stretch_ahead(following, number, len(cuts), rows, width)
                                places = f.gep(v, f.mul(row, self.v_pitch)), u, f.gep(m, f.mul(row, self.m_pitch))
                                self._product(*places, size, width, ahead, rows)
                            passed += many

    def _stretch_ahead(self, following: Value, number: Index, runs: int, rows: int, width: int) -> Fetch:
        """Prefetches an even share of the weights of the ``following`` stretch, ``taps`` pieces of them, with every round of a
        product's loop; ``number`` is that of the product among all of a stretch."""
        f, taps = self.f, self.packed.taps
        rounds = -(-rows // UNROLL)
        lines = -(-taps * rows * width // LINE // (self.scheme.points * runs * rounds))

        def fetch(step: Index) -> None:
            first = f.mul(f.add(f.mul(number, rounds), f.div(step, UNROLL)), lines)
            for k in range(lines):
                tap, place = f.divmod_chain(f.mul(f.add(first, k), LINE), [taps, rows * width])
                f.prefetch(f.gep(following, f.dot([(tap, self.packed.ins * width), (place, 1)])), 2)

        return fetch

    def _clear(self, m: Value, tiles: int, vectors: int) -> None:
        f = self.f
        with f.loop(0, self.scheme.points) as point, f.loop(0, tiles) as tile:
            place = f.dot([(point.index, wg.apart(tiles * self.m_pitch)), (tile.index, self.m_pitch)])
            for j in range(vectors):
                f.vstore(const(f.vec(), 0.0), f.gep(m, f.add(place, j * self.lanes)))

    def _product(self, v: Value, u: Value, m: Value, size: int, width: int, ahead: Fetch, rows: int = 0) -> None:
        """``m = v @ u``; with ``rows`` of them ``m += v @ u``."""
        f, vectors = self.f, width // self.lanes
        ops = Operands(v, u, 1, self.v_pitch, width, (self.lanes,) * vectors)
        at = lambda p, j: f.gep(m, p * self.m_pitch + j * self.lanes)
        start = [[f.vload(at(p, j)) for j in range(vectors)] for p in range(size)] if rows else zeros(f, size, vectors)

        def fetch(step: Index) -> None:
            """Of the next tiles, too: their stretches are too short for the core to see them come."""
            ahead(step)
            row, column = f.divmod_chain(f.mul(step, size), [size, rows])
            f.prefetch(f.gep(v, f.add(f.mul(f.add(row, size), self.v_pitch), column)))

        tile = accumulate(f, start, ops, rows or self.packed.ins, range(size), UNROLL, fetch if rows else ahead)
        for p, row in enumerate(tile):
            for j, value in enumerate(row):
                f.vstore(value, at(p, j))

    def _transform_output(self, first: Index, tiles: int, part: Index) -> None:
        f, conv, lanes = self.f, self.conv, self.lanes
        whole, rest = conv.o - conv.o % lanes, conv.o % lanes
        kinds = [(0, whole, lanes)] if whole else []
        kinds += [(whole, conv.o, rest)] if rest else []
        if not self.plan.staged:
            self._begin(part, kinds)
        with f.loop(*self._share(tiles)) as tile:
            number = f.add(tile.index, first)
            image, row, column = self.plan.grid.position(f, number)
            if self.plan.staged:
                part = number
                self._begin(part, kinds)
            source = f.gep(self.m, f.mul(tile.index, self.m_pitch))
            for start, stop, count in kinds:
                with f.loop(start, stop, lanes) as channel:
                    self._output(source, tiles, (image, row, column), channel.index, count, part)

    def _begin(self, part: Index, kinds: list[tuple[int, int, int]]) -> None:
        for step in self.epilogue:
            for start, stop, count in kinds:
                with self.f.loop(start, stop, self.lanes) as channel:
                    step.begin(self.f, part, channel.index, count)

    def _output(
        self, source: Value, tiles: int, position: tuple[Index, Index, Index], channel: Index, count: int, part: Index
    ) -> None:
        f, (oh, ow) = self.f, self.plan.grid.outputs
        image, row, column = position
        step = wg.apart(tiles * self.m_pitch)
        loads = [f.vload(f.gep(source, f.add(channel, point * step))) for point in range(self.scheme.points)]
        grid = wg.apply2(
            f,
            self.scheme.at,
            [loads[self.scheme.side * i : self.scheme.side * i + self.scheme.side] for i in range(self.scheme.side)],
        )
        start = f.add(f.mul(f.add(f.mul(image, oh), row), ow), column)

        def store(cells: list[tuple[int, int]]) -> None:
            sites = [ep.Site(f.add(start, i * ow + j), channel, count) for i, j in cells]
            values = ep.finish_column(f, self.epilogue, [grid[i][j] for i, j in cells], sites, part)
            y = ep.element(self.epilogue)
            base = f.gep(f.arg("y"), f.add(f.mul(start, self.ldy), channel), y)
            for value, (i, j) in zip(values, cells):
                f.vstore(value, f.gep(base, (i * ow + j) * self.ldy, y), count)

        cells = [(i, j) for i in range(self.scheme.out) for j in range(self.scheme.out)]
        if oh % self.scheme.out == 0 and ow % self.scheme.out == 0:
            store(cells)
            return
        inside_row = f.icmp("sle", f.index(row), oh - self.scheme.out)
        inside = f.value("i1", f"and {inside_row}, {f.icmp('sle', f.index(column), ow - self.scheme.out).name}")

        def edge() -> list[Value]:
            for i in range(self.scheme.out):
                with f.when(f.icmp("slt", f.index(row), oh - i)):
                    for j in range(self.scheme.out):
                        with f.when(f.icmp("slt", f.index(column), ow - j)):
                            store([(i, j)])
            return []

        def full() -> list[Value]:
            store(cells)
            return []

        f.choose(inside, full, edge)
