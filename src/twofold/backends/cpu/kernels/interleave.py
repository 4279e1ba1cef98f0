"""Images of few channels brought from planes to channels-last, in registers.

ALGORITHM
    y[n, pixel, c] = x[n, c, pixel]
SCHEDULE
    Vectors of pixels are shared among the threads: one is loaded from each plane, and as many leave, turned. The last of an
    image ends with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.llvm import Function, Value
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST = 8  # channels: with more, the turn is best done in squares


def fits(machine: Machine, channels: int, pixels: int) -> bool:
    """Whether the kernel takes images of so many channels and pixels."""
    return 1 < channels <= MOST and pixels >= machine.lanes


def channels_last(machine: Machine, images: int, channels: int, pixels: int) -> Kernel:
    """Kernel (x, y): float32 (images, channels, pixels) to (images, pixels, channels)."""
    k = KernelBuilder(machine, "channels_last", ["x", "y"])
    f, lanes = k.f, machine.lanes
    vectors = -(-pixels // lanes)
    with f.loop(*f.share(images * vectors, f.arg("tid"), f.arg("n"))) as unit:
        image, vector = f.divmod_chain(unit.index, [images, vectors])
        first, base = f.imin(f.mul(vector, lanes), pixels - lanes), f.mul(image, channels * pixels)
        x = f.gep(f.arg("x"), f.add(base, first))
        planes = [f.vload(f.gep(x, c * pixels)) for c in range(channels)]
        store(f, planes, lanes, f.gep(f.arg("y"), f.add(base, f.mul(first, channels))))
    return k.finish(note=f"{channels} planes to channels-last")


def store(f: Function, planes: Sequence[Value], pixels: int, place: Value) -> None:
    """The first ``pixels`` lanes of the planes' vectors at ``place``, channels-last."""
    lanes, count = f.machine.lanes, len(planes)
    for at in range(0, pixels * count, lanes):
        spots = [divmod(i, count) if i < pixels * count else (0, -1) for i in range(at, at + lanes)]
        whole: Value | None = None
        for c in range(0, count, 2):
            lane = {c: 0, c + 1: lanes}
            part = f.shuffle(
                planes[c], planes[c + 1] if c + 1 < count else None,
                [lane[channel] + p if channel in lane else -1 for p, channel in spots],
            )  # fmt: skip
            keep = [lanes + i if channel in lane else i for i, (_, channel) in enumerate(spots)]
            whole = part if whole is None else f.shuffle(whole, part, keep)
        assert whole is not None
        f.vstore(whole, f.gep(place, at), min(lanes, pixels * count - at))
