"""Convolution of images of one channel to few: vectors run along pixels, as channels would leave most lanes empty.

ALGORITHM
    y[n, oh, ow, o] = sum over kh, kw of x[n, oh + kh, ow + kw] * w[o, kh, kw], then the epilogue
    and, if it pools, the maximum of each 2x2 window of that
SCHEDULE
    Pairs of rows are shared among the threads; a tile is two rows x one or two vectors of pixels x all outputs, so that a
    weight is spread once for two or four multiply-adds. The last vector of a row ends with the row: it does some pixels once
    more. Results are turned to channels-last in registers and stored as they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import interleave
from twofold.backends.cpu.kernels.pool import Pool, larger_of
from twofold.backends.cpu.kernels.shapes import Conv, runs, split
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST = 8  # outputs: more fill half a vector
SPARE = 3  # registers beside the sums of a vector: its pixels in two rows, a weight


def fits(machine: Machine, conv: Conv, epilogue: ep.Epilogue, ldy: int) -> bool:
    """Whether the kernel takes a convolution whose pixels lie ``ldy`` elements apart."""
    plain = conv.stride == conv.dilation == (1, 1) and not any(map(any, conv.pad))
    dense = conv.c == 1 and ldy == conv.o <= MOST
    room = 2 * conv.o + SPARE <= machine.registers and conv.ow >= machine.lanes and conv.oh >= 2
    return plain and dense and room and all(step.planar for step in epilogue)


def fits_pool(machine: Machine, conv: Conv, pool: Pool) -> bool:
    """Whether it can also do this max pooling of its result."""
    halves = pool.window == pool.stride == (2, 2) and pool.dilation == (1, 1) and not any(map(any, pool.pad))
    return halves and (pool.oh, pool.ow) == (conv.oh // 2, conv.ow // 2) and 2 * pool.ow >= machine.lanes


def forward(machine: Machine, conv: Conv, epilogue: ep.Epilogue = (), pools: bool = False) -> Kernel:
    """Kernel (x, w, y, ...epilogue), the weights in the plain order (O, 1, KH, KW); ``pools``: y is the 2x2 max pooling."""
    k = KernelBuilder(machine, "conv_planes", ["x", "w", "y", *ep.params_of(epilogue)])
    f, lanes = k.f, machine.lanes
    rows, width = (conv.oh // 2, conv.ow // 2 * 2) if pools else (-(-conv.oh // 2), conv.ow)
    line = (width // 2 if pools else width) * conv.o  # elements of a row of y
    with f.loop(*f.share(conv.n * rows, f.arg("tid"), f.arg("n"))) as unit:
        image, pair = f.divmod_chain(unit.index, [conv.n, rows])
        top = f.mul(pair, 2) if pools else f.imin(f.mul(pair, 2), conv.oh - 2)
        x = f.gep(f.arg("x"), f.dot([(image, conv.h * conv.w), (top, conv.w)]))
        place = f.mul(unit.index, line) if pools else f.dot([(image, conv.oh * line), (top, line)])
        y = f.gep(f.arg("y"), place)

        def tile(columns: Sequence[Index]) -> None:
            found = _products(f, conv, [f.gep(x, column) for column in columns])
            for column, sums in zip(columns, found):
                done = [[_finished(f, epilogue, s, o) for o, s in enumerate(row)] for row in sums]
                if pools:
                    interleave.store(f, _pooled(f, *done), lanes // 2, f.gep(y, f.mul(f.div(column, 2), conv.o)))
                else:
                    for r, row in enumerate(done):
                        interleave.store(f, row, lanes, f.gep(y, f.add(f.mul(column, conv.o), r * line)))

        _across(f, width, 2 if 4 * conv.o + 2 * SPARE <= machine.registers else 1, tile)
    note = "direct, vectors of pixels" + (", 2x2 max pool" if pools else "")
    return k.finish(flops=conv.flops, note=note)


def _across(f: Function, width: int, most: int, tile: Callable[[Sequence[Index]], None]) -> None:
    """``tile(columns)`` for vectors that cover a row, ``most`` at a time."""
    lanes = f.machine.lanes
    for at, count, vectors in runs(split(-(-width // lanes), most)):
        with f.loop(0, count) as loop:
            first = f.add(f.mul(loop.index, vectors), at)
            tile([f.imin(f.mul(f.add(first, v), lanes), width - lanes) for v in range(vectors)])


def _products(f: Function, conv: Conv, places: Sequence[Value]) -> list[list[list[Value]]]:
    """The sums [vector][row][output] of vectors of two rows, whose first pixels are at ``places``."""
    count, outs = len(places), conv.o
    with f.loop(0, conv.kh, carry=[const(f.vec(), 0.0)] * (2 * count * outs)) as line:
        sums = [
            list(line.carried[at : at + outs]) for at in range(0, 2 * count * outs, outs)
        ]  # [vector * 2 + row][output]
        starts = [f.gep(x, f.mul(f.add(line.index, r), conv.w)) for x in places for r in range(2)]
        w = f.gep(f.arg("w"), f.mul(line.index, conv.kw))
        for t in range(conv.kw):
            pixels = [f.vload(f.gep(start, t)) for start in starts]
            for o in range(outs):
                weight = f.broadcast(f.gep(w, o * conv.kh * conv.kw + t))
                for row, pixel in zip(sums, pixels):
                    row[o] = f.fma(pixel, weight, row[o])
        line.carry([s for row in sums for s in row])
    rows = [line.results[at : at + outs] for at in range(0, 2 * count * outs, outs)]
    return [rows[at : at + 2] for at in range(0, 2 * count, 2)]


def _finished(f: Function, epilogue: ep.Epilogue, x: Value, channel: int) -> Value:
    for step in epilogue:
        x = step.across(f, x, channel)
    return x


def _pooled(f: Function, upper: Sequence[Value], lower: Sequence[Value]) -> list[Value]:
    """The maxima of 2x2 pixels, in the lower half of a vector for each output."""
    lanes = f.machine.lanes
    found = []
    for a, b in zip(upper, lower):
        both = larger_of(f, a, b)
        halves = (f.shuffle(both, None, [*range(at, lanes, 2), *[-1] * (lanes // 2)]) for at in range(2))
        found.append(larger_of(f, *halves))
    return found
