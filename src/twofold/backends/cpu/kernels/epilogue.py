"""What happens to results in registers before they are stored: bias, batch norm, residual, ReLU, statistics.

A kernel computes tiles of pixels x vectors of channels. For every column of a tile (one vector of channels) it calls
``columns`` once, then ``apply`` for each pixel, then ``finish`` with the column's results. A step of one's own
implements the same four methods (``Map`` wraps a plain function); it must be hashable, so that equal kernels are made
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.llvm.types import memory_type, rounded, to_memory
from twofold.base.dtypes import DType


@dataclass(frozen=True)
class Site:
    """Where one vector of results goes."""

    pixel: Index  # number of the output pixel (row of a matrix), (n*OH + oh)*OW + ow
    channel: Index  # first channel (column)
    count: int  # lanes in use


@dataclass(frozen=True)
class Stream:
    """An array that is read or written along with the results, ``pitch`` elements from pixel to pixel. Where two steps read
    the same, their ``key`` is equal."""

    param: str
    pitch: int
    key: object
    first: int = 0
    element: str = "float"
    written: bool = False

    def fetch(self, f: Function, pixel: Index, channel: Index) -> None:
        """Prefetch into L2 the line of a pixel and channel."""
        place = f.add(f.add(f.mul(pixel, self.pitch), channel), self.first)
        f.prefetch(f.gep(f.arg(self.param), place, self.element), 2, write=self.written)


class Step:
    """One step; the default does nothing."""

    params: tuple[str, ...] = ()  # pointer parameters it adds to the kernel
    planar = False  # whether results do not depend on their pixel, so that ``across`` can be asked

    def across(self, f: Function, x: Value, channel: int) -> Value:
        """``apply`` for a vector of pixels of one channel."""
        raise NotImplementedError

    def streams(self) -> list[Stream]:
        """What it reads for every pixel and channel."""
        return []

    def columns(self, f: Function, channel: Index, count: int) -> list[Value]:
        """Values shared by the pixels of a column, such as a vector of biases."""
        return []

    def apply(self, f: Function, x: Value, site: Site, columns: list[Value]) -> Value:
        """The new value of one vector."""
        return x

    def begin(self, f: Function, part: Index, channel: Index, count: int) -> None:
        """Called for each column before the tiles of one part (rows of the output that one thread does in turn)."""

    def finish(
        self, f: Function, part: Index, sites: Sequence[Site], values: Sequence[Value], columns: list[Value]
    ) -> None:
        """Called with all results of a column of a tile, and what ``columns`` gave for it."""

    @property
    def gathers(self) -> bool:
        """Whether it does something with a whole column."""
        return type(self).finish is not Step.finish


@dataclass(frozen=True)
class Bias(Step):
    """Adds a vector of length C."""

    name: str = "bias"

    @property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def columns(self, f, channel, count):
        return [f.vload(f.gep(f.arg(self.name), channel), count)]

    def apply(self, f, x, site, columns):
        return f.fadd(x, columns[0])

    planar = True

    def across(self, f, x, channel):
        return f.fadd(x, f.broadcast(f.gep(f.arg(self.name), channel)))


@dataclass(frozen=True)
class ScaleShift(Step):
    """x * scale[c] + shift[c]: batch norm of known statistics."""

    params = ("scale", "shift")

    def columns(self, f, channel, count):
        return [f.vload(f.gep(f.arg(name), channel), count) for name in self.params]

    def apply(self, f, x, site, columns):
        return f.fma(x, columns[0], columns[1])


@dataclass(frozen=True)
class Residual(Step):
    """Adds another activation of the output's shape; ``ld`` is its distance between pixels."""

    ld: int
    name: str = "residual"

    @property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def streams(self) -> list[Stream]:
        return [Stream(self.name, self.ld, self.name)]

    def apply(self, f, x, site, columns):
        place = f.gep(f.arg(self.name), f.add(f.mul(site.pixel, self.ld), site.channel))
        return f.fadd(x, f.vload(place, site.count))


@dataclass(frozen=True)
class Relu(Step):
    """max(x, 0), keeping NaN."""

    planar = True

    def apply(self, f, x, site, columns):
        return f.relu(x)

    def across(self, f, x, channel):
        return f.relu(x)


@dataclass(frozen=True)
class Map(Step):
    """Any elementwise function: ``function(f, x, site) -> value``; ``key`` tells it from others (in reports)."""

    key: str
    function: Callable[[Function, Value, Site], Value]
    params: tuple[str, ...] = ()

    def apply(self, f, x, site, columns):
        return self.function(f, x, site)


@dataclass(frozen=True)
class Statistics(Step):
    """Gathers what a mean and a variance per channel are made of: buffer ``stats`` is float32 ``[parts][4][channels]``.

    The rows of a part: how many values, a value ``k`` among them, the sum of ``v - k``, the sum of ``(v - k)**2``. So a
    large mean cancels nothing (Chan, Golub and LeVeque 1983, section 1c). Every part is written by one thread in a fixed
    order; who reads the buffer joins the parts in order. The number of parts is ``parts(kernel shape)`` of the
    generator, a function of the shape alone.
    """

    channels: int
    params = ("stats",)
    rows = 4

    def _places(self, f: Function, part: Index, channel: Index) -> list[Value]:
        first = f.mul(part, self.rows)
        return [
            f.gep(f.arg("stats"), f.dot([(f.add(first, k), self.channels), (channel, 1)])) for k in range(self.rows)
        ]

    def begin(self, f, part, channel, count):
        for place in self._places(f, part, channel):
            f.vstore(const(f.vec(), 0.0), place, count)

    def finish(self, f, part, sites, values, columns):
        channel, count = sites[0].channel, sites[0].count
        places = self._places(f, part, channel)
        seen, shift, total, squares = (f.vload(place, count) for place in places)
        shift = f.select(f.fcmp("oeq", seen, f.zero(f.vec())), values[0], shift)
        for value in values:
            apart = f.fsub(value, shift)
            total, squares = f.fadd(total, apart), f.fma(apart, apart, squares)
        seen = f.fadd(seen, const(f.vec(), float(len(values))))
        for place, amount in zip(places, (seen, shift, total, squares)):
            f.vstore(amount, place, count)


@dataclass(frozen=True)
class Rounded(Step):
    """Rounds to a 16-bit float (still a float32), as an op of that dtype does."""

    dtype: DType

    def apply(self, f, x, site, columns):
        return rounded(f, x, self.dtype)


@dataclass(frozen=True)
class Stored(Step):
    """Results, already rounded to ``dtype``, as they lie in memory. Always the last step."""

    dtype: DType

    def apply(self, f, x, site, columns):
        return to_memory(f, x, self.dtype)


Epilogue = tuple[Step, ...]


def element(epilogue: Epilogue) -> str:
    """The type in memory of what a kernel with this epilogue writes."""
    last = epilogue[-1] if epilogue else None
    return memory_type(last.dtype) if isinstance(last, Stored) else "float"


def params_of(epilogue: Epilogue) -> tuple[str, ...]:
    """The pointer parameters of all steps, in order."""
    return tuple(name for step in epilogue for name in step.params)


def streams(epilogue: Epilogue, ldy: int) -> list[Stream]:
    """What a kernel with this epilogue reads along with its results, each array once, and what it writes."""
    found = {stream.key: stream for step in epilogue for stream in step.streams()}
    return [*found.values(), Stream("y", ldy, "y", element=element(epilogue), written=True)]


def finish_column(
    f: Function, epilogue: Epilogue, values: Sequence[Value], sites: Sequence[Site], part: Index
) -> list[Value]:
    """Run all steps over one column of a tile: its vectors ``values`` at ``sites``."""
    channel, count = sites[0].channel, sites[0].count
    done = list(values)
    for step in epilogue:
        columns = step.columns(f, channel, count)
        done = [step.apply(f, value, site, columns) for value, site in zip(done, sites)]
        step.finish(f, part, sites, done, columns)
    return done
