"""A plan as machine code: nests become kernels, temporaries get their places, kernels are strung together with barriers
only where one reads or overwrites what another wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twofold.backends.cpu import jit
from twofold.backends.cpu.assembled import ARENA, ERRORS, FIRST, KEPT, Assembled, Call, Segment
from twofold.backends.cpu.emit import nest_kernel
from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.loops.nest import simplified
from twofold.backends.cpu.lowering.check import Access, Done, access, check
from twofold.backends.cpu.lowering.memory import Block, lifetimes, padded, place
from twofold.backends.cpu.lowering.order import Guard, as_late_as_possible, checked_first, reordered, results_early
from twofold.backends.cpu.lowering.rewrite import from_first_elements
from twofold.backends.cpu.lowering.split import split_reduction
from twofold.backends.cpu.lowering.steps import HostStep, KernelStep, NestStep, Plan, Step
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import ALONE, AWAKE, TEAM, Kernel, ProgramBuilder, Ref

SMALL = 100e-6  # seconds of work for which no team is woken: that may take as long
MEETING = 3e-6  # seconds of work for each time all wait that a team is worth which need not be woken


def assemble(plan: Plan, machine: Machine, threads: int) -> Assembled:
    """Compile and link a plan for a team of ``threads``."""
    plan.prepare = as_late_as_possible([part for step in plan.prepare for part in _split(step)], plan.kept)
    plan.steps = [part for step in plan.steps for part in _split(step)]
    touched = {id(s): access(s, plan.pitches, plan.replaced) for s in (*plan.prepare, *plan.steps)}
    wanted = [p.buffer for p in plan.outputs]
    guard = _guard(plan)
    _name_places(plan)
    fixed = [*plan.inputs, *(p.buffer for p in plan.outputs), *plan.constants]
    plan.steps = reordered(results_early(checked_first(plan.steps, guard), fixed, guard), guard)
    places = {b: Ref(FIRST + i) for i, b in enumerate(dict.fromkeys(fixed))}
    kept = 0
    for buffer in plan.kept:
        places[buffer] = Ref(KEPT, kept)
        kept += padded(buffer.nbytes)
    once, prepare_arena = _strung(plan.prepare, machine, threads, places, Guard())
    always, arena = _strung(plan.steps, machine, threads, places, guard)
    _check(plan, touched, once, always, places, wanted)
    return Assembled(
        plan, places, always.segments, once.segments, arena, prepare_arena, kept, always.calls, always.barriers
    )


def _guard(plan: Plan) -> Guard:
    """What may fail, and what overwrites state, if anything does."""
    writing = frozenset(id(s) for s in plan.steps if not plan.replaced.keys().isdisjoint(s.writes()))
    return Guard(frozenset(id(s) for s in plan.steps if plan.may_fail(s)), writing) if writing else Guard()


def _name_places(plan: Plan) -> None:
    """Call new state by the name of the old, where it lies in its place."""
    for step in plan.steps:
        for new in plan.replaced.keys() & {*step.reads(), *step.writes()}:
            step.replace(new, plan.replaced[new])
    plan.outputs = [replace(p, buffer=plan.replaced.get(p.buffer, p.buffer)) for p in plan.outputs]


def _check(
    plan: Plan, touched: dict[int, Access], once: _Assembler, always: _Assembler, places: dict[Buffer, Ref],
    wanted: Sequence[Buffer],
) -> None:  # fmt: skip
    """Raise if a step reads what is not there: see ``check``."""
    known = [*plan.inputs, *plan.constants]
    named = {**places, **{new: places[old] for new, old in plan.replaced.items()}}
    for part, steps, there, replaced, ends in (
        (once, plan.prepare, known, {}, plan.kept),
        (always, plan.steps, [*known, *plan.kept], plan.replaced, wanted),
    ):
        done = [Done(touched[id(s)], *how) for s, how in zip(steps, part.how, strict=True)]
        check(done, named, there, replaced, ends, plan.pitches)


def _strung(
    steps: Sequence[Step], machine: Machine, threads: int, places: dict[Buffer, Ref], guard: Guard
) -> tuple[_Assembler, int]:
    """The steps strung together, and the bytes of their arena; temporaries are added to ``places``."""
    kernels = [_kernel(step, machine) for step in steps]
    blocks = lifetimes(steps, places)
    extra = {i: _workspace(k, i, threads) for i, k in enumerate(kernels) if k is not None}
    arena = place([*blocks.values(), *(b for more in extra.values() for b in more)])
    places.update((b, Ref(ARENA, block.offset)) for b, block in blocks.items())
    builder = _Assembler(machine, places, guard)
    for i, (step, kernel) in enumerate(zip(steps, kernels)):
        if kernel is None:
            builder.host(step)
        else:
            builder.native(step, kernel, extra[i])
    builder.close()
    return builder, arena


def _split(step: Step) -> list[Step]:
    if not isinstance(step, NestStep):
        return [step]
    return [NestStep(n, step.nodes) for n in split_reduction(step.nest)]


def _kernel(step: Step, machine: Machine) -> tuple[Kernel, list[tuple[Buffer, int]]] | None:
    if isinstance(step, NestStep):
        name = "_".join(dict.fromkeys(n.op.name for n in step.nodes[:3])) or (
            step.nest.note.replace(" ", "_") or "copy"
        )
        nest, firsts = from_first_elements(simplified(step.nest))
        kernel, buffers = nest_kernel(machine, nest, name)
        jit.begin(kernel.ir, machine, kernel.level)
        return kernel, [(b, firsts.get(b, 0)) for b in buffers]
    if isinstance(step, KernelStep):
        return step.kernel, step.places
    return None


def _workspace(found: tuple[Kernel, list[tuple[Buffer, int]]], at: int, threads: int) -> list[Block]:
    kernel = found[0]
    sizes = [kernel.workspace, kernel.scratch * threads]
    return [Block(padded(size), at, at) for size in sizes if size]


def layers(step: Step) -> str:
    """The paths of the layers whose nodes the step computes."""
    return ", ".join(dict.fromkeys(n.scope for n in step.nodes if n.scope))


def _seconds(step: Step, kernel: Kernel) -> float:
    """Roughly how long one core takes."""
    iterations = step.nest.work if isinstance(step, NestStep) else 0
    touched = sum(b.nbytes for b in dict.fromkeys([*step.reads(), *step.writes()]))
    return kernel.flops / 40e9 + iterations / 1e9 + touched / 10e9


class _Assembler:
    def __init__(self, machine: Machine, places: dict[Buffer, Ref], guard: Guard):
        self.machine, self.places, self.guard = machine, places, guard
        self.segments: list[Segment] = []
        self.calls: list[Call] = []
        self.barriers = 0
        self.how: list[tuple[bool, list[tuple[int, int]]]] = []  # of each step: whether all wait before it, its scratch
        self._builder: ProgramBuilder | None = None
        self._work = 0.0  # seconds of the open segment
        self._pending: list[tuple[int, int, int, bool]] = []  # (slot, start, stop, written) since the last barrier
        self._unsure = self._unmet = False  # something may have failed in the open segment; and since the last barrier

    def native(self, step: Step, found: tuple[Kernel, list[tuple[Buffer, int]]], extra: Sequence[Block]) -> None:
        """Append a kernel, after a barrier if it needs one."""
        kernel, places = found
        begins = self._builder is None
        if self._builder is None:
            self._builder, self._pending, self._work = ProgramBuilder(self.machine), [], 0.0
            self._unsure = self._unmet = False
        touched = [self._range(b, True) for b in step.writes()] + [self._range(b, False) for b in step.reads()]
        touched += [(ARENA, block.offset, block.offset + block.size, True) for block in extra]
        stops = self._unsure and id(step) in self.guard.writing
        waits = any(_conflict(a, b) for a in touched for b in self._pending) or (stops and self._unmet)
        if waits:
            self._builder.barrier()
            self.barriers += 1
            self._pending, self._unmet = [], False
        if stops:  # state is overwritten: not after an error
            _stop_if_failed(self._builder)
        fails = id(step) in self.guard.failing
        self._unsure, self._unmet = fails or (self._unsure and not stops), fails or self._unmet
        self._pending += touched
        self.how.append((begins or waits, [(block.offset, block.offset + block.size) for block in extra]))
        refs = [self._ref(b, at) for b, at in places]
        if "errors" in kernel.params:
            refs.append(Ref(ERRORS))
        refs += [Ref(ARENA, block.offset) for block in extra]
        self._builder.call(kernel, refs)
        self._work += _seconds(step, kernel)
        ops = ", ".join(dict.fromkeys(n.op.name for n in step.nodes)) or kernel.symbol.rsplit("_", 1)[0]
        self.calls.append(Call(kernel, refs, step, len(self.segments), waits, ops, layers(step)))

    def host(self, step: HostStep) -> None:
        self.close()
        self.segments.append(step)
        self.how.append((True, []))

    def close(self) -> None:
        """Finish the native segment that is open."""
        if self._builder is not None:
            self.segments.append(self._builder.finish(self._crew()))
            self._builder = None

    def _crew(self) -> str:
        """Who runs the open segment."""
        if self._work >= SMALL:
            return TEAM
        waits = sum(c.waits for c in self.calls if c.segment == len(self.segments))
        return AWAKE if self._work > MEETING * (waits + 2) else ALONE

    def _range(self, buffer: Buffer, written: bool) -> tuple[int, int, int, bool]:
        slot, start = self.places[buffer]
        return slot, start, start + max(1, buffer.nbytes), written

    def _ref(self, buffer: Buffer, at: int) -> Ref:
        slot, start = self.places[buffer]
        return Ref(slot, start + at * buffer.dtype.itemsize)


def _stop_if_failed(builder: ProgramBuilder) -> None:
    """Let all threads return, after a barrier, if a check has failed."""
    errors = builder.pointer(Ref(ERRORS))
    builder.custom(lambda f: f.return_if(f.icmp("ne", f.load("i64", errors), 0)))


def _conflict(a: tuple[int, int, int, bool], b: tuple[int, int, int, bool]) -> bool:
    return a[0] == b[0] and (a[3] or b[3]) and a[1] < b[2] and b[1] < a[2]
