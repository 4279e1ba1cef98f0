"""The tile: MR pixels x NV vectors of accumulators in registers, and the loop that feeds it.

One step of the loop takes NV vectors of weights and MR broadcast pixels and does MR*NV multiply-adds. On a machine
with R registers MR*NV + NV + 1 <= R: 6x2 on AVX2 (12 + 2 + 1 = 15 of 16), 14x2 on AVX-512 (28 + 2 + 1 = 31 of 32), or 8x2 where
one multiply-add a cycle is done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twofold.backends.cpu.kernels.shapes import split
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine

LINE = 16  # float32 elements in a cache line
LEVEL = 0.02  # shapes that differ by less are as good as each other
ENOUGH = 4  # accumulators for every multiply-add in flight: more cost registers (a stem of 14x2 ran at 79 %, of 8x2 at 97 %)
Tile = list[list[Value]]  # [pixel][vector]
Fetch = Callable[[Index], None]  # prefetches that go with a round of a loop, given the number of its first step


@dataclass(frozen=True)
class TileShape:
    """Pixels and vectors of a tile."""

    pixels: int
    vectors: int


def step_cycles(machine: Machine, pixels: int, vectors: int) -> float:
    """Cycles of one step: bound by multiply-adds, by their latency if there are few, or by loads."""
    fmas = pixels * vectors
    latency = machine.fma_latency if fmas < machine.fma_latency * machine.fma_rate else 0
    return max(fmas / machine.fma_rate, latency, (pixels + vectors) / machine.load_rate) + 0.25


@functools.lru_cache(maxsize=1024)
def lines_kept(machine: Machine, pitch: int, most: int, spare: int = 1) -> int:
    """How many cache lines ``pitch`` bytes apart stay in L1 together, up to ``most``: they may meet in one set, where
    ``spare`` ways are for what else passes by."""
    met: dict[int, int] = {}
    for line in range(most):
        place = line * pitch % (machine.l1 // machine.l1_ways) // (4 * LINE)
        met[place] = met.get(place, 0) + 1
        if met[place] > machine.l1_ways - spare:
            return line
    return most


def most_pixels(machine: Machine, vectors: int, pitch: int = 0) -> int:
    """Pixels of a tile of so many vectors that have registers, and a place in L1: every step reads a line of each pixel,
    ``pitch`` bytes apart (0: not known), while weights pass by. With 4 KB from pixel to pixel and 8 ways, 14x2 runs at 75 %
    of the peak and 7x2 at 93 %, 7x3 at 80 % and 6x3 at 90 % (Zen 4)."""
    most = min(machine.accumulators(vectors), ENOUGH * machine.fma_latency * machine.fma_rate) // vectors
    return lines_kept(machine, pitch, most, 1 if vectors <= 2 else 2) if pitch else most


@functools.lru_cache(maxsize=1024)
def best_shape(machine: Machine, pixels: int, outs: int, pitch: int = 0) -> TileShape:
    """The tile that takes the fewest cycles over ``pixels`` in a row, ``pitch`` bytes apart, and ``outs`` channels (split
    evenly); of those within 2 % of each other the first: two vectors, unless others save work."""

    def cost(shape: TileShape) -> float:
        width = shape.vectors * machine.lanes
        columns = [shape.vectors] * (outs // width)
        if outs % width:
            columns.append(-(-(outs % width) // machine.lanes))
        rows = split(pixels, shape.pixels)
        return sum(step_cycles(machine, m, v) for m in rows for v in columns)

    shapes = []
    for vectors in (2, 1, 3, 4):
        most = most_pixels(machine, vectors, pitch)
        if most and (vectors == 1 or outs > (vectors - 1) * machine.lanes):
            shapes.append(TileShape(min(most, max(1, pixels)), vectors))
    least = min(map(cost, shapes))
    return next(shape for shape in shapes if cost(shape) <= (1 + LEVEL) * least)


def zeros(f: Function, pixels: int, vectors: int) -> Tile:
    return [[const(f.vec(), 0.0)] * vectors for _ in range(pixels)]


def flatten(tile: Tile) -> list[Value]:
    return [value for row in tile for value in row]


def shaped(values: Sequence[Value], vectors: int) -> Tile:
    return [list(values[at : at + vectors]) for at in range(0, len(values), vectors)]


@dataclass(frozen=True)
class Operands:
    """What a tile reads: element k of pixel p is at ``x + k*x_step + p*pixel_step``, of vector j at ``w + k*w_step +
    j*lanes``.

    ``counts`` are the lanes to read of each vector (all, if the weights are padded). ``offsets``, if given, place the
    pixels in ``x`` one by one, instead of ``p * pixel_step``. Elements are float32, or ``pairs`` of bfloat16 (a step of the
    loop then takes two of each, in the same bytes); ``single``: of the pixels' pairs only the first counts.
    """

    x: Value
    w: Value
    x_step: int
    pixel_step: int
    w_step: int
    counts: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    pairs: bool = False
    single: bool = False

    def pixel(self, p: int) -> int:
        return self.offsets[p] if self.offsets else p * self.pixel_step


def accumulate(
    f: Function,
    tile: Tile,
    ops: Operands,
    steps: Index,
    pixels: Sequence[int],
    unroll: int = 1,
    fetch: Fetch | None = None,
) -> Tile:
    """``steps`` steps for the given ``pixels`` of the tile (the others stay): a loop, unrolled ``unroll`` times. ``fetch`` is
    called with the number of the step in every round: for prefetches of one's own."""
    vectors = len(ops.counts)
    if isinstance(steps, int) and steps <= unroll:
        for k in range(steps):
            tile = _step(f, tile, ops, ops.x, ops.w, k, pixels)
        return tile
    if not isinstance(steps, int):
        unroll = 1
    whole = steps - steps % unroll if isinstance(steps, int) else steps
    active = [tile[p] for p in pixels]
    with f.loop(0, whole, unroll, carry=flatten(active)) as loop:
        inner = list(tile)
        for p, row in zip(pixels, shaped(loop.carried, vectors)):
            inner[p] = row
        x = f.gep(ops.x, f.mul(loop.index, ops.x_step))
        if fetch is not None:
            fetch(loop.index)
        w = f.gep(ops.w, f.mul(loop.index, ops.w_step))
        for k in range(unroll):
            inner = _step(f, inner, ops, x, w, k, pixels)
        loop.carry(flatten([inner[p] for p in pixels]))
    tile = list(tile)
    for p, row in zip(pixels, shaped(loop.results, vectors)):
        tile[p] = row
    if isinstance(steps, int) and isinstance(whole, int):
        x, w = f.gep(ops.x, whole * ops.x_step), f.gep(ops.w, whole * ops.w_step)
        for k in range(steps - whole):
            tile = _step(f, tile, ops, x, w, k, pixels)
    return tile


def passing(f: Function, place: Value, piece: int, unroll: int, ahead: int = 0) -> Fetch:
    """Prefetches into L1 what lies ``ahead`` elements from what ``unroll`` steps pass: ``piece`` elements each, from ``place``
    on."""

    def fetch(step: Index) -> None:
        start = f.gep(place, f.add(f.mul(step, piece), ahead))
        for at in range(0, unroll * piece, LINE):
            f.prefetch(f.gep(start, at), 3)

    return fetch


def _first(f: Function, place: Value) -> Value:
    """The first bfloat16 of a pair, and zero."""
    return f.cast("bitcast", f.cast("zext", f.load("i16", place), "i32"), "float")


def _step(f: Function, tile: Tile, ops: Operands, x: Value, w: Value, k: int, pixels: Sequence[int]) -> Tile:
    lanes = f.machine.lanes
    weights = [f.vload(f.gep(w, k * ops.w_step + j * lanes), count) for j, count in enumerate(ops.counts)]
    tile = list(tile)
    multiply = f.dot_onto if ops.pairs else f.fma_onto if len(weights) == 1 else f.fma
    for p in pixels:
        place = f.gep(x, k * ops.x_step + ops.pixel(p))
        value = f.splat(_first(f, place)) if ops.single else f.broadcast(place)
        tile[p] = [multiply(value, weight, acc) for weight, acc in zip(weights, tile[p])]
    return tile
