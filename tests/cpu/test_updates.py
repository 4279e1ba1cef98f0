"""Parameters and an optimizer's state are updated by the kernel that makes their gradient, in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import Guarded

import twofold as tw
from twofold import nn
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.interface import written_state
from twofold.ir import interpret
from twofold.passes import optimise

F = nn.functional
OPTIMIZERS: dict[str, Any] = {  # and how many arrays of a parameter's size they update
    "plain": (lambda p: tw.optim.SGD(p, lr=0.1), 1),
    "momentum": (lambda p: tw.optim.SGD(p, lr=0.1, momentum=0.9), 2),
    "decay": (lambda p: tw.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01), 2),
    "nesterov": (lambda p: tw.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True), 2),
    "Adam": (lambda p: tw.optim.Adam(p, lr=0.01), 3),
    "Adam with decay": (lambda p: tw.optim.Adam(p, lr=0.01, weight_decay=0.01), 3),
    "AdamW": (lambda p: tw.optim.AdamW(p, lr=0.01), 3),
    "RMSprop": (lambda p: tw.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True), 4),
}  # fmt: skip
SMALL, LARGE = (6, 40, 23), (8, 805, 811)  # images, inputs and outputs: by tiles, and as outer products


def training(optimizer, sizes, device="cpu", gradient=False):
    """A model, its optimizer, a training step and what it takes; the step may return the gradient too."""
    images, inputs, outputs = sizes
    rng = np.random.default_rng(0)
    with tw.device(device):
        model = nn.Sequential(nn.Linear(7, inputs), nn.Tanh(), nn.Linear(inputs, outputs))
        for p in model.parameters():
            p.assign(tw.tensor(rng.uniform(-0.3, 0.3, p.shape).astype(np.float32)))
        opt = OPTIMIZERS[optimizer][0](model.parameters())
        given = tw.tensor(rng.standard_normal((images, 7)).astype(np.float32)), tw.tensor(rng.integers(0, outputs, images))

    @tw.compile(devices=device)
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        kept = model[2].weight.grad
        opt.zero_grad()
        return (loss, kept) if gradient else loss

    return model, opt, step, given


def program(step, given) -> CpuProgram:
    graph = optimise(step.graph(*given))
    return CpuProgram(graph, written_state(graph))


@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["tiles", "outer"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_kernel_makes_the_gradient_and_updates_in_place(optimizer, sizes):
    _, _, step, given = training(optimizer, sizes)
    made, size = program(step, given), sizes[1] * sizes[2]
    writers = [c for c in made.calls if any(b.size == size for b in c.step.writes())]
    assert [c.ops.split(", ")[0] for c in writers] == ["matmul"]
    assert len(writers[0].step.writes()) == OPTIMIZERS[optimizer][1]
    assert set(writers[0].step.writes()) <= set(made._built.plan.inputs)
    assert not any(b.size == size for b in made._built.places if b not in made._built.plan.inputs)


@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["tiles", "outer"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_have_the_numbers_of_the_reference(optimizer, sizes):
    found = []
    for device in ("cpu", "reference"):
        _, opt, step, given = training(optimizer, sizes, device)
        losses = [float(step(*given).numpy()) for _ in range(3)]
        found.append((losses, [v.numpy() for v in opt.variables()]))
    (a, ours), (b, exact) = found
    np.testing.assert_allclose(a, b, rtol=1e-4)
    for x, y in zip(ours, exact, strict=True):
        far = ~np.isclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())
        assert np.mean(far) < 1e-3  # Adam's first step goes by the sign of a gradient, however small that is


def test_a_gradient_that_is_kept_is_stored_as_well():
    model, _, step, given = training("momentum", SMALL, gradient=True)
    before = model[2].weight.numpy().copy()
    _, g = step(*given)
    np.testing.assert_allclose(model[2].weight.numpy(), before - 0.1 * g.numpy(), rtol=1e-5, atol=1e-7)
    size = SMALL[1] * SMALL[2]
    (writer,) = [c for c in program(step, given).calls if any(b.size == size for b in c.step.writes())]
    assert len(writer.step.writes()) == 3


@pytest.mark.parametrize("sizes", [SMALL, (6, 1, 23), (6, 17, 5), (3, 33, 1)], ids=str)
def test_updates_stay_within_their_arrays(sizes):
    """Arrays end where a page begins that nobody may touch."""
    _, _, step, given = training("Adam", sizes)
    graph, rng = optimise(step.graph(*given)), np.random.default_rng(0)
    guarded = [Guarded(tuple(v.shape), True, v.dtype.numpy) for v in graph.all_inputs]
    for g in guarded:
        g.array[...] = 0 if g.array.dtype.kind in "iu" else rng.uniform(0.1, 0.9, g.array.shape)
    exact = interpret(graph, [g.array.copy() for g in guarded])
    got = CpuProgram(graph, written_state(graph))([g.array for g in guarded])
    for x, y in zip(got, exact, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)



@pytest.mark.parametrize("size", [8, 40, 64, 300])
@pytest.mark.parametrize("left", [True, False])
def test_what_a_product_reads_is_not_overwritten_by_it(size, left):
    rng = np.random.default_rng(0)
    a, before = (rng.standard_normal((size, size)).astype(np.float32) for _ in range(2))
    v = tw.Variable(before.copy(), name="v")

    @tw.compile(devices="cpu")
    def step(a):
        v.assign(v - (v @ a if left else a @ v))

    step(tw.tensor(a))
    np.testing.assert_allclose(v.numpy(), before - (before @ a if left else a @ before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 40, 300])
def test_a_value_is_read_before_a_new_one_lies_over_it(size):
    """A step that keeps what it was given, and what that was last time."""
    prev, diff = (tw.Variable(np.zeros(size, np.float32), name=name) for name in ("prev", "diff"))

    @tw.compile(devices="cpu")
    def step(x):
        g = tw.exp(x * x)
        d = g - prev
        prev.assign(g)
        diff.assign(d * 2)

    x = np.linspace(0.1, 1, size, dtype=np.float32)
    for k in (1, 2):
        step(tw.tensor(k * x))
    np.testing.assert_allclose(diff.numpy(), 2 * (np.exp(4 * x * x) - np.exp(x * x)), rtol=1e-5)
    np.testing.assert_allclose(prev.numpy(), np.exp(4 * x * x), rtol=1e-5)
