"""Elementwise work done on a kernel's results while they are in registers.

A kernel with an epilogue writes a matrix of pixels x channels. An expression over the output's index can go into it if every
load in it is, in terms of (pixel, channel): the result itself, one value for each pixel and channel, one for each channel,
or a single value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twofold.backends.cpu.emit.body import Body
from twofold.backends.cpu.kernels.epilogue import Site, Step, Stream
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.llvm.types import memory_type
from twofold.backends.cpu.loops import Affine, Buffer, Expr, Var, acc, constant, load, var
from twofold.backends.cpu.loops.expr import loads, rewrite_loads
from twofold.backends.cpu.lowering.steps import Placed


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

    def streams(self) -> list[Stream]:
        names, found = dict(zip(self.buffers, self.params)), []
        for l in loads(self.value):
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
        body.hoist([self.value])
        return [body]  # type: ignore[list-item]

    def apply(self, f: Function, x: Value, site: Site, columns: list[Value]) -> Value:
        body: Body = columns[0]  # type: ignore[assignment]
        with body.block():
            body.values[self.pixel] = site.pixel
            body.vector_accumulators = True
            body.accumulators = [[x]]
            return body.spread(body.emit(self.value))


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


def totals(value: Expr, variables: Sequence[Var], result: Placed, number: int = 0) -> Totals | None:
    """The step that adds up ``value`` for every channel; as ``formula``."""
    step = formula(value, variables, result, number)
    return Totals(step.value, step.pixel, step.channel, step.buffers, step.name) if step is not None else None


def formula(value: Expr, variables: Sequence[Var], result: Placed, number: int = 0) -> Formula | None:
    """The step that computes ``value`` (over ``variables``, the output's index) from a kernel's ``result``; None if some load
    does not fit. ``result`` has its channel innermost and its pixels evenly apart; ``number`` of the step among others."""
    *outer, last = result.order
    extents = [variables[d].extent for d in outer]
    pixels = 1
    for e in extents:
        pixels *= e
    pixel, channel = Var(pixels, "pixel"), Var(variables[last].extent, "channel")
    own = result.address([var(v) for v in variables])
    ok, buffers = True, []

    def change(l: Expr) -> Expr:
        nonlocal ok
        buffer, address = l.extra
        if l.args:
            ok = False
        elif buffer is result.buffer:
            ok = ok and address == own
            return acc(0, l.dtype)
        flat = _flattened(address, [variables[d] for d in outer], variables[last], pixel, channel)
        if flat is None:
            ok = False
            return l
        if buffer not in buffers:
            buffers.append(buffer)
        return load(buffer, flat)

    out = rewrite_loads(value, change)
    if not ok or any(v in out.vars for v in variables) or _has_index(out):
        return None
    return Formula(out, pixel, channel, tuple(buffers), f"e{number}_")


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


__all__ = ["Formula", "Totals", "constant", "formula", "loads", "totals"]
