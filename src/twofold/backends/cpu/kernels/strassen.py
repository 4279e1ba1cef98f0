"""Strassen's algorithm for products of matrices: its tables, their application to vectors, and the weight transform.

    c = a b in halves:  c[q] = sum over i of C[q][i] (A[i] . a) (B[i] . b)        a, b, c: four quarters each

7 products of half the size in every direction instead of 8 (Strassen, "Gaussian elimination is not optimal", 1969). Applied
to the products' own halves again (``levels`` 2), 49 instead of 64. A 1x1 convolution is such a product, of pixels x inputs
with inputs x outputs; its three operands are cut in ``side`` parts along each. The largest error, relative to the largest
value of all channels (they are mixed with each other), is about twice direct convolution's with two levels: 1e-6 to 3e-6.
TWOFOLD_CONV=direct turns it off.

In memory: transformed weights are ``[block of outputs][product][input][output within the block]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.kernels.winograd import combine
from twofold.backends.cpu.llvm import Function, Value
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

Row = Sequence[int]
Matrix = Sequence[Row]

# a row for each product: what it takes of the quarters 11, 12, 21, 22
A = ((1, 0, 0, 1), (0, 0, 1, 1), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 0, 0), (-1, 0, 1, 0), (0, 1, 0, -1))
B = ((1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, -1), (-1, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1))
# a row for each quarter of the result: what it takes of the products
C = ((1, 0, 0, 1, -1, 0, 1), (0, 0, 1, 0, 1, 0, 0), (0, 1, 0, 1, 0, 0, 0), (1, -1, 1, 0, 0, 1, 0))


def side(levels: int) -> int:
    """Parts that an operand is cut in along each of its directions."""
    return 2**levels


def products(levels: int) -> int:
    return len(A) ** levels


def cells(levels: int) -> list[tuple[int, int]]:
    """The parts of an operand as (row, column), in the tables' order: quarters, and their quarters."""
    if not levels:
        return [(0, 0)]
    inner, half = cells(levels - 1), side(levels - 1)
    return [(r * half + i, c * half + j) for r in range(2) for c in range(2) for i, j in inner]


def power(matrix: Matrix, levels: int) -> Matrix:
    """The table for so many levels: its Kronecker power."""
    if levels <= 1:
        return matrix
    inner = power(matrix, levels - 1)
    return [[a * b for a in row for b in line] for row in matrix for line in inner]


def spread(f: Function, matrix: Matrix, levels: int, xs: Sequence[Value]) -> list[Value]:
    """``power(matrix, levels) @ xs``, level by level."""
    if not levels:
        return list(xs)
    size, out = len(xs) // len(matrix[0]), list[Value]()
    for row in matrix:
        mixed = [combine(f, [(factor, xs[q * size + k]) for q, factor in enumerate(row)]) for k in range(size)]
        out += spread(f, matrix, levels - 1, mixed)
    return out


def fits(packed: Packed, levels: int) -> bool:
    """Whether these weights can be cut in parts of whole blocks of outputs."""
    plain = packed.taps == packed.groups == 1 and not packed.pairs and not packed.rest
    return plain and packed.whole % side(levels) == 0 and packed.ins % side(levels) == 0


def panel_size(packed: Packed, levels: int) -> int:
    """Elements of the weights of one product and block of outputs."""
    return packed.ins // side(levels) * packed.block


def weights_size(packed: Packed, levels: int) -> int:
    """Elements of the transformed weights."""
    return packed.whole // side(levels) * products(levels) * panel_size(packed, levels)


def transform_weights(machine: Machine, packed: Packed, levels: int) -> Kernel:
    """Kernel (w, u): what every product takes of the weights ``w``, in ``packed`` order.

    SCHEDULE: a vector of outputs at a time: a load for each part, the sums in registers, a store for each product; rows
    shared among the threads.
    """
    k = KernelBuilder(machine, "strassen_weights", ["w", "u"])
    f, parts = k.f, side(levels)
    blocks, rows, panel = packed.whole // parts, packed.ins // parts, panel_size(packed, levels)
    with f.loop(*f.share(blocks * rows, f.arg("tid"), f.arg("n"))) as loop:
        block, row = f.divmod_chain(loop.index, [blocks, rows])
        source = f.gep(f.arg("w"), f.dot([(block, packed.ins * packed.block), (row, packed.block)]))
        target = f.gep(f.arg("u"), f.dot([(block, products(levels) * panel), (row, packed.block)]))
        for at in range(0, packed.block, machine.lanes):

            def part(cell: tuple[int, int]) -> Value:
                line = cell[1] * blocks * packed.ins + cell[0] * rows
                return f.vload(f.gep(source, line * packed.block + at))  # noqa: B023

            values = spread(f, B, levels, [part(cell) for cell in cells(levels)])
            for number, value in enumerate(values):
                f.vstore(value, f.gep(target, number * panel + at))
    return k.finish(note=f"Strassen weights, {levels} levels")


def segments(total: int, levels: int) -> list[int]:
    """Where the equal parts of ``total`` pixels begin; the last may overlap the one before it."""
    size = -(-total // side(levels))
    return [min(part * size, total - size) for part in range(side(levels))]
