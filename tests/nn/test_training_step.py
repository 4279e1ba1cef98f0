"""One program, two lives: a whole training step (convolution, batch norm, dropout, SGD with momentum) gives the same
numbers eagerly and compiled: losses, parameters, statistics, moments, and the state of the random generator."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn, optim

F = nn.functional
RNG = np.random.default_rng(6)
IMAGES = RNG.normal(size=(6, 8, 1, 12, 12)).astype(np.float32)
LABELS = RNG.integers(0, 4, (6, 8))


def network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1),
        nn.Conv2d(6, 8, 3, groups=2), nn.LocalResponseNorm(5), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(32, 4),
    )  # fmt: skip


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
}


def train(compiled: bool, optimizer: str, clip: float | None = None):
    tw.random.seed(11)
    model = network()
    opt = OPTIMIZERS[optimizer](model.parameters())
    schedule = optim.LinearWarmup(opt, 3, start=0.1)

    def step(x, y):
        loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
        opt.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        return loss

    run = tw.compile(step) if compiled else step
    losses = []
    for x, y in zip(IMAGES, LABELS):
        losses.append(run(tw.tensor(x), tw.tensor(y)).item())
        schedule.step()
    if compiled:
        assert run.retraces == []
    state = {**{n: v.numpy() for n, v in model.state_dict().items()}, **opt.state_dict()["state"]}
    return losses, state, tw.random.get_state()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_eager_and_compiled_training_agree(optimizer, clip):
    eager, compiled = train(False, optimizer, clip), train(True, optimizer, clip)
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-5)
    np.testing.assert_array_equal(compiled[2], eager[2])
    assert len(set(eager[0])) == len(eager[0])
    for name, expected in eager[1].items():
        scale = max(1e-3, float(np.abs(expected).max()))
        assert np.abs(compiled[1][name] - expected).max() <= 2e-4 * scale, name


def test_the_step_learns():
    """Two separable classes: the loss falls to next to nothing, compiled."""
    tw.random.seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    opt = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @tw.compile
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    rng = np.random.default_rng(0)
    for _ in range(30):
        y = rng.integers(0, 2, 16)
        x = rng.normal(size=(16, 1, 8, 8)) + np.where(y == 1, 1.0, -1.0)[:, None, None, None]
        loss = step(x.astype(np.float32), y).item()
    assert loss < 0.02
    model.eval()
    predicted = model(tw.tensor(x.astype(np.float32))).argmax(axis=1)
    assert predicted.tolist() == y.tolist()
