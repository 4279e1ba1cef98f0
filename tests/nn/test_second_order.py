"""Composites are differentiable twice: central differences in float64, to second order; and at points where a careless
formula gives NaN."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw

F = tw.nn.functional
RNG = np.random.default_rng(8)
IMAGE, MAPS = RNG.normal(size=(2, 4, 4, 3)), RNG.permutation(48).reshape(1, 3, 4, 4) / 10.0
WEIGHT, LABELS = RNG.normal(size=(4, 2, 3, 3)), np.array([0, 2, 1])
LOGITS, VECTOR = RNG.normal(size=(3, 4)), RNG.normal(size=4)

ROWS = {
    "cross_entropy": (lambda x: F.cross_entropy(x, tw.tensor(LABELS), label_smoothing=0.1), [LOGITS]),
    "soft cross_entropy": (lambda x, y: F.cross_entropy(x, y), [LOGITS, RNG.dirichlet(np.ones(4), 3)]),
    "softmax": (lambda x: F.softmax(x), [LOGITS]),
    "huber_loss": (lambda x, y: F.huber_loss(x, y), [LOGITS, LOGITS[::-1] + 0.3]),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [IMAGE[:, :, 0], VECTOR, VECTOR]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, 4, w, b), [LOGITS, VECTOR, VECTOR]),
    "group_norm": (lambda x: F.group_norm(x, 2), [IMAGE[:, :, 0]]),
    "local_response_norm": (lambda x: F.local_response_norm(x, 3, alpha=0.5, k=2.0), [IMAGE[:1, :, :2, :1]]),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=1, groups=2), [IMAGE[:1], WEIGHT]),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), [IMAGE[:1, :, :2, :2], WEIGHT]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True) ** 2.0, [MAPS]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True) ** 2.0, [MAPS]),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 3) ** 2.0, [MAPS]),
    **{
        name: (lambda x, name=name: getattr(F, name)(x), [np.array([-2.5, -1.0, -0.2, 0.3, 1.7])])
        for name in ("gelu", "silu", "elu", "selu", "mish", "softplus", "hardswish", "leaky_relu", "logsigmoid")
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_numeric_to_second_order(name):
    function, inputs = ROWS[name]
    tw.autodiff.check(function, inputs)


TRAPS = {
    "cross_entropy of an impossible class": (lambda x: F.cross_entropy(x, tw.tensor([1])), [[0.0, 1.0, -np.inf]]),
    "softmax of huge numbers": (lambda x: F.softmax(x).sum(), [[1e30, -1e30, 0.0]]),
    "elu far out": (lambda x: F.elu(x).sum(), [1e4, -1e4]),
    "softplus far out": (lambda x: F.softplus(x).sum(), [1e4, -1e4]),
    "batch norm of a constant": (lambda x: F.batch_norm(x, None, None, training=True).sum(), [[1.0], [1.0]]),
    "local response of zeros": (lambda x: F.local_response_norm(x, 3).sum(), [[0.0, 0.0, 0.0]]),
    "binary cross-entropy far out": (
        lambda x: F.binary_cross_entropy_with_logits(x, tw.tensor([0.0, 1.0])), [1e4, -1e4]),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_gradients_are_finite_where_careless_ones_are_not(name):
    function, data = TRAPS[name]
    x = tw.tensor(data, requires_grad=True)
    y = function(x)
    y.backward()
    assert np.isfinite(y.numpy()).all() and np.isfinite(x.grad.numpy()).all()
