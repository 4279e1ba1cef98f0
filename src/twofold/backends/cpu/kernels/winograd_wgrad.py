"""Weight gradients of 3x3 convolutions by Winograd's F(4x4, 3x3): the transpose of the forward algorithm in its
weights.

ALGORITHM
    dw = G' [ sum over tiles of (B' x B) * (A dy A') ] G:  36 products [inputs x tiles] @ [tiles x outputs]
SCHEDULE
    All threads together, in blocks of tiles: transform x and dy (shared by tile), barrier, add the block to the 36 sums
    (shared by point and block of outputs), barrier. At the end the sums are transformed to the 9 taps in packed order.
    A block has as many tiles as amortise loading and storing the sums, while one point's operands fit half of L2.
"""

from __future__ import annotations

from twofold.backends.cpu.kernels import winograd as wg
from twofold.backends.cpu.kernels.shapes import Conv, blocks, split
from twofold.backends.cpu.kernels.tile import Operands, accumulate
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder


def weight_gradient(machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0) -> Kernel:
    """Kernel (x, dy, dw, workspace): ``dw`` in forward ``packed`` order."""
    return _Builder(machine, conv, packed, ldx or conv.c, ldy or conv.o).kernel()


def block_tiles(machine: Machine, conv: Conv) -> int:
    """Tiles in a block: 64 to 256, one point's rows of x and dy in half of L2."""
    return max(64, min(256, machine.l2 // 2 // (4 * (conv.c + conv.o))))


class _Builder:
    def __init__(self, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int):
        self.machine, self.conv, self.packed, self.ldx, self.ldy = machine, conv, packed, ldx, ldy
        self.lanes = machine.lanes
        self.grid = wg.TileGrid(conv.n, (conv.h, conv.w), (conv.oh, conv.ow), (conv.pad[0][0], conv.pad[1][0]))
        self.blocks = blocks(self.grid.count, block_tiles(machine, conv))
        self.v_pitch = -(-conv.c // 16) * 16 + 16
        self.z_pitch = packed.whole * packed.block + packed.rest_width + 16
        largest = self.blocks[0][2]
        self.z_at = wg.POINTS * wg.apart(largest * self.v_pitch)
        self.sums_at = self.z_at + wg.POINTS * wg.apart(largest * self.z_pitch)
        self.k = KernelBuilder(machine, "winograd_dw", ["x", "dy", "dw", "workspace"])
        self.f: Function = self.k.f

    def kernel(self) -> Kernel:
        f, memory = self.f, self.f.arg("workspace")
        self.v, self.z, self.sums = memory, f.gep(memory, self.z_at), f.gep(memory, self.sums_at)
        self._clear()
        for first, count, tiles in self.blocks:
            with f.loop(0, count) as block:
                self._block(f.add(f.mul(block.index, tiles), first), tiles)
        self._taps()
        size = 4 * (self.sums_at + wg.weights_size(self.packed))
        note = f"Winograd weight gradient, blocks of {self.blocks[0][2]} tiles"
        return self.k.finish(flops=self.conv.flops, workspace=size, note=note)

    def _share(self, total: int) -> tuple[Index, Index]:
        return self.f.share(total, self.f.arg("tid"), self.f.arg("n"))

    def _block(self, first: Index, tiles: int) -> None:
        self._transform(first, tiles)
        self.k.barrier()
        self._products(tiles)
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
            pixels = wg.gather_pointers(f, f.arg("x"), grid.inputs, self.ldx, corner, image, wg.IN, zero)
            target = f.gep(self.v, f.mul(tile.index, self.v_pitch))
            wg.emit_transform(f, wg.BT, pixels, wg.IN, conv.c, target, wg.apart(tiles * self.v_pitch))
            pixels = wg.gather_pointers(f, f.arg("dy"), grid.outputs, self.ldy, (row, column), image, wg.OUT, zero)
            target = f.gep(self.z, f.mul(tile.index, self.z_pitch))
            wg.emit_transform(f, wg.transposed(wg.AT), pixels, wg.OUT, conv.o, target, wg.apart(tiles * self.z_pitch))

    def _products(self, tiles: int) -> None:
        """sums[point][block][input][output] += v' z: tiles of MR inputs x NV vectors of outputs."""
        f, packed, lanes = self.f, self.packed, self.lanes
        for first, count, outs in packed.kinds():
            vectors = -(-outs // lanes)
            width = vectors * lanes
            most = self.machine.accumulators(vectors) // vectors
            counts = tuple(min(lanes, outs - at) for at in range(0, outs, lanes))
            with f.loop(*self._share(wg.POINTS * count)) as unit:
                point, block = f.divmod_chain(unit.index, [wg.POINTS, count])
                block = f.add(block, first)
                v = f.gep(self.v, f.mul(point, wg.apart(tiles * self.v_pitch)))
                z = f.gep(self.z, f.dot([(point, wg.apart(tiles * self.z_pitch)), (block, packed.block)]))
                base = f.gep(self.sums, f.dot([(point, wg.panel_size(packed)), (block, packed.ins * packed.block)]))
                runs, at = split(packed.ins, most), 0
                for size in sorted(set(runs), reverse=True):
                    with f.loop(0, runs.count(size)) as run:
                        row = f.add(f.mul(run.index, size), at)
                        sums = f.gep(base, f.mul(row, width))
                        places = [[f.gep(sums, p * width + j * lanes) for j in range(vectors)] for p in range(size)]
                        begin = [[f.vload(p) for p in line] for line in places]
                        ops = Operands(f.gep(v, row), z, self.v_pitch, 1, self.z_pitch, counts)
                        tile = accumulate(f, begin, ops, tiles, range(size), 2)
                        for line, values in zip(places, tile):
                            for place, value in zip(line, values):
                                f.vstore(value, place)
                    at += size * runs.count(size)

    def _taps(self) -> None:
        """dw = G' sums G, one vector of outputs at a time."""
        f, packed, lanes = self.f, self.packed, self.lanes
        for first, count, outs in packed.kinds():
            width = -(-outs // lanes) * lanes
            with f.loop(*self._share(count * packed.ins)) as loop:
                block, row = f.divmod_chain(loop.index, [count, packed.ins])
                block = f.add(block, first)
                source = f.gep(self.sums, f.dot([(block, packed.ins * packed.block), (row, width)]))
                target = f.gep(f.arg("dw"), f.add(packed.panel(f, 0, block), f.mul(row, width)))
                for at in range(0, width, lanes):
                    loads = [f.vload(f.gep(source, p * wg.panel_size(packed) + at)) for p in range(wg.POINTS)]
                    grid = wg.apply2(f, wg.transposed(wg.G), [loads[6 * i : 6 * i + 6] for i in range(6)])
                    for tap, value in enumerate(value for line in grid for value in line):
                        f.vstore(value, f.gep(target, tap * packed.ins * width + at))
