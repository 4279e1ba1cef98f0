"""Winograd's minimal filtering F(m x m, r x r): the matrices, their application to vectors, and the weight transform.

    Y = A' [ (G g G') * (B' d B) ] A        d: (m+r-1) x (m+r-1) of the input, g: r x r weights, Y: m x m of the output

``F4`` (m = 4): 36 products give 16 outputs of 9 taps, a quarter of the multiplications (Lavin & Gray, "Fast algorithms
for convolutional neural networks", 2016; interpolation points 0, 1, -1, 2, -2). The largest error, relative to the
largest value, is about 1e-5 in float32 against 1e-6 for direct convolution. ``F2`` (m = 2; points 0, 1, -1): 16 products
give 4 outputs, 1 / 2.25, with the error of direct convolution; its transformed weights are less than half as large, which
decides where few pixels meet many channels. ``F2_5`` (r = 5, m = 2) has the points of ``F4`` and so its input transform: 36
products for 4 outputs of 25 taps, 1 / 2.8, and its error. TWOFOLD_CONV=direct turns all off.

In memory: transformed weights are ``[point][block][input][output within the block]`` (Packed order with the points for its
taps, outside).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction as _F

from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.llvm.types import load_wide, memory_type
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder
from twofold.base.dtypes import DType

Matrix = Sequence[Sequence[float | _F]]


@dataclass(frozen=True)
class Scheme:
    """F(out x out, taps x taps) by its matrices B', G and A'."""

    out: int  # outputs of a tile, per axis
    bt: Matrix
    g: Matrix
    at: Matrix

    @property
    def taps(self) -> int:
        """Weights of a kernel, per axis."""
        return len(self.g[0])

    @property
    def side(self) -> int:
        """Inputs of a tile, per axis."""
        return len(self.bt)

    @property
    def points(self) -> int:
        """Positions of a transformed tile."""
        return self.side**2

    def __str__(self) -> str:
        return f"F({self.out}x{self.out})" if self.taps == 3 else f"F({self.out}x{self.out}, {self.taps}x{self.taps})"


F4 = Scheme(
    4,
    bt=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    g=(
        (_F(1, 4), 0, 0),
        (_F(-1, 6), _F(-1, 6), _F(-1, 6)),
        (_F(-1, 6), _F(1, 6), _F(-1, 6)),
        (_F(1, 24), _F(1, 12), _F(1, 6)),
        (_F(1, 24), _F(-1, 12), _F(1, 6)),
        (0, 0, 1),
    ),
    at=(
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    ),
)  # fmt: skip
F2 = Scheme(
    2,
    bt=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    g=((1, 0, 0), (_F(1, 2), _F(1, 2), _F(1, 2)), (_F(1, 2), _F(-1, 2), _F(1, 2)), (0, 0, 1)),
    at=((1, 1, 1, 0), (0, 1, -1, 1)),
)
F2_5 = Scheme(
    2,
    bt=F4.bt,
    g=(
        (_F(1, 4), 0, 0, 0, 0),
        (_F(-1, 6), _F(-1, 6), _F(-1, 6), _F(-1, 6), _F(-1, 6)),
        (_F(-1, 6), _F(1, 6), _F(-1, 6), _F(1, 6), _F(-1, 6)),
        (_F(1, 24), _F(1, 12), _F(1, 6), _F(1, 3), _F(2, 3)),
        (_F(1, 24), _F(-1, 12), _F(1, 6), _F(-1, 3), _F(2, 3)),
        (0, 0, 0, 0, 1),
    ),
    at=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 1)),
)


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix)]


def fits(conv: Conv, scheme: Scheme) -> bool:
    """Whether a scheme computes this convolution."""
    kernel = (scheme.taps, scheme.taps)
    return (conv.kh, conv.kw) == kernel and (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)


def combine(f: Function, terms: Sequence[tuple[float | _F, Value]]) -> Value:
    """The sum of coefficient * vector, with as few instructions as the coefficients allow."""
    terms = sorted((t for t in terms if t[0]), key=lambda t: abs(t[0]) != 1)
    total: Value | None = None
    for factor, x in sorted(terms, key=lambda t: (abs(t[0]) != 1, t[0] < 0)):
        if total is None:
            total = x if factor == 1 else f.fmul(x, float(factor))
        elif abs(factor) == 1:
            total = f.fadd(total, x) if factor == 1 else f.fsub(total, x)
        else:
            total = f.fma(x, float(factor), total)
    return total if total is not None else const(f.vec(), 0.0)


def apply(f: Function, matrix: Matrix, xs: Sequence[Value]) -> list[Value]:
    """matrix @ xs. Rows (or columns) that differ only in the sign of odd positions share their sums."""
    columns: list[Sequence] = list(zip(*matrix))
    for a, b in ((1, 2), (3, 4)):
        if b < len(columns) and _mirrored(columns[a], columns[b]):
            together, apart = f.fadd(xs[a], xs[b]), f.fsub(xs[a], xs[b])
            xs = [*xs[:a], together, apart, *xs[b + 1 :]]
            columns[a], columns[b] = _merged(columns[a], columns[b])
    rows = list(zip(*columns))
    out: list[Value] = []
    while len(out) < len(rows):
        row = rows[len(out)]
        following = rows[len(out) + 1] if len(out) + 1 < len(rows) else ()
        mirrored = [v if i % 2 == 0 else -v for i, v in enumerate(row)]
        if any(row[1::2]) and any(row[::2]) and list(following) in (mirrored, [-v for v in mirrored]):
            sign = 1 if list(following) == mirrored else -1
            even = combine(f, list(zip(row, xs))[::2])
            odd = combine(f, list(zip(row, xs))[1::2])
            out += [f.fadd(even, odd), f.fsub(even, odd) if sign == 1 else f.fsub(odd, even)]
        else:
            out.append(combine(f, list(zip(row, xs))))
    return out


def _mirrored(a: Sequence, b: Sequence) -> bool:
    return all(abs(x) == abs(y) for x, y in zip(a, b)) and any(x != y for x, y in zip(a, b))


def _merged(a: Sequence, b: Sequence) -> tuple[list, list]:
    """Coefficients of (x_a + x_b) and (x_a - x_b)."""
    return [x if x == y else 0 for x, y in zip(a, b)], [x if x != y else 0 for x, y in zip(a, b)]


def apply2(f: Function, matrix: Matrix, grid: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """matrix @ grid @ matrix': columns, then rows."""
    columns = [apply(f, matrix, column) for column in zip(*grid)]
    return [apply(f, matrix, row) for row in zip(*columns)]


def apart(size: int) -> int:
    """The distance (in elements) between the matrices of ``size`` elements (one a point) that a transform writes or reads
    together: an odd number of cache lines, so that no two of 36 meet in a set of the caches."""
    return (-(-size // 16) | 1) * 16


def panel_size(packed: Packed) -> int:
    """Elements from one point's matrix of transformed weights to the next."""
    return apart((packed.whole * packed.block + packed.rest_width) * packed.ins)


def weights_size(packed: Packed, scheme: Scheme = F4) -> int:
    """Elements of the transformed weights."""
    return scheme.points * panel_size(packed)


def transform_weights(machine: Machine, packed: Packed, flip: bool = False, scheme: Scheme = F4) -> Kernel:
    """Kernel (w, u): U = G g G'. ``flip`` turns the taps around, as the data gradient wants (with backward packing).

    SCHEDULE: one vector of outputs at a time: a load for each tap, the transform in registers, a store for each point; rows
    shared among threads. More than fits L2 is stored past the caches, whole lines at a time, if ``u`` is aligned: nothing is
    read first (2-3 times faster).
    """
    k = KernelBuilder(machine, "winograd_weights", ["w", "u"])
    f = k.f
    if 4 * weights_size(packed, scheme) <= machine.l2:
        _transform_weights(f, packed, flip, False, scheme)
    else:
        with f.when(aligned := f.is_aligned(f.arg("u"), 64)):
            _transform_weights(f, packed, flip, True, scheme)
        with f.when(f.value("i1", f"xor {aligned}, true")):
            _transform_weights(f, packed, flip, False, scheme)
    return k.finish(note=f"Winograd weights, {scheme}")


def _transform_weights(f: Function, packed: Packed, flip: bool, stream: bool, scheme: Scheme) -> None:
    lanes = f.machine.lanes
    # what is streamed is gathered in the stack: lines written in parts, or one here and one there, take as long as more
    rows = max(r for r in (1, 2, 4, 8) if packed.ins % r == 0) if stream else 1
    for first, count, outs in packed.kinds():
        width = -(-outs // lanes) * lanes
        parked = f.stack(scheme.points * rows * width, "float") if stream else None
        low, high = f.share(count * packed.ins // rows, f.arg("tid"), f.arg("n"))
        with f.loop(low, high) as loop:
            block, row = f.divmod_chain(loop.index, [count, packed.ins // rows])
            block, row = f.add(block, first), f.mul(row, rows)
            source = f.gep(f.arg("w"), f.add(packed.panel(f, 0, block), f.mul(row, width)))
            target = f.gep(f.arg("u"), f.dot([(block, packed.ins * packed.block), (row, width)]))
            base, step = (parked, rows * width) if parked else (target, panel_size(packed))
            emit_weights(f, packed, flip, scheme, source, rows, width, base, step)
            if parked:
                with f.loop(0, scheme.points) as matrix:
                    line = f.gep(target, f.mul(matrix.index, panel_size(packed)))
                    for at in range(0, rows * width, lanes):
                        f.stream(f.vload(f.gep(parked, f.add(f.mul(matrix.index, step), at))), f.gep(line, at))


def emit_weights(
    f: Function,
    packed: Packed,
    flip: bool,
    scheme: Scheme,
    source: Value,
    rows: int,
    width: int,
    target: Value,
    step: int,
) -> None:
    """``target[point] = (G g G')[point]`` for ``rows`` inputs of a block of ``width`` outputs, the points ``step`` elements
    apart."""
    with f.loop(0, rows * width, f.machine.lanes) as piece:
        taps = [f.vload(f.gep(source, f.add(piece.index, t * packed.ins * width))) for t in range(packed.taps)]
        taps = taps[::-1] if flip else taps
        grid = apply2(f, scheme.g, [taps[at : at + packed.kw] for at in range(0, packed.taps, packed.kw)])
        for point, value in enumerate(value for line in grid for value in line):
            f.vstore(value, f.gep(target, f.add(piece.index, point * step)))


class TileGrid:
    """The tiles of all images: numbered (image, row, column), each ``scheme.out`` squared outputs and what they read."""

    def __init__(self, conv: Conv, scheme: Scheme = F4):
        self.n, self.scheme = conv.n, scheme
        self.inputs, self.outputs = (conv.h, conv.w), (conv.oh, conv.ow)
        self.pad = (conv.pad[0][0], conv.pad[1][0])
        self.rows, self.columns = -(-conv.oh // scheme.out), -(-conv.ow // scheme.out)
        self.count = conv.n * self.rows * self.columns

    def position(self, f: Function, tile: Index) -> tuple[Index, Index, Index]:
        """(image, first output row, first output column)."""
        image, row, column = f.divmod_chain(tile, [self.n, self.rows, self.columns])
        return image, f.mul(row, self.scheme.out), f.mul(column, self.scheme.out)


def gather_pointers(
    f: Function,
    base: Value,
    size: tuple[int, int],
    ld: int,
    corner: tuple[Index, Index],
    image: Index,
    side: int,
    zero: Value,
    dtype: DType,
) -> list[Value]:
    """Pointers to ``side`` x ``side`` pixels (of ``dtype``) from ``corner`` on; to ``zero``, a row of zeros, outside the
    image."""
    h, w = size
    rows = [f.add(corner[0], i) for i in range(side)]
    columns = [f.add(corner[1], i) for i in range(side)]

    def inside(at: Index, limit: int) -> Value:
        return f.icmp("ult", f.index(at), limit)  # negative is very large when unsigned

    good_rows, good_columns = [inside(r, h) for r in rows], [inside(c, w) for c in columns]
    start = f.mul(image, h)
    pointers = []
    for row, good_row in zip(rows, good_rows):
        line = f.mul(f.add(start, row), w)
        for column, good_column in zip(columns, good_columns):
            place = f.gep(base, f.mul(f.add(line, column), ld), memory_type(dtype))
            good = f.value("i1", f"and {good_row}, {good_column.name}")
            pointers.append(f.select(good, place, zero))
    return pointers


def zero_row(f: Function, channels: int) -> Value:
    """A constant row of zeros, a whole number of vectors."""
    size = -(-channels // f.machine.lanes) * f.machine.lanes
    return f.module.constant("zeros", f"[{size} x float]", "zeroinitializer")


def emit_transform(
    f: Function,
    matrix: Matrix,
    pointers: Sequence[Value],
    step: tuple[int, int],
    channels: int,
    target: Value,
    point_step: int,
    dtype: DType,
) -> None:
    """``target[point][c] = (matrix @ pixels @ matrix')[point]`` for all channels; the pixels, of ``dtype``, come from
    ``pointers``.

    ``step`` is (pixels from a tile to the one on its right, elements from a pixel to the next): what that tile has besides is
    prefetched on the way.

    The pointers are parked on the stack: a vector of channels needs all the registers for its values.
    """
    side = math.isqrt(len(pointers))
    slots = f.stack(len(pointers))
    for i, pointer in enumerate(pointers):
        f.store(pointer, f.gep(slots, i, "ptr"))
    lanes, element = f.machine.lanes, memory_type(dtype)

    def vector(channel: Index, count: int) -> None:
        pixels = [f.gep(f.load("ptr", f.gep(slots, i, "ptr")), channel, element) for i in range(len(pointers))]
        loads = [load_wide(f, pixel, count, dtype) for pixel in pixels]
        for i, pixel in enumerate(pixels):
            if i % side >= side - step[0]:
                f.prefetch(f.gep(pixel, step[0] * step[1], element))
        grid = apply2(f, matrix, [loads[side * i : side * i + side] for i in range(side)])
        for point, value in enumerate(value for line in grid for value in line):
            f.vstore(value, f.gep(target, f.add(channel, point * point_step)), None)

    whole = channels - channels % lanes
    with f.loop(0, whole, lanes) as loop:
        vector(loop.index, lanes)
    if channels % lanes:
        vector(whole, channels % lanes)
