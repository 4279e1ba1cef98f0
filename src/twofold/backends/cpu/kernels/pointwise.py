"""1x1 convolutions: passes of a single tap, which reduce over the inputs in blocks.

SCHEDULE
    Within a unit the inputs are cut into blocks of at most 256, so that a block's weights (16 KB on AVX2) stay in L1 while
    all tiles of the unit pass by; in between the sums rest in a scratch of the thread's own. Without blocks every tile
    fetches all of its weights from L2 again, which held 1x1 layers to 60-80 % of the peak on two threads.
    On the way three things are prefetched, a few lines with every round of the loop, so that they are there when their turn
    comes: the weights that lie behind (the next block's), into L1; the pixels of the next unit, and what the tile's epilogue
    will read and write, into L2.
"""

from __future__ import annotations

import functools

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import partition
from twofold.backends.cpu.kernels.shapes import Axis, Conv, Pass, blocks, runs, split
from twofold.backends.cpu.kernels.sweep import UNITS, Sweep, row_block
from twofold.backends.cpu.kernels.tile import LINE, Fetch, Operands, Tile, accumulate, most_pixels, zeros
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine

UNROLL = 4  # steps written out: one prefetch of each kind serves them all
THREADS = (2, 4, 8)  # that rows are made even for
ROW_PIXELS = 1.0  # what reading the weights once more costs, in pixels of their products
Rows = list[tuple[int, int, int]]  # (first pixel, how many rows, pixels of each)
PIXEL_WAYS = 4  # of L1, for pixels and what else passes by
LEAST_TILES = 4  # tiles in a row of flattened pixels, however many channels they have


def is_pointwise(conv: Conv) -> bool:
    """A 1x1 convolution without stride or padding: a matrix product over all pixels."""
    return (conv.kh, conv.kw, conv.stride, conv.pad) == (1, 1, (1, 1), ((0, 0), (0, 0)))


def suits(one: Pass) -> bool:
    """Whether a pass has a single tap, which falls inside the image everywhere."""
    return one.v.taps == one.h.taps == 1 and one.v.inside and one.h.inside


@functools.lru_cache(maxsize=1024)
def flattened(machine: Machine, one: Pass, packed: Packed) -> tuple[Pass, ...]:
    """A pass over whole images (1x1, stride 1) with its pixels in rows of a convenient length: 8 tiles, or as many as have
    their inputs in half of L2; a few pixels more make one row rather than two. With several blocks of outputs every row
    reads their weights again, so rows are longer then: up to three tenths of L2 (which also holds the next row's pixels, on
    their way, and the results of both), if that leaves units for many threads.
    """
    pixels, most = one.n * one.v.inputs * one.h.inputs, _tile_pixels(machine, packed)
    size, least = 4 * one.ldx, LEAST_TILES * most
    near = machine.l2 // 2 // size
    target = max(least, min(8 * most, near))
    if pixels <= 2 * target and pixels * size <= machine.l2 * 7 // 8:
        target = pixels
    elif (columns := packed.whole + (1 if packed.rest else 0)) > 1:
        target = max(target, min(pixels * columns // UNITS, machine.l2 * 3 // 10 // size))
    passes = []
    for first, rows, length in _even(machine, packed, blocks(pixels, target, most)):
        v, h = Axis(rows, rows, rows), Axis(length, length, length)
        passes.append(Pass(1, v, h, one.ldx, one.ldy, first * one.ldx, first))
    return tuple(passes)


def _even(machine: Machine, packed: Packed, rows: Rows) -> Rows:
    """The same pixels in more rows, where 2, 4 or 8 threads would wait for each other much longer than it takes to read the
    weights again for every row."""
    pixels, fewest = sum(count * length for _, count, length in rows), sum(count for _, count, _ in rows)
    widths = [(count, -(-outs // packed.lanes)) for _, count, outs in packed.kinds()]

    def cost(rows: Rows) -> float:
        loops = [(count * blocks, length * vectors) for _, count, length in rows for blocks, vectors in widths]
        waiting = sum(partition.idle(loops, threads) for threads in THREADS) / len(THREADS)
        return waiting + sum(count for _, count, _ in rows) * ROW_PIXELS / pixels

    if fewest * sum(blocks for blocks, _ in widths) >= UNITS:
        return rows
    most = max(fewest, pixels // _tile_pixels(machine, packed))
    return min([rows, *(runs(split(pixels, -(-pixels // count))) for count in range(fewest + 1, most + 1))], key=cost)


def scratch_bytes(machine: Machine, one: Pass, packed: Packed) -> int:
    """What a thread needs for the sums of a unit between blocks of inputs."""
    if _block(machine, packed) >= packed.ins:
        return 0
    return 4 * row_block(machine, one, packed) * one.h.outputs * packed.block


def _tile_pixels(machine: Machine, packed: Packed) -> int:
    vectors = packed.block // packed.lanes
    return most_pixels(machine, vectors)


def _block(machine: Machine, packed: Packed) -> int:
    """Inputs of a block: their weights fill L1 but for a few ways, of which each pixel takes a line; blocks are as even as
    steps of the loop allow."""
    ways = machine.l1_ways - min(PIXEL_WAYS, machine.l1_ways // 2)
    most = max(64, machine.l1 // machine.l1_ways * ways // (4 * packed.block))
    count = -(-packed.ins // most)
    return -(-packed.ins // count // UNROLL) * UNROLL


class Pointwise(Sweep):
    """Emits a pass that ``suits``."""

    def __init__(
        self, f: Function, machine: Machine, one: Pass, packed: Packed, epilogue: ep.Epilogue, part: int, scratch: int
    ):
        super().__init__(f, machine, one, packed, epilogue, part, scratch)
        self.block = _block(machine, packed)
        self.parts = -(-packed.ins // self.block)
        self.pixels = self.rows * one.h.outputs  # of a unit
        columns = packed.whole + (1 if packed.rest else 0)
        # the next unit's pixels are spread over this unit's passes, if they come next and lie close together
        span = 4 * one.ldx * one.h.inputs * one.v.step * self.rows
        near = self.weights_outside or one.ldx > 2 * packed.ins or 4 * one.ldx * one.v.inputs * one.h.inputs < machine.l2
        self.x_rate = 0 if near else -(-span // (columns * self.parts * self.pixels))  # bytes a pixel and block of inputs

    inputs: tuple[Index, int, bool]  # the block of inputs at hand, how many it has, whether it is the last

    def _walk(self, block: Index, start: Index, stop: Index) -> None:
        """All rows of a unit, for one block of inputs after the other."""
        f = self.f
        self.number, self.start = block, start
        self.w_rate = -(-4 * self.block * self.width // self.pixels)
        last = self.packed.ins - (self.parts - 1) * self.block
        if self.parts > 1:
            self.sums = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
            with f.loop(0, self.pixels * self.width, self.machine.lanes) as place:
                f.vstore(const(f.vec(), 0.0), f.gep(self.sums, place.index))
            with f.loop(0, self.parts - 1) as part:
                self.inputs = (part.index, self.block, False)
                super()._walk(block, start, stop)
        self.inputs = (self.parts - 1, last, True)
        super()._walk(block, start, stop)

    def _tile(self, at: Index, size: int, example: int) -> None:
        f, one, vectors, lanes = self.f, self.one, len(self.counts), self.machine.lanes
        part, steps, final = self.inputs
        done = f.add(f.mul(f.sub(self.row, self.start), one.h.outputs), at)  # pixels of the unit before this tile
        places = [[]] if self.parts == 1 else self._places(done, size)
        tile: Tile = zeros(f, size, vectors)
        if self.parts > 1:
            tile = [[f.vload(place) for place in line] for line in places]
        first = f.mul(part, self.block)
        line = f.mul(f.add(f.mul(self.row, one.v.step), one.v.first), one.h.inputs * one.ldx)
        column = f.mul(f.add(f.mul(at, one.h.step), one.h.first), one.ldx)
        x = f.gep(self.x, f.add(f.add(line, column), first))
        w = f.gep(self.w, f.mul(f.add(first, self._tap_offset()), self.width))
        ops = Operands(x, w, 1, one.h.step * one.ldx, self.width, (lanes,) * vectors, pairs=self.packed.pairs)
        ahead = self._ahead(w, part, steps, done, size)
        if final:
            ahead = self._and_streams(ahead, at, size, steps)
        tile = accumulate(f, tile, ops, steps, range(size), UNROLL, ahead)
        if final:
            self._store(tile, at, size)
        else:
            for values, line_of in zip(tile, places):
                for value, place in zip(values, line_of):
                    f.vstore(value, place)

    def _tap_offset(self) -> int:
        """Rows of a panel before the inputs of this pass's tap."""
        return (self.one.v.kernel * self.packed.kw + self.one.h.kernel) * self.packed.ins

    def _places(self, done: Index, size: int) -> list[list[Value]]:
        """Where the sums of a tile rest."""
        f, lanes = self.f, self.machine.lanes
        base = f.gep(self.sums, f.mul(done, self.width))
        return [[f.gep(base, p * self.width + j * lanes) for j in range(len(self.counts))] for p in range(size)]

    def _ahead(self, w: Value, part: Index, steps: int, done: Index, size: int) -> Fetch:
        """Prefetches what comes next, as far as this tile's share goes; called with the first of UNROLL steps."""
        f, one = self.f, self.one
        behind = f.gep(w, steps * self.width)
        wanted = [(f.gep(behind, f.mul(done, self.w_rate), "i8"), self.w_rate, 3)]
        if self.x_rate:
            passes = f.add(f.mul(self.number, self.parts), part)
            lines = f.mul(f.add(self.start, self.rows), one.v.step * one.h.inputs * one.ldx)
            place = f.mul(f.add(f.mul(passes, self.pixels), done), self.x_rate)
            wanted.append((f.gep(f.gep(self.x, lines), place, "i8"), self.x_rate, 2))

        def fetch(step: Index) -> None:
            for place, rate, level in wanted:
                each = max(1, -(-size * rate // steps))  # bytes a step: of few pixels each has several lines to ask for
                start = f.gep(place, f.mul(step, each), "i8")
                for at in range(0, UNROLL * each, 4 * LINE):
                    f.prefetch(f.gep(start, at, "i8"), level)

        return fetch

    def _and_streams(
        self, ahead: Fetch, at: Index, size: int, steps: int
    ) -> Fetch:
        """``ahead``, and what this tile's end reads and writes: an even share of the lines in every round."""
        f, one = self.f, self.one
        lines, streams = -(-self.width // LINE), ep.streams(self.epilogue, one.ldy)
        share = -(-size * lines // max(1, steps // UNROLL))
        first = f.add(self.pixel, f.mul(at, one.h.out_step))

        def fetch(step: Index) -> None:
            ahead(step)
            for k in range(share):
                number = f.add(f.mul(f.div(step, UNROLL), share), k)
                pixel = f.add(first, f.mul(f.div(number, lines), one.h.out_step))
                channel = f.add(self.channel, f.mul(f.rem(number, lines), LINE))
                for stream in streams:
                    stream.fetch(f, pixel, channel)

        return fetch
