"""Layers against PyTorch's of the same name and weights: values, gradients, state-dict names, running statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError

RNG = np.random.default_rng(3)

# name, arguments, keyword arguments, input shape
ROWS = [
    ("Linear", (4, 3), {}, (2, 4)),
    ("Linear", (4, 3), {"bias": False}, (2, 5, 4)),
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 9)),
    ("Conv2d", (4, 6, 3), {"stride": (2, 1), "padding": 1, "groups": 2}, (2, 4, 7, 7)),
    ("Conv2d", (4, 6, (3, 2)), {"dilation": 2, "bias": False}, (2, 4, 7, 7)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (2, 4, 5, 5)),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2}, (2, 4, 5)),
    ("BatchNorm1d", (4,), {}, (6, 4)),
    ("BatchNorm1d", (4,), {}, (6, 4, 3)),
    ("BatchNorm2d", (4,), {"momentum": 0.3, "eps": 1e-3}, (3, 4, 5, 5)),
    ("BatchNorm2d", (4,), {"affine": False}, (3, 4, 5, 5)),
    ("BatchNorm2d", (4,), {"momentum": None}, (3, 4, 5, 5)),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, (3, 4, 5, 5)),
    ("LayerNorm", (5,), {}, (3, 4, 5)),
    ("LayerNorm", ((4, 5),), {"bias": False}, (3, 4, 5)),
    ("GroupNorm", (2, 4), {}, (3, 4, 5)),
    ("LocalResponseNorm", (5,), {"alpha": 0.5, "k": 2.0}, (2, 7, 3, 3)),
    ("MaxPool2d", (3, 2, 1), {"ceil_mode": True}, (2, 3, 8, 8)),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1, "count_include_pad": False}, (2, 3, 8, 8)),
    ("AdaptiveAvgPool2d", (3,), {}, (2, 3, 8, 8)),
    ("AdaptiveMaxPool2d", ((2, 5),), {}, (2, 3, 8, 8)),
    ("PReLU", (), {}, (3, 4)),
    ("LeakyReLU", (0.2,), {"inplace": True}, (3, 4)),
    ("ELU", (), {"alpha": 0.7}, (3, 4)),
    ("Softmax", (1,), {}, (3, 4)),
    ("LogSoftmax", (), {"dim": 1}, (3, 4)),
    ("Hardtanh", (-0.5, 0.5), {}, (3, 4)),
    ("Flatten", (), {}, (3, 4, 5)),
    ("Flatten", (0, 1), {}, (3, 4, 5)),
    *((name, (), {}, (3, 4))
      for name in ("ReLU", "ReLU6", "Tanh", "Sigmoid", "GELU", "SiLU", "Mish", "SELU", "Identity")),
]  # fmt: skip


@pytest.mark.parametrize("name, args, kwargs, shape", ROWS)
def test_a_layer_is_pytorchs(name, args, kwargs, shape):
    torch = pytest.importorskip("torch")
    mine = getattr(nn, name)(*args, **kwargs).to(tw.float64)
    theirs = getattr(torch.nn, name)(*args, **kwargs).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    mine.load_state_dict(theirs.state_dict())
    for _ in range(3):
        array = RNG.normal(size=shape)
        x, t = tw.tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
        y, expected = mine(x), theirs(t.clone())  # a clone: PyTorch's inplace layers refuse leaves
        np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=1e-9)
        g = RNG.normal(size=y.shape)
        y.backward(g)
        expected.backward(torch.tensor(g))
        np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), atol=1e-9)
    for (key, p), q in zip(mine.named_parameters(), theirs.parameters()):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), atol=1e-8, err_msg=key)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(mine.state_dict()[key].numpy(), value.numpy(), atol=1e-9, err_msg=key)
    mine.eval()
    theirs.eval()
    np.testing.assert_allclose(mine(x).numpy(), theirs(t.clone()).detach().numpy(), atol=1e-9)


# ---- without PyTorch -------------------------------------------------------------------------------------------------


def test_parameter_shapes_and_counts():
    conv = nn.Conv2d(8, 12, (3, 5), groups=4)
    assert conv.weight.shape == (12, 2, 3, 5) and conv.bias.shape == (12,) and conv.num_parameters() == 372
    assert nn.ConvTranspose2d(8, 12, 3, groups=4).weight.shape == (8, 3, 3, 3)
    assert nn.Linear(5, 7).weight.shape == (7, 5)
    assert list(nn.BatchNorm2d(3).state_dict()) == [
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]


def test_default_initial_values():
    """Uniform in +-1/sqrt(fan_in), weights and biases alike."""
    tw.random.seed(1)
    for layer, fan_in in ((nn.Conv2d(16, 64, 5, groups=2), 200), (nn.Linear(300, 400), 300)):
        bound = 1 / math.sqrt(fan_in)
        for p in (layer.weight, layer.bias):
            assert abs(p.numpy()).max() <= bound and abs(p.numpy()).max() > 0.9 * bound
        assert abs(layer.weight.numpy().std() - bound / math.sqrt(3)) < 0.01 * bound


def test_losses_are_layers_too():
    logits, labels = tw.zeros((2, 4)), tw.tensor([0, 3])
    assert math.isclose(nn.CrossEntropyLoss()(logits, labels).item(), math.log(4), rel_tol=1e-6)
    assert nn.MSELoss(reduction="sum")(tw.ones((3,)), tw.zeros((3,))).item() == 3
    assert nn.HuberLoss(delta=2.0)(tw.ones((3,)), tw.zeros((3,))).item() == 0.5


def test_dropout_only_in_training():
    layer, x = nn.Dropout(0.5), tw.ones((50,))
    assert set(layer(x).tolist()) == {0.0, 2.0}
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: nn.MaxPool2d(), ["MaxPool2d", "'kernel_size' is missing"]),
        (lambda: nn.MaxPool2d(2, size=3), ["unknown argument 'size'", "kernel_size"]),
        (lambda: nn.ReLU(1), ["1 arguments"]),
        (lambda: nn.Conv2d(3, 8, 3, groups=2), ["in_channels=3", "groups=2"]),
        (lambda: nn.Conv2d(3, 8, (3, 3, 3)), ["kernel_size=(3, 3, 3)", "2 ints"]),
        (lambda: nn.GroupNorm(3, 4), ["num_channels=4", "num_groups=3"]),
    ],
)
def test_errors_teach(make, words):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
