"""The orders of steps: what depends keeps its order, and what is done once waits as little as possible."""

import random
from dataclasses import dataclass

import pytest

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.memory import lifetimes, place
from twofold.backends.cpu.lowering.order import (
    Guard,
    as_late_as_possible,
    before_all,
    checked_first,
    reordered,
    results_early,
)
from twofold.backends.cpu.lowering.steps import HostStep
from twofold.base.dtypes import float32


@dataclass(eq=False)
class Fake:
    sources: list
    targets: list

    def reads(self):
        return self.sources

    def writes(self):
        return self.targets


def conflict(a, b):
    mine, theirs = set(a.writes()), set(b.writes())
    return bool(mine & {*b.reads(), *theirs} or theirs & set(a.reads()))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "order",
    [
        reordered,
        lambda steps: as_late_as_possible(steps, steps[-1].writes()),
        lambda steps: results_early(steps, {b for step in steps[::2] for b in step.writes()}),
    ],
)
def test_steps_that_meet_keep_their_order(seed, order):
    rng = random.Random(seed)
    buffers = [Buffer(float32, 64, str(i)) for i in range(12)]
    steps = [Fake(rng.sample(buffers, rng.randint(0, 3)), rng.sample(buffers, rng.randint(1, 2))) for _ in range(40)]
    done = order(list(steps))
    assert len(done) == len(steps) and set(done) == set(steps)
    at = {step: i for i, step in enumerate(done)}
    for i, first in enumerate(steps):
        assert all(at[first] < at[later] for later in steps[i + 1 :] if conflict(first, later))


@pytest.mark.parametrize("seed", range(40))
def test_what_may_fail_comes_before_what_overwrites_state(seed):
    rng = random.Random(seed)
    buffers = [Buffer(float32, 64, str(i)) for i in range(30)]
    steps = [Fake(rng.sample(buffers, rng.randint(0, 3)), [rng.choice(buffers)]) for _ in range(30)]
    failing = rng.sample(range(30), 3)
    free = [at for at in range(30) if at not in before_all(steps, failing)]
    writing = [steps[at] for at in rng.sample(free, min(4, len(free)))]
    guard = Guard(frozenset(id(steps[at]) for at in failing), frozenset(map(id, writing)))
    first = checked_first(list(steps), guard)
    done = reordered(results_early(first, {b for s in writing for b in s.writes()}, guard), guard)
    assert len(done) == len(steps) and set(done) == set(steps)
    at = {step: i for i, step in enumerate(done)}
    for i, a in enumerate(steps):
        assert all(at[a] < at[b] for b in steps[i + 1 :] if conflict(a, b))
    assert all(at[steps[f]] < at[w] for f in failing for w in writing)


def test_temporaries_of_what_is_done_once_do_not_wait_for_each_other():
    """Ten weights are scaled, then packed: one scaled weight at a time is enough."""
    weights, scaled, packed = ([Buffer(float32, 1 << 16, f"{kind}{i}") for i in range(10)] for kind in "wsp")
    steps = [Fake([w], [s]) for w, s in zip(weights, scaled)] + [Fake([s], [p]) for s, p in zip(scaled, packed)]
    size = lambda order: place([*lifetimes(order, [*weights, *packed]).values()])
    assert size(steps) == 10 * (4 << 16)
    assert size(as_late_as_possible(steps, packed)) == 4 << 16


@pytest.mark.parametrize("python", [False, True])
def test_gradients_do_not_wait_for_the_updates_at_the_end(python):
    """Ten gradients are made one after the other, then the weights are updated; not before what may raise is done."""
    weights, gradients = ([Buffer(float32, 1 << 16, f"{kind}{i}") for i in range(10)] for kind in "wg")
    steps = [Fake([w, *before], [g]) for w, g, before in zip(weights, gradients, [[], *([g] for g in gradients)])]
    steps += [HostStep("branch", list, [], [])] if python else []
    steps += [Fake([w, g], [w]) for w, g in zip(weights, gradients)]
    size = lambda order: place([*lifetimes(order, weights).values()])
    assert size(steps) == 10 * (4 << 16)
    assert size(results_early(steps, weights)) == (10 if python else 2) * (4 << 16)
