"""Merging nests: work over the same index becomes one pass over memory.

*after*    a map over what an earlier nest stores, read at the same index: its expression takes the stored value from registers
           (elementwise chains with several readers; work on the results of a reduction)
*beside*   two reductions over the same index that read a common array: one loop, more accumulators

A store that nobody reads any more is left out. The later nest moves up to the earlier one, or the earlier one down, as the
steps between them allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from twofold.backends.cpu.loops import Accumulator, Buffer, Expr, Nest, Store, Var, acc, var
from twofold.backends.cpu.loops.expr import loads, rewrite_loads
from twofold.backends.cpu.lowering.steps import NestStep, Plan, Step

WINDOW = 48  # steps to look ahead
MOST_STORES = 8
MOST_LOADS = 24


def merge(plan: Plan) -> None:
    """Merge what can be merged, in place."""
    needed = {p.buffer for p in plan.outputs} | set(plan.inputs) | set(plan.constants) | plan.checked
    at = 0
    while at < len(plan.steps):
        if not (isinstance(plan.steps[at], NestStep) and _merge_at(plan.steps, at, plan)):
            at += 1
    _drop_dead_stores(plan, needed)


def _merge_at(steps: list[Step], at: int, plan: Plan) -> bool:
    """Merge some later nest with the one at ``at``; whether one was found."""
    first: NestStep = steps[at]
    if first.nest.each:
        return False
    shape, writes, reads = _shape(first.nest.dims), set(first.writes()), set(first.reads())
    for later in range(at + 1, min(len(steps), at + WINDOW)):
        second = steps[later]
        if not isinstance(second, NestStep) or second.nest.each or _shape(second.nest.dims) != shape:
            continue
        common = writes & set(second.reads())
        if not common and not (first.nest.rdims and second.nest.rdims and reads & set(second.reads())):
            continue
        between = steps[at + 1 : later]
        up, down = _passes(second, between), _passes(first, between)
        if not (up or down):
            continue
        nest = _after(first.nest, second.nest) if common else _beside(first.nest, second.nest)
        if nest is None:
            continue
        merged = NestStep(nest, [*first.nodes, *second.nodes])
        nest.note = ", ".join(n.op.name for n in merged.nodes)
        del steps[later]
        if up:
            steps[at] = merged
        else:
            steps.insert(later, merged)
            del steps[at]
        return True
    return False


def _shape(dims: Iterable[Var]) -> tuple[int, ...]:
    return tuple(d.extent for d in dims if d.extent != 1)


def _passes(step: Step, between: Iterable[Step]) -> bool:
    """Whether ``step`` may be done before or after all of ``between``: no one writes what the other touches."""
    reads, writes = set(step.reads()), set(step.writes())
    return all((reads | writes).isdisjoint(other.writes()) and writes.isdisjoint(other.reads()) for other in between)


def _aligned(first: list[Var], second: list[Var]) -> dict[Var, object]:
    """The second's variables in terms of the first's."""
    ours = [d for d in first if d.extent != 1]
    theirs = [d for d in second if d.extent != 1]
    return {b: var(a) for a, b in zip(ours, theirs)}


def _after(first: Nest, second: Nest) -> Nest | None:
    """``second`` (a map) done in ``first``, on the values it stores."""
    if second.rdims or second.accumulators:
        return None
    stores = {s.buffer: s for s in first.stores}
    if any(s.guard is not None for s in first.stores) or len(stores) != len(first.stores):
        return None
    if len(first.stores) + len(second.stores) > MOST_STORES:
        return None
    moved = second.substitute(_aligned(first.dims, second.dims), first.dims, [])  # type: ignore[arg-type]
    for l in moved.loads():
        if l.extra[0] in stores and (l.extra[1] != stores[l.extra[0]].address or l.args):
            return None
    if len({l.extra[0] for l in (*first.loads(), *moved.loads())}) > MOST_LOADS:
        return None

    def change(l: Expr) -> Expr:
        return stores[l.extra[0]].value if l.extra[0] in stores else l

    new = [Store(s.buffer, s.address, rewrite_loads(s.value, change), s.guard) for s in moved.stores]
    return Nest(first.dims, [*first.stores, *new], first.rdims, first.accumulators)


def _beside(first: Nest, second: Nest) -> Nest | None:
    """Two independent reductions in one loop."""
    if [r.extent for r in first.rdims] != [r.extent for r in second.rdims]:
        return None
    if len(first.accumulators) + len(second.accumulators) > 4:
        return None
    values = {**_aligned(first.dims, second.dims), **{b: var(a) for a, b in zip(first.rdims, second.rdims)}}
    moved = second.substitute(values, first.dims, first.rdims)  # type: ignore[arg-type]
    shared = {(l.extra[0], l.extra[1]) for l in first.loads()} & {(l.extra[0], l.extra[1]) for l in moved.loads()}
    if not shared:
        return None
    shift = len(first.accumulators)
    accumulators = [Accumulator(a.dtype, a.init, _shifted(a.update, shift), a.combine) for a in moved.accumulators]
    stores = [Store(s.buffer, s.address, _shifted(s.value, shift), s.guard) for s in moved.stores]
    return Nest(first.dims, [*first.stores, *stores], first.rdims, [*first.accumulators, *accumulators])


def _shifted(e: Expr, shift: int, seen: dict[Expr, Expr] | None = None) -> Expr:
    """``e`` with its accumulators renumbered."""
    from twofold.backends.cpu.loops.expr import op

    seen = {} if seen is None else seen
    if e not in seen:
        if e.kind == "acc":
            seen[e] = acc(e.extra + shift, e.dtype)
        elif e.kind == "op":
            seen[e] = op(e.extra, e.dtype, *(_shifted(a, shift, seen) for a in e.args))
        else:
            seen[e] = e
    return seen[e]


def _drop_dead_stores(plan: Plan, needed: set[Buffer]) -> None:
    """Leave out stores of maps to buffers that nobody reads."""
    changed = True
    while changed:
        read = needed | {b for step in plan.steps for b in step.reads()}
        changed = False
        for step in plan.steps:
            if isinstance(step, NestStep) and any(b not in read for b in step.writes()):
                stores = [s for s in step.nest.stores if s.buffer in read]
                each = [s for s in step.nest.each if s.buffer in read]
                step.change(replace(step.nest, stores=stores, each=each))
                changed = True
        plan.steps = [s for s in plan.steps if not isinstance(s, NestStep) or s.nest.all_stores()]


__all__ = ["loads", "merge"]
