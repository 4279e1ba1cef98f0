"""Tensors, variables and models are copied and pickled with their numbers; formatted like numbers."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import twofold as tw
from twofold import nn

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_a_tensor(way, dtype):
    x = tw.tensor(np.array([[0, 1], [1, 0]]), dtype=dtype)
    y = WAYS[way](x)
    assert type(y) is tw.Tensor and y.dtype == x.dtype and not y.requires_grad and not np.shares_memory(x.numpy(), y.numpy())
    np.testing.assert_array_equal(y.numpy(), x.numpy())


@pytest.mark.parametrize("way", WAYS)
def test_a_model_after_training(way):
    """Shared parameters stay shared, frozen ones frozen, buffers buffers; the copy trains by itself, compiled too."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[2].bias.requires_grad = False
    x = tw.tensor(np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32))
    run = tw.compile(lambda x: model(x))
    (run(x) ** 2).sum().backward()
    other = WAYS[way](model)
    assert other[2].weight is other[0].weight is not model[0].weight and type(other[0].weight) is nn.Parameter
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [n for n, _ in other.named_buffers()] == [n for n, _ in model.named_buffers()]
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)
    optimizer = tw.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.1)
    before = model[0].weight.numpy().copy()
    (tw.compile(lambda x: other(x))(x) ** 2).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(model[0].weight.numpy(), before)
    assert not np.array_equal(other[0].weight.numpy(), before)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_and_its_optimizer(way):
    """Large enough for an eager step to be one program; the copy goes on as the original does."""
    model = nn.Linear(300, 200)
    optimizer = tw.optim.Adam(model.parameters(), lr=0.1)
    x = tw.ones((2, 300))

    def step(m, o):
        (m(x) ** 2).sum().backward()
        o.step()
        o.zero_grad()

    for _ in range(4):
        step(model, optimizer)
    other, its = WAYS[way]((model, optimizer))
    assert next(its.parameters()) is other.weight
    step(model, optimizer)
    step(other, its)
    np.testing.assert_allclose(other.weight.numpy(), model.weight.numpy(), rtol=1e-6)


def test_what_is_symbolic_is_not_copied():
    with pytest.raises(tw.TraceError, match="copying: this"):
        tw.compile(copy.deepcopy)(tw.ones(2))


def test_a_single_number_is_formatted():
    assert f"{tw.tensor(2.5):.2f} {tw.tensor(7):03d}" == "2.50 007" and f"{tw.tensor([1.0])}" == "tensor([1.])"
    with pytest.raises(tw.ShapeError, match="item"):
        f"{tw.ones(2):.2f}"
