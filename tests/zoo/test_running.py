"""Networks at work on small images: every one trains a step, and is the same compiled, exported, and eager."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo
from twofold.nn import functional as F
from zoo_families import digits

# the smallest of each kind, at the least width that keeps its form
NETWORKS = {
    "lenet5": {}, "lenet5_1998": {}, "alexnet": {"hidden": 16}, "alexnet_2012": {"hidden": 16}, "zfnet": {"hidden": 16},
    "vgg11": {"hidden": 16}, "vgg11_bn": {"hidden": 16}, "nin_cifar10": {}, "nin_imagenet": {}, "googlenet": {"aux_logits": True},
    "googlenet_2014": {}, "resnet18": {}, "resnet50": {}, "plain18": {}, "resnet20_cifar": {}, "plain20_cifar": {},
    "preact_resnet20_cifar": {}, "preact_resnet18": {}, "wrn_16_8": {}, "resnext50_32x4d": {}, "fractalnet20_cifar": {},
    "densenet40_k12": {}, "squeezenet1_0": {}, "squeezenet1_1": {}, "squeezenet_bypass": {}, "squeezenet_complex_bypass": {},
}  # fmt: skip
COMPILED = ["lenet5_1998", "alexnet_2012", "vgg11_bn", "googlenet_2014", "resnet18", "preact_resnet20_cifar", "squeezenet_complex_bypass",
            "densenet40_k12", "nin_cifar10", "fractalnet20_cifar"]  # fmt: skip
EXPORTED = [
    "lenet5_1998",
    "alexnet_2012",
    "googlenet_2014",
    "resnet18",
    "squeezenet_complex_bypass",
    "preact_resnet20_cifar",
]


def side(name: str) -> int:
    return 28 if name.startswith("lenet") else 16 if "small_input" in zoo.info(name).options else 8


def images(name: str, count: int = 2) -> tw.Tensor:
    channels = zoo.info(name).input_shape[0]
    return tw.tensor(np.random.default_rng(1).normal(size=(count, channels, side(name), side(name))).astype(np.float32))


def network(name: str, **options) -> nn.Module:
    tw.random.seed(0)
    entry = zoo.info(name)
    fitted = entry.options_for((entry.input_shape[0], side(name), side(name)))
    return entry(5, **fitted, **NETWORKS.get(name, {}), **options)


def loss_of(model: nn.Module, x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
    scores = model(x)
    return model.loss(scores, y) if hasattr(model, "loss") else F.cross_entropy(scores, y)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_on_real_images(name):
    """Every parameter gets a gradient, and a few small steps downhill (nothing dropped) lower the loss."""
    model = network(name, **({"drop_path": False} if name.startswith("fractalnet") else {}))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    scans, labels = digits()
    larger = np.kron(scans, np.ones((1, 1, side(name) // 8, side(name) // 8), np.float32))
    x, y = tw.tensor(np.repeat(larger, zoo.info(name).input_shape[0], axis=1)), tw.tensor(labels)
    optimizer = tw.optim.Adam(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        assert [n for n, g in gradients.items() if g is None or not np.isfinite(g.numpy()).all()] == []
        assert sum(bool(np.any(g.numpy())) for g in gradients.values()) > 0.9 * len(gradients)
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0], losses


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_eager(name):
    model, x = network(name).eval(), images(name)
    expected = model(x).numpy()
    np.testing.assert_allclose(tw.compile(model)(x).numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_is_eager(name, tmp_path):
    model, x = network(name).eval(), images(name)
    expected = model(x).numpy()
    path = tmp_path / f"{name}.onnx"
    tw.export(model, (x,), path)
    np.testing.assert_allclose(tw.load(path)(x).numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_ensemble_averages_and_exports_as_one_graph(tmp_path):
    members = [network("resnet20_cifar").eval() for _ in range(2)] + [network("preact_resnet20_cifar").eval()]
    members[1].fc.weight.assign(members[1].fc.weight * -1.0)
    vote, x = zoo.ensemble(members).eval(), images("resnet20_cifar")
    expected = np.mean([F.softmax(m(x)).numpy() for m in members], axis=0)
    np.testing.assert_allclose(vote(x).numpy(), expected, rtol=1e-5)
    tw.export(vote, (x,), tmp_path / "vote.onnx")
    np.testing.assert_allclose(tw.load(tmp_path / "vote.onnx")(x).numpy(), expected, rtol=1e-4)
    with pytest.raises(tw.ArgumentError, match="no members"):
        zoo.ensemble([])
    with pytest.raises(tw.ShapeError, match="member 1"):
        zoo.ensemble([members[0], zoo.create("resnet20_cifar", num_classes=3)])(x)
