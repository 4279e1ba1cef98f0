"""Initialisers: the spread that the formula says, repeatable, and independent of the device."""

from __future__ import annotations

import math

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError, ShapeError

init = nn.init
# function, standard deviation for a weight of (64, 32, 3, 3): fan_in 288, fan_out 576
ROWS = [
    (lambda w: init.kaiming_normal_(w, nonlinearity="relu"), math.sqrt(2 / 288)),
    (lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"), math.sqrt(2 / 576)),
    (lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)), math.sqrt(1 / 3 / 288)),
    (init.xavier_normal_, math.sqrt(2 / 864)),
    (init.xavier_uniform_, math.sqrt(2 / 864)),
    (init.caffe_xavier_, math.sqrt(1 / 288)),
    (init.lecun_uniform_, 2.4 / 288 / math.sqrt(3)),
    (lambda w: init.normal_(w, 0.0, 0.01), 0.01),
    (lambda w: init.uniform_(w, -1.0, 1.0), 1 / math.sqrt(3)),
    (init.ones_, 0.0),
]

KNOWN_UNIFORM = [0.03474188, 0.01154673, 0.6119502]
KNOWN_NORMAL = [-0.7972413, 0.01532764, 2.598503]


@pytest.mark.parametrize("function, std", ROWS)
def test_spread(function, std):
    tw.random.seed(3)
    w = nn.Parameter(np.zeros((64, 32, 3, 3), np.float32))
    assert function(w) is w and w.dtype == "float32" and w.requires_grad
    assert abs(w.numpy().std() - std) <= 0.02 * std
    first = w.numpy().copy()
    tw.random.seed(3)
    np.testing.assert_array_equal(function(w).numpy(), first)


def test_known_numbers():
    """The first draws of seed 0: a change of the generator or of a formula would change every network."""
    tw.random.seed(0)
    w = nn.Parameter(np.zeros(3, np.float32))
    np.testing.assert_allclose(init.uniform_(w).numpy(), KNOWN_UNIFORM, rtol=1e-6)
    np.testing.assert_allclose(init.normal_(w).numpy(), KNOWN_NORMAL, rtol=1e-5)


def test_truncated_normal():
    w = init.trunc_normal_(nn.Parameter(np.zeros((100, 100))), 0.0, 1.0, -1.0, 0.5).numpy()
    assert w.min() >= -1 and w.max() <= 0.5 and w.max() > 0.45
    with pytest.raises(ArgumentError, match="next to nothing"):
        init.trunc_normal_(nn.Parameter(np.zeros(3)), 0.0, 1.0, 20.0, 21.0)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 2, 3, 1)])
def test_orthogonal(shape):
    w = init.orthogonal_(nn.Parameter(np.zeros(shape)), gain=2.0).numpy().reshape(shape[0], -1)
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_skipped_layers_stay_zero():
    with init.skipped():
        assert not nn.Linear(3, 4).weight.numpy().any()
    assert nn.Linear(3, 4).weight.numpy().any()


def test_making_a_layer_in_a_graph_records_nothing():
    with tw.Graph() as graph:
        nn.Linear(3, 4)
    assert not graph.builder.graph.nodes


def test_errors_teach():
    w = nn.Parameter(np.zeros((3, 3)))
    with pytest.raises(ArgumentError, match=r"mode='fan'; expected 'fan_in' or 'fan_out'"):
        init.kaiming_normal_(w, mode="fan")
    with pytest.raises(ArgumentError, match="nonlinearity 'swish'"):
        init.calculate_gain("swish")
    with pytest.raises(ShapeError, match=r"at least 2 dimensions; got shape \(3,\)"):
        init.kaiming_normal_(nn.Parameter(np.zeros(3)))
