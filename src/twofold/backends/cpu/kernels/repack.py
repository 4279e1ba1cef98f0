"""Weights from the users' order (O, I, KH, KW) to a packed one and back, in whole vectors.

ALGORITHM
    target[place of w(o, i, tap)] = source[place of w(o, i, tap)]
SCHEDULE
    units are bricks of V inputs of a block's outputs (V: lanes), so that what is read in long rows and what is written in
    long rows meet in the first caches. In the users' order the V*taps weights of an output and V inputs lie side by side.
    *Forward* packing has outputs side by side: V rows of V weights are read, turned in registers, and stored as V vectors;
    unpacking is the same backwards. *Backward* packing has inputs side by side: of V*taps weights every ``taps``-th is wanted,
    which are V different lanes of ``taps`` vectors if taps and V have no common factor: a blend, put in order.
    The next brick's rows are prefetched: they are many, and further apart than a page.

``turn`` makes backward packing of forward packing: units are a block of outputs x a block of inputs for one tap, one piece in
both, turned by squares. They follow each other as they are read, so the next one can be prefetched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

Kind = tuple[int, int, int]
MOST_TAPS = 25  # of which a brick is written out


def fits(packed: Packed) -> bool:
    """Whether ``pack``, and for forward packing ``unpack``, know this order: no vector is cut."""
    if packed.pairs or packed.taps > MOST_TAPS or packed.outs % packed.lanes:
        return False
    return packed.ins % packed.lanes == 0 if packed.forward else math.gcd(packed.taps, packed.lanes) == 1


def pack(machine: Machine, packed: Packed) -> Kernel:
    """Kernel (source in the users' order, target in ``packed`` order, whose vectors may be shorter than the machine's)."""
    k = KernelBuilder(machine, "pack_weights", ["source", "target"])
    for kind in packed.kinds():
        (_turn if packed.forward else _pick)(k.f, packed, *kind)
    return k.finish(note="pack weights")


def unpack(machine: Machine, packed: Packed) -> Kernel:
    """Kernel (source in forward ``packed`` order, target in the users' order)."""
    k = KernelBuilder(machine, "unpack_weights", ["source", "target"])
    for kind in packed.kinds():
        _turn(k.f, packed, *kind, back=True)
    return k.finish(note="unpack weights")


def turns(source: Packed, target: Packed) -> bool:
    """Whether ``turn`` knows the way: from forward to backward packing of the same weights, in whole vectors."""
    whole = not (source.pairs or target.pairs or source.outs % source.lanes or target.outs % target.lanes)
    return source.forward and not target.forward and source.lanes == target.lanes and whole


def turn(machine: Machine, source: Packed, target: Packed) -> Kernel:
    """Kernel (weights in forward packing, the same in backward packing)."""
    k = KernelBuilder(machine, "turn_weights", ["source", "target"])
    for there, here in itertools.product(source.kinds(), target.kinds()):
        _turn_blocks(k.f, source, target, there, here)
    return k.finish(note="turn packed weights")


def _turn_blocks(f: Function, source: Packed, target: Packed, there: Kind, here: Kind) -> None:
    """Units of one kind of block of outputs (first, count, outputs) and one of inputs."""
    (first_out, out_blocks, outs), (first_in, in_blocks, ins) = there, here
    lanes, box = source.lanes, [source.groups, out_blocks, source.taps, in_blocks]
    with f.loop(*f.share(math.prod(box), f.arg("tid"), f.arg("n"))) as unit:
        group, out_block, tap, in_block = f.divmod_chain(unit.index, box)
        in_block, out_block = f.add(in_block, first_in), f.add(out_block, first_out)
        row = f.add(f.mul(tap, source.ins), f.mul(in_block, target.block))
        read = f.gep(f.arg("source"), f.add(source.panel(f, group, out_block), f.mul(row, outs)))
        row = f.add(f.mul(tap, target.ins), f.mul(out_block, source.block))
        written = f.gep(f.arg("target"), f.add(target.panel(f, group, in_block), f.mul(row, ins)))
        with f.loop(0, outs, lanes) as out, f.loop(0, ins, lanes) as inner:
            rows = f.gep(read, f.add(f.mul(inner.index, outs), out.index))
            columns = f.gep(written, f.add(f.mul(out.index, ins), inner.index))
            places = [f.gep(rows, k * outs) for k in range(lanes)]
            for place in places:
                f.prefetch(f.gep(place, ins * outs), 2)
            for k, vector in enumerate(f.transposed([f.vload(place, lanes=lanes) for place in places])):
                f.vstore(vector, f.gep(columns, k * ins))


@contextmanager
def _bricks(f: Function, packed: Packed, first: int, count: int, depth: int) -> Iterator[tuple[Index, Index, Index]]:
    """(group, block, first input) of a thread's bricks of ``depth`` inputs; of backward packing the blocks of one brick
    follow each other, since they lie side by side in the users' order."""
    bricks = packed.ins // depth
    with f.loop(*f.share(packed.groups * count * bricks, f.arg("tid"), f.arg("n"))) as unit:
        if packed.forward:
            group, block, brick = f.divmod_chain(unit.index, [packed.groups, count, bricks])
        else:
            group, brick, block = f.divmod_chain(unit.index, [packed.groups, bricks, count])
        yield group, f.add(block, first), f.mul(brick, depth)


def _turn(f: Function, packed: Packed, first: int, count: int, outs: int, back: bool = False) -> None:
    """Forward packing, or (``back``) from it, of ``count`` blocks of ``outs`` outputs."""
    lanes, taps, row = packed.lanes, packed.taps, packed.ins * packed.taps
    plain, target = (f.arg(name) for name in (("target", "source") if back else ("source", "target")))
    with _bricks(f, packed, first, count, lanes) as (group, block, start), f.loop(0, outs, lanes) as lane:
        out = f.add(f.add(f.mul(group, packed.outs), f.mul(block, packed.block)), lane.index)
        rows = f.gep(plain, f.add(f.mul(out, row), f.mul(start, taps)))
        columns = f.gep(target, f.add(f.add(packed.panel(f, group, block), f.mul(start, outs)), lane.index))
        with f.loop(0, lanes * taps, lanes) as square:  # written out it would be quicker by nothing, and longer to compile
            along = [f.gep(rows, f.add(square.index, k * row)) for k in range(lanes)]
            weights = [f.divmod_chain(f.add(square.index, k), [lanes, taps]) for k in range(lanes)]  # (input, tap)
            across = [f.gep(columns, f.mul(f.add(f.mul(tap, packed.ins), i), outs)) for i, tap in weights]
            read, written = (across, along) if back else (along, across)
            if not back:
                for place in along:
                    f.prefetch(f.gep(place, lanes * taps), 2)
            for value, place in zip(f.transposed([f.vload(place, lanes=lanes) for place in read]), written):
                f.vstore(value, place)


def _pick(f: Function, packed: Packed, first: int, count: int, outs: int) -> None:
    """Backward packing of ``count`` blocks of ``outs`` outputs, which are the convolution's inputs."""
    lanes, taps, depth = packed.lanes, packed.taps, math.gcd(packed.ins, packed.lanes)
    with _bricks(f, packed, first, count, depth) as (group, block, start), f.loop(start, f.add(start, depth)) as inner:
        row = f.add(f.mul(group, packed.ins), inner.index)
        source = f.gep(f.arg("source"), f.mul(f.add(f.mul(row, packed.outs), f.mul(block, packed.block)), taps))
        target = f.gep(f.arg("target"), f.add(packed.panel(f, group, block), f.mul(inner.index, outs)))
        with f.loop(0, outs, lanes) as lane:
            weights = f.gep(source, f.mul(lane.index, taps))
            place = f.gep(target, lane.index)
            vectors = [f.gep(weights, k * lanes) for k in range(taps)]
            for vector in vectors:
                f.prefetch(f.gep(vector, outs * taps), 2)
            for tap in range(taps):
                f.vstore(_every(f, vectors, tap, lanes), f.gep(place, tap * packed.ins * outs))


def _every(f: Function, vectors: list[Value], first: int, lanes: int) -> Value:
    """Of the elements at ``vectors`` every ``len(vectors)``-th from ``first`` on."""
    step = len(vectors)
    wanted = [(first + k * step) % lanes for k in range(lanes)]  # lanes in their vectors, all different
    source = {lane: (first + k * step) // lanes for k, lane in enumerate(wanted)}
    result = f.vload(vectors[0], lanes=lanes)
    for number, vector in enumerate(vectors[1:], 1):
        own = [lanes + lane if source[lane] == number else lane for lane in range(lanes)]
        result = f.shuffle(result, f.vload(vector, lanes=lanes), own)
    return f.shuffle(result, None, wanted) if step > 1 else result
