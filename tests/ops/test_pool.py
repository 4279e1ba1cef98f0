"""Pooling against a direct definition and PyTorch, over every small geometry; ties, NaN, gradients, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import twofold as tw
from twofold.base.dims import symbol
from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.ir import OPS, Spec, bind
from twofold.tensor import Tensor

F = tw.nn.functional
RNG = np.random.default_rng(1)
NAMES = ("max_pool", "max_pool_grad", "max_pool_pick", "avg_pool", "avg_pool_grad")
SAMPLES = [(name, i) for name in NAMES for i in range(len(list(OPS[name].samples())))]


def sample(name: str, number: int):
    found = list(OPS[name].samples())[number]
    return [a if isinstance(a, np.ndarray) else RNG.uniform(-2, 2, a) for a in found.inputs], found.attrs


@pytest.mark.parametrize("name, number", SAMPLES)
def test_infer_agrees_with_ref(name, number):
    arrays, attrs = sample(name, number)
    y = OPS[name].ref(*arrays, **attrs)
    spec = OPS[name].infer(*(Spec(a.shape, as_dtype(a.dtype)) for a in arrays), **attrs)
    assert (spec.shape, spec.dtype) == (y.shape, as_dtype(y.dtype))


@pytest.mark.parametrize("name, number", SAMPLES)
def test_gradients_are_numeric_ones(name, number):
    arrays, attrs = sample(name, number)
    tensors = [tw.tensor(a, requires_grad=True) for a in arrays]
    y = Tensor(bind(name, *(t.value for t in tensors), **attrs))
    g, step = RNG.normal(size=y.shape), 1e-4
    y.backward(g)
    for i, tensor in enumerate(tensors):
        direction = RNG.normal(size=arrays[i].shape)
        moved = [[a + sign * step * direction if j == i else a for j, a in enumerate(arrays)] for sign in (1, -1)]
        numeric = ((OPS[name].ref(*moved[0], **attrs) - OPS[name].ref(*moved[1], **attrs)) * g).sum() / (2 * step)
        mine = 0.0 if tensor.grad is None else float((tensor.grad.numpy() * direction).sum())
        np.testing.assert_allclose(mine, numeric, rtol=1e-6, atol=1e-6)


def windows_1d(n, k, s, low, d, out):
    """The input positions of each window."""
    return [[o * s + i * d - low for i in range(k)] for o in range(out)]


def test_every_small_window_is_the_definition():
    """Ceil mode, dilation, padding: values by listing each window's positions."""
    checked = 0
    for n, k, s, p, d, ceil in itertools.product(range(1, 9), (1, 2, 3, 4), (1, 2, 3), (0, 1), (1, 2), (False, True)):
        span = d * (k - 1) + 1
        if p >= span or (n + 2 * p < span and not ceil):
            continue
        raw = (n + 2 * p - span) / s
        out = int(np.ceil(raw) if ceil else np.floor(raw)) + 1
        if ceil and (out - 1) * s >= n + p:
            out -= 1
        if out < 1:
            continue
        x = RNG.permutation(n).astype(np.float64).reshape(1, 1, n)
        places = windows_1d(n, k, s, p, d, out)
        inside = [[q for q in window if 0 <= q < n] for window in places]
        window = {"window": (k,), "strides": (s,), "padding": ((p, p),), "ceil_mode": ceil}
        if all(inside):
            expected = [x[0, 0, q].max() for q in inside]
            np.testing.assert_array_equal(OPS["max_pool"].ref(x, **window, dilation=(d,))[0, 0], expected)
        if d == 1:
            for include in (False, True):
                counted = [[q for q in w if -p <= q < n + p] if include else i for w, i in zip(places, inside)]
                expected = [x[0, 0, i].sum() / len(c) for i, c in zip(inside, counted)]
                np.testing.assert_allclose(OPS["avg_pool"].ref(x, **window, include_pad=include)[0, 0], expected)
        checked += 1
    assert checked > 400


def test_every_small_window_is_pytorchs():
    torch = pytest.importorskip("torch")
    T = torch.nn.functional
    for n, k, s, p, d, ceil in itertools.product((2, 5, 8), (1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (False, True)):
        x = RNG.normal(size=(1, 2, n))
        if p > k // 2:
            continue
        try:
            expected = T.max_pool1d(torch.tensor(x), k, s, p, d, ceil).numpy()
        except RuntimeError:
            with pytest.raises(ShapeError):
                F.max_pool1d(tw.tensor(x), k, s, p, d, ceil)
            continue
        np.testing.assert_array_equal(F.max_pool1d(tw.tensor(x), k, s, p, d, ceil).numpy(), expected)
        if d == 1:
            for include in (False, True):
                expected = T.avg_pool1d(torch.tensor(x), k, s, p, ceil, include).numpy()
                np.testing.assert_allclose(F.avg_pool1d(tw.tensor(x), k, s, p, ceil, include).numpy(), expected)


def test_a_tie_sends_the_gradient_to_the_first():
    x = tw.tensor(np.ones((1, 1, 2, 4)), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad.numpy()[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_nan_comes_through_and_gets_the_gradient():
    x = tw.tensor(np.array([[[[1.0, np.nan], [3.0, np.nan]]]]), requires_grad=True)
    y = F.max_pool2d(x, 2)
    assert np.isnan(y.numpy()).all()
    y.sum().backward()
    assert x.grad.numpy()[0, 0].tolist() == [[0, 1], [0, 0]]


def test_integers_have_maxima():
    x = tw.tensor(np.arange(-8, 8, dtype=np.int8).reshape(1, 1, 4, 4))
    assert F.max_pool2d(x, 3, 2, 1).tolist() == [[[[-3, -1], [5, 7]]]]


@pytest.mark.parametrize("ceil_mode, size", [(False, 15), (True, 16)])
def test_the_cifar_nin_pool(ceil_mode, size):
    """3x3/2 on 32 gives 16 in ceil mode alone (Network in Network)."""
    assert F.max_pool2d(tw.zeros((1, 1, 32, 32)), 3, 2, ceil_mode=ceil_mode).shape == (1, 1, size, size)


def test_symbolic_sizes():
    n, h = symbol("N"), symbol("H")
    x = Spec((n, 3, h, 9), as_dtype("float32"))
    attrs = {"window": (2, 3), "strides": (2, 2), "padding": ((0, 0), (0, 0)), "ceil_mode": True}
    y = OPS["max_pool"].infer(x, **attrs, dilation=(1, 1))
    assert y.shape[0] == n and y.shape[3] == 4
    assert OPS["avg_pool_grad"].infer(y, **attrs, include_pad=True, input_shape=x.shape[2:]) == x


@pytest.mark.parametrize(
    "x, options, error, words",
    [
        ((3, 8, 8), {}, ShapeError, ["(3, 8, 8)", "batch dimension"]),
        ((1, 3, 8, 8), {"padding": 2}, ArgumentError, ["padding (2, 2)", "extent 2"]),
        ((1, 3, 1, 8), {}, ShapeError, ["(2, 2)", "larger", "(1, 3, 1, 8)"]),
        ((1, 3, 8, 8), {"stride": 0}, ArgumentError, ["strides"]),
    ],
)
def test_errors_teach(x, options, error, words):
    with pytest.raises(error) as caught:
        F.max_pool2d(tw.zeros(x), 2, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_averages_need_floats():
    with pytest.raises(DtypeError, match="int64"):
        F.avg_pool2d(tw.tensor(np.ones((1, 1, 2, 2), np.int64)), 2)


@pytest.mark.parametrize("size", [1, 2, 3, (6, 6), (7, 2), (None, 4)])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_pools_are_pytorchs(size, kind):
    torch = pytest.importorskip("torch")
    x = RNG.normal(size=(2, 3, 8, 4))
    ours, theirs = tw.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = getattr(F, f"adaptive_{kind}_pool2d")(ours, size)
    expected = getattr(torch.nn.functional, f"adaptive_{kind}_pool2d")(theirs, size)
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=1e-12)
    g = RNG.normal(size=y.shape)
    y.backward(g)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-12)


def test_adaptive_windows_by_hand():
    """5 -> 3: inputs [0, 2), [1, 4), [3, 5)."""
    x = tw.tensor(np.arange(5.0).reshape(1, 1, 5))
    assert F.adaptive_avg_pool1d(x, 3).tolist() == [[[0.5, 2.0, 3.5]]]
    assert F.adaptive_max_pool1d(x, 3).tolist() == [[[1.0, 3.0, 4.0]]]
