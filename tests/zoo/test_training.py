"""Architectures of the zoo train on scanned digits: compiled and eagerly as a float64 referee does, and the same once
exported.

The referee is the reference interpreter (NumPy, node by node) in float64. How far a step in float32 may be from it is found
by the referee itself: it trains again with errors put into the weights and the images before each step, and what those
errors have become after three steps, in each parameter, is what rounding explains.

That holds while the answer grows as the error does. Where a ReLU or a maximum is nearer to a tie than the error is large, some
errors tip it and others do not, and then each is another training. So the errors put in are ``FAR`` times those of rounding,
several draws must agree, and the weights start from a seed with no tie that near (``SEEDS``). Convolutions are direct
(``TWOFOLD_CONV``): Winograd's documented error, twenty times larger, tips ReLUs behind batch norms of four numbers, as such
a network has on images of 8x8. (The networks of ``WITH_WINOGRAD`` bear it.) What a network leaves out at random (dropout,
drop-path, stochastic depth) is left out in all runs alike: the bits depend on neither device nor dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import zoo
from twofold.data import transforms as T
from twofold.train.evaluate import criterion_of
from twofold.zoo.registry import Entry
from zoo_families import FAMILIES, digits, least_side, small, training_step

ort = pytest.importorskip("onnxruntime")

# What a float32 kernel may be wrong by, relative to its result: three units in the last place.
ERROR = 2e-7
FAR = 5.0
DRAWS = 3
AGREE = 30.0  # draws with no tie among them differ by less, even in a parameter of few numbers
SAFETY = 8.0
STEPS = 3
# Where the smallest error in the weights grows to a large part of what three steps move: deep networks on images so small that
# the last batch norms see four numbers
ONE_STEP = ["plain18", "preact_resnet18", "resnext29_8x64d"]
LR = 0.01
# Slower, where the next step of a deep network on tiny images would be another one for the smallest error
SLOWER = {"plain18": 0.002, "preact_resnet18": 0.002}

SEEDS = {
    "fractalnet20_cifar": 17, "googlenet_2014": 1, "lenet5_1998": 1, "nin_cifar10": 2, "nin_imagenet": 1, "plain18": 1,
    "preact_resnet18": 2, "preact_resnet20_cifar": 1, "resnet110_stochastic_depth": 1, "resnet20_cifar": 1,
    "resnext29_8x64d": 4, "vgg11_bn": 5, "wrn_40_4": 1,
}  # of the weights, where 0 is too near a tie  # fmt: skip

# Not in float32: an error of rounding in the weights becomes 0.3 % of what the first step moves and more, with other seeds, rates,
# first values, images of 64x64 and eight of them, too. In float64 it is in test_every_network.py; its modules, without batch
# norm, are those of googlenet_2014.
BEYOND = ["googlenet"]
WHOLE = ["resnet20_cifar", "vgg11_bn", "googlenet_2014"]  # at their published depth
WITH_WINOGRAD = ["resnet20_cifar", "nin_imagenet"]
NETWORKS: dict[str, Entry] = {
    **{name: entry for name, entry in FAMILIES.items() if name not in BEYOND},
    **{name: zoo.info(name) for name in WHOLE},
}


class Trained:
    """A network after ``STEPS`` steps from the same weights: losses, and parameters before and after.

    ``again`` is the last network's loss on what the first step saw: the same images, the same parts left out. ``error`` is put
    into weights and images, of the given ``draw``.
    """

    def __init__(self, entry: Entry, dtype: str, where: str, compiled: bool = False, error: float = 0.0, draw: int = 0):
        rng, side = np.random.default_rng(draw), least_side(entry)
        tw.random.seed(SEEDS.get(entry.name, 0))
        with tw.device("reference"):
            self.model = small(entry, side).to(dtype=dtype)
        scans, labels = digits()
        self.images = np.repeat(T.Resize((side, side))(scans), entry.input_shape[0], axis=1).astype(dtype)
        self.before = self.parameters()
        self.model.to(where)
        criterion = criterion_of(self.model)
        optimizer = tw.optim.SGD(self.model.parameters(), lr=SLOWER.get(entry.name, LR), momentum=0.9, weight_decay=1e-3)
        step = training_step(self.model, criterion, optimizer)
        step = tw.compile(step) if compiled else step
        first, self.losses = tw.random.get_state(), []
        with tw.device(where):
            for _ in range(1 if entry.name in ONE_STEP else STEPS):
                x = self.images * (1 + error * rng.uniform(-1, 1, self.images.shape)) if error else self.images
                for parameter in self.model.parameters() if error else ():
                    noise = 1 + error * rng.uniform(-1, 1, parameter.shape)
                    parameter.assign(tw.tensor(parameter.numpy() * noise))
                self.losses.append(float(step(tw.tensor(x), tw.tensor(labels))))
            self.after = self.parameters()
            tw.random.set_state(first)
            with tw.no_grad():
                self.again = float(criterion(self.model(tw.tensor(self.images)), tw.tensor(labels)))

    def parameters(self) -> dict[str, np.ndarray]:
        return {n: p.numpy().astype(np.float64) for n, p in self.model.named_parameters()}

    def distance(self, other: Trained) -> dict[str, float]:
        """How far each parameter is from another's."""
        return {n: float(np.linalg.norm(p - other.after[n])) for n, p in self.after.items()}


def whole(parts: dict[str, float]) -> float:
    return sum(d**2 for d in parts.values()) ** 0.5


def check_scores(got: Trained, referee: Trained, path: Any) -> None:
    """The exported file of the network, run here and by ONNX Runtime, scores as the referee with the same weights."""
    x = got.images
    tw.export(got.model.eval(), (tw.tensor(x),), path)
    with tw.device("reference"):
        loaded = tw.load(path)(tw.tensor(x)).numpy()
        referee.model.load_state_dict(got.model.state_dict())
        expected = referee.model.eval()(tw.tensor(x.astype(np.float64))).numpy()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (other,) = session.run(None, {session.get_inputs()[0].name: x})
    for scores in (loaded, other):
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def shaken_by_rounding(entry: Entry, referee: Trained) -> dict[str, float]:
    """How far rounding may take each parameter from the referee's: the most of several draws, which must agree."""
    draws = [Trained(entry, "float64", "reference", error=FAR * ERROR, draw=i) for i in range(DRAWS)]
    off = [referee.distance(draw) for draw in draws]
    most, least = ({n: pick(d[n] for d in off) for n in referee.after} for pick in (max, min))
    tipped = {n: (least[n], most[n]) for n in most if most[n] > AGREE * least[n] and most[n] > 1e-6 * whole(most)}
    assert not tipped, f"a ReLU or a maximum of {entry.name} is too near a tie: give it another seed (SEEDS)"
    return {n: d / FAR for n, d in most.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_trains_compiled_eagerly_and_exported_as_the_referee(name, tmp_path, monkeypatch):
    entry = NETWORKS[name]
    monkeypatch.setenv("TWOFOLD_CONV", "auto" if name in WITH_WINOGRAD else "direct")
    referee = Trained(entry, "float64", "reference")
    shaken = shaken_by_rounding(entry, referee)
    moved = {n: float(np.linalg.norm(p - referee.before[n])) for n, p in referee.after.items()}
    assert referee.again < referee.losses[0], referee.losses
    assert sum(m > 0 for m in moved.values()) > 0.9 * len(moved)
    assert SAFETY * whole(shaken) < 0.02 * whole(moved), "rounding explains so much that nothing is tested"

    allowed = {n: SAFETY * max(shaken[n], 2.0**-22 * float(np.linalg.norm(p))) for n, p in referee.after.items()}
    # The gradient of a bias before batch norm is a sum of terms that cancel: zero in float64, rounding in float32.
    allowed |= {n: 1e-3 * whole(moved) for n, m in moved.items() if m < 1e-9 * whole(moved)}
    for compiled in (False, True):
        got = Trained(entry, "float32", "cpu", compiled)
        np.testing.assert_allclose(got.losses, referee.losses, rtol=1e-4)
        off = got.distance(referee)
        assert {n: (d, allowed[n]) for n, d in off.items() if d > allowed[n]} == {}, "compiled" if compiled else "eager"
    check_scores(got, referee, tmp_path / "net.onnx")
