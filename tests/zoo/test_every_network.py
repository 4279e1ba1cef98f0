"""Every network of the zoo, at its published depth, on scanned digits: the loss falls, compiled steps are the eager ones, and
the exported file scores alike here and in ONNX Runtime.

Steps are in float64, in which rounding stays far below what a step does, also where gradients are conditioned badly (batch
norms of few numbers behind many layers). What float32 kernels do is measured in ``test_training.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo
from twofold.data import transforms as T
from twofold.train.evaluate import criterion_of
from zoo_families import digits, least_side, small, training_step

ort = pytest.importorskip("onnxruntime")

STEPS = 2
LR = 0.01
# Where a step of that length is too long: signals that every bypass makes larger; bottlenecks on small images
SLOWER = dict.fromkeys(["squeezenet_complex_bypass", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "preact_resnet50"], 0.001)
# Where the last batch norms of a deep network would see four numbers: the smallest error becomes a large one
LARGER = dict.fromkeys(["resnet50", "resnext50_32x4d", "wide_resnet50_2"], 16)
# float64 through a hundred layers and back, relative to what a parameter moves; below ``FLOOR`` of what all do, it is zero
TOLERANCE, FLOOR = 1e-6, 1e-9
# Not run here, but made of the blocks of one that is, more or wider ones: they take long to
# compile, or to train on images that are large enough.
MADE_OF = {
    "zfnet": ["zfnet_cs231n"],
    "vgg11": ["vgg13", "vgg16", "vgg19"],
    "vgg11_bn": ["vgg13_bn", "vgg16_bn", "vgg19_bn"],
    "resnet18": ["resnet34"],
    "resnet50": ["resnet101", "resnet152"], "wide_resnet50_2": ["wide_resnet101_2"],
    "plain18": ["plain34"],
    "plain20_cifar": ["plain56_cifar"],
    "resnet20_cifar": ["resnet32_cifar", "resnet44_cifar", "resnet56_cifar", "resnet110_cifar", "resnet1202_cifar"],
    "preact_resnet20_cifar": ["preact_resnet32_cifar", "preact_resnet44_cifar", "preact_resnet56_cifar", "preact_resnet110_cifar"],
    "preact_resnet164_cifar": ["preact_resnet1001_cifar"],
    "preact_resnet18": ["preact_resnet34"],
    "preact_resnet50": ["preact_resnet101", "preact_resnet152", "preact_resnet200"],
    "wrn_16_8": ["wrn_28_10", "wrn_40_4"],
    "densenet121": ["densenet161", "densenet169", "densenet201"],
    "resnext50_32x4d": ["resnext101_32x8d", "resnext101_64x4d"],
    "fractalnet20_cifar": ["fractalnet34_imagenet"],
}  # fmt: skip
NETWORKS = [name for name in zoo.names() if not any(name in more for more in MADE_OF.values())]


class Trained:
    """A network after ``STEPS`` steps from fixed weights; ``again`` is its loss on what the first step saw."""

    def __init__(self, name: str, compiled: bool):
        entry = zoo.info(name)
        side = LARGER.get(name, least_side(entry))
        tw.random.seed(0)
        self.model = small(entry, side).to(dtype="float64")
        scans, labels = digits()
        self.images = np.repeat(T.Resize((side, side))(scans), entry.input_shape[0], axis=1)
        x, y = tw.tensor(self.images.astype(np.float64)), tw.tensor(labels)
        self.before = self.parameters()
        criterion = criterion_of(self.model)
        optimizer = tw.optim.SGD(self.model.parameters(), lr=SLOWER.get(name, LR), momentum=0.9, weight_decay=1e-3)
        step = training_step(self.model, criterion, optimizer)
        step = tw.compile(step) if compiled else step
        first = tw.random.get_state()
        self.losses = [float(step(x, y)) for _ in range(STEPS)]
        self.after = self.parameters()
        tw.random.set_state(first)
        with tw.no_grad():
            self.again = float(criterion(self.model(x), y))

    def parameters(self) -> dict[str, np.ndarray]:
        return {n: p.numpy() for n, p in self.model.named_parameters()}


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def check_exported(model: nn.Module, images: np.ndarray, path: Any) -> None:
    model.to(dtype="float32").eval()
    with tw.no_grad():
        expected = model(tw.tensor(images)).numpy()
    tw.export(model, (tw.tensor(images),), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (other,) = session.run(None, {session.get_inputs()[0].name: images})
    for scores in (tw.load(path)(tw.tensor(images)).numpy(), other):
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_network_is_here_or_made_of_what_is():
    others = [name for more in MADE_OF.values() for name in more]
    assert set(MADE_OF) <= set(NETWORKS) and sorted([*NETWORKS, *others]) == sorted(zoo.names())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_compiled_as_eagerly_and_exports(name, tmp_path):
    eager = Trained(name, compiled=False)
    moved = {n: far(p, eager.before[n]) for n, p in eager.after.items()}
    whole = sum(m**2 for m in moved.values()) ** 0.5
    assert eager.again < eager.losses[0], eager.losses
    assert sum(m > 0 for m in moved.values()) > 0.9 * len(moved)
    compiled = Trained(name, compiled=True)
    np.testing.assert_allclose(compiled.losses, eager.losses, rtol=1e-9)
    off = {n: (far(p, eager.after[n]), moved[n]) for n, p in compiled.after.items()}
    assert {n: (d, m) for n, (d, m) in off.items() if d > TOLERANCE * m + FLOOR * whole} == {}
    check_exported(compiled.model, compiled.images, tmp_path / "net.onnx")
