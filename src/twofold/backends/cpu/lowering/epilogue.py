"""Elementwise work done on a kernel's results while they are in registers.

A kernel with an epilogue writes a matrix of pixels x channels. An expression over the output's index can go into it if every
load in it is, in terms of (pixel, channel): the result itself, one value for each pixel and channel, one for each channel,
or a single value.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twofold.backends.cpu.emit.body import Body
from twofold.backends.cpu.kernels.epilogue import Site, Step, Stream
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.llvm.types import memory_type, to_memory
from twofold.backends.cpu.loops import Affine, Buffer, Expr, Store, Var, acc, constant, load, var
from twofold.backends.cpu.loops.expr import loads, rewrite_loads
from twofold.backends.cpu.lowering.steps import Placed
from twofold.base.dtypes import float32


@dataclass(frozen=True, eq=False)
class Formula(Step):
    """A step that computes an expression over ``pixel`` and ``channel``; ``acc(0)`` is the kernel's result."""

    value: Expr
    pixel: Var
    channel: Var
    buffers: tuple[Buffer, ...]
    name: str = "e"  # tells its parameters from those of other steps

    @property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{self.name}{i}" for i in range(len(self.buffers)))

    @property
    def values(self) -> list[Expr]:
        """All that it computes."""
        return [self.value]

    def streams(self) -> list[Stream]:
        names, found = dict(zip(self.buffers, self.params)), []
        for l in itertools.chain.from_iterable(map(loads, self.values)):
            buffer, address = l.extra
            if (pitch := address.coefficient(self.pixel)) and address.coefficient(self.channel):
                found.append(Stream(names[buffer], pitch, (buffer, address.const), address.const, memory_type(buffer.dtype)))
        return found

    @property
    def planar(self) -> bool:  # type: ignore[override]
        return self.pixel not in self.value.vars

    def across(self, f: Function, x: Value, channel: int) -> Value:
        body = self._body(f)
        body.values[self.channel] = channel
        body.vector_accumulators, body.accumulators = True, [[x]]
        return body.spread(body.emit(self.value))

    def _body(self, f: Function) -> Body:
        lanes = f.machine.lanes
        body = Body(f, dict(zip(self.buffers, map(f.arg, self.params))), set(), lanes, None)
        body.lanes = lanes
        return body

    def columns(self, f: Function, channel: Index, count: int) -> list[Value]:
        """A fresh body, with what depends on the channel alone computed."""
        body, lanes = self._body(f), f.machine.lanes
        body.vector = self.channel
        body.count = None if count == lanes else count
        body.values[self.channel] = channel
        body.hoist(self.values)
        return [body]  # type: ignore[list-item]

    def apply(self, f: Function, x: Value, site: Site, columns: list[Value]) -> Value:
        body: Body = columns[0]  # type: ignore[assignment]
        with self._at(body, x, site):
            return body.spread(body.emit(self.value))

    @contextlib.contextmanager
    def _at(self, body: Body, x: Value, site: Site) -> Iterator[None]:
        """Inside, the body is that of one vector of results."""
        with body.block():
            body.values[self.pixel] = site.pixel
            body.vector_accumulators = True
            body.accumulators = [[x]]
            yield


@dataclass(frozen=True, eq=False)
class Totals(Formula):
    """Adds up the expression over the pixels of each part, for every channel: float32 ``[part][channel]``. Results stay as
    they are. A part is written by one thread in a fixed order, and parts follow from the shape alone."""

    planar = False

    @property
    def params(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().params, self._sums)

    @property
    def _sums(self) -> str:
        return f"{self.name}sums"

    def apply(self, f: Function, x: Value, site: Site, columns: list[Value]) -> Value:
        return x

    def begin(self, f: Function, part: Index, channel: Index, count: int) -> None:
        f.vstore(const(f.vec(), 0.0), self._place(f, part, channel), count)

    def finish(
        self, f: Function, part: Index, sites: Sequence[Site], values: Sequence[Value], columns: list[Value]
    ) -> None:
        terms = [super(Totals, self).apply(f, x, site, columns) for x, site in zip(values, sites)]
        while len(terms) > 1:  # in pairs: a chain would wait for each addition
            terms = [*map(f.fadd, terms[::2], terms[1::2]), *terms[len(terms) & ~1 :]]
        place = self._place(f, part, sites[0].channel)
        f.vstore(f.fadd(f.vload(place, sites[0].count), terms[0]), place, sites[0].count)

    def _place(self, f: Function, part: Index, channel: Index) -> Value:
        return f.gep(f.arg(self._sums), f.dot([(part, self.channel.extent), (channel, 1)]))


@dataclass(frozen=True, eq=False)
class Beside(Formula):
    """Stores other results at the same pixels and channels, all from the kernel's, which becomes ``value``. Whatever it reads
    of an element is read before anything is stored there, so all may lie over what they are made of. The last step but
    ``Stored``: others would read what it has written."""

    planar = False
    others: tuple[Store, ...] = ()

    @property
    def values(self) -> list[Expr]:
        return [self.value, *(s.value for s in self.others)]

    def streams(self) -> list[Stream]:
        names, found = dict(zip(self.buffers, self.params)), super().streams()
        for s in self.others:
            pitch, first, element = s.address.coefficient(self.pixel), s.address.const, memory_type(s.buffer.dtype)
            found.append(Stream(names[s.buffer], pitch, (s.buffer, first), first, element, written=True))
        return found

    def apply(self, f: Function, x: Value, site: Site, columns: list[Value]) -> Value:
        body: Body = columns[0]  # type: ignore[assignment]
        with self._at(body, x, site):
            value, *others = [body.spread(body.emit(value)) for value in self.values]
            for s, other in zip(self.others, others):  # a single channel is stored as such, though its address tells of none
                f.vstore(to_memory(f, other, s.buffer.dtype), body.pointer(s.buffer, s.address, 0), site.count)
            return value


def beside(value: Formula | None, others: Sequence[tuple[Placed, Formula]], number: int) -> Beside:
    """The step that stores ``others``, and makes the kernel's result ``value`` if that is given."""
    made = [*([value] if value else []), *(f for _, f in others)]
    pixel, channel = made[0].pixel, made[0].channel
    stores = tuple(Store(to.buffer, _evenly(to, pixel, channel), f.value) for to, f in others)
    buffers = dict.fromkeys([*(b for f in made for b in f.buffers), *(s.buffer for s in stores)])
    result = value.value if value else acc(0, float32)
    return Beside(result, pixel, channel, tuple(buffers), f"e{number}_", stores)


def totals(value: Expr, variables: Sequence[Var], result: Placed, number: int = 0) -> Totals | None:
    """The step that adds up ``value`` for every channel; as ``formula``."""
    step = formula(value, variables, result, number)
    return Totals(step.value, step.pixel, step.channel, step.buffers, step.name) if step is not None else None


def formula(
    value: Expr, variables: Sequence[Var], result: Placed, number: int = 0, known: Sequence[tuple[Placed, Formula]] = ()
) -> Formula | None:
    """The step that computes ``value`` (over ``variables``, the output's index) from a kernel's ``result``; None if some load
    does not fit. ``result`` has its channel innermost and its pixels evenly apart; ``number`` of the step among others.
    ``known`` are other results of the kernel, as formulas of the first: such as are read are computed."""
    *outer, last = result.order
    extents = [variables[d].extent for d in outer]
    pixels = 1
    for e in extents:
        pixels *= e
    pixel, channel = Var(pixels, "pixel"), Var(variables[last].extent, "channel")
    if known:
        pixel, channel = known[0][1].pixel, known[0][1].channel
    index = [var(v) for v in variables]
    made = {to.buffer: (to.address(index), f.value) for to, f in known}
    ok = True

    def change(l: Expr) -> Expr:
        nonlocal ok
        buffer, address = l.extra
        own, instead = made.get(buffer) or (result.address(index), acc(0, l.dtype))
        if l.args:
            ok = False
        elif buffer is result.buffer or buffer in made:
            ok = ok and address == own
            return instead
        flat = _flattened(address, [variables[d] for d in outer], variables[last], pixel, channel)
        if flat is None:
            ok = False
            return l
        return load(buffer, flat)

    out = rewrite_loads(value, change)
    if not ok or any(v in out.vars for v in variables) or _has_index(out):
        return None
    buffers = dict.fromkeys(l.extra[0] for l in loads(out))
    return Formula(out, pixel, channel, tuple(buffers), f"e{number}_")


def _evenly(place: Placed, pixel: Var, channel: Var) -> Affine:
    """Where a pixel and channel lie, of a place of which formulas are known."""
    *outer, last = place.order
    moving = [place.strides[d] for d in outer if place.shape[d] > 1]
    return var(pixel) * (moving[-1] if moving else 0) + var(channel) * place.strides[last] + place.offset


def _has_index(e: Expr) -> bool:
    seen: set[Expr] = set()

    def visit(x: Expr) -> bool:
        if x in seen:
            return False
        seen.add(x)
        if x.kind in ("index", "range") or (x.kind == "op" and ":" in x.extra):
            return True
        return any(map(visit, x.args))

    return visit(e)


def _flattened(a: Affine, outer: Sequence[Var], last: Var, pixel: Var, channel: Var) -> Affine | None:
    """An address over the output's index as one over (pixel, channel), if it runs evenly over the pixels."""
    if any(a.hides(v) for v in [*outer, last]) or not a.vars <= {*outer, last}:
        return None
    step = a.coefficient(last)
    if step not in (0, 1):
        return None
    moving = [v for v in outer if v.extent > 1]
    if not any(a.coefficient(v) for v in moving):
        return var(channel) * step + a.const
    ld, size = a.coefficient(moving[-1]), 1
    for v in reversed(moving):
        if a.coefficient(v) != ld * size:
            return None
        size *= v.extent
    return var(pixel) * ld + var(channel) * step + a.const


__all__ = ["Beside", "Formula", "Totals", "beside", "constant", "formula", "loads", "totals"]
