"""How the work of a weight gradient (``wgrad.py``) is cut: into chunks of pixels, slabs and strips of x, blocks of outputs.

Sizes: the strip of dy fills a quarter to half of L1, since all strips of x pass by it; the slab of x half of L2, since all
blocks of dy pass by it. As many parts as make enough units to share, which the shape decides, not the threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twofold.backends.cpu.kernels.shapes import Conv, runs, split
from twofold.backends.cpu.kernels.tile import LINE, most_pixels
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import KernelBuilder

SHORTEST = 96  # pixels that a chunk has at least, if rows are to be forgotten
LONG = 128  # pixels, after which bringing in and storing a tile hardly counts
ROUND = 4  # steps of a 1x1 kernel's loop, written out
UNITS = 32  # units wanted: enough to share them evenly among several threads
FEW = 400  # products of a vector of dy: waiting for it takes about as long (27 for 3x3 of 3 channels), or a twentieth (363)


@dataclass(frozen=True)
class Slab:
    """A kind of slab, ``count`` of them: ``groups`` whole groups from group ``first`` on, or (``cut``) of each group
    ``channels`` channels from ``first`` on."""

    first: int
    count: int
    groups: int
    channels: int
    cut: bool


@dataclass(frozen=True)
class Strips:
    """Strips of x of one width: ``inputs`` channels from ``first + k*inputs`` on, for k below ``count``; ``before``
    strips come before them in the slab."""

    first: int
    count: int
    inputs: int
    before: int


@dataclass(frozen=True)
class Chunk:
    """The first image and output row of a chunk."""

    image: Index
    row: Index


@dataclass(frozen=True)
class Unit:
    """What a thread does with a chunk: unit ``index`` of its own, [``low``, ``high``), in the slab from ``channel`` of
    ``group`` on. ``rows`` rows of each image; ``dy`` and ``next_x`` point to the chunk's dy and to the x after it;
    ``fresh`` tells that ``result`` has nothing yet."""

    index: Index
    low: Index
    high: Index
    rows: Index
    group: Index
    channel: Index
    dy: Value
    next_x: Value
    result: Value
    fresh: Value


def chunk_pixels(machine: Machine, width: int, pairs: bool) -> int:
    """Pixels of a chunk at most: their strip of dy takes a quarter of L1, up to half of it for ``LONG`` ones."""
    fill = machine.l1 // ((2 if pairs else 4) * width)
    return max(fill // 4, min(fill // 2, LONG))


def flattened(conv: Conv, most: int, pairs: bool) -> Conv | None:
    """A pointwise convolution with its pixels as one-row images of a convenient size, if there is one."""
    pixels = conv.n * conv.h * conv.w
    rows = [size for size in range(1, min(pixels, most) + 1) if pixels % size == 0]
    row = max([size for size in rows if size % 2 == 0] or rows if pairs else rows)
    return replace(conv, n=pixels // row, h=1, w=row) if row >= min(pixels, SHORTEST) else None


def chunk(machine: Machine, conv: Conv, inputs: int, width: int, pairs: bool = False) -> tuple[int, int]:
    """(images, output rows) of a chunk, whose strips have so many channels: that of x takes as much as L1,
    from which dy pushes it, but it is read in order, and the result is read and written once a chunk."""
    vertical, horizontal = copied_strides(conv)
    size = 2 if pairs and conv.kw == 1 else 4  # bytes that a pixel takes in a strip
    pixels = min(chunk_pixels(machine, width, pairs), machine.l1 // (size * vertical * horizontal * inputs))
    rows = split(conv.oh, max(1, min(conv.oh, pixels // conv.ow)))[0]
    images = 1
    if rows == conv.oh:
        images = max(i for i in range(1, conv.n + 1) if conv.n % i == 0 and (i == 1 or i * rows * conv.ow <= pixels))
    return images, rows


def copied_strides(conv: Conv) -> tuple[int, int]:
    """The strides within the copy of x: pixels between those that a 1-wide kernel meets are left out of it."""
    return (conv.stride[0] if conv.kh > 1 else 1, conv.stride[1] if conv.kw > 1 else 1)


class Plan:
    """The sizes of one kernel, and the function that it becomes."""

    def __init__(self, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int, flat: bool, pairs: bool):
        self.machine, self.conv, self.packed, self.ldx, self.ldy, self.flat = machine, conv, packed, ldx, ldy, flat
        self.pairs, self.element = pairs, "i16" if pairs else "float"
        vectors = -(-min(packed.outs, packed.block) // machine.lanes)
        self.most, room = most_pixels(machine, vectors), machine.accumulators(vectors) // vectors
        fitting = conv.kw if conv.cg * conv.kw <= room else max(1, min(conv.kw, self.most // conv.cg))
        together = fitting if conv.dilation[1] == 1 else 1
        whole, rest = divmod(conv.kw, together)
        self.taps = [(0, whole, together)] + ([(whole * together, 1, rest)] if rest else [])
        tall = room // (conv.cg * conv.kw) if together == conv.kw else 1
        self.tall = max(k for k in range(1, max(1, min(conv.kh, tall)) + 1) if conv.kh % k == 0)  # kh of a tile
        self.few = not (flat or pairs) and conv.groups == 1 and conv.cg * conv.kh * conv.kw <= FEW
        self.images, self.rows = chunk(machine, conv, min(conv.cg, self.most), packed.block, pairs)
        self.strides = copied_strides(conv)
        self.in_rows = (self.rows - 1) * self.strides[0] + (conv.kh - 1) * conv.dilation[0] + 1
        self.in_columns = (conv.ow - 1) * self.strides[1] + (conv.kw - 1) * conv.dilation[1] + 1
        self.every = 2 if pairs and conv.kw == 1 else 1  # copied columns from one of a strip to the next
        self.in_columns = -(-self.in_columns // self.every)
        self.y_columns = -(-conv.ow // 2) if pairs else conv.ow
        self.x_plane = self.images * self.in_rows * self.in_columns  # pixels, or pairs, of a strip
        self.y_plane = self.images * self.rows * self.y_columns
        self.pixels = self.images * self.rows * conv.ow  # of dy, in a chunk
        self.point = (conv.kh, conv.kw) == (1, 1)
        self.rounds = max(1, self.y_plane // ROUND) if self.point else self.images * self.rows  # of a tile's loop
        self.bands = -(-conv.oh // self.rows)
        self.chunks = conv.n // self.images * self.bands
        self.blocks = packed.whole + (1 if packed.rest else 0)
        self.y_width = packed.whole * packed.block + packed.rest_width  # elements for a pixel of a group
        self.slabs = self._slabs()
        units = sum(s.count * (conv.groups * self.blocks if s.cut else 2) for s in self.slabs)
        self.parts = max(1, min(self.chunks, UNITS // units, machine.l3 // 4 // (4 * packed.size)))
        width = min(packed.block, -(-packed.outs // machine.lanes) * machine.lanes)
        self.zeros = max(self.most, (self.tall * together - 1) * packed.ins + min(conv.cg, self.most)) * width
        strip = max(width if s.cut else s.groups * self.y_width for s in self.slabs)
        self.x_at = self.zeros + -(-self.y_plane * strip // LINE) * LINE
        channels = max(s.groups * s.channels for s in self.slabs)
        self.scratch = 4 * -(-(self.x_at + channels * self.x_plane) // LINE) * LINE
        names = ["x", "dy", "dw", *(["workspace"] if self.parts > 1 else []), "scratch"]
        self.k = KernelBuilder(machine, "conv_dw", names)
        self.f: Function = self.k.f
        self.own = self.f.gep(self.f.arg("scratch"), self.f.mul(self.f.arg("tid"), self.scratch), "i8")

    def _slabs(self) -> list[Slab]:
        conv = self.conv
        size = self.machine.l2 // 2 // 4
        groups = 4 * size // (conv.cg * self.x_plane + self.y_width * self.y_plane)
        if conv.groups > 1 and groups:
            return [Slab(*run, conv.cg, cut=False) for run in runs(split(conv.groups, groups))]
        most = max(self.most, size // self.x_plane)
        return [Slab(first, count, 1, size, cut=True) for first, count, size in runs(split(conv.cg, most))]

    def _strips(self, slab: Slab) -> list[Strips]:
        found, before = [], 0
        for first, count, inputs in runs(split(slab.channels, self.most)):
            found.append(Strips(first, count, inputs, before))
            before += count
        return found

    @property
    def odd(self) -> bool:
        """Whether the last pair of every row has one pixel."""
        return self.pairs and self.conv.ow % 2 == 1
