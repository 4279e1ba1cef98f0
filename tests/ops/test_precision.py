"""Mixed precision: which ops compute in which dtype, that gradients follow, and that eager and compiled agree."""

from __future__ import annotations

import re

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.ir import OPS
from twofold.nn import functional as F
from twofold.ops import precision

LOW = {"bf16": tw.bfloat16, "fp16": tw.float16}
NARROW = pytest.mark.parametrize("name", LOW)
RNG = np.random.default_rng(0)


def tensor(*shape, dtype=np.float32, **options):
    return tw.tensor(RNG.standard_normal(shape).astype(dtype), **options)


def test_the_tables_name_ops_that_exist():
    assert set(OPS) >= precision.LOW | precision.FULL and not precision.LOW & precision.FULL


# ---- what an op's result is, for float32 operands and for operands in 16 bits ----------------------------------------
X, W, B = (4, 3, 6, 6), (2, 3, 3, 3), (2,)
CASES = {
    "matmul": (lambda c: c(tensor(3, 4)) @ c(tensor(4, 2)), "low", "low"),
    "matmul, mixed": (lambda c: c(tensor(3, 4)) @ tensor(4, 2), "low", "low"),
    "tensordot": (lambda c: tw.tensordot(c(tensor(3, 4)), c(tensor(4, 2)), axes=1), "low", "low"),
    "linear, bias": (lambda c: F.linear(c(tensor(3, 4)), tensor(2, 4), tensor(2)), "low", "low"),
    "conv, bias": (lambda c: F.conv2d(c(tensor(*X)), tensor(*W), tensor(*B)), "low", "low"),
    "transposed conv": (lambda c: F.conv_transpose2d(c(tensor(1, 3, 4, 4)), tensor(3, 2, 2, 2)), "low", "low"),
    "batch norm": (lambda c: nn.BatchNorm2d(3)(c(tensor(*X))), "full", "low"),
    "relu": (lambda c: F.relu(c(tensor(3))), "full", "low"),
    "prelu": (lambda c: F.prelu(c(tensor(2, 3)), tensor(1)), "full", "low"),
    "max pool": (lambda c: F.max_pool2d(c(tensor(*X)), 2), "full", "low"),
    "add": (lambda c: c(tensor(3)) + c(tensor(3)), "full", "low"),
    "add, mixed": (lambda c: c(tensor(3)) + tensor(3), "full", "full"),
    "exp": (lambda c: tw.exp(c(tensor(3))), "full", "full"),
    "sum": (lambda c: c(tensor(3)).sum(), "full", "full"),
    "mean": (lambda c: c(tensor(3)).mean(), "full", "full"),
    "var": (lambda c: c(tensor(3)).var(), "full", "full"),
    "softmax": (lambda c: F.softmax(c(tensor(3, 4)), axis=1), "full", "full"),
    "cross-entropy": (lambda c: F.cross_entropy(c(tensor(3, 4)), tw.tensor([0, 1, 2])), "full", "full"),
    "mse": (lambda c: F.mse_loss(c(tensor(3, 4)), c(tensor(3, 4))), "full", "full"),
    "power": (lambda c: c(tw.ones(3)) ** c(tensor(3)), "full", "full"),
}


@NARROW
@pytest.mark.parametrize("case", CASES)
def test_what_a_result_is(case, name):
    run, of_full, of_low = CASES[case]
    dtypes = {"low": LOW[name], "full": tw.float32}
    with tw.autocast(name):
        assert run(lambda x: x).dtype == dtypes[of_full]
        assert run(lambda x: x.to(LOW[name])).dtype == dtypes[of_low]
    if "mixed" not in case and "conv" not in case and case != "linear, bias":
        assert run(lambda x: x).dtype == tw.float32


@NARROW
def test_sums_that_would_overflow_do_not(name):
    x = tw.full((70_000,), 2.0).to(LOW[name])
    with tw.autocast(name):
        assert x.sum().item() == 140_000.0 and x.mean().item() == 2.0
        assert tw.sum(x, dtype=LOW[name]).dtype == LOW[name]  # what was asked for


def test_float64_is_left_alone():
    a, b = tensor(3, 4, dtype=np.float64), tensor(4, 2, dtype=np.float64)
    x, w = tensor(*X, dtype=np.float64), tensor(*W, dtype=np.float64)
    with tw.autocast("bf16"):
        np.testing.assert_array_equal((a @ b).numpy(), a.numpy() @ b.numpy())
        assert F.conv2d(x, w).dtype == tw.float64 and a.sum().dtype == tw.float64


def test_blocks_nest_and_end():
    a, b = tensor(2, 2), tensor(2, 2)
    with tw.autocast("bf16"):
        with tw.autocast("fp16"):
            assert (a @ b).dtype == tw.float16
        with tw.autocast("fp32"):
            assert (a @ b).dtype == tw.float32
        assert (a @ b).dtype == tw.bfloat16
    with pytest.raises(ZeroDivisionError), tw.autocast(tw.bfloat16):
        raise ZeroDivisionError
    assert (a @ b).dtype == tw.float32
    assert tw.autocast("bf16")(lambda: a @ b)().dtype == tw.bfloat16


@pytest.mark.parametrize("wrong", ["bf17", None, tw.float64, tw.int32, 16])
def test_unknown_precisions_are_refused(wrong):
    with pytest.raises(tw.ArgumentError, match="'fp32', 'bf16', 'fp16'"):
        tw.autocast(wrong)


# ---- gradients -------------------------------------------------------------------------------------------------------


def network(smooth=False):
    """``smooth``: without kinks and winners, whose gradients jump where a number is rounded."""
    tw.random.seed(3)
    bend, pool = (nn.Tanh, nn.AvgPool2d) if smooth else (nn.ReLU, nn.MaxPool2d)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), bend(), pool(2), nn.Conv2d(4, 4, 3), bend(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


IMAGES, LABELS = RNG.standard_normal((16, 1, 8, 8)).astype(np.float32), np.arange(16) % 3
TOLERANCE = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # half a unit in the last place, relative


def gradients(model, name, run=lambda f: f):
    """Loss and gradients by parameter of one batch."""

    def step(x, y):
        with tw.autocast(name):
            loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        return loss

    loss = run(step)(tw.tensor(IMAGES), tw.tensor(LABELS))
    return loss.item(), {n: p.grad.numpy() for n, p in model.named_parameters()}


@NARROW
def test_gradients_are_float32_and_near_those_of_float32(name):
    model = network(smooth=True)
    exact, wanted = gradients(model, "fp32")
    loss, found = gradients(model, name)
    assert abs(loss - exact) <= 8 * TOLERANCE[name] * exact
    scale = max(np.abs(g).max() for g in wanted.values())
    for key, g in found.items():
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, wanted[key], atol=16 * TOLERANCE[name] * scale, err_msg=key)
    assert any((found[key] != wanted[key]).any() for key in found)  # something was computed in 16 bits


@NARROW
def test_compiled_equals_eager_to_the_bit_on_the_reference(name):
    with tw.device("reference"):
        eager, compiled = gradients(network(), name), gradients(network(), name, tw.compile)
    assert eager[0] == compiled[0]
    for key, g in eager[1].items():
        np.testing.assert_array_equal(g, compiled[1][key], err_msg=key)


@pytest.mark.parametrize("device", ["cpu", "xla:cpu"])
@NARROW
def test_compiled_equals_the_reference_within_rounding(device, name):
    if device == "xla:cpu":
        pytest.importorskip("jax")
    with tw.device("reference"):
        loss, wanted = gradients(network(smooth=True), name)
    with tw.device(device):
        got, found = gradients(network(smooth=True), name, tw.compile)
    assert abs(loss - got) <= 4 * TOLERANCE[name] * loss
    scale = max(np.abs(g).max() for g in wanted.values())
    for key, g in found.items():
        np.testing.assert_allclose(g, wanted[key], atol=8 * TOLERANCE[name] * scale, err_msg=key)


@NARROW
@pytest.mark.parametrize("run", [lambda f: f, tw.compile], ids=["eager", "compiled"])
def test_the_gradient_of_a_bias_is_added_up_in_float32(name, run):
    """70,001 slopes of 1.5 add up to more than float16 holds, and to more digits than bfloat16 has."""
    layer = nn.Linear(1, 1)

    def step(x):
        with tw.autocast(name):
            y = layer(x)
        layer.zero_grad()
        (y.to(tw.float32) * 1.5).sum().backward()
        return layer.bias.grad

    assert run(step)(tw.ones((70_001, 1))).item() == 70_001 * 1.5


def test_gradients_are_computed_in_the_dtypes_of_the_forward_pass():
    """Not in those of the block around ``backward``; both ways."""
    w = tensor(4, 4, requires_grad=True)
    x = tensor(4, 4)

    def slope(forward, backward):
        with tw.autocast(forward):
            loss = (x @ w).to(tw.float32).sum()
        with tw.autocast(backward):
            return tw.gradients(loss, w).numpy()

    exact = x.numpy().sum(axis=0)[:, None] + np.zeros((4, 4), np.float32)
    np.testing.assert_allclose(slope("fp32", "bf16"), exact, rtol=1e-6)
    np.testing.assert_array_equal(slope("bf16", "fp32"), slope("bf16", "bf16"))
    assert (slope("bf16", "fp32") != exact).any()


def test_what_is_computed_again_is_computed_in_the_same_precision():
    x, w = tensor(4, 4), nn.Parameter(tensor(4, 4))
    seen = []

    def product(v):
        seen.append((v @ w).dtype)
        return v @ w

    def slope(f, run=lambda g: g):
        def whole(v):
            with tw.autocast("bf16"):
                y = f(v)
            return tw.gradients(y.to(tw.float32).sum(), w)

        return run(whole)(x).numpy()

    plain = slope(product)
    seen.clear()
    np.testing.assert_array_equal(slope(tw.checkpoint(product)), plain)
    assert seen == [tw.bfloat16, tw.bfloat16]
    np.testing.assert_array_equal(slope(tw.checkpoint(product), tw.compile), plain)


def test_no_grad_leaves_nothing_behind():
    """A cast made under ``no_grad`` is not used again where gradients are wanted."""
    model, x = nn.Linear(3, 2), tensor(5, 3)
    with tw.autocast("bf16"):
        with tw.no_grad():
            model(x)
        model(x).sum().backward()
    assert model.weight.grad is not None and np.abs(model.weight.grad.numpy()).min() > 0


# ---- compiled functions ----------------------------------------------------------------------------------------------


def test_compile_takes_a_precision_or_that_around_the_call():
    a, b = tensor(2, 2), tensor(2, 2)
    plain, low = tw.compile(lambda x, y: x @ y), tw.compile(lambda x, y: x @ y, precision="bf16")
    assert plain(a, b).dtype == tw.float32 and low(a, b).dtype == tw.bfloat16
    with tw.autocast("fp16"):
        assert plain(a, b).dtype == tw.float16 and low(a, b).dtype == tw.bfloat16
        assert tw.compile(lambda x, y: x @ y, precision="fp32")(a, b).dtype == tw.float32
    assert plain(a, b).dtype == tw.float32
    assert plain.retraces == ["autocast around the call changed"]
    assert tw.compile(lambda x: low(x, x) + low(x, x))(a).dtype == tw.bfloat16  # inside another trace
    with pytest.raises(tw.ArgumentError, match="precision"):
        tw.compile(lambda x: x, precision="bf17")


def test_gradients_through_a_compiled_function_keep_its_precision():
    w = tensor(3, 3, requires_grad=True)
    function = tw.compile(lambda x: (x @ w).sum(), precision="fp32")
    x = tensor(3, 3)
    with tw.autocast("bf16"):
        (slope,) = tw.gradients(function(x), [w])
    np.testing.assert_allclose(slope.numpy(), x.numpy().sum(axis=0)[:, None] + np.zeros((3, 3)), rtol=1e-6)


def test_graphs_with_placeholders_hold_the_casts():
    with tw.Graph() as g, tw.autocast("bf16"):
        x = tw.placeholder((None, 3), tw.float32, "x")
        y = (x @ tw.ones((3, 2))).sum()
        (slope,) = tw.gradients(y, [x])
    value, found = tw.Session(g).run([y, slope], {"x": np.ones((4, 3), np.float32)})
    assert value == 24.0 and found.dtype == np.float32 and (found == 2.0).all()


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
def test_exported_programs_keep_the_precision(tmp_path, suffix):
    if suffix == "stablehlo":
        pytest.importorskip("jax")
    model, x = network().eval(), tw.tensor(IMAGES)
    compiled = tw.compile(model, precision="fp16")
    path = tmp_path / f"net.{suffix}"
    tw.export(compiled, x, path)
    with tw.no_grad():
        expected = compiled(x).numpy()
    found = tw.load(path)(IMAGES).numpy()
    assert found.dtype == expected.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=4e-3)


@NARROW
def test_xla_is_given_convolutions_and_products_in_16_bits(name):
    """All of them, forward and backward; a device without such units may still compute them in float32."""
    pytest.importorskip("jax")
    from twofold.backends.xla.program import Pending, XlaProgram

    with tw.device("xla:cpu"):
        model = network()

        def step(x, y):
            loss = F.cross_entropy(model(x), y)
            model.zero_grad()
            loss.backward()
            return loss

        graph = tw.compile(step, precision=name).graph(tw.tensor(IMAGES), tw.tensor(LABELS))
        text = XlaProgram(graph, tw.zeros(()).device, (), Pending()).text(compiled=False)
    made = re.findall(r"= (\w+)\[[^=]* (convolution|dot)\(", text)
    short = {"bf16": "bf16", "fp16": "f16"}[name]
    assert made and {dtype for dtype, _ in made} == {short}
    assert sum(kind == "convolution" for _, kind in made) == 5  # two forward, three backward: images need no gradient


def test_without_gradients_a_bias_is_cast_before_it_meets_the_images():
    """So that no array of the whole batch stands between a graph and its images."""
    layer, x = tw.nn.Conv2d(2, 3, 1), tensor(4, 2, 5, 5)
    run = tw.compile(layer, precision="bf16")
    names = lambda: [node.op.name for node in run.graph(x).nodes]
    assert "broadcast_to" in names()
    known = run(x).numpy()
    with tw.no_grad():
        assert "broadcast_to" not in names()
        assert np.array_equal(run(x).numpy(), known)
