"""Dynamic graphs: Python decides what is computed; records are freed; mistakes are explained."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

import twofold as tw

RNG = np.random.default_rng(0)


def randn(*shape, **options):
    return tw.tensor(RNG.standard_normal(shape), **options)


def test_a_recursive_network_over_a_tree():
    w, leaf = randn(3, 6, requires_grad=True), randn(3, requires_grad=True)

    def encode(tree):
        if isinstance(tree, int):
            return leaf * tree
        return tw.tanh(w @ tw.concat([encode(tree[0]), encode(tree[1])]))

    tree = ((1, (2, 3)), 4)
    encode(tree).sum().backward()
    tw.autodiff.check(lambda a, b: _encode(tree, a, b).sum(), [w.detach(), leaf.detach()], order=1)
    by_hand = tw.grad(lambda a: _encode(tree, a, leaf).sum())(w.detach())
    np.testing.assert_allclose(w.grad.numpy(), by_hand.numpy(), rtol=1e-12)


def _encode(tree, w, leaf):
    if isinstance(tree, int):
        return leaf * tree
    return tw.tanh(w @ tw.concat([_encode(tree[0], w, leaf), _encode(tree[1], w, leaf)]))


def test_a_while_loop_on_a_tensor_s_value():
    x = tw.tensor(1.5, requires_grad=True)
    y, rounds = x, 0
    while y < 100.0:
        y, rounds = y * x, rounds + 1
    y.backward()
    np.testing.assert_allclose(x.grad.item(), (rounds + 1) * 1.5**rounds, rtol=1e-5)


def test_layers_skipped_at_random_get_no_gradient():
    weights = [tw.tensor(float(i + 1), requires_grad=True) for i in range(6)]
    y, taken = tw.tensor(1.0), []
    for i, w in enumerate(weights):
        if RNG.random() < 0.5:
            y = y * w
            taken.append(i)
    (y + 0.0 * weights[0]).backward()
    assert {i for i, w in enumerate(weights) if w.grad is not None} == {0, *taken}


def test_a_second_backward_needs_retain_graph():
    x = tw.tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4.0, 8.0]
    with pytest.raises(tw.GradientError, match="freed by an earlier backward.*retain_graph=True"):
        y.backward()


def test_the_record_is_freed_by_backward_and_without_it_with_the_result():
    x = randn(100, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        middle = tw.exp(x)
        kept = weakref.ref(middle.value)
        y = (middle * middle).sum()
        del middle
        y.backward()
        assert kept() is None
        other = tw.exp(x)
        kept = weakref.ref(other.value.producer)
        del other
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [lambda: tw.tensor([1.0], requires_grad=True), lambda: tw.Variable([1.0], requires_grad=True)])
def test_a_dropped_leaf_is_freed_at_once(make):
    gc.collect()
    gc.disable()
    try:
        leaf = make()
        (leaf * leaf).sum().backward()
        kept = weakref.ref(leaf.value)
        del leaf
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: tw.tensor([1.0, 2.0], requires_grad=True).backward(), "needs a gradient argument"),
        (lambda: tw.tensor(1.0).backward(), "does not depend on any tensor that requires gradients"),
        (lambda: tw.tensor([1, 2], requires_grad=True), "only floating tensors can require gradients"),
    ],
)
def test_backward_explains_what_is_missing(run, message):
    with pytest.raises(tw.GradientError, match=message):
        run()


def test_no_grad_and_detach_record_nothing():
    x = tw.tensor([1.0, 2.0], requires_grad=True)
    with tw.no_grad():
        assert not (x * 2).requires_grad
    (x.detach() * x).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0]


def test_changing_a_tensor_in_place_does_not_change_what_was_recorded():
    x = tw.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * 1.0
    z = y * y
    y[0] = 10.0
    assert y.tolist() == [10.0, 2.0, 3.0]
    (z.sum() + y.sum()).backward()
    assert x.grad.tolist() == [2.0, 5.0, 7.0]


def test_hessian_vector_products_agree_with_the_hessian():
    a = RNG.standard_normal((4, 4))
    a = a + a.T
    f = lambda x: 0.5 * (x * (tw.tensor(a) @ x)).sum() + (x**3).sum()
    x, v = randn(4), randn(4)
    g = lambda x: (tw.grad(f)(x) * v).sum()
    expected = (a + np.diag(6 * x.numpy())) @ v.numpy()
    np.testing.assert_allclose(tw.grad(g)(x).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(tw.jvp(tw.grad(f), (x,), (v,))[1].numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("f", "x", "expected"),
    [
        (lambda x: tw.where(x > 0, tw.log(tw.where(x > 0, x, 1.0)), 0.0).sum(), [0.0, 2.0], [0.0, 0.5]),
        (lambda x: tw.where(x > 0, x, tw.full((2,), float("inf"))).sum() * 0 + x.sum(), [1.0, 2.0], [1.0, 1.0]),
        (lambda x: tw.max(x), [3.0, 3.0], [0.5, 0.5]),
        (lambda x: tw.maximum(x, 1.0).sum(), [1.0, 2.0], [0.5, 1.0]),
        (lambda x: tw.linalg.vector_norm(x), [0.0, 0.0], [0.0, 0.0]),
        (lambda x: (tw.sqrt(x) * tw.tensor([0.0, 1.0])).sum(), [0.0, 4.0], [0.0, 0.25]),
        (lambda x: tw.std(x), [2.0, 2.0], [0.0, 0.0]),
    ],
    ids=["log", "where", "max", "maximum", "norm", "sqrt", "std"],
)
def test_gradients_at_the_known_traps(f, x, expected):
    x = tw.tensor(x, requires_grad=True)
    f(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), expected)


def test_importing_twofold_loads_nothing_heavy():
    code = "import sys, twofold; print([m for m in sys.modules if m in ('llvmlite','jax','onnx','rich','matplotlib','ml_dtypes')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
