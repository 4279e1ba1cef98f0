"""The last look at a program, when everything has its place in memory: every read finds what it is meant to find.

A buffer is one value (of a concatenation: one for each slice of its channels). A program uses memory rightly if, step by step,

*there*     what a step reads was written before it, and no other buffer's bytes were written there since;
*apart*     what it writes lies over nothing that it reads itself, unless each element is read just where the new one goes;
*in time*   all threads have waited for each other since another step touched those bytes, if one of the two writes them;
*allowed*   what the caller gave is overwritten by new state alone, and what is fixed or kept between calls never.

Steps are taken down (``access``) while old and new state still have names of their own, before the new one is given the
old one's place. It is a walk of its own over places and orders: nothing of how these were found is believed, but what
``donate.same_elements`` says of a single step. (ResNet-50's training step, 768 steps: 60 ms of 7.1 s on one machine.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, NoReturn

from twofold.backends.cpu.assembled import ARENA
from twofold.backends.cpu.loops import Affine, Buffer
from twofold.backends.cpu.lowering.donate import same_elements
from twofold.backends.cpu.lowering.steps import HostStep, KernelStep, NestStep, Step
from twofold.base.dtypes import uint8
from twofold.base.errors import GraphError
from twofold.ir import Node

SCRATCH = Buffer(uint8, 0, "scratch")


class Span(NamedTuple):
    """Elements ``low`` to ``high`` of a buffer (modulo the distance of its pixels, if slices of channels lie in it). An
    ``exact`` one is touched as a whole; of any other, some part."""

    low: int
    high: int
    exact: bool = True

    def meets(self, other: Span) -> bool:
        return self.low < other.high and other.low < self.high


@dataclass
class Access:
    """What a step touches. ``over``: pairs (new, old) of which the new may lie where the old one does, which it reads."""

    nodes: Sequence[Node]
    reads: dict[Buffer, set[Span]] = field(default_factory=dict)
    writes: dict[Buffer, set[Span]] = field(default_factory=dict)
    over: set[tuple[Buffer, Buffer]] = field(default_factory=set)


class Done(NamedTuple):
    """A step as it is carried out: whether all threads wait before it, and the bytes of the arena it works in besides."""

    access: Access
    waits: bool
    scratch: Sequence[tuple[int, int]] = ()


class Held(NamedTuple):
    """Bytes of memory that hold a buffer."""

    start: int
    stop: int
    buffer: Buffer


def access(step: Step, pitches: Mapping[Buffer, int], replaced: Mapping[Buffer, Buffer]) -> Access:
    """What a step touches. ``pitches`` are the distances of pixels in buffers of which slices of channels are values;
    ``replaced`` says whose place new state is to take."""
    found = Access(step.nodes)
    if isinstance(step, NestStep):
        touched = _of_nest(step, pitches)
    else:
        touched = (_of_kernel if isinstance(step, KernelStep) else _of_host)(step, pitches)
    for target, spans in zip((found.reads, found.writes), touched):
        for buffer, span in spans:
            target.setdefault(buffer, set()).add(span)
    for buffer in found.reads.keys() & found.writes.keys():
        _is_apart(step, found, buffer, pitches)
    news = [b for b in found.writes if b in replaced]
    found.over = {(b, replaced[b]) for b in news if replaced[b] in found.reads and same_elements(step, b, replaced[b])}
    return found


Spans = Iterable[tuple[Buffer, Span]]


def _of_nest(step: NestStep, pitches: Mapping[Buffer, int]) -> tuple[Spans, Spans]:
    loads = ((*l.extra, not l.args) for l in step.nest.loads())
    reads = ((b, _span(b, address, pitches, always)) for b, address, always in loads)
    return reads, ((s.buffer, _span(s.buffer, s.address, pitches)) for s in step.nest.all_stores())


def _of_kernel(step: KernelStep, pitches: Mapping[Buffer, int]) -> tuple[Spans, Spans]:
    """Its operands come before its result among the parameters, what its epilogue reads and writes after that."""

    def span(at: int) -> Span:
        (buffer, offset), width = step.places[at], step.widths.get(at, 0)
        if buffer not in pitches or not width:
            return _some(buffer)
        return Span(offset % pitches[buffer], offset % pitches[buffer] + width)

    reads = [(step.places[i][0], span(i)) for i in range(step.result)]
    reads += [(b, _span(b, address, pitches)) for b, address in step.besides]
    own = step.places[step.result][0]
    return reads, ((b, span(step.result) if b is own else _some(b)) for b in step.written)


def _of_host(step: HostStep, pitches: Mapping[Buffer, int]) -> tuple[Spans, Spans]:
    reads = [(p.buffer, _whole(p.buffer, pitches)) for p in step.inputs]
    return reads, [(p.buffer, _some(p.buffer)) for p in step.outputs]


def _whole(buffer: Buffer, pitches: Mapping[Buffer, int]) -> Span:
    return Span(0, pitches.get(buffer, buffer.size))


def _some(buffer: Buffer) -> Span:
    return Span(0, buffer.size, False)


def _span(buffer: Buffer, a: Affine, pitches: Mapping[Buffer, int], exact: bool = True) -> Span:
    pitch = pitches.get(buffer, buffer.size)
    low = high = a.const
    for atom, c in a.terms.items():
        if c % pitch:
            first, last = atom.range
            low, high = low + min(c * first, c * last), high + max(c * first, c * last)
    size, first = high - low + 1, low % pitch
    return Span(first, first + size, exact) if first + size <= pitch else Span(0, pitch, False)


def _is_apart(step: Step, found: Access, buffer: Buffer, pitches: Mapping[Buffer, int]) -> None:
    """Raise if a step writes elements of a buffer that it reads for other elements."""
    if not any(r.meets(w) for r in found.reads[buffer] for w in found.writes[buffer]):
        return
    if isinstance(step, NestStep):
        stored = {s.address for s in step.nest.all_stores() if s.buffer is buffer}
        others = {l.extra[1] for l in step.nest.loads() if l.extra[0] is buffer} - stored
        span = lambda a: _span(buffer, a, pitches)
        apart = not any(span(read).meets(span(a)) for read in others for a in stored)
    else:
        apart = isinstance(step, KernelStep) and same_elements(step, buffer, buffer)
    if not apart:
        _refuse(f"reads {buffer.name!r} while it writes it", found)


def check(
    steps: Sequence[Done],
    places: Mapping[Buffer, tuple[int, int]],
    known: Iterable[Buffer],
    replaced: Mapping[Buffer, Buffer],
    wanted: Iterable[Buffer],
    pitches: Mapping[Buffer, int],
) -> None:
    """Raise GraphError at the first step that uses memory wrongly. ``places`` are (slot, byte) of each buffer; ``known`` is
    there from the start; ``replaced`` are buffers of new state, and of the old that each may lie over; ``wanted`` is to be
    there in the end."""
    memory = _Memory(places, known, replaced)
    for step in steps:
        memory.carry_out(step)
    memory.read(Access((), {b: {_whole(b, pitches)} for b in wanted}))


class _Memory:
    """Whose numbers lie where; what was touched since all threads waited last."""

    def __init__(
        self, places: Mapping[Buffer, tuple[int, int]], known: Iterable[Buffer], replaced: Mapping[Buffer, Buffer]
    ):
        self.places, self.replaced = places, replaced
        self.written: dict[Buffer, list[Span]] = {}  # what is there of each buffer
        self.held: dict[int, list[Held]] = {}  # by slot
        self.recent: dict[int, list[tuple[Held, bool]]] = {}  # by slot; whether it was written
        self.given = set(known)
        for buffer in self.given:
            self._hold(buffer, [_some(buffer)])

    def carry_out(self, step: Done) -> None:
        """One step."""
        if step.waits:
            self.recent = {}
        self.read(step.access)
        self._in_time(step)
        for start, stop in step.scratch:
            self._overwrite(ARENA, Held(start, stop, SCRATCH), step.access)
        for buffer, spans in step.access.writes.items():
            if buffer.size:
                self._write(buffer, spans, step.access)

    def read(self, step: Access) -> None:
        """Raise if something that a step reads is not there."""
        for buffer, spans in step.reads.items():
            there = self.written.get(buffer, ())
            for span in spans:
                if buffer.size and not (_covered(span, there) if span.exact else any(map(span.meets, there))):
                    _refuse(f"reads {buffer.name!r} before it is written, or after something else was", step)

    def _write(self, buffer: Buffer, spans: Collection[Span], step: Access) -> None:
        slot, place = self._place(buffer)
        if buffer in self.given:
            _refuse(f"writes {buffer.name!r}, which is not its to write", step)
        self._overwrite(slot, place, step)
        self._hold(buffer, spans)

    def _overwrite(self, slot: int, place: Held, step: Access) -> None:
        """What lies under ``place`` is gone."""
        start, stop, buffer = place
        held = self.held.setdefault(slot, [])
        for other in [h for h in held if h[0] < stop and start < h[1] and h[2] is not buffer]:
            self._may_go(other, place, step)
            held.remove(other)
            del self.written[other.buffer]

    def _may_go(self, old: Held, place: Held, step: Access) -> None:
        new, named = place.buffer, f"{place.buffer.name!r} over {old.buffer.name!r}"
        if old.buffer in self.given and self.replaced.get(new) is not old.buffer:
            _refuse(f"writes {named}, which is not its to write", step)
        if old.buffer in step.writes and self.replaced.get(new) is not old.buffer:
            _refuse(f"writes {named}, which it writes as well", step)
        same = (old.start, new.dtype.itemsize) == (place.start, old.buffer.dtype.itemsize)
        if old.buffer in step.reads and not (same and (new, old.buffer) in step.over):
            _refuse(f"writes {named}, which it still reads", step)

    def _in_time(self, step: Done) -> None:
        """Raise if a step does not wait for another that it has to wait for."""
        reads, writes = step.access.reads, step.access.writes
        touched = [(*self._place(b), b in writes) for b in dict.fromkeys(chain(writes, reads)) if b.size]
        touched += [(ARENA, Held(start, stop, SCRATCH), True) for start, stop in step.scratch]
        for slot, place, written in touched:
            for other, wrote in self.recent.get(slot, ()):
                if (written or wrote) and place.start < other.stop and other.start < place.stop:
                    _refuse(f"does not wait for a step that uses the place of {place.buffer.name!r}", step.access)
        for slot, place, written in touched:
            self.recent.setdefault(slot, []).append((place, written))

    def _hold(self, buffer: Buffer, spans: Collection[Span]) -> None:
        slot, place = self._place(buffer)
        if buffer not in self.written:
            self.held.setdefault(slot, []).append(place)
        self.written[buffer] = [*self.written.get(buffer, ()), *spans]

    def _place(self, buffer: Buffer) -> tuple[int, Held]:
        slot, start = self.places[buffer]
        return slot, Held(start, start + buffer.nbytes, buffer)


def _covered(span: Span, there: Collection[Span]) -> bool:
    """Whether all of ``span`` is ``there``."""
    at = span.low
    for other in sorted(there):
        if other.low > at:
            return False
        at = max(at, other.high)
        if at >= span.high:
            return True
    return False


def _refuse(what: str, step: Access) -> NoReturn:
    where = ", ".join(n.op.name for n in step.nodes) or ("a copy" if step.writes else "its results")
    raise GraphError(f"the CPU backend {what}, in {where}; please report it")
