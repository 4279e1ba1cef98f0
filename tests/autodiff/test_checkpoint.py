"""checkpoint: the same numbers with and without it, eager and compiled; what is kept, drawn and assigned."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.autodiff import producers
from twofold.base.errors import GradientError
from twofold.ir.text import print_graph

W = tw.Variable(np.float32([1.0, 2.0, -1.0]), requires_grad=True, name="w")
STATISTIC = tw.Variable(np.zeros(3, np.float32), name="statistic")
X = np.float32([0.3, 0.5, -0.7])


def block(x, h):
    """Dropout, a running statistic, a parameter, and ``h`` from outside."""
    STATISTIC.assign(STATISTIC * 0.5 + x.detach())
    keep = (tw.random.uniform((3,)) > 0.3).astype(tw.float32)
    return tw.sin(x * W) * keep * h + STATISTIC * x


def step(x, checkpointed):
    h = x * W * 2
    y = tw.checkpoint(lambda v: block(v, h))(x * 1.5) if checkpointed else block(x * 1.5, h)
    z = tw.checkpoint(lambda v: block(v, v))(y) if checkpointed else block(y, y)
    loss = (z * z * W).sum()
    loss.backward()
    return loss


def run(f, *args):
    W.grad = None
    STATISTIC.assign(np.zeros(3, np.float32))
    tw.random.seed(5)
    loss = f(tw.tensor(X), *args)
    return [loss.numpy(), W.grad.numpy(), STATISTIC.numpy().copy(), tw.random.get_state()]


@pytest.mark.parametrize("compiled", [False, True])
def test_same_numbers(compiled):
    expected = run(step, False)
    for a, b in zip(run(tw.compile(step) if compiled else step, True), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("mode", [lambda f: f, tw.compile], ids=["eager", "compiled"])
def test_second_order(mode):
    def f(x):
        return (tw.checkpoint(lambda v: tw.exp(v * W) * v)(x * x)).sum()

    def plain(x):
        return (tw.exp(x * x * W) * x * x).sum()

    g, h = (mode(tw.grad(lambda x, q=q: tw.grad(q)(x).sum())) for q in (f, plain))
    np.testing.assert_allclose(g(tw.tensor(X)).numpy(), h(tw.tensor(X)).numpy(), rtol=1e-5)


def test_nothing_inside_is_kept():
    x = tw.tensor(X, requires_grad=True)

    def deep(v):
        for _ in range(20):
            v = tw.sin(v) + v
        return v

    kept = [n.op.name for n in producers([tw.checkpoint(deep)(x).value])]
    assert kept == ["custom_vjp"] and len(producers([deep(x).value])) == 40


def test_the_recomputation_survives_the_passes():
    """In the optimised graph the sines are computed twice: once forward, once behind the barrier."""

    def f(x, checkpointed):
        inner = lambda v: tw.cos(tw.sin(v))
        y = (tw.checkpoint(inner) if checkpointed else inner)(x)
        return tw.gradients((y * y).sum(), [x])[0]

    for checkpointed, sines in ((False, 2), (True, 3)):  # the gradient of cos is a sine itself
        text = print_graph(tw.compile(f).graph(tw.tensor(X), checkpointed))
        assert text.count(" sin(") == sines and ("barrier(" in text) is checkpointed


def test_dynamic_control_flow_inside():
    x = tw.tensor([2.0, 3.0], requires_grad=True)
    tw.checkpoint(lambda v: v * v if float(v.sum()) > 4 else v)(x).sum().backward()
    assert x.grad.tolist() == [4.0, 6.0]


def test_nested_and_structured():
    x = tw.tensor([0.5, 1.5], requires_grad=True)
    inner = tw.checkpoint(lambda a, scale: {"out": (tw.exp(a) * scale, scale)})
    outer = tw.checkpoint(lambda a: inner(a * a, scale=3.0)["out"][0].sum())
    outer(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), 6 * x.numpy() * np.exp(x.numpy() ** 2), rtol=1e-6)


def test_without_gradients_it_is_the_function():
    with tw.no_grad():
        y = tw.checkpoint(tw.exp)(tw.tensor([1.0], requires_grad=True))
    assert not y.requires_grad
    assert not tw.checkpoint(tw.exp)(tw.tensor([1.0])).requires_grad


def test_a_function_that_changes_its_mind_is_an_error():
    calls = []

    def fickle(v):
        calls.append(1)
        return (v * v,) * len(calls)

    x = tw.tensor([1.0], requires_grad=True)
    (y,) = tw.checkpoint(fickle)(x)
    with pytest.raises(GradientError, match="gave 1 results at first and 2 when called again"):
        y.backward()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_what_no_gradient_reaches_has_none(compiled):
    """Zeros would make optimizers with weight decay or momentum change it."""
    used, unused = (tw.Variable(np.ones(3, np.float32), requires_grad=True) for _ in range(2))
    optimizer = tw.optim.AdamW([used, unused], lr=0.1, weight_decay=0.5)
    without = []

    def step(x):
        y, _ = tw.checkpoint(lambda x: (x * used, (x * unused).sum()))(x)
        optimizer.zero_grad()
        y.sum().backward()
        without.append(unused.grad is None)
        optimizer.step()

    run = tw.compile(step) if compiled else step
    for _ in range(2):
        run(tw.ones(3))
    assert all(without)
    np.testing.assert_array_equal(unused.numpy(), 1)
    assert (used.numpy() != 1).all()
