"""Convolution against its definition (loops over NumPy float64) and PyTorch; its shapes, gradients and errors."""

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

NAMES = ("conv", "conv_input_grad", "conv_weight_grad")
SAMPLES = [(name, i) for name in NAMES for i in range(len(list(OPS[name].samples())))]
RNG = np.random.default_rng(0)


def sample(name: str, number: int):
    found = list(OPS[name].samples())[number]
    return [RNG.uniform(found.low, found.high, shape) for shape in found.inputs], found.attrs


def by_definition(x, w, strides, padding, dilation, groups):
    """The sum of the module's docstring, one output at a time."""
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    span = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation)]
    out = [(n - s) // t + 1 for n, s, t in zip(x.shape[2:], span, strides)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    rows, channels = w.shape[0] // groups, w.shape[1]
    for o, place in itertools.product(range(w.shape[0]), itertools.product(*map(range, out))):
        window = tuple(slice(p * t, p * t + s, d) for p, t, s, d in zip(place, strides, span, dilation))
        first = o // rows * channels
        patch = x[(slice(None), slice(first, first + channels), *window)]
        y[(slice(None), o, *place)] = (patch * w[o]).reshape(len(x), -1).sum(1)
    return y


@pytest.mark.parametrize("number", range(len(list(OPS["conv"].samples()))))
def test_values_are_the_definition(number):
    (x, w), attrs = sample("conv", number)
    np.testing.assert_allclose(OPS["conv"].ref(x, w, **attrs), by_definition(x, w, **attrs), atol=1e-12)


@pytest.mark.parametrize("name, number", SAMPLES)
def test_the_three_are_transposes_of_each_other(name, number):
    """<conv(x, w), g> = <x, input_grad(g, w)> = <w, weight_grad(x, g)>, also after batching the unfolding."""
    (a, b), attrs = sample(name, number)
    y = OPS[name].ref(a, b, **attrs)
    g = RNG.normal(size=y.shape)
    ta, tb = tw.tensor(a, requires_grad=True), tw.tensor(b, requires_grad=True)
    Tensor(bind(name, ta.value, tb.value, **attrs)).backward(g)
    total = (y * g).sum()
    np.testing.assert_allclose((ta.grad.numpy() * a).sum(), total, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((tb.grad.numpy() * b).sum(), total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, number", SAMPLES)
def test_infer_agrees_with_ref(name, number):
    arrays, attrs = sample(name, number)
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        cast = [a.astype(as_dtype(dtype).numpy) for a in arrays]
        y = OPS[name].ref(*cast, **attrs)
        spec = OPS[name].infer(*(Spec(a.shape, as_dtype(dtype)) for a in cast), **attrs)
        assert (spec.shape, spec.dtype) == (y.shape, as_dtype(y.dtype))


def test_unfolding_in_parts_changes_nothing(monkeypatch):
    from twofold.ops import conv

    (x, w), attrs = sample("conv", 0)
    whole = [OPS["conv"].ref(x, w, **attrs)]
    g = RNG.normal(size=whole[0].shape)
    rest = lambda: [
        OPS["conv_input_grad"].ref(g, w, **attrs, input_shape=x.shape[2:]),
        OPS["conv_weight_grad"].ref(x, g, **attrs, kernel=w.shape[2:]),
    ]
    whole += rest()
    monkeypatch.setattr(conv, "_CHUNK", 1)
    for a, b in zip(whole, [OPS["conv"].ref(x, w, **attrs), *rest()]):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_half_precision_accumulates_in_float32():
    x, w = np.full((1, 4096, 1, 1), 0.1, np.float16), np.ones((1, 4096, 1, 1), np.float16)
    y = OPS["conv"].ref(x, w, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
    assert y.dtype == np.float16
    np.testing.assert_allclose(float(y[0, 0, 0, 0]), 4096 * float(np.float16(0.1)), rtol=1e-3)


def test_symbolic_sizes():
    n, h = symbol("N"), symbol("H")
    x, w = Spec((n, 3, h, 33), as_dtype("float32")), Spec((8, 3, 3, 3), as_dtype("float32"))
    attrs = {"strides": (1, 2), "padding": ((1, 1), (0, 1)), "dilation": (1, 1), "groups": 1}
    y = OPS["conv"].infer(x, w, **attrs)
    assert y.shape == (n, 8, h, 16)
    assert OPS["conv_input_grad"].infer(y, w, **attrs, input_shape=x.shape[2:]) == x
    assert OPS["conv_weight_grad"].infer(x, y, **attrs, kernel=(3, 3)) == w


@pytest.mark.parametrize(
    "x, w, options, error, words",
    [
        ((8, 3, 9, 9), (4, 4, 3, 3), {}, ShapeError, ["3 channels", "expects 4", "(8, 3, 9, 9)", "in_channels"]),
        ((8, 3, 2, 9), (4, 3, 3, 3), {}, ShapeError, ["(3, 3)", "larger", "(8, 3, 2, 9)"]),
        ((3, 9, 9), (4, 3, 3, 3), {}, ShapeError, ["(3, 9, 9)", "4 dimensions"]),
        ((1, 4, 9, 9), (3, 2, 3, 3), {"groups": 2}, ShapeError, ["3 output channels", "2 groups"]),
        ((1, 3, 9, 9), (3, 3, 3, 3), {"stride": 0}, ArgumentError, ["strides"]),
        ((1, 3, 9, 9), (3, 3, 3, 3), {"padding": -1}, ArgumentError, ["padding", "negative"]),
        ((1, 3, 9, 9), (3, 3, 3, 3), {"padding": "SAME"}, ArgumentError, ["'SAME'", "'same'"]),
        ((1, 3, 9, 9), (3, 3, 3, 3), {"padding": "same", "stride": 2}, ArgumentError, ["stride 1"]),
        ((1, 3, 9, 9), (3, 3, 3, 3), {"stride": (1, 2, 3)}, ArgumentError, ["stride=(1, 2, 3)", "2 ints"]),
    ],
)
def test_errors_teach(x, w, options, error, words):
    with pytest.raises(error) as caught:
        tw.nn.functional.conv2d(tw.zeros(x), tw.zeros(w), **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_integers_are_refused():
    with pytest.raises(DtypeError, match="int64 and int64"):
        tw.nn.functional.conv2d(tw.tensor(np.ones((1, 1, 3, 3), int)), tw.tensor(np.ones((1, 1, 1, 1), int)))


CASES = [
    ((2, 4, 7, 8), (6, 2, 3, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}),
    ((2, 4, 7, 8), (6, 4, 3, 2), {"padding": "same"}),
    ((2, 4, 7, 8), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
]


@pytest.mark.parametrize("x, w, options", CASES)
def test_conv2d_is_pytorchs(x, w, options):
    torch = pytest.importorskip("torch")
    import warnings

    arrays = [RNG.normal(size=s) for s in (x, w, w[0])]
    ours, theirs = (
        [tw.tensor(a, requires_grad=True) for a in arrays],
        [torch.tensor(a, requires_grad=True) for a in arrays],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about copies made for even kernels with padding='same'
        expected = torch.nn.functional.conv2d(*theirs, **options)
    y = tw.nn.functional.conv2d(*ours, **options)
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=1e-12)
    g = RNG.normal(size=y.shape)
    y.backward(g)
    expected.backward(torch.tensor(g))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose2d_is_pytorchs(groups):
    torch = pytest.importorskip("torch")
    arrays = [RNG.normal(size=s) for s in ((2, 4, 5, 6), (4, 3, 3, 2), (3 * groups,))]
    options = {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "groups": groups, "dilation": (1, 2)}
    expected = torch.nn.functional.conv_transpose2d(*map(torch.tensor, arrays), **options)
    y = tw.nn.functional.conv_transpose2d(*map(tw.tensor, arrays), **options)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), atol=1e-12)
