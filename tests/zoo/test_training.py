"""Networks train on scanned digits: compiled as a float64 referee does, and the same once exported.

The referee is the reference interpreter (NumPy, node by node) in float64. How far a compiled step in float32 may be from it
is found by the referee itself: it trains again with errors of ``ERROR`` put into the weights and the images before each
step, and what those errors have become after three steps, in each parameter, is what rounding explains.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo
from twofold.train.evaluate import criterion_of

ort = pytest.importorskip("onnxruntime")

# What a float32 kernel may be wrong by, relative to its result: three units in the last place.
ERROR = 2e-7
SAFETY = 8.0  # the errors put in are one draw
STEPS = 3

# network -> options, side of the images (8, unless said)
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20_cifar": {}, "nin_imagenet": {}, "vgg11_bn": {"hidden": 16, "side": 16},
}  # fmt: skip


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Four scanned digits, float64 (4, 1, 8, 8) in 0..1, and which of the first five they are."""
    scans = tw.data.load("digits", "train")
    pairs = [scans[i] for i in range(100) if int(scans[i][1]) < 5][:4]
    return np.stack([np.asarray(x, np.float64) for x, _ in pairs]), np.array([int(y) for _, y in pairs])


class Trained:
    """A network after ``STEPS`` steps from the same weights: losses, and parameters before and after."""

    def __init__(self, name: str, dtype: str, compiled: bool, error: float = 0.0):
        options = dict(NETWORKS[name])
        side, lr = options.pop("side", 8), options.pop("lr", 0.01)
        entry, rng = zoo.info(name), np.random.default_rng(5)
        tw.random.seed(0)
        self.model = entry(5, **entry.options_for((entry.input_shape[0], side, side)), **options).to(dtype=dtype)
        for part in self.model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        scans, self.labels = digits()
        larger = np.kron(scans, np.ones((1, 1, side // 8, side // 8)))
        around = (side - larger.shape[2]) // 2
        larger = np.pad(larger, [(0, 0), (0, 0), (around, around), (around, around)])
        self.images = np.repeat(larger, entry.input_shape[0], axis=1).astype(np.float32).astype(dtype)
        self.before = self.parameters()
        optimizer = tw.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
        criterion = criterion_of(self.model)

        def step(x: Any, y: Any) -> Any:
            loss = criterion(self.model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        step = tw.compile(step) if compiled else step
        self.losses = []
        for _ in range(STEPS):
            x = self.images * (1 + error * rng.uniform(-1, 1, self.images.shape)) if error else self.images
            for parameter in self.model.parameters() if error else ():
                noise = 1 + error * rng.uniform(-1, 1, parameter.shape)
                parameter.assign(tw.tensor(parameter.numpy() * noise))
            self.losses.append(float(step(tw.tensor(x), tw.tensor(self.labels))))
        self.after = self.parameters()

    def parameters(self) -> dict[str, np.ndarray]:
        return {n: p.numpy().astype(np.float64) for n, p in self.model.named_parameters()}

    def distance(self, other: Trained) -> dict[str, float]:
        """How far each parameter is from another's."""
        return {n: float(np.linalg.norm(p - other.after[n])) for n, p in self.after.items()}


def whole(parts: dict[str, float]) -> float:
    return sum(d**2 for d in parts.values()) ** 0.5


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_compiled_and_exported_as_the_referee(name, tmp_path):
    with tw.device("reference"):
        referee = Trained(name, "float64", compiled=False)
        shaken = referee.distance(Trained(name, "float64", compiled=False, error=ERROR))
    moved = {n: float(np.linalg.norm(p - referee.before[n])) for n, p in referee.after.items()}
    assert referee.losses[-1] < referee.losses[0], referee.losses
    assert sum(m > 0 for m in moved.values()) > 0.9 * len(moved)
    assert SAFETY * whole(shaken) < 0.02 * whole(moved), "rounding explains so much that nothing is tested"

    got = Trained(name, "float32", compiled=True)
    np.testing.assert_allclose(got.losses, referee.losses, rtol=1e-4)
    off = got.distance(referee)
    allowed = {n: SAFETY * max(shaken[n], 2.0**-22 * float(np.linalg.norm(p))) for n, p in referee.after.items()}
    # The gradient of a bias before batch norm is a sum of terms that cancel: zero in float64, rounding in float32.
    allowed |= {n: 1e-3 * whole(moved) for n, m in moved.items() if m < 1e-9 * whole(moved)}
    assert {n: (d, allowed[n]) for n, d in off.items() if d > allowed[n]} == {}

    x = got.images.astype(np.float32)
    got.model.eval()
    tw.export(got.model, (tw.tensor(x),), tmp_path / "net.onnx")
    with tw.device("reference"):
        loaded = tw.load(tmp_path / "net.onnx")(tw.tensor(x)).numpy()
        referee.model.load_state_dict(got.model.state_dict())
        expected = referee.model.eval()(tw.tensor(x.astype(np.float64))).numpy()
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (other,) = session.run(None, {session.get_inputs()[0].name: x})
    for scores in (loaded, other):
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
