"""The last look at a program (``lowering/check.py``): whatever is wrong with how it uses memory, it is refused.

Programs are compiled as they are, which the check lets through; then what it was shown is spoilt in one place, at every place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from test_fuzz_findings import FINDINGS

import twofold as tw
from twofold import nn
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.lowering import assemble, donate, lower
from twofold.backends.cpu.lowering.check import Access, Done, Span, check
from twofold.backends.interface import written_state
from twofold.base.errors import GraphError
from twofold.ir.text import parse_graph
from twofold.passes import optimise

F = nn.functional


@dataclass
class Shown:
    """What the check is shown of the steps of every call."""

    steps: list[Done]
    places: dict[Any, Any]
    known: list[Any]
    replaced: dict[Any, Any]
    wanted: list[Any]
    pitches: dict[Any, int]

    def check(self, **changed: Any) -> None:
        both = vars(self) | changed
        check(*(both[name] for name in ("steps", "places", "known", "replaced", "wanted", "pitches")))

    @property
    def temporaries(self) -> list[Any]:
        return list(dict.fromkeys(b for s in self.steps for b in s.access.writes if b not in self.replaced))

    def life(self, buffer: Any) -> tuple[int, int]:
        used = [i for i, s in enumerate(self.steps) if buffer in s.access.reads or buffer in s.access.writes]
        return used[0], used[-1]


class Net(nn.Module):
    """A concatenation, statistics, a residual, a pool: values that share buffers, epilogues, scratch."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16 * 4, 5)

    def forward(self, x):
        y = F.relu(self.a(x))
        y = tw.concat([y, F.relu(self.b(y))], axis=1)
        y = F.relu(self.norm(self.c(y)) + y)
        return self.head(F.max_pool2d(y, 4).reshape((x.shape[0], -1)))


def step_graph():
    rng = np.random.default_rng(0)
    model = Net()
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = tw.tensor(rng.standard_normal((2, 3, 8, 8)).astype(np.float32)), tw.tensor(rng.integers(0, 5, 2))

    @tw.compile(devices="cpu")
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return optimise(step.graph(x, y))


def shown(graph, monkeypatch) -> Shown:
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "check", lambda *given: seen.append(Shown(*given)))
        CpuProgram(graph, written_state(graph))
    return seen[-1]


@pytest.fixture(scope="module")
def training():
    with pytest.MonkeyPatch.context() as patch, tw.device("cpu"):
        found = shown(step_graph(), patch)
    found.check()
    return found


def refused(found: Shown, **changed: Any) -> bool:
    try:
        found.check(**changed)
    except GraphError as error:
        assert "please report it" in str(error)
        return True
    return False


def test_kernels_out_of_order(training):
    """Any two steps of which the later one reads what the earlier one writes, in each other's place."""
    steps, pairs = [s._replace(waits=True) for s in training.steps], 0
    for i, first in enumerate(steps):
        for j in range(i + 1, len(steps)):
            if first.access.writes.keys() & steps[j].access.reads.keys():
                swapped = list(steps)
                swapped[i], swapped[j] = steps[j], steps[i]
                assert refused(training, steps=swapped), (first, steps[j])
                pairs += 1
    assert pairs > len(steps)


def test_a_kernel_left_out(training):
    """Any but those that only add to what is there."""
    steps = [s._replace(waits=True) for s in training.steps]
    for i, left in enumerate(steps):
        before = {b for s in steps[:i] for b in s.access.writes}
        assert refused(training, steps=[s for s in steps if s is not left]) or left.access.writes.keys() <= before, left


def test_a_barrier_left_out(training):
    places = [i for i, s in enumerate(training.steps) if s.waits and i]
    assert len(places) > 10
    for i in places:
        steps = list(training.steps)
        steps[i] = steps[i]._replace(waits=False)
        assert refused(training, steps=steps), steps[i]


def test_two_values_in_one_place_at_one_time(training):
    """Any two temporaries that are needed at the same time."""
    steps, found = [s._replace(waits=True) for s in training.steps], training.temporaries
    lives = {b: training.life(b) for b in found}
    pairs = [(a, b) for a in found for b in found if a is not b and lives[a][0] < lives[b][0] <= lives[a][1]]
    assert len(pairs) > 20
    for a, b in pairs:
        assert refused(training, steps=steps, places={**training.places, a: training.places[b]}), (
            a,
            b,
            lives[a],
            lives[b],
        )


def test_a_value_that_is_needed_longer_than_it_lasts(training):
    """A last step reads a temporary whose place others have taken."""
    spans = {
        b: (training.places[b][0], training.places[b][1], training.places[b][1] + b.nbytes)
        for b in training.temporaries
    }
    over = lambda a, b: a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
    taken = [
        b for b in spans
        if any(over(spans[b], spans[c]) and training.life(c)[0] > training.life(b)[1] for c in spans if c is not b)
    ]  # fmt: skip
    assert len(taken) > 5
    for b in taken:
        last = Done(Access((), {b: {Span(0, 1, False)}}), True)
        assert refused(training, steps=[*training.steps, last]), b
    kept = next(b for b in training.temporaries if b not in taken)
    training.check(steps=[*training.steps, Done(Access((), {kept: {Span(0, 1, False)}}), True)])


def test_scratch_over_what_is_needed(training):
    at = next(i for i, s in enumerate(training.steps) if any(b in training.temporaries for b in s.access.reads))
    step = training.steps[at]
    slot, first = next(training.places[b] for b in step.access.reads if b in training.temporaries)
    steps = list(training.steps)
    steps[at] = step._replace(scratch=[(first, first + 64)])
    assert slot == 0 and refused(training, steps=steps)


def test_what_is_not_a_programs_to_write(training):
    """State that is not to be replaced, or with another's place; what the caller gave."""
    for new, old in training.replaced.items():
        others = {n: o for n, o in training.replaced.items() if n is not new}
        assert refused(training, replaced=others)
        assert refused(training, places={**training.places, new: training.places[training.known[0]]})
        at = next(i for i, s in enumerate(training.steps) if new in s.access.writes)
        steps = list(training.steps)
        steps[at] = steps[at]._replace(access=replace(steps[at].access, writes={old: steps[at].access.writes[new]}))
        assert refused(training, steps=steps)
    assert len(training.replaced) >= 10


def test_new_state_over_old_that_is_read_elsewhere(training):
    """Where a step reads old state, only its being read just where it is written over permits that."""
    reading = [i for i, s in enumerate(training.steps) if s.access.over]
    assert len(reading) > 5
    for i in reading:
        steps = list(training.steps)
        steps[i] = steps[i]._replace(access=replace(steps[i].access, over=set()))
        assert refused(training, steps=steps)


def _wrongly_donated(kind):
    v, w = (tw.Variable(np.ones((40, 40), np.float32), name=n) for n in "vw")

    @tw.compile(devices="cpu")
    def step(a):
        if kind == "read by a product":
            v.assign(v - v @ a)
        elif kind == "read turned":
            v.assign(tw.permute_dims(v, (1, 0)) + a)
        else:
            new = tw.exp(a)
            w.assign(v @ a)
            v.assign(new)

    return optimise(step.graph(tw.tensor(np.ones((40, 40), np.float32))))


@pytest.mark.parametrize("kind", ["read by a product", "read turned", "read by a later step"])
def test_a_wrong_donation(kind, monkeypatch):
    graph = _wrongly_donated(kind)
    CpuProgram(graph, written_state(graph))
    monkeypatch.setattr(donate, "safe", lambda *given: True)
    with pytest.raises(GraphError, match="please report it"):
        CpuProgram(graph, written_state(graph))


@pytest.mark.parametrize(
    "finding", ["statistics of a part that another part reads", "a part made of another part by two kernels"]
)
def test_a_slice_of_a_concatenation_that_nobody_wrote(finding, monkeypatch):
    """Other slices of the buffer were written before."""
    found = shown(parse_graph(FINDINGS[finding]), monkeypatch)
    found.check()
    steps = [s._replace(waits=True) for s in found.steps]
    (whole,) = {b for b in found.pitches if any(b in s.access.writes for s in steps)}
    writers = [s for s in steps if whole in s.access.writes]
    assert len(writers) >= 2
    for s in writers:
        assert refused(found, steps=[t for t in steps if t is not s])


def test_a_program_that_is_lowered_wrongly_is_not_made(monkeypatch):
    """From the lowering to the error: a kernel that is never called."""
    graph = parse_graph(FINDINGS["a part made of another part by two kernels"])
    run = lower.Lowering.run

    def without(self, orders):
        plan = run(self, orders)
        plan.steps.remove(next(s for s in plan.steps if any(node.op.name == "conv" for node in s.nodes)))
        return plan

    monkeypatch.setattr(lower.Lowering, "run", without)
    with pytest.raises(GraphError, match="reads 'conv.*' before it is written, or .* in conv; please report it"):
        CpuProgram(graph)
