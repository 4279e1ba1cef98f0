"""Convolutions of many small groups (depthwise, ResNeXt): a vector holds one or several whole groups.

ALGORITHM (q channels in and out of every group)
    y[n, oh, ow, g*q + o] = sum over kh, kw, j of x[n, .., .., g*q + j] * w[g*q + o, j, kh, kw]
SCHEDULE
    With q dividing the lanes, vector v of y needs vector v of x only: for each j, the lanes of x are *spread* so that
    every lane sees input j of its own group (one instruction that also loads: nothing to spread for q = 1, a permutation,
    a broadcast where a group fills the vector). A tile is up to 11 pixels x 1 vector on AVX2. Its loops are kh, j, up to 3
    of kw, whose weights are in registers, and input columns: a spread column serves every pixel that it meets, three of
    them for 3x3. All vectors of a tile's pixels are done in turn, so that whole cache lines are read; large maps, which
    come from memory, are prefetched a row ahead, and others where an epilogue reads what lies there. Where a vector is a whole
    line, a unit is one vector of a block of rows instead, which reads its weights once (``_Blocks``). The data gradient is the
    same with transposed groups; the weight gradient keeps kw x q accumulators over the rows and goes by columns, too: a spread
    column serves all its taps.
    Weights are Packed as one group of one-vector blocks, ``[vector][kh][kw][j][lane]``; where a group fills the vector that
    is the order of the direct kernels, whose weight gradient serves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import weights
from twofold.backends.cpu.kernels.axes import clip, segments
from twofold.backends.cpu.kernels.shapes import Axis, Conv, Pass, forward_axes, gradient_axes, split
from twofold.backends.cpu.kernels.tile import LINE, lines_kept
from twofold.backends.cpu.kernels.weights import Order, Packed, Plain
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import FEW_THREADS, Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

VECTORS = 16  # of one unit: a tile walks them in turn, reading whole cache lines
TAPS = 3  # horizontal ones whose weights are in registers together
MOST_PIXELS = 14  # of a tile, however many registers there are: chains enough to hide the latency of multiply-adds
UNITS = 32  # at least, to be shared evenly among threads
NEAR = 0.375  # of L2: for the pixels that a block of rows reads; the next block's and weights have the rest
WHOLE = 0.5  # of L2: images up to this are read whole
PIXELS = 48  # of a unit, at least: with fewer, its weights come as often as x
READ_AGAIN = 0.25  # what one more block of rows costs, by the work of a row
BRICK = 4  # floats: x86 permutes within 128 bits on any port, further only where multiply-adds are done, too
STREAMS = 4  # columns in turn whose sums do not wait for each other
T = TypeVar("T")
Meets = tuple[tuple[int, int], ...]  # what a column of x meets: (number of a tap, output counted from the column's block)


@dataclass(frozen=True)
class Transposed:
    """Weights with inputs and outputs of every group exchanged: what the data gradient packs from."""

    base: Packed | Plain
    q: int

    def offset(self, f: Function, group: Index, o: Index, i: Index, tap: Index) -> Index:
        """Where the weight lies that leads to input ``i`` of the convolution from output ``o`` of the same group."""
        out = f.add(f.mul(f.div(i, self.q), self.q), o)
        return self.base.offset(f, 0, out, f.rem(i, self.q), tap)


def fits(machine: Machine, conv: Conv) -> bool:
    """Groups with as many outputs as inputs, several to a vector; or one, if neighbouring outputs share columns."""
    if conv.groups == 1 or conv.cg != conv.og or machine.lanes % conv.og:
        return False
    return shares(machine, conv) or conv.kw > 1


def shares(machine: Machine, conv: Conv) -> bool:
    """Whether several groups share a vector."""
    return conv.cg < machine.lanes


def packing(machine: Machine, conv: Conv, forward: bool = True) -> Packed:
    """The packed order of the weights; for the data gradient fill it from ``backward``."""
    together = conv.groups if shares(machine, conv) else 1  # groups that are packed as if they were one
    groups, outs = conv.groups // together, conv.og * together
    return Packed(groups, outs, conv.cg, conv.kh, conv.kw, machine.lanes, machine.lanes, forward)


def plain(machine: Machine, conv: Conv) -> Plain:
    """The users' order, ``(O, I, KH, KW)``; groups that share vectors are seen as one."""
    return Plain(1, conv.o, conv.cg, conv.kh, conv.kw) if shares(machine, conv) else weights.plain(conv)


def backward(machine: Machine, conv: Conv, source: Packed | Plain) -> Order:
    """What the data gradient's order is packed from, for weights in the order of ``source``."""
    return Transposed(source, conv.cg) if shares(machine, conv) else source


def forward(
    machine: Machine, conv: Conv, packed: Packed, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0
) -> Kernel:
    """Kernel (x, w, y, ...epilogue)."""
    v, h = forward_axes(conv)
    return _build(machine, "conv_lanes", [Pass(conv.n, v, h, ldx or conv.c, ldy or conv.o)], conv, packed, epilogue)


def data_gradient(
    machine: Machine, conv: Conv, packed: Packed, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0
) -> Kernel:
    """Kernel (x = output's gradient, w, y = input's gradient, ...epilogue)."""
    ldx, ldy = ldx or conv.o, ldy or conv.c
    passes = [Pass(conv.n, v, h, ldx, ldy) for v in gradient_axes(conv, 0) for h in gradient_axes(conv, 1)]
    return _build(machine, "conv_lanes_dx", passes, conv, packed, epilogue)


def parts(conv: Conv, forward: bool = True) -> int:
    """Parts that an epilogue's sums are gathered in: the rows of the output, or of all phases of the input's gradient."""
    return conv.n * conv.oh if forward else conv.n * conv.h * len(gradient_axes(conv, 1))


def _build(
    machine: Machine, name: str, passes: list[Pass], conv: Conv, packed: Packed, epilogue: ep.Epilogue
) -> Kernel:
    k = KernelBuilder(machine, name, ["x", "w", "y", *ep.params_of(epilogue)])
    part = 0
    for one in passes:
        sweep = (_Blocks if _by_blocks(machine, one, packed, conv.cg) else _Sweep)(k.f, one, packed, epilogue, conv.cg, part)
        for first, count, outs in packed.kinds():
            sweep.emit(first, packed.groups * count, outs)
        part += one.n * one.v.outputs
    return k.finish(flops=conv.flops, note=f"lanes of {machine.lanes // conv.cg} groups")


def _by_blocks(machine: Machine, one: Pass, packed: Packed, q: int) -> bool:
    """Whether a pass is swept by blocks: what is in the second caches already, map and weights, is read as quickly by rows; and
    with steps between outputs or vectors of half a line, rows write and read whole lines."""
    large = 4 * one.n * one.v.inputs * one.h.inputs * one.ldx > FEW_THREADS * machine.l2 or 4 * packed.size > machine.l2 // 8
    return q > 1 and large and machine.stores_lines and one.v.out_step == one.h.out_step == 1


def permuted(f: Function, x: Value, q: int, j: int) -> Value:
    """Every lane gets lane ``j`` of its group of ``q``."""
    return x if q == 1 else f.shuffle(x, None, [lane // q * q + j for lane in range(x.lanes)])


class _Sweep:
    def __init__(self, f: Function, one: Pass, packed: Packed, epilogue: ep.Epilogue, q: int, part: int):
        self.f, self.one, self.packed, self.epilogue, self.q = f, one, packed, epilogue, q
        self.first_part, self.lanes = part, f.machine.lanes
        self.together = BRICK if BRICK < q < self.lanes and f.machine.is_x86 and f.machine.registers >= 32 else 1
        # pixels come from memory: large maps, and whatever an epilogue reads, which the forward pass left
        large = 4 * one.n * one.v.inputs * one.h.inputs * one.ldx > f.machine.l3 // 8
        self.far = large or any(not stream.written for stream in ep.streams(epilogue, one.ldy))

    def emit(self, first: int, count: int, outs: int) -> None:
        """All rows of ``count`` vectors from vector ``first`` on, with ``outs`` lanes in use."""
        f, one = self.f, self.one
        self.outs = outs
        together = max(k for k in range(1, min(count, VECTORS) + 1) if count % k == 0)
        low, high = f.share(one.n * one.v.outputs * (count // together), f.arg("tid"), f.arg("n"))
        with f.loop(low, high) as unit:
            image, row, chunk = f.divmod_chain(unit.index, [one.n, one.v.outputs, count // together])
            start = f.add(f.mul(chunk, together), first)
            self._row(image, row, (start, f.add(start, together)))

    def _row(self, image: Index, row: Index, vectors: tuple[Index, Index]) -> None:
        f, one = self.f, self.one
        self.part = f.add(self.first_part, f.add(f.mul(image, one.v.outputs), row))
        with f.loop(*vectors) as vector:
            for step in self.epilogue:
                step.begin(f, self.part, f.mul(vector.index, self.lanes), self.outs)
        image_x = f.gep(f.arg("x"), f.mul(image, one.v.inputs * one.h.inputs * one.ldx))
        self.row, self.taps, self.done = row, clip(f, one.v, row), 0
        pixels = _most_pixels(f.machine, one.h, 4 * one.ldx)
        line = f.add(f.mul(image, one.v.extent), f.add(one.v.out_first, f.mul(row, one.v.out_step)))
        self.pixel = f.add(f.mul(line, one.h.extent), one.h.out_first)
        for start, size, count in segments(one.h, pixels):
            with f.loop(0, count) as tile, f.loop(*vectors) as vector:
                self.channel = f.mul(vector.index, self.lanes)
                self.w = f.gep(f.arg("w"), self.packed.panel(f, 0, vector.index))
                self.x = f.gep(image_x, self.channel)
                self.number = f.add(tile.index, self.done)
                self._tile(f.add(start, f.mul(tile.index, size)), size, start)
            self.done += count

    def _tile(self, at: Index, size: int, example: int) -> None:
        f, one = self.f, self.one
        sums = [const(f.vec(), 0.0)] * size
        if one.v.taps and one.h.taps:
            if self.far:
                self._ahead(at, size)
            with f.loop(*self.taps, carry=sums) as tap:
                tap.carry(self._tap_row(tap.carried, tap.index, at, size, example))
            sums = tap.results
        first = f.add(self.pixel, f.mul(at, one.h.out_step))
        sites = [ep.Site(f.add(first, p * one.h.out_step), self.channel, self.outs) for p in range(size)]
        y = ep.element(self.epilogue)
        base = f.gep(f.arg("y"), f.add(f.mul(first, one.ldy), self.channel), y)
        for p, value in enumerate(ep.finish_column(f, self.epilogue, sums, sites, self.part)):
            f.vstore(value, f.gep(base, p * one.h.out_step * one.ldy, y), self.outs)

    def _ahead(self, at: Index, size: int) -> None:
        """Prefetch into L2 what the same tile of the next row reads first, and what its end reads and writes."""
        f, one, v, h = self.f, self.one, self.one.v, self.one.h
        line = f.add(f.mul(self.row, v.step), v.first + (v.taps - 1) * v.spacing + 1)  # below this row's last
        column = f.add(f.mul(at, h.step), h.first + (h.taps - 1) * h.spacing)
        x = f.gep(self.x, f.mul(f.add(f.mul(line, h.inputs), column), one.ldx))
        for k, p in itertools.product(range(v.step), range(size * h.step)):
            f.prefetch(f.gep(x, (k * h.inputs + p) * one.ldx), 2)
        below = f.add(f.add(self.pixel, v.out_step * h.extent), f.mul(at, h.out_step))
        for stream in ep.streams(self.epilogue, one.ldy):
            for p in range(size):
                stream.fetch(f, f.add(below, p * h.out_step), self.channel)

    def _tap_row(self, sums: list[Value], tap: Index, at: Index, size: int, example: int) -> list[Value]:
        """Add the products of one vertical tap."""
        f, one, q, packed = self.f, self.one, self.q, self.packed
        line = f.add(f.add(f.mul(self.row, one.v.step), one.v.first), f.mul(tap, one.v.spacing))
        column = f.add(f.mul(at, one.h.step), one.h.first)
        x = f.gep(self.x, f.mul(f.add(f.mul(line, one.h.inputs), column), one.ldx))
        kernel_row = f.add(one.v.kernel, f.mul(tap, one.v.kernel_step))
        w = f.gep(self.w, f.mul(kernel_row, packed.kw * q * self.lanes))
        sums = list(sums)
        self._asks(tap, at, size)
        for start in range(0, one.h.taps, TAPS):
            meets = _meets(one, range(start, min(start + TAPS, one.h.taps)), size, example)
            for j in range(0, q if meets else 0, self.together):
                self._columns(sums, f.afresh(x), w, meets, range(j, j + self.together))
        return sums

    def _asks(self, tap: Index, at: Index, size: int) -> None:
        """Prefetches that go with one vertical tap of a tile."""

    def _columns(self, sums: list[Value], x: Value, w: Value, meets: dict[int, list[tuple[int, int]]], inputs: range) -> None:
        """Add the products with some ``inputs`` of every group, column by column."""
        f, h, q = self.f, self.one.h, self.q
        taps = sorted({t for pairs in meets.values() for _, t in pairs})
        place = lambda tap, j: f.gep(w, ((h.kernel + tap * h.kernel_step) * q + j) * self.lanes)
        rows = {(tap, j): f.vload(place(tap, j)) for j in inputs for tap in taps}
        for column, pairs in _apart(sorted(meets.items()), STREAMS if self.together > 1 else 1):
            for j, value in zip(inputs, self._spread(f.gep(x, column * self.one.ldx), inputs)):
                for pixel, tap in pairs:
                    sums[pixel] = f.fma_onto(value, rows[tap, j], sums[pixel])

    def _spread(self, x: Value, inputs: range) -> Iterator[Value]:
        """Each of the inputs of every lane's group."""
        f, q = self.f, self.q
        if q == self.lanes:
            yield from (f.broadcast(f.gep(x, j)) for j in inputs)
            return
        value = f.vload(x, self.outs)
        if self.together == 1:
            yield from (permuted(f, value, q, j) for j in inputs)
            return
        brick = f.settled(f.shuffle(value, None, [k // q * q + inputs[0] + k % BRICK for k in range(self.lanes)]))
        yield from (permuted(f, brick, BRICK, j % BRICK) for j in inputs)


class _Blocks(_Sweep):
    """A unit is a block of rows of one vector; its weights are read once and stay in L1.

    With each vertical tap of a tile it asks for a share of what comes next: what the tile's end writes, the weights of the next
    unit, and the next block's pixels, as they lie, for lines 1 KB apart come from L3 at a third of the speed (42 of 130 GB/s a
    core on Zen 5); where L2 has the whole image, or there is one block, the next vector's pixels. The prefetches are loops
    of their own: one between loads is a wall for LLVM, which then keeps sums in the stack (28x28 of 8 channels a group 81 to
    62 % of the peak).
    """

    def emit(self, first: int, count: int, outs: int) -> None:
        f, one, v = self.f, self.one, self.one.v
        self.outs, self.far = outs, False
        rows, ahead = row_block(f.machine, one, count)
        blocks = -(-v.outputs // rows)
        tiles = rows * sum(many for _, _, many in segments(one.h, _most_pixels(f.machine, one.h, 4 * one.ldx)))
        asks, line = tiles * max(1, v.taps), one.h.inputs * one.ldx
        self.tiles_in_row = tiles // rows
        if ahead:  # of the next block, as it lies: an even share for each vector
            lines = rows * v.step * line // LINE
            self.x_step, self.x_share = LINE, -(-lines // (asks * count))
        else:
            self.x_step, self.x_share = one.ldx, -(-_lines(one, rows) * one.h.inputs // asks)
        self.w_share = -(-self.packed.taps * self.q * self.lanes // LINE // asks)
        low, high = f.share(one.n * blocks * count, f.arg("tid"), f.arg("n"))
        with f.loop(low, high) as unit:
            image, block, number = f.divmod_chain(unit.index, [one.n, blocks, count])
            vector, start = f.add(number, first), f.mul(block, rows)
            top = f.add(f.mul(start, v.step), v.first)
            if ahead:
                below = f.imin(f.add(top, rows * v.step + (v.taps - 1) * v.spacing + 1 - v.step), v.inputs)
                at = f.mul(number, self.x_share * asks * LINE)
            else:
                below, at = f.imax(top, 0), f.mul(f.add(vector, 1), self.lanes)
            x = f.add(f.mul(f.add(f.mul(image, v.inputs), below), line), at)
            following = f.select(f.icmp("slt", f.index(number), count - 1), f.index(f.add(vector, 1)), f.index(first))
            self.next_x, self.next_w = f.gep(f.arg("x"), x), f.gep(f.arg("w"), self.packed.panel(f, 0, following))
            with f.loop(start, f.imin(f.add(start, rows), v.outputs)) as row:
                self.before = f.mul(f.sub(row.index, start), self.tiles_in_row)
                self._row(image, row.index, (vector, f.add(vector, 1)))

    def _asks(self, tap: Index, at: Index, size: int) -> None:
        f, one = self.f, self.one
        tile = f.add(f.mul(f.add(self.before, self.number), one.v.taps), tap)
        x = f.gep(self.next_x, f.mul(tile, self.x_share * self.x_step))
        w = f.gep(self.next_w, f.mul(tile, self.w_share * LINE))
        share = -(-size // one.v.taps)
        end = f.add(f.add(self.pixel, f.mul(at, one.h.out_step)), f.mul(tap, share * one.h.out_step))
        with f.loop(0, share) as p:
            for stream in ep.streams(self.epilogue, one.ldy):
                stream.fetch(f, f.add(end, f.mul(p.index, one.h.out_step)), self.channel)
        with f.loop(0, self.x_share) as p:
            f.prefetch(f.gep(x, f.mul(p.index, self.x_step)), 2)
        with f.loop(0, self.w_share) as p:
            f.prefetch(f.gep(w, f.mul(p.index, LINE)), 3)


def row_block(machine: Machine, one: Pass, vectors: int) -> tuple[int, bool]:
    """Rows of a unit, and whether the next block of rows is fetched ahead: otherwise L2 has whole images, or all rows pass by
    weights that would cost too much to read again."""
    line = 4 * one.ldx * one.h.inputs
    near = [rows for rows in range(1, one.v.outputs + 1) if line * _lines(one, rows) <= machine.l2 * NEAR]
    ahead = one.v.inputs * line > machine.l2 * WHOLE and max(near, default=0) * one.h.outputs >= PIXELS
    fits = near if ahead else range(1, one.v.outputs + 1)
    enough = [rows for rows in fits if vectors * one.n * -(-one.v.outputs // rows) >= UNITS]
    cost = lambda rows: -one.v.outputs % rows / one.v.outputs + READ_AGAIN / rows
    return min(enough or [1], key=cost), ahead


def _lines(one: Pass, rows: int) -> int:
    """Lines that so many rows of the output read."""
    return max(1, min(one.v.inputs, (rows - 1) * one.v.step + (one.v.taps - 1) * one.v.spacing + 1))


def _most_pixels(machine: Machine, h: Axis, pitch: int) -> int:
    """Pixels of a tile: as registers allow, and as many as have their columns in L1, for they are read once for each input
    of a group (14x14 outputs with stride 2 of 512 channels, AVX-512: 14 pixels are 29 lines in 2 sets)."""
    taps = max(1, h.taps)
    most = min(MOST_PIXELS, machine.accumulators(min(TAPS, taps)) - 1)
    beside = (taps - 1) * h.spacing  # columns that a tile of one pixel reads besides its first
    return max(1, (lines_kept(machine, pitch, (most - 1) * h.step + beside + 1) - beside - 1) // h.step + 1)


def _apart(things: Sequence[T], streams: int) -> list[T]:
    """The same in another order: as many streams of neighbours in turn."""
    length = -(-len(things) // streams)
    return [things[at] for start in range(length) for at in range(start, len(things), length)]


def _meets(one: Pass, taps: range, size: int, example: int) -> dict[int, list[tuple[int, int]]]:
    """The (pixel, tap) pairs that read each input column, counted from the tile's first."""
    found: dict[int, list[tuple[int, int]]] = {}
    for pixel in range(size):
        for tap in taps:
            if one.h.valid(example + pixel, tap):
                found.setdefault(pixel * one.h.step + tap * one.h.spacing, []).append((pixel, tap))
    return found


def weight_gradient(machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0) -> Kernel:
    """Kernel (x, dy, dw): ``dw`` in the forward packed order (its padding is set to zero)."""
    k = KernelBuilder(machine, "conv_lanes_dw", ["x", "dy", "dw"])
    f = k.f
    row_bytes = 4 * (conv.w * conv.c * conv.stride[0] + conv.ow * conv.o)
    rows = split(conv.oh, max(1, min(conv.oh, machine.l2 // 2 // row_bytes)))[0]
    with f.loop(*f.share(packed.size // machine.lanes, f.arg("tid"), f.arg("n"))) as loop:
        f.vstore(const(f.vec(), 0.0), f.gep(f.arg("dw"), f.mul(loop.index, machine.lanes)))
    k.barrier()
    emitter = _WeightGradient(f, conv, packed, ldx or conv.c, ldy or conv.o)
    together = max(1, machine.registers * 3 // 4 // conv.cg)  # taps: beside their sums there are pixels of x and dy
    with f.loop(0, conv.n * -(-conv.oh // rows)) as chunk:
        image, band = f.divmod_chain(chunk.index, [conv.n, -(-conv.oh // rows)])
        start = f.mul(band, rows)
        stop = f.imin(f.add(start, rows), conv.oh)
        for first, count, outs in packed.kinds():
            for kw in range(0, conv.kw, together):
                low, high = f.share(count * conv.kh, f.arg("tid"), f.arg("n"))
                with f.loop(low, high) as unit:
                    vector, kh = f.divmod_chain(unit.index, [count, conv.kh])
                    emitter.look_ahead(vector, f.div(low, conv.kh), f.div(f.sub(high, 1), conv.kh), rows)
                    taps = range(kw, min(conv.kw, kw + together))
                    emitter.unit(f.add(vector, first), outs, kh, taps, image, (start, stop))
    return k.finish(flops=conv.flops, note=f"lanes of {machine.lanes // conv.cg} groups, {rows} rows at a time")


class _WeightGradient:
    def __init__(self, f: Function, conv: Conv, packed: Packed, ldx: int, ldy: int):
        self.f, self.conv, self.packed, self.ldx, self.ldy = f, conv, packed, ldx, ldy
        self.v, self.h = forward_axes(conv)
        self.q, self.lanes = conv.cg, f.machine.lanes
        self.ahead: list[Value] = []  # elements from what is read of x, and of dy, to what is asked for
        self.far = 4 * conv.n * conv.h * conv.w * self.ldx > f.machine.l3 // 8  # pixels come from memory

    def look_ahead(self, vector: Index, first: Index, last: Index, rows: int) -> None:
        """How far from what is read lies what will be: the next vector of the same rows, or the first one of the next."""
        f, conv = self.f, self.conv
        again = f.mul(f.sub(first, vector), self.lanes)
        more = f.icmp("slt", f.index(vector), f.index(last))
        below = rows * conv.stride[0] * conv.w * self.ldx, rows * conv.ow * self.ldy
        self.ahead = [f.select(more, const("i64", self.lanes), f.index(f.add(again, step))) for step in below]

    def unit(self, vector: Index, outs: int, kh: Index, taps: range, image: Index, band: tuple[Index, Index]) -> None:
        """Add some rows of an image to the weights of one vector, one kh and some kw."""
        f, q = self.f, self.q
        row = f.add(f.mul(kh, self.packed.kw), taps[0])
        base = f.gep(f.arg("dw"), f.add(self.packed.panel(f, 0, vector), f.mul(row, q * self.lanes)))
        places = [f.gep(base, i * self.lanes) for i in range(len(taps) * q)]
        channel = f.mul(vector, self.lanes)
        with f.loop(*band, carry=[f.vload(place) for place in places]) as rows:
            line = f.add(f.add(f.mul(rows.index, self.v.step), self.v.first), f.mul(kh, self.v.spacing))
            inside = f.icmp("ult", f.index(line), self.v.inputs)
            sums = rows.carried

            def add() -> list[Value]:
                return self._row(sums, image, rows.index, line, channel, outs, taps)

            rows.carry(f.choose(inside, add, lambda: sums))
        for value, place in zip(rows.results, places):
            f.vstore(value, place)

    def _row(
        self, sums: list[Value], image: Index, row: Index, line: Index, channel: Index, outs: int, taps: range
    ) -> list[Value]:
        f, conv, h = self.f, self.conv, self.h
        x = f.mul(f.mul(f.add(f.mul(image, conv.h), line), conv.w), self.ldx)
        x = f.gep(f.arg("x"), f.add(x, channel))
        dy = f.mul(f.mul(f.add(f.mul(image, conv.oh), row), conv.ow), self.ldy)
        dy = f.gep(f.arg("dy"), f.add(dy, channel))
        for first, count, columns in _column_blocks(h, taps):
            with f.loop(first, first + count, carry=sums) as block:
                here = f.gep(x, f.mul(block.index, h.step * self.ldx))
                pixels = sorted({pixel for meets in columns for _, pixel in meets})
                start = f.gep(dy, f.mul(block.index, self.ldy))
                if self.far:
                    f.prefetch(f.gep(start, self.ahead[1]), 2)
                    for number in range(len(columns)):
                        f.prefetch(f.gep(f.gep(here, number * self.ldx), self.ahead[0]), 2)
                right = {pixel: f.vload(f.gep(start, pixel * self.ldy), outs) for pixel in pixels}
                block.carry(self._block(block.carried, here, right, columns, outs))
            sums = block.results
        return sums

    def _block(
        self, sums: Sequence[Value], x: Value, dy: dict[int, Value], columns: Sequence[Meets], outs: int
    ) -> list[Value]:
        """Add the products of neighbouring columns of x, the first of them at ``x``."""
        f, q, sums = self.f, self.q, list(sums)
        for number, meets in enumerate(columns):
            value = f.vload(f.gep(x, number * self.ldx), outs)
            for j in range(q if meets else 0):
                spread = permuted(f, value, q, j)
                for i, pixel in meets:
                    sums[i * q + j] = f.fma(spread, dy[pixel], sums[i * q + j])
        return sums


def _column_blocks(h: Axis, taps: Sequence[int]) -> list[tuple[int, int, list[Meets]]]:
    """The columns of x in blocks, as many as from one output to the next, as runs of equal ones: (first block, how many, the
    outputs that each column meets)."""

    def meets(column: int) -> Meets:
        reached = [(i, *divmod(column - h.first - tap * h.spacing, h.step)) for i, tap in enumerate(taps)]
        return tuple((i, y - column // h.step) for i, y, off in reached if off == 0 and 0 <= y < h.outputs)

    found, first = [], 0
    columns = [meets(column) for column in range(h.inputs)]
    for block, same in itertools.groupby(columns[at : at + h.step] for at in range(0, h.inputs, h.step)):
        count = len(list(same))
        if any(block):
            found.append((first, count, block))
        first += count
    return found
