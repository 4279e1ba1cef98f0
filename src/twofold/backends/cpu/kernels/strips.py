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
    total, lanes = pixels * width, f.machine.lanes
    for at in range(0, total, lanes):
        count = min(lanes, total - at)
        f.vstore(_vector(f, source, at, count, width, step), f.gep(target, at), count)


def _vector(f: Function, source: Value | None, at: int, count: int, width: int, step: int) -> Value:
    """The ``count`` elements from ``at`` on of a strip."""
    lanes = f.machine.lanes
    if source is None:
        return const(f.vec(), 0.0)
    places = [(at + lane) // width * step + (at + lane) % width - lane for lane in range(count)]
    starts = list(dict.fromkeys(places))
    if count < lanes:
        result = const(f.vec(), 0.0)
        for start in starts:
            first = places.index(start)
            size = places.count(start)
            piece = f.vload(f.gep(source, start + first), size)
            picks = [lanes + lane - first if first <= lane < first + size else lane for lane in range(lanes)]
            result = f.shuffle(result, piece, picks)
        return result
    result = f.vload(f.gep(source, starts[0]))
    for start in starts[1:]:
        own = [lanes + lane if place == start else lane for lane, place in enumerate(places)]
        result = f.shuffle(result, f.vload(f.gep(source, start)), own)
    return result
