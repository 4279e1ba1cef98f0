"""Packed convolution weights: the order in which the kernels read them, and conversion between orders.

``Packed`` is ``[group][block of outputs][kh][kw][input][output within the block]``; a block is as many outputs as a
tile has (a whole number of vectors), the last block is cut to the vectors it needs and padded with zeros. ``forward``
packing has the convolution's outputs as outputs; ``backward`` packing (for the data gradient) has its inputs as
outputs. In packed ``pairs`` an element is two bfloat16, of neighbouring inputs (the last zero if they are odd), in the
bits of a float32, as dot products of pairs want them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.llvm import Function, Index, Value, const, vector
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder


class Order(Protocol):
    """Any order of weights: it knows where each one lies."""

    def offset(self, f: Function, group: Index, o: Index, i: Index, tap: Index) -> Index: ...


@dataclass(frozen=True)
class Packed:
    """Weights of one convolution in packed order; sizes are per group (``ins`` in elements: numbers, or pairs)."""

    groups: int
    outs: int
    ins: int
    kh: int
    kw: int
    block: int
    lanes: int
    forward: bool = True
    pairs: bool = False

    @property
    def taps(self) -> int:
        return self.kh * self.kw

    @property
    def whole(self) -> int:
        """Blocks of full width."""
        return self.outs // self.block

    @property
    def rest(self) -> int:
        """Outputs in the last, narrower block (0: none)."""
        return self.outs % self.block

    @property
    def rest_width(self) -> int:
        """Elements kept for the last block, a whole number of vectors."""
        return -(-self.rest // self.lanes) * self.lanes

    @property
    def group_size(self) -> int:
        return (self.whole * self.block + self.rest_width) * self.taps * self.ins

    @property
    def size(self) -> int:
        """Elements in all."""
        return self.groups * self.group_size

    def panel(self, f: Function, group: Index, block: Index) -> Index:
        """Where a block starts."""
        return f.dot([(group, self.group_size), (block, self.taps * self.ins * self.block)])

    def kinds(self) -> list[tuple[int, int, int]]:
        """The kinds of block as (first block, how many, outputs in each)."""
        kinds = [(0, self.whole, self.block)] if self.whole else []
        return kinds + ([(self.whole, 1, self.rest)] if self.rest else [])

    def offset(self, f: Function, group: Index, o: Index, i: Index, tap: Index) -> Index:
        """Where one weight lies; ``o`` and ``i`` are the convolution's output and input, whatever the direction."""
        out, inner = (o, i) if self.forward else (i, o)
        block = f.div(out, self.block)
        width: Index = self.block
        if self.rest:
            last = f.icmp("eq", f.index(block), self.whole)
            width = f.select(last, const("i64", self.rest_width), const("i64", self.block))
        row = f.add(f.mul(tap, self.ins), inner)
        return f.add(self.panel(f, group, block), f.add(f.mul(row, width), f.rem(out, self.block)))


@dataclass(frozen=True)
class Plain:
    """Weights as users see them: ``(O, I, KH, KW)``; sizes per group."""

    groups: int
    outs: int
    ins: int
    kh: int
    kw: int

    @property
    def size(self) -> int:
        return self.groups * self.outs * self.ins * self.kh * self.kw

    def offset(self, f: Function, group: Index, o: Index, i: Index, tap: Index) -> Index:
        row = f.add(f.mul(f.add(f.mul(group, self.outs), o), self.ins), i)
        return f.add(f.mul(row, self.kh * self.kw), tap)


def plain(conv: Conv) -> Plain:
    """The plain layout of a convolution's weights."""
    return Plain(conv.groups, conv.og, conv.cg, conv.kh, conv.kw)


def repack(machine: Machine, source: Order, target: Packed | Plain) -> Kernel:
    """Kernel (source, target): the same weights in another order.

    ALGORITHM: target[...] = source[...], one row (group, block, tap, input) of the target at a time, zeros in its
    padding. SCHEDULE: rows are shared among the threads; each gathers vectors from the source's strides.
    """
    k = KernelBuilder(machine, "repack", ["source", "target"])
    if isinstance(target, Packed):
        for first, count, outs in target.kinds():
            _fill_blocks(k.f, source, target, first, count, outs)
    else:
        _fill_plain(k.f, source, target)
    return k.finish(note=f"repack {source} -> {target}")


def _fill_blocks(f: Function, source: Order, target: Packed, first: int, count: int, outs: int) -> None:
    lanes = target.lanes
    width = -(-outs // lanes) * lanes
    low, high = f.share(target.groups * count * target.taps * target.ins, f.arg("tid"), f.arg("n"))
    with f.loop(low, high) as loop:
        group, block, tap, inner = f.divmod_chain(loop.index, [target.groups, count, target.taps, target.ins])
        block = f.add(block, first)
        row = f.add(f.mul(tap, target.ins), inner)
        place = f.gep(f.arg("target"), f.add(target.panel(f, group, block), f.mul(row, width)))
        start = f.mul(block, target.block)
        for at in range(0, width, lanes):
            row_of = const(vector("float", lanes), 0.0)  # the target's vectors, whatever the machine's
            for lane in range(min(lanes, outs - at)):
                out = f.add(start, at + lane)
                o, i = (out, inner) if target.forward else (inner, out)
                row_of = f.insert(row_of, _weight(f, source, group, o, i, tap), lane)
            f.store(row_of, f.gep(place, at))


def _fill_plain(f: Function, source: Order, target: Plain) -> None:
    low, high = f.share(target.size, f.arg("tid"), f.arg("n"))
    with f.loop(low, high) as loop:
        box = [target.groups, target.outs, target.ins, target.kh * target.kw]
        value = _weight(f, source, *f.divmod_chain(loop.index, box))
        f.store(value, f.gep(f.arg("target"), loop.index))


def _weight(f: Function, source: Order, group: Index, o: Index, i: Index, tap: Index) -> Value:
    return f.load("float", f.gep(f.arg("source"), source.offset(f, group, o, i, tap)))
