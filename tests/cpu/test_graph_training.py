"""Whole training steps on the CPU compiler, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.ir import bind
from twofold.tensor.tensor import unwrap, wrap

F = nn.functional


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_scatter_of_few_columns(rows, columns):
    rng = np.random.default_rng(0)
    updates, indices = rng.standard_normal((rows, columns)).astype(np.float32), rng.integers(0, 10, (rows, columns))
    f = lambda g, i: wrap(bind("add_along_axis", unwrap(g), unwrap(i), axis=1, size=10))
    got = tw.compile(f, devices="cpu")(tw.tensor(updates, device="cpu"), tw.tensor(indices, device="cpu"))
    expected = tw.compile(f, devices="reference")(
        tw.tensor(updates, device="reference"), tw.tensor(indices, device="reference")
    )
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-6)


def _train(device, steps=4):
    rng = np.random.default_rng(1)
    with tw.device(device):
        tw.random.seed(0)
        tw.random.generator().move_(device)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 5),
        )  # fmt: skip
        opt = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)

        @tw.compile
        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss

        losses = []
        for _ in range(steps):
            x, y = rng.standard_normal((6, 3, 16, 16)).astype(np.float32), rng.integers(0, 5, 6)
            losses.append(step(tw.tensor(x), tw.tensor(y)).item())
        state = {n: v.numpy().copy() for n, v in model.state_dict().items()}
        tw.random.generator().move_("cpu")
    return losses, state


def test_a_training_step_has_the_numbers_of_the_reference():
    (a, sa), (b, sb) = _train("reference"), _train("cpu")
    np.testing.assert_allclose(a, b, rtol=1e-4)
    for name in sa:
        np.testing.assert_allclose(sa[name], sb[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_networks_of_hundreds_of_layers_are_no_deeper_a_recursion():
    """Each kernel waits for what comes after it: 300 in a row were called from within each other, beyond Python's limit."""
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.standard_normal((300, 4, 4)))[0]  # which keep what they turn as long as it is
    weights = [tw.tensor(turn.astype(np.float32)) for turn in turns]
    x = 0.1 * rng.standard_normal((3, 4)).astype(np.float32)

    def chain(x):
        for w in weights:
            x = tw.tanh(x @ w)
        return x.sum()

    want, here = x.astype(np.float64), []
    for w in weights:
        want = np.tanh(want @ w.numpy().astype(np.float64))
        here.append(want)
    slope = np.ones_like(want)
    for w, y in zip(weights[::-1], here[::-1]):
        slope = (slope * (1 - y * y)) @ w.numpy().astype(np.float64).T
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(tw.compile(chain)(tw.tensor(x)).numpy(), want.sum(), atol=1e-5)
    np.testing.assert_allclose(tw.compile(tw.grad(chain))(tw.tensor(x)).numpy(), slope, atol=1e-4)
