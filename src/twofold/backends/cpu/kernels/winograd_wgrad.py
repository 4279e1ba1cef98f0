"""Weight gradients of 3x3 convolutions by Winograd's F(4x4, 3x3): the transpose of the forward algorithm in its
weights.

ALGORITHM
    dw = G' [ sum over tiles of (B' x B) * (A dy A') ] G:  36 products [inputs x tiles] @ [tiles x outputs]
SCHEDULE
    All threads together, in blocks of tiles: transform x and dy (shared by tile), barrier, add the block to the 36 sums
    (shared by point and block of outputs), barrier. At the end the sums are transformed to the 9 taps in packed order.
    A block has as many tiles as amortise loading and storing the sums.
    Where channels are many, or few tiles are all, the sums never reach memory: a unit is a block of outputs and some inputs,
    whose 36 sums stay in L2 until they are transformed; blocks of tiles add up taps, a quarter of the bytes. While a unit
    multiplies at one point it asks for what it reads at the next, which the threads have just written.
"""

from __future__ import annotations

from twofold.backends.cpu.kernels import winograd as wg
from twofold.backends.cpu.kernels.shapes import Conv, blocks, runs, split
from twofold.backends.cpu.kernels.tile import Operands, Tile, accumulate, flatten, zeros
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.kernels.winograd import F4
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder
from twofold.base.dtypes import DType, float32

FEW = 64  # tiles that are one block, whatever the channels
LARGE = 4  # times L2: sums beyond that are not kept in memory (9.4 MB for 256 x 256 channels, level at 2.4 MB)
STEPS = 2  # of the innermost loop, written out
UNITS = 8  # of one size of tile, wanted to share them evenly
TOGETHER = 8  # tiles of inputs, at most, whose 36 sums are kept until they are transformed


def weight_gradient(
    machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0, dtype: DType = float32
) -> Kernel:
    """Kernel (x, dy, dw, workspace[, scratch]): x and dy of ``dtype``, ``dw`` float32 in forward ``packed`` order."""
    return _Builder(machine, conv, packed, ldx or conv.c, ldy or conv.o, dtype).kernel()


def keeps_sums(machine: Machine, conv: Conv, tiles: int) -> bool:
    """Whether the 36 sums of all weights are kept in memory from one block of ``tiles`` to the next."""
    return tiles > FEW and 4 * F4.points * conv.c * conv.o <= LARGE * machine.l2


def block_tiles(machine: Machine, conv: Conv, keeps: bool) -> int:
    """Tiles in a block: 64, so that x and dy are transformed near where they are used; up to 128, if one point's rows of x
    and dy fit half of L2, where a block transforms all sums."""
    return 64 if keeps else max(64, min(128, machine.l2 // 2 // (4 * (conv.c + conv.o))))


class _Builder:
    def __init__(self, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int, dtype: DType):
        self.machine, self.conv, self.packed, self.ldx, self.ldy = machine, conv, packed, ldx, ldy
        self.lanes, self.dtype = machine.lanes, dtype
        self.grid = wg.TileGrid(conv, F4)
        self.keeps = keeps_sums(machine, conv, self.grid.count)
        few = self.grid.count <= FEW
        self.blocks = blocks(self.grid.count, self.grid.count if few else block_tiles(machine, conv, self.keeps))
        largest = self.blocks[0][2]
        self.v_pitch = -(-conv.c // 16) * 16 + 16
        self.z_pitch = packed.whole * packed.block + packed.rest_width + 16
        self.z_at = F4.points * wg.apart(largest * self.v_pitch)
        self.sums_at = self.z_at + F4.points * wg.apart(largest * self.z_pitch)
        tile = machine.registers * self.lanes  # elements of a tile of sums, at most
        self.scratch = 4 * F4.points * wg.apart(TOGETHER * tile)
        memory = ["workspace"] if self.keeps else ["workspace", "scratch"]
        self.k = KernelBuilder(machine, "winograd_dw", ["x", "dy", "dw", *memory])
        self.f: Function = self.k.f

    def kernel(self) -> Kernel:
        f, memory = self.f, self.f.arg("workspace")
        self.v, self.z, self.sums = memory, f.gep(memory, self.z_at), f.gep(memory, self.sums_at)
        note = f"Winograd weight gradient, blocks of {self.blocks[0][2]} tiles"
        sizes = self.sums_at
        if self.keeps:
            self._clear()
            sizes += wg.weights_size(self.packed)
        for first, count, tiles in self.blocks:
            with f.loop(0, count) as block:
                self._block(f.add(f.mul(block.index, tiles), first), tiles)
        if self.keeps:
            self._taps()
        scratch = 0 if self.keeps else self.scratch
        return self.k.finish(flops=self.conv.flops, workspace=4 * sizes, scratch=scratch, note=note)

    def _share(self, total: int) -> tuple[Index, Index]:
        return self.f.share(total, self.f.arg("tid"), self.f.arg("n"))

    def _block(self, first: Index, tiles: int) -> None:
        self._transform(first, tiles)
        self.k.barrier()
        if self.keeps:
            self._products(tiles)
        else:
            self._units(first, tiles)
        if self.keeps or tiles < self.grid.count:  # the next block, or the taps, are shared in another way
            self.k.barrier()

    def _clear(self) -> None:
        """Set the sums to zero; the first barrier comes before they are used."""
        f = self.f
        with f.loop(*self._share(wg.weights_size(self.packed) // self.lanes)) as loop:
            f.vstore(const(f.vec(), 0.0), f.gep(self.sums, f.mul(loop.index, self.lanes)))

    def _transform(self, first: Index, tiles: int) -> None:
        f, conv, grid = self.f, self.conv, self.grid
        zero = wg.zero_row(f, max(conv.c, conv.o))
        with f.loop(*self._share(tiles)) as tile:
            image, row, column = grid.position(f, f.add(tile.index, first))
            corner = (f.sub(row, grid.pad[0]), f.sub(column, grid.pad[1]))
            size, step, dtype = wg.apart(tiles * self.v_pitch), (F4.out, self.ldx), self.dtype
            pixels = wg.gather_pointers(f, f.arg("x"), grid.inputs, self.ldx, corner, image, F4.side, zero, dtype)
            target = f.gep(self.v, f.mul(tile.index, self.v_pitch))
            wg.emit_transform(f, F4.bt, pixels, step, conv.c, target, size, dtype)
            size, step, corner = wg.apart(tiles * self.z_pitch), (F4.out, self.ldy), (row, column)
            pixels = wg.gather_pointers(f, f.arg("dy"), grid.outputs, self.ldy, corner, image, F4.out, zero, dtype)
            target = f.gep(self.z, f.mul(tile.index, self.z_pitch))
            wg.emit_transform(f, wg.transposed(F4.at), pixels, step, conv.o, target, size, dtype)

    def _runs(self, vectors: int) -> list[tuple[int, int, int]]:
        """The inputs in runs of one register tile each, as (first input, how many runs, inputs of each)."""
        return runs(split(self.packed.ins, self.machine.accumulators(vectors) // vectors))

    def _product(
        self, tile: Tile, point: Index, row: Index, block: Index, tiles: int, outs: int, number: Index | None = None
    ) -> Tile:
        """``tile`` and the products of inputs from ``row`` on with one block of outputs, over all tiles of images. Run
        ``number`` of a unit asks for what it reads at the next point, and for its part of dy there."""
        f, lanes = self.f, self.lanes
        v_size, z_size = wg.apart(tiles * self.v_pitch), wg.apart(tiles * self.z_pitch)
        v = f.gep(self.v, f.add(f.mul(point, v_size), row))
        z = f.gep(self.z, f.dot([(point, z_size), (block, self.packed.block)]))
        counts = tuple(min(lanes, outs - at) for at in range(0, outs, lanes))
        ops = Operands(v, z, self.v_pitch, 1, self.z_pitch, counts)
        if number is None:
            return accumulate(f, tile, ops, tiles, range(len(tile)), STEPS)
        below, right = f.gep(v, v_size), f.gep(f.gep(z, z_size), f.mul(f.rem(number, len(counts)), lanes))

        def fetch(step: Index) -> None:
            for k in range(STEPS):
                f.prefetch(f.gep(below, f.mul(f.add(step, k), self.v_pitch)), 2)
                f.prefetch(f.gep(right, f.mul(f.add(step, k), self.z_pitch)), 2)

        return accumulate(f, tile, ops, tiles, range(len(tile)), STEPS, fetch)

    def _places(self, base: Value, size: int, width: int) -> list[list[Value]]:
        """Where the vectors of a tile of sums lie."""
        return [[self.f.gep(base, p * width + at) for at in range(0, width, self.lanes)] for p in range(size)]

    def _products(self, tiles: int) -> None:
        """sums[point][block][input][output] += v' z: tiles of MR inputs x NV vectors of outputs."""
        f, packed = self.f, self.packed
        for first, count, outs in packed.kinds():
            vectors = -(-outs // self.lanes)
            width = vectors * self.lanes
            with f.loop(*self._share(F4.points * count)) as unit:
                point, block = f.divmod_chain(unit.index, [F4.points, count])
                block = f.add(block, first)
                base = f.gep(self.sums, f.dot([(point, wg.panel_size(packed)), (block, packed.ins * packed.block)]))
                for at, many, size in self._runs(vectors):
                    with f.loop(0, many) as run:
                        row = f.add(f.mul(run.index, size), at)
                        places = self._places(f.gep(base, f.mul(row, width)), size, width)
                        begin = [[f.vload(p) for p in line] for line in places]
                        tile = self._product(begin, point, row, block, tiles, outs)
                        for place, value in zip(flatten(places), flatten(tile)):
                            f.vstore(value, place)

    def _taps(self) -> None:
        """dw = G' sums G, one row of a block of outputs at a time."""
        f, packed = self.f, self.packed
        for first, count, outs in packed.kinds():
            width = -(-outs // self.lanes) * self.lanes
            with f.loop(*self._share(count * packed.ins)) as loop:
                block, row = f.divmod_chain(loop.index, [count, packed.ins])
                block = f.add(block, first)
                source = f.gep(self.sums, f.dot([(block, packed.ins * packed.block), (row, width)]))
                self._tap_row(source, wg.panel_size(packed), block, row, width)

    def _tap_row(
        self, source: Value, step: int, block: Index, row: Index, width: int, fresh: Value | None = None
    ) -> None:
        """The 9 taps of one input and a block of outputs, from the 36 sums ``step`` elements apart; added to what is there
        unless they are ``fresh`` (None: always are)."""
        f, packed = self.f, self.packed
        target = f.gep(f.arg("dw"), f.add(packed.panel(f, 0, block), f.mul(row, width)))
        with f.loop(0, width, self.lanes) as vector:
            loads = [f.vload(f.gep(source, f.add(vector.index, p * step))) for p in range(F4.points)]
            grid = wg.apply2(f, wg.transposed(F4.g), [loads[6 * i : 6 * i + 6] for i in range(6)])
            values = [value for line in grid for value in line]
            places = [f.gep(target, f.add(vector.index, tap * packed.ins * width)) for tap in range(len(values))]

            def sums() -> list[Value]:
                return [f.fadd(f.vload(place), value) for place, value in zip(places, values)]

            for value, place in zip(f.choose(fresh, lambda: values, sums) if fresh else values, places):
                f.vstore(value, place)

    def _units(self, first_tile: Index, tiles: int) -> None:
        """Products and taps of a block of outputs and a few runs of inputs at a time."""
        f, packed = self.f, self.packed
        fresh = None if tiles == self.grid.count else f.icmp("eq", f.index(first_tile), 0)
        for first, count, outs in packed.kinds():
            for at, many, size in self._runs(-(-outs // self.lanes)):
                groups = max(-(-many // TOGETHER), min(many, UNITS // count))
                with f.loop(*self._share(count * groups)) as unit:
                    block, group = f.divmod_chain(unit.index, [count, groups])
                    self._unit(f.add(block, first), f.share(many, group, groups), (at, size), tiles, outs, fresh)

    def _unit(
        self,
        block: Index,
        span: tuple[Index, Index],
        inputs: tuple[int, int],
        tiles: int,
        outs: int,
        fresh: Value | None,
    ) -> None:
        """The taps of one block of outputs and the inputs of the runs in ``span``; ``inputs`` are (first, of each run)."""
        f, (at, size), (start, stop) = self.f, inputs, span
        width = -(-outs // self.lanes) * self.lanes
        step = wg.apart(TOGETHER * size * width)
        sums = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
        with f.loop(0, F4.points) as point, f.loop(start, stop) as run:
            row, number = f.add(f.mul(run.index, size), at), f.sub(run.index, start)
            tile = self._product(zeros(f, size, width // self.lanes), point.index, row, block, tiles, outs, number)
            base = f.dot([(point.index, step), (number, size * width)])
            for place, value in zip(flatten(self._places(f.gep(sums, base), size, width)), flatten(tile)):
                f.vstore(value, place)
        with f.loop(0, f.mul(f.sub(stop, start), size)) as line:
            row = f.add(f.add(f.mul(start, size), at), line.index)
            self._tap_row(f.gep(sums, f.mul(line.index, width)), step, block, row, width, fresh)
