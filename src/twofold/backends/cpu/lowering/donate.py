"""State in place: a new value of a variable is written over the old one where nothing needs the old one any more."""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import NestStep, Placed, Plan, Step
from twofold.ir import Graph


def donate(plan: Plan, graph: Graph, positions: Sequence[int]) -> None:
    """Let outputs of state take the buffers of the inputs at ``positions``, as far as that is safe; sets ``plan.donated``."""
    first, outputs = len(graph.inputs), len(graph.outputs)
    for position in positions:
        if position < first:
            continue  # only state has an output of its own
        place = plan.outputs[outputs + position - first]
        old = plan.inputs[position]
        shared = sum(p.buffer is place.buffer for p in plan.outputs) > 1
        kept = any(p.buffer is old for p in plan.outputs)
        foreign = place.buffer in plan.inputs or place.buffer in plan.constants
        if shared or kept or foreign or place.buffer.nbytes != old.nbytes or not safe(plan.steps, place.buffer, old):
            continue
        for step in plan.steps:
            step.replace(place.buffer, old)
        plan.outputs = [Placed(old, p.shape, p.strides, p.offset) if p is place else p for p in plan.outputs]
        plan.donated.append(position)


def safe(steps: Sequence[Step], new: Buffer, old: Buffer) -> bool:
    """Whether ``new`` can lie where ``old`` lies: ``old`` is not touched after the step that first writes ``new``, and that
    step reads each element of it only where it writes the same one."""
    at = next((i for i, s in enumerate(steps) if new in s.writes()), None)
    if at is None or any(old in s.reads() or old in s.writes() for s in steps[at + 1 :]):
        return False
    step = steps[at]
    if old in step.writes():
        return False
    return old not in step.reads() or same_elements(step, new, old)


def same_elements(step: Step, new: Buffer, old: Buffer) -> bool:
    """Whether a step reads ``old`` only at the address at which it writes ``new`` in the same iteration."""
    if not isinstance(step, NestStep) or step.nest.each or step.nest.rdims:
        return False
    written = {s.address for s in step.nest.stores if s.buffer is new}
    if len(written) != 1:
        return False
    (address,) = written
    return all(l.extra[1] == address for l in step.nest.loads() if l.extra[0] is old)
