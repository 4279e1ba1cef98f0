"""State in place: a new value of a variable is written over the old one where nothing needs the old one any more, nor will
anything that may fail be done later: whoever catches an error goes on with the state as it was."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.order import before_all
from twofold.backends.cpu.lowering.steps import KernelStep, NestStep, Plan, Step
from twofold.ir import Graph


def donate(plan: Plan, graph: Graph, positions: Sequence[int]) -> None:
    """Let outputs of state lie where the inputs at ``positions`` do, as far as that is safe; sets ``plan.replaced`` and
    ``plan.donated``."""
    first, outputs = len(graph.inputs), len(graph.outputs)
    touching = _touching(plan.steps)
    early = before_all(plan.steps, [at for at, step in enumerate(plan.steps) if plan.may_fail(step)])
    outside = {*plan.inputs, *plan.constants}
    written = Counter(p.buffer for p in plan.outputs)
    for position in positions:
        if position < first:
            continue  # only state has an output of its own
        at = outputs + position - first
        place, old = plan.outputs[at], plan.inputs[position]
        foreign = place.buffer in outside
        if written[place.buffer] > 1 or written[old] or foreign or place.buffer.nbytes != old.nbytes:
            continue
        if any(i in early and place.buffer in step.writes() for i, step in touching[place.buffer]):
            continue
        if safe(touching[place.buffer], touching[old], place.buffer, old):
            plan.replaced[place.buffer] = old
            plan.donated.append(position)


def _touching(steps: Sequence[Step]) -> dict[Buffer, list[tuple[int, Step]]]:
    """The steps that read or write each buffer, with their numbers."""
    found: dict[Buffer, list[tuple[int, Step]]] = defaultdict(list)
    for i, step in enumerate(steps):
        for buffer in dict.fromkeys([*step.reads(), *step.writes()]):
            found[buffer].append((i, step))
    return found


def safe(news: Sequence[tuple[int, Step]], olds: Sequence[tuple[int, Step]], new: Buffer, old: Buffer) -> bool:
    """Whether ``new`` can lie where ``old`` lies: ``old`` is not touched after the step that first writes ``new``, and that
    step reads each element of it only where it writes the same one. Given are the steps that touch either."""
    first = next(((i, s) for i, s in news if new in s.writes()), None)
    if first is None or any(i > first[0] for i, _ in olds):
        return False
    step = first[1]
    if old in step.writes():
        return False
    return old not in step.reads() or same_elements(step, new, old)


def same_elements(step: Step, new: Buffer, old: Buffer) -> bool:
    """Whether a step reads ``old`` only at the address at which it writes ``new`` in the same iteration."""
    if isinstance(step, KernelStep):  # sums may rest in what it writes first, its own result
        return old in step.aligned and (step.kernel.once or new is not step.written[0])
    if not isinstance(step, NestStep) or step.nest.each or step.nest.rdims:
        return False
    written = {s.address for s in step.nest.stores if s.buffer is new}
    if len(written) != 1:
        return False
    (address,) = written
    return all(l.extra[1] == address for l in step.nest.loads() if l.extra[0] is old)
