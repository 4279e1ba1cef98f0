"""What is worked out once: steps that read nothing but constants and state that the program does not write.

Packed and transformed weights, the scale and shift of a batch norm at inference. Such steps are taken out of the plan into
``plan.prepare``; the results that the others read (``plan.kept``) live between calls, beside the arena.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import HostStep, Plan, Step

GROWTH = 5  # a result may be this many times larger than what it is made of: Winograd makes 6x6 points of 3x3 and pads
SMALL = 1 << 16  # bytes: results up to this size are kept whatever they are made of


def prepared(plan: Plan, unwritten: Collection[Buffer]) -> Plan:
    """``plan`` with its prepare part split off; ``unwritten`` are the inputs that hold the same numbers at most calls."""
    known = {*unwritten, *plan.constants}
    chosen = _chosen(plan, known)
    once = [s for s in plan.steps if id(s) in chosen]
    rest = [s for s in plan.steps if id(s) not in chosen]
    read = {b for s in rest for b in s.reads()}
    kept = [b for b in dict.fromkeys(b for s in once for b in s.writes()) if b in read]
    return replace(plan, steps=rest, prepare=once, kept=kept)


def _chosen(plan: Plan, known: set[Buffer]) -> set[int]:
    """The largest set of steps whose operands are known or made by the set, whose results nobody else writes (by id)."""
    outside = {*plan.inputs, *plan.constants, *(p.buffer for p in plan.outputs)}
    chosen = {id(s) for s in plan.steps if _worth_keeping(s) and outside.isdisjoint(s.writes())}
    while True:
        open_ = {b for s in plan.steps if id(s) not in chosen for b in s.writes()}  # made at every call
        open_ |= {b for b in plan.inputs if b not in known}
        left = {id(s) for s in plan.steps if id(s) in chosen and open_.isdisjoint([*s.reads(), *s.writes()])}
        if left == chosen:
            return chosen
        chosen = left


def _worth_keeping(step: Step) -> bool:
    writes = step.writes()
    size = sum(b.nbytes for b in writes)
    source = sum(b.nbytes for b in step.reads() if b not in writes)
    return not isinstance(step, HostStep) and source > 0 and size <= max(SMALL, GROWTH * source)
