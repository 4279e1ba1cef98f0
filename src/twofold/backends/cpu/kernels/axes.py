"""What generators of windowed kernels share: rows cut into tiles, and taps clipped to the image."""

from __future__ import annotations

from twofold.backends.cpu.kernels.shapes import Axis, split
from twofold.backends.cpu.llvm import Function, Index


def segments(h: Axis, most: int) -> list[tuple[int, int, int]]:
    """A row as (first output, pixels of a tile, tiles): equal tiles whose taps all fall inside are one loop."""
    segments: list[tuple[int, int, int]] = []
    at, joinable = 0, False
    for size in split(h.outputs, most):
        inside = h.taps > 0 and all(h.valid(o, t) for o in (at, at + size - 1) for t in (0, h.taps - 1))
        if inside and joinable and segments[-1][1] == size:
            start, _, count = segments[-1]
            segments[-1] = (start, size, count + 1)
        else:
            segments.append((at, size, 1))
        joinable = inside
        at += size
    return segments


def clip(f: Function, axis: Axis, row: Index) -> tuple[Index, Index]:
    """The vertical taps [low, high) that fall inside the image for this output row."""
    if axis.inside or not axis.taps:
        return 0, axis.taps
    base = f.add(f.mul(row, axis.step), axis.first)  # tap t reads line base + t*spacing
    short = f.imax(f.sub(0, base), 0)
    low = f.imin(f.div(f.add(short, axis.spacing - 1), axis.spacing), axis.taps)
    room = f.imax(f.sub(axis.inputs + axis.spacing - 1, base), 0)  # ceil((inputs - base) / spacing) taps fit
    return low, f.imin(f.div(room, axis.spacing), axis.taps)
