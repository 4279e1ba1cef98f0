"""Strips: a few channels of neighbouring pixels, copied densely, pixel behind pixel.

Channels-last, ``width`` channels of one pixel lie ``step`` elements from those of the next: far apart if there are many
channels, and a power of two apart in few sets of the cache. A strip has them in order, ``[pixel][width]``.
"""

from __future__ import annotations

from twofold.backends.cpu.llvm import Function, Value, const


def copy(f: Function, source: Value | None, target: Value, pixels: int, width: int, step: int) -> None:
    """``pixels`` pixels into a strip (zeros without a source), in whole vectors.

    A vector of the strip is a blend of whole vectors from memory, one for each pixel in it, each read from where its
    lanes are in place. With ``step >= width`` they lie between the first and the last element wanted.
    """
    for at, count in _vectors(f, pixels * width):
        f.vstore(_blend(f, source, at, count, width, step, "float"), f.gep(target, at), count)


def copy_pairs(
    f: Function, first: Value | None, second: Value | None, target: Value, pixels: int, width: int, step: int
) -> None:
    """A strip of pairs of bfloat16: from each pixel at ``first`` and the one in its place at ``second`` (zeros without)."""
    for at, count in _vectors(f, pixels * width):
        low, high = (_blend(f, source, at, count, width, step, "i16") for source in (first, second))
        f.vstore(f.paired(low, high), f.gep(target, at), count)


def _vectors(f: Function, total: int) -> list[tuple[int, int]]:
    """``total`` elements as (first, how many) of each vector."""
    lanes = f.machine.lanes
    return [(at, min(lanes, total - at)) for at in range(0, total, lanes)]


def _blend(f: Function, source: Value | None, at: int, count: int, width: int, step: int, element: str) -> Value:
    """The ``count`` elements from ``at`` on of a strip."""
    lanes, zeros = f.machine.lanes, const(f.vec(element), 0)
    if source is None:
        return zeros
    load = lambda start, size=lanes: f.vload(f.gep(source, start, element), size, element)
    places = [(at + lane) // width * step + (at + lane) % width - lane for lane in range(count)]
    starts = list(dict.fromkeys(places))
    if count < lanes:
        result = zeros
        for start in starts:
            first = places.index(start)
            size = places.count(start)
            piece = load(start + first, size)
            picks = [lanes + lane - first if first <= lane < first + size else lane for lane in range(lanes)]
            result = f.shuffle(result, piece, picks)
        return result
    result = load(starts[0])
    for start in starts[1:]:
        own = [lanes + lane if place == start else lane for lane, place in enumerate(places)]
        result = f.shuffle(result, load(start), own)
    return result
