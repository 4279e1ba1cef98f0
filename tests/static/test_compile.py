"""Compiled functions: the same numbers as eager, state, gradients through and inside, and why a trace is made again."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.base.errors import DtypeError

RNG = np.random.default_rng(3)


def randn(*shape):
    return tw.tensor(RNG.standard_normal(shape).astype(np.float32))


def make_step():
    w = tw.Variable(np.array([1.0, -2.0, 3.0], np.float32), requires_grad=True, name="w")
    moment = tw.Variable(np.zeros(3, np.float32), name="moment")
    count = tw.Variable(np.int64(0), name="count")

    def step(x, y):
        loss = ((w * x - y) ** 2).mean()
        w.grad = None
        loss.backward()
        moment.assign(moment * 0.9 + w.grad)
        w.assign(w - moment * 0.1)
        count.assign(count + 1)
        return {"loss": loss, "count": count + 0}

    return step, (w, moment, count)


def same(device, found, expected):
    """To the bit on the reference, which runs both alike; on the CPU within rounding: sums run in another order there, and
    logarithms and the like may round otherwise."""
    exact = device == "reference"
    np.testing.assert_allclose(found, expected, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)


DEVICES = pytest.mark.parametrize("device", ["reference", "cpu"])


@DEVICES
def test_a_training_step_gives_the_same_numbers_eagerly_and_compiled(device):
    with tw.device(device):
        eager, eager_state = make_step()
        plain, compiled_state = make_step()
        compiled = tw.compile(plain)
        for _ in range(4):
            x, y = randn(5, 3), randn(5, 3)
            a, b = eager(x, y), compiled(x, y)
            same(device, b["loss"].item(), a["loss"].item())
            assert a["count"].item() == b["count"].item()
        for a, b in zip(eager_state, compiled_state):
            same(device, b.numpy(), a.numpy())
        same(device, compiled_state[0].grad.numpy(), eager_state[0].grad.numpy())
        assert compiled.retraces == []


def test_gradients_accumulate_across_compiled_calls_as_they_do_eagerly():
    def backward(w):
        def run(x):
            (w * x).sum().backward()

        return run

    a, b = (tw.Variable(np.ones(3, np.float32), requires_grad=True) for _ in range(2))
    eager, compiled = backward(a), tw.compile(backward(b))
    for _ in range(3):
        x = randn(3)
        eager(x)
        compiled(x)
    np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())
    b.grad = None
    compiled(x)
    np.testing.assert_array_equal(b.grad.numpy(), x.numpy())


@DEVICES
def test_backward_through_a_compiled_function(device):
    with tw.device(device):
        w = tw.Variable(RNG.standard_normal((4, 3)).astype(np.float32), requires_grad=True)
        f = lambda x: tw.tanh(x @ w).sum(axis=1)
        x = randn(5, 4).requires_grad_()
        (f(x) * 3.0).sum().backward()
        expected_x, expected_w = x.grad.numpy(), w.grad.numpy()
        x.grad = w.grad = None
        compiled = tw.compile(f)
        (compiled(x) * 3.0).sum().backward()
        rtol, atol = (1e-6, 0) if device == "reference" else (1e-5, 1e-6)
        np.testing.assert_allclose(x.grad.numpy(), expected_x, rtol=rtol, atol=atol)
        np.testing.assert_allclose(w.grad.numpy(), expected_w, rtol=rtol, atol=atol)
        with tw.no_grad():
            assert not compiled(x).requires_grad


def test_second_order_through_a_compiled_function():
    compiled = tw.compile(lambda x: (x**3).sum())
    x = tw.tensor([1.0, 2.0], requires_grad=True)
    (g,) = tw.gradients(compiled(x), [x])
    (h,) = tw.gradients(g.sum(), [x])
    np.testing.assert_allclose(h.numpy(), [6.0, 12.0], rtol=1e-6)


def test_gradients_inside_a_compiled_function():
    f = tw.compile(lambda x: tw.grad(lambda v: (v * v * v).sum())(x))
    np.testing.assert_allclose(f(tw.tensor([1.0, 2.0])).numpy(), [3.0, 12.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ((randn(2, 3),), (randn(4, 3),), "argument 'x': dimension 0 was 2, is 4"),
        ((randn(2, 3),), (randn(3),), "argument 'x': f32\\[2,3\\] became f32\\[3\\]"),
        ((randn(3),), (tw.tensor([1, 2]),), "argument 'x': dtype float32 became int64"),
        ((randn(3), 2), (randn(3), 3), "argument 'scale': 2 became 3"),
    ],
)
def test_a_second_trace_says_why(first, second, reason):
    compiled = tw.compile(lambda x, scale=1: x * scale)
    compiled(*first)
    compiled(*first)
    assert compiled.retraces == []
    compiled(*second)
    assert len(compiled.retraces) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(compiled.retraces[0])


def test_names_of_nested_arguments_are_in_the_reason():
    compiled = tw.compile(lambda batch: batch["image"] + batch["more"][0])
    compiled({"image": randn(2), "more": [randn(2)]})
    compiled({"image": randn(3), "more": [randn(3)]})
    assert compiled.retraces[0].startswith("argument \"batch['image']\": dimension 0 was 2, is 3")


def test_python_control_flow_on_a_traced_value_is_refused_with_advice():
    with pytest.raises(tw.TraceError, match=r"tw\.cond"):
        tw.compile(lambda x: x if x.sum() > 0 else -x)(randn(3))


def test_nested_results_and_plain_values_come_back_as_they_are():
    out = tw.compile(lambda x: {"a": (x + 1, None), "b": ["text", x]})(tw.tensor([1.0]))
    assert (
        out["a"][0].tolist() == [2.0]
        and out["a"][1] is None
        and out["b"][0] == "text"
        and out["b"][1].tolist() == [1.0]
    )


def test_a_compiled_function_inside_another_becomes_part_of_it():
    inner = tw.compile(lambda x: x * 2)
    outer = tw.compile(lambda x: inner(x) + 1)
    assert outer(tw.tensor([1.0])).tolist() == [3.0]
    assert [n.op.name for n in outer.graph(tw.tensor([1.0])).nodes if n.op.kind == "elementwise"] == ["multiply", "add"]


def test_a_decorated_method_and_decorator_arguments():
    class Thing:
        def __init__(self):
            self.w = tw.Variable(2.0)

        @tw.compile(verify=True)
        def run(self, x):
            return x * self.w

    assert Thing().run(tw.tensor([3.0])).tolist() == [6.0]


@DEVICES
def test_random_numbers_are_the_same_eagerly_and_compiled_and_move_on(device):
    draw = lambda: tw.random.normal((5,))
    with tw.device(device):
        tw.random.seed(7)
        eager = [draw().numpy() for _ in range(3)]
        tw.random.seed(7)
        compiled = tw.compile(draw)
        found = [compiled().numpy() for _ in range(3)]
    same(device, found, eager)
    assert not np.array_equal(found[0], found[1])


def test_a_variable_keeps_its_numbers_for_those_who_looked_before():
    v = tw.Variable(np.zeros(4, np.float32))
    before, seen = v.detach(), v.numpy()
    tw.compile(lambda: v.assign(v + 1))()
    assert v.tolist() == [1.0] * 4 and before.tolist() == [0.0] * 4 and seen.tolist() == [0.0] * 4


def test_verification_names_the_node_that_differs():
    from twofold.backends import device
    from twofold.static.verification import check_against_reference

    graph = tw.compile(lambda x: tw.exp(x) * 2.0).graph(randn(3))
    x = randn(3).numpy()
    with pytest.raises(tw.VerificationError, match="differs from the reference"):
        check_against_reference(graph, lambda buffers: [np.exp(x) * 2.1], [x], device("reference"))


def test_graphs_print_and_parse_back():
    from twofold.ir.parse import parse_graph

    graph = tw.compile(make_step()[0]).graph(randn(5, 3), randn(5, 3))
    text = str(graph)
    assert str(parse_graph(text)) == text
    assert text.startswith("graph step(%x: f32[5,3], %y: f32[5,3]")


def test_two_networks_and_two_optimizers_in_one_program(tmp_path):
    """Their variables have the same names; the program's states do not."""
    tw.random.seed(0)
    make = lambda: tw.nn.Linear(3, 3)
    pairs = [(make(), make()) for _ in range(2)]
    for one, two in pairs:
        one.load_state_dict(pairs[0][0].state_dict())
        two.load_state_dict(pairs[0][1].state_dict())
    x = tw.tensor(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    for run, (one, two) in zip((lambda f: f, tw.compile), pairs):
        first, second = (tw.optim.Adam(m.parameters(), lr=lr) for m, lr in ((one, 0.1), (two, 0.01)))

        @run
        def step(x, one=one, two=two, first=first, second=second):
            loss = (two(one(x).tanh()) ** 2).sum()
            loss.backward()
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()
            return loss

        for _ in range(3):
            step(x)
    for a, b in zip(*([*one.parameters(), *two.parameters()] for one, two in pairs)):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    one, two = pairs[0]
    tw.export(lambda x: two(one(x)), x, tmp_path / "two.onnx")
    np.testing.assert_allclose(tw.load(tmp_path / "two.onnx")(x).numpy(), two(one(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_reports_name_what_was_fused_and_both_halves_of_a_gradient():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    f = tw.compile(lambda x: model(x))
    x = tw.ones((2, 3, 8, 8))
    assert f.report() == "nothing was compiled yet: call it, or prepare() it"
    with tw.no_grad():
        f(x)
    convolution = next(line for line in f.report().splitlines() if "conv_" in line)
    assert "conv, relu (" in convolution and convolution.endswith("[0, 2]")
    assert "relu f32[2,8,6,6] of 2 is stored" in f.report() and "backward" not in f.report()
    f(x).sum().backward()
    assert "# lambda: forward, and what backward() needs of it" in f.report() and "# lambda: backward\n" in f.report()
    assert "conv_weight_grad" in f.report()


@pytest.mark.parametrize("looks", ["nobody", "numpy", "base"])
def test_state_of_reshaped_numbers_is_copied_only_if_somebody_looks(looks):
    """What initialisation makes is a view, of an array that nobody knows."""
    w = tw.Variable(np.zeros((2, 3), np.float32))
    memory = np.zeros(6, np.float32)
    w.set_buffer(memory.reshape(2, 3), w.device)
    where = memory.ctypes.data
    seen = {"nobody": None, "numpy": w.numpy(), "base": memory}[looks]
    del memory

    @tw.compile
    def add():
        w.assign(w + 1.0)

    add()
    assert (w.numpy() == 1).all() and (seen is None or (seen == 0).all())
    assert (w.numpy().ctypes.data == where) == (looks == "nobody")


def test_a_gradient_of_another_dtype_is_refused_at_every_call():
    p, x = nn.Parameter(tw.ones(5)), tw.ones(5)

    @tw.compile
    def accumulate(x):
        loss = (p * x).sum()
        loss.backward()
        return loss

    for _ in range(3):
        accumulate(x)
    np.testing.assert_array_equal(p.grad.numpy(), 3 * np.ones(5))
    p.grad = tw.ones(5, dtype=tw.float64)
    with pytest.raises(DtypeError):
        accumulate(x)
