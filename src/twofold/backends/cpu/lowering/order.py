"""The order of steps between barriers: independent small steps are done while others are anyway.

Where a step would need a barrier, later steps that need none and are small come first: the updates of many parameters, the
packing of weights. Large ones keep their place, so that the memory peak stays.

What may fail comes before what overwrites state (``Guard``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import HostStep, Step

AHEAD = 40
SMALL = 8 << 20  # bytes written


@dataclass(frozen=True)
class Guard:
    """Steps (by id) that may fail, and those that overwrite state, which come after all of them."""

    failing: frozenset[int] = frozenset()
    writing: frozenset[int] = frozenset()


def before_all(steps: Sequence[Step], ends: Iterable[int]) -> set[int]:
    """The steps numbered ``ends``, and all that must come before one of them."""
    found, wanted = set[int](), set(ends)
    if not wanted:
        return found
    needs, before = [], _Users()
    for at, step in enumerate(steps):
        needs.append(before.of(step))
        before.add(at, step)
    while wanted:
        at = wanted.pop()
        found.add(at)
        wanted.update(n for n in needs[at] if n not in found)
    return found


def checked_first(steps: list[Step], guard: Guard) -> list[Step]:
    """The steps, those that may fail (and what they need) before the first that overwrites state."""
    first = next((at for at, s in enumerate(steps) if id(s) in guard.writing), len(steps))
    ends = [at for at, s in enumerate(steps) if at > first and id(s) in guard.failing]
    moved = [at for at in sorted(before_all(steps, ends)) if at > first]
    rest = [at for at in range(first, len(steps)) if at not in set(moved)]
    return [*steps[:first], *(steps[at] for at in [*moved, *rest])]


def reordered(steps: list[Step], guard: Guard = Guard()) -> list[Step]:
    """The steps in an order with fewer barriers."""
    left, done, batch = list(steps), [], _Touched(guard)
    while left:
        take = _next(left, batch)
        if take is None:
            batch, take = _Touched(guard), 0
        step = left.pop(take)
        if isinstance(step, HostStep):
            batch = _Touched(guard)
        batch.add(step)
        done.append(step)
    return done


def results_early(steps: list[Step], fixed: Collection[Buffer], guard: Guard = Guard()) -> list[Step]:
    """The steps, of which those that write nothing but ``fixed`` buffers (state, outputs) come directly after what they depend
    on: they take no memory, and what they read need not wait for them, such as all gradients for the updates at the end."""
    fixed, order, before = set(fixed), list[int](), _Users()
    bar = -1  # nothing is stored earlier than what may fail
    for at, step in enumerate(steps):
        needs = [*before.of(step), *([bar] if bar >= 0 else [])]
        before.add(at, step)
        if isinstance(step, HostStep) or id(step) in guard.failing:
            bar = at
        elif needs and fixed.issuperset(step.writes()):
            order.insert(max(map(order.index, needs)) + 1, at)
            continue
        order.append(at)
    return [steps[at] for at in order]


def as_late_as_possible(steps: list[Step], wanted: Collection[Buffer]) -> list[Step]:
    """The steps that write a ``wanted`` buffer in their order, each after just what it depends on: few results wait. (What
    is done once has barriers to spare, but its temporaries may be larger than those of a call.)"""
    needs, before, order = [], _Users(), []
    for at, step in enumerate(steps):
        needs.append(before.of(step))
        before.add(at, step)
    seen: set[int] = set()
    ends = [at for at, step in enumerate(steps) if not set(wanted).isdisjoint(step.writes())]
    for end in [*ends, *range(len(steps))]:
        stack = [end]
        while stack:
            at = stack[-1]
            open_ = [n for n in needs[at] if n not in seen]
            if open_:
                stack.append(min(open_))
                continue
            stack.pop()
            if at not in seen:
                seen.add(at)
                order.append(steps[at])
    return order


class _Users:
    """Which steps wrote and read each buffer."""

    def __init__(self) -> None:
        self.writers: dict[Buffer, list[int]] = {}
        self.readers: dict[Buffer, list[int]] = {}

    def add(self, at: int, step: Step) -> None:
        for buffer in step.reads():
            self.readers.setdefault(buffer, []).append(at)
        for buffer in step.writes():
            self.writers.setdefault(buffer, []).append(at)

    def of(self, step: Step) -> list[int]:
        """The steps that must come before this one."""
        found = [n for b in [*step.reads(), *step.writes()] for n in self.writers.get(b, ())]
        return sorted({*found, *(n for b in step.writes() for n in self.readers.get(b, ()))})


def _next(left: list[Step], batch: _Touched) -> int | None:
    """The first step that can be done now without a barrier, before those that stand before it."""
    before = _Touched(batch.guard)
    for at, step in enumerate(left[:AHEAD]):
        small = not at or sum(b.nbytes for b in step.writes()) <= SMALL
        if isinstance(step, HostStep):
            return at if not at and not batch.meets(step) else None
        if small and not batch.meets(step) and not before.meets(step):
            return at
        before.add(step)
    return None


class _Touched:
    """Buffers read and written since the last barrier, and whether something may have failed."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.may_fail = guard, False
        self.read: set[Buffer] = set()
        self.written: set[Buffer] = set()

    def add(self, step: Step) -> None:
        self.read.update(step.reads())
        self.written.update(step.writes())
        self.may_fail |= id(step) in self.guard.failing

    def meets(self, step: Step) -> bool:
        """Whether the step depends on these, or they on it."""
        if self.may_fail and id(step) in self.guard.writing:
            return True
        writes = step.writes()
        return not self.written.isdisjoint([*step.reads(), *writes]) or not self.read.isdisjoint(writes)
