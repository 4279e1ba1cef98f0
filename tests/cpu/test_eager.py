"""Eager on the CPU: ops and gradients that go through compiled programs, and the table of those programs."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu import eager
from twofold.backends.cpu.eager import Table
from twofold.base.errors import ShapeError
from twofold.ir import OPS, Spec
from twofold.ir.builder import eager_pull_back
from twofold.nn import functional as F

RNG = np.random.default_rng(3)
WINDOW = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
LINE = {"strides": (2,), "padding": ((1, 1),), "dilation": (1,), "groups": 1}
POOL = {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "ceil_mode": False}
BIG = (4, 32, 32, 32)
ROWS = [  # op, operands, attributes: of each kind that RULES names, just large enough
    ("conv", [(2, 4, 16, 16), (8, 4, 3, 3)], {**WINDOW, "groups": 1}),
    ("conv_input_grad", [(2, 8, 16, 16), (8, 4, 3, 3)], {**WINDOW, "groups": 1, "input_shape": (16, 16)}),
    ("conv_weight_grad", [(16, 1, 28, 28), (16, 6, 28, 28)], {**WINDOW, "groups": 1, "kernel": (3, 3)}),  # 54 numbers
    ("conv", [(2, 8, 400), (16, 8, 3)], LINE),
    ("conv_input_grad", [(2, 16, 200), (16, 8, 3)], {**LINE, "input_shape": (400,)}),
    ("conv_weight_grad", [(2, 8, 400), (2, 16, 200)], {**LINE, "kernel": (3,)}),
    ("max_pool", [(2, 16, 16, 16)], POOL),
    ("batch_norm_train", [(4, 8, 16, 16), (8,), (8,)], {"eps": 1e-5}),
    ("relu", [BIG], {}),
    ("add", [BIG, BIG], {}),
    ("multiply", [BIG, (32, 1, 1)], {}),
    ("exp", [BIG], {}),
    ("sum", [BIG], {"axes": (0, 2, 3), "keepdims": False}),
    ("max", [BIG], {"axes": (1,), "keepdims": True}),
    ("matmul", [(128, 64), (64, 48)], {}),
    ("concat", [(4, 32, 32, 64), (4, 32, 32, 64)], {"axis": 1}),
]
LAYOUTS = {
    "rows": lambda x: x,
    "channels-last": lambda x: _channels_last(x) if x.ndim == 4 else x,
    "a slice of images": lambda x: _channels_last(np.concatenate([x, x], 1))[:, x.shape[1] :] if x.ndim == 4 else x,
    "reversed": lambda x: x[..., ::-1],
}


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "shapes", "attrs"), ROWS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_heavy_op_is_what_numpy_says(name, shapes, attrs, layout, monkeypatch):
    monkeypatch.setattr(eager, "PROGRAMS", Table())
    op = OPS[name]
    xs = [LAYOUTS[layout](RNG.standard_normal(s).astype(np.float32)) for s in shapes]
    specs = op.specs(tuple(Spec(x.shape, tw.float32) for x in xs), attrs)
    patience = (eager.RULES.get(op.kind) or eager.RULES[op.name]).patience if name in eager.EXACT else 0
    found = [eager.run(op, xs, attrs, specs) for _ in range(patience + 1)]
    assert found[:-1] == [None] * patience
    expected = op.ref(*xs, **attrs)
    for got, want in zip(found[-1], expected if op.multi else (expected,), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(want).max()))


SMALL = [
    ("add", [(10,), (10,)], {}),
    ("relu", [(100, 100)], {}),
    ("conv", [(1, 1, 8, 8), (1, 1, 3, 3)], {**WINDOW, "groups": 1}),
    ("matmul", [(32, 64), (64, 64)], {}),
    ("reshape", [BIG], {"shape": (32, 4096)}),
]


@pytest.mark.parametrize(("name", "shapes", "attrs"), SMALL)
def test_light_ops_never_get_a_program(name, shapes, attrs):
    op = OPS[name]
    xs = [RNG.standard_normal(s).astype(np.float32) for s in shapes]
    specs = op.specs(tuple(Spec(x.shape, tw.float32) for x in xs), attrs)
    assert [eager.run(op, xs, attrs, specs) for _ in range(4)] == [None] * 4


def test_float64_stays_with_numpy():
    xs = [RNG.standard_normal(BIG), RNG.standard_normal(BIG)]
    assert [eager.run(OPS["add"], xs, {}, [Spec(BIG, tw.float64)]) for _ in range(4)] == [None] * 4


# ---- gradients of one op as one program ------------------------------------------------------------------------------


def _block(x, p):
    """A residual block: the sum with the shortcut's gradient is part of the convolution's program."""
    y = F.relu(F.batch_norm(F.conv2d(x, p["w"], p["b"], padding=1), None, None, p["g"], p["c"], True))
    return F.relu(F.conv2d(y, p["v"], padding=1) + x)


NETWORKS = {
    "residual block": _block,
    "pools": lambda x, p: F.avg_pool2d(F.max_pool2d(F.conv2d(x, p["w"], padding=1), 3, 2, 1), 2),
    "the same value twice": lambda x, p: F.conv2d(x * x, p["w"]) * F.conv2d(x, p["w"]),
    "groups and strides": lambda x, p: F.conv2d(x, p["w"][:, :2], stride=2, padding=1, groups=8),
    "broadcasting": lambda x, p: (F.conv2d(x, p["w"]) * tw.reshape(p["g"], (1, 16, 1, 1))).tanh(),
    "normalisations": lambda x, p: F.group_norm(F.local_response_norm(x, 5), 4, p["g"], p["c"]),
    "activations": lambda x, p: F.gelu(F.layer_norm(x, (34,))) + F.elu(F.conv2d(x, p["w"], p["b"], padding=1)),
    "products": lambda x, p: F.log_softmax(F.linear(tw.reshape(x, (-1, 34 * 34)), p["l"], p["m"]), 1),
    "clipped": lambda x, p: F.relu(tw.clip(x, -0.5, 0.5) + tw.maximum(x, p["g"][0])),
}


def _parameters(dtype):
    rng = np.random.default_rng(5)
    shapes = {"w": (16, 16, 3, 3), "v": (16, 16, 3, 3), "b": (16,), "g": (16,), "c": (16,), "l": (50, 1156), "m": (50,)}
    return {k: tw.tensor(rng.standard_normal(s).astype(dtype) * 0.3, requires_grad=True) for k, s in shapes.items()}


def _gradients(network, dtype, device="cpu"):
    with tw.device(device):
        x = tw.tensor(np.random.default_rng(6).standard_normal((4, 16, 34, 34)).astype(dtype), requires_grad=True)
        p = _parameters(dtype)
        y = network(x, p)
        found = tw.gradients((y * y).mean(), [x, *p.values()])
        (network(x, p) ** 2).mean().backward()
        for leaf, g in zip([x, *p.values()], found):
            assert (leaf.grad is None) == (g is None)
        return [None if leaf.grad is None else leaf.grad.numpy() for leaf in [x, *p.values()]]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_reference_in_float64(name, monkeypatch):
    used = []
    run = eager.run_graph
    monkeypatch.setattr(eager, "run_graph", lambda g, b: used.append(out := run(g, b)) or out)
    expected = _gradients(NETWORKS[name], np.float64, "reference")
    for _ in range(4):  # those with patience, too
        found = _gradients(NETWORKS[name], np.float32)
    largest = max(np.abs(want).max() for want in expected if want is not None)
    for got, want in zip(found, expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:  # (a bias before a batch norm has none but rounding)
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-5 * largest)
    assert any(out is not None for out in used)


def test_recorded_gradients_are_differentiable_again():
    x = tw.tensor(RNG.standard_normal((2, 8, 12, 12)).astype(np.float32), requires_grad=True)
    w = tw.tensor(RNG.standard_normal((8, 8, 3, 3)).astype(np.float32), requires_grad=True)
    y = (F.conv2d(x, w) ** 2).sum()
    g = tw.gradients(y, w)
    (h,) = tw.gradients((g * g).sum(), [x])
    assert h.shape == x.shape and np.abs(h.numpy()).max() > 0


def _twice(dtype, device):
    """The gradient of a gradient's size, through functions that are one op of the record each."""
    with tw.device(device):
        rng = np.random.default_rng(8)
        x, w, b = (
            tw.tensor(rng.standard_normal(s).astype(dtype) * 0.5, requires_grad=True)
            for s in [(2, 8, 24, 24), (8, 8, 3, 3), (8,)]
        )
        y = F.gelu(F.conv2d(x, w, b))
        gs = tw.gradients((y * y).sum(), [x, w, b])
        return [g.numpy() for g in tw.gradients(sum((g * g).mean() for g in gs), [x, w, b])]


def test_functions_recorded_as_one_op_are_differentiable_twice():
    for got, want in zip(_twice(np.float32, "cpu"), _twice(np.float64, "reference"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_a_function_of_several_ops_is_one_node_of_the_record_and_several_of_a_graph():
    x = tw.tensor(RNG.standard_normal((2, 8, 24, 24)).astype(np.float32), requires_grad=True)
    w, b = tw.ones((8, 8, 3, 3)), tw.ones(8)
    assert F.conv2d(x, w, b).value.producer.op.name == "conv2d"
    assert [n.op.name for n in tw.compile(F.conv2d).trace(x, w, b).graph.nodes][-1] == "add"
    assert F.conv2d(x[:1, :, :8, :8], w, b).value.producer.op.name == "add"  # small: op by op


@pytest.mark.parametrize("slopes", [(0.0, -0.0), (-0.0, 0.0)])
def test_zeros_of_either_sign_are_two_arguments(slopes):
    x = tw.tensor(np.full((64, 64, 32), -1, np.float32))
    signs = [np.signbit(F.leaky_relu(x, slope).numpy()) for slope in slopes]
    assert [s.all() for s in signs] == [np.copysign(1, -slope) < 0 for slope in slopes]
    assert not (signs[0] & signs[1]).any()


def test_functions_of_many_small_ops_are_one_program_each_way(monkeypatch):
    """The cross-entropy of a first network: no op of it is worth one. From the first time on, so that a training that goes on
    after it was interrupted computes what it would have."""
    monkeypatch.setattr(eager, "PROGRAMS", Table())
    rows, labels = RNG.standard_normal((128, 10)).astype(np.float32), RNG.integers(0, 10, 128)
    shifted = rows.astype(np.float64) - rows.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    gradient = (np.exp(logs) - np.eye(10)[labels]) / 128
    x = tw.tensor(rows).requires_grad_()
    loss = F.cross_entropy(x, tw.tensor(labels))
    loss.backward()
    np.testing.assert_allclose(loss.numpy(), -logs[np.arange(128), labels].mean(), rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), gradient, rtol=1e-4, atol=1e-8)
    assert len(eager.PROGRAMS) == 2


def test_errors_of_functions_recorded_as_one_op_are_their_own():
    x, w = tw.ones((2, 8, 64, 64)), tw.ones((8, 4, 3, 3))
    with pytest.raises(ShapeError, match="x has 8 channels"):
        F.conv2d(x, w)


def test_one_program_for_each_wanted_set_of_inputs():
    """Where the weights alone are trained, the gradient of the images is not computed."""
    w = tw.tensor(RNG.standard_normal((8, 8, 3, 3)).astype(np.float32), requires_grad=True)
    x = tw.tensor(RNG.standard_normal((2, 8, 12, 12)).astype(np.float32))
    F.conv2d(x, w).sum().backward()
    tracked = tw.tensor(x.numpy(), requires_grad=True)
    alone = w.grad.numpy().copy()
    w.grad = None
    F.conv2d(tracked, w).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), alone, rtol=1e-5)
    assert tracked.grad is not None and x.grad is None
    assert len(eager_pull_back) == 1


# ---- the table of programs -------------------------------------------------------------------------------------------


def test_the_table_drops_what_was_not_used_lately():
    table = Table(most=2)
    assert [table.get(k, 0, lambda k=k: k.upper()) for k in "abab"] == ["A", "B", "A", "B"]
    table.get("a", 0, list)
    assert table.get("c", 0, lambda: "C") == "C" and len(table) == 2
    assert table.get("a", 0, lambda: "again") == "A"
    assert table.get("b", 0, lambda: "again") == "again"


def test_what_needs_patience_is_made_at_the_next_time():
    table = Table()
    assert [table.get("k", 2, lambda: "made") for _ in range(4)] == [None, None, "made", "made"]


def test_what_is_not_exact_is_made_at_once_unless_nobody_comes_back_for_such(monkeypatch):
    monkeypatch.setattr(eager, "MOST_ONCE", 3)
    table = Table()
    get = lambda k: table.get(k, 2, lambda: k.upper(), exact=False)
    assert [get(k) for k in "aabbccddee"] == list("AABBCCDDEE")  # all of them were asked for again
    assert [get(k) for k in "fgh"] == list("FGH")
    assert [get(k) for k in "iii"] == [None, None, "I"]
    assert get("f") == "F" and get("j") == "J"  # one came back


A, B = (RNG.uniform(0.1, 2, (300, 300)).astype(np.float32) for _ in range(2))
REPEATED = {
    **{name: lambda a, b, name=name: getattr(tw, name)(a) for name in ("exp", "log1p", "sin", "atan", "erf", "tanh", "sqrt")},
    **{name: lambda a, b, name=name: getattr(tw, name)(a, b) for name in ("pow", "atan2", "logaddexp", "hypot", "remainder")},
    **{name: lambda a, b, name=name: getattr(tw, name)(a, axis=1) for name in ("sum", "prod", "std", "argmax", "var")},
    "matmul": lambda a, b: a @ b,
    "small matmul": lambda a, b: a[:64, :64] @ b[:64, :64],
    "softmax": lambda a, b: F.softmax(a, axis=0),
    "gelu": lambda a, b: F.gelu(a),
    "norm": lambda a, b: tw.sqrt(tw.sum(a * a)) * b,
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", REPEATED)
def test_how_often_something_came_does_not_change_its_bits(name, dtype, monkeypatch):
    """Nor those of its gradients."""
    monkeypatch.setattr(eager, "PROGRAMS", Table())
    found = set()
    for _ in range(4):
        a, b = (tw.astype(tw.tensor(x), getattr(tw, dtype)).requires_grad_() for x in (A, B))
        out = REPEATED[name](a, b)
        if out.dtype.is_floating and out.requires_grad:
            tw.sum(out).backward()
        found.add(b"".join(t.numpy().tobytes() for t in (out, a.grad, b.grad) if t is not None))
    assert len(found) == 1


@pytest.mark.parametrize("width", [16, 300])
@pytest.mark.parametrize("make", [lambda p: tw.optim.SGD(p, lr=0.01, momentum=0.9), lambda p: tw.optim.Adam(p, lr=0.01)])
def test_a_training_done_again_has_the_same_bits(make, width, monkeypatch):
    """As one that goes on in a new process has: its first steps are not the first ones of the table of programs."""
    monkeypatch.setattr(eager, "PROGRAMS", Table())
    x, labels = tw.tensor(np.random.default_rng(1).standard_normal((64, 3, 8, 8)).astype(np.float32)), tw.tensor(np.arange(64) % 10)
    found = []
    for _ in range(2):
        tw.random.seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 64, width),
            nn.Tanh(), nn.Linear(width, 10),
        )  # fmt: skip
        optimizer = make(net.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()
        found.append([p.numpy() for p in net.parameters()])
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_nobody_waits_for_the_compilation_of_another_program():
    table, begun, go_on = Table(), threading.Event(), threading.Event()
    made = []

    def slow():
        begun.set()
        assert go_on.wait(10)
        made.append("slow")
        return "slow"

    waiting = [threading.Thread(target=table.get, args=("a", 0, slow)) for _ in range(3)]
    for t in waiting:
        t.start()
    assert begun.wait(10)
    assert table.get("b", 0, lambda: "quick") == "quick"  # would deadlock under one lock
    go_on.set()
    for t in waiting:
        t.join()
    assert made == ["slow"]  # once, for all who waited


def test_a_failed_compilation_is_tried_again():
    table = Table()
    with pytest.raises(ZeroDivisionError):
        table.get("k", 0, lambda: 1 // 0)
    assert table.get("k", 0, lambda: "made") == "made"


def test_threads_that_compute_at_once_get_the_same_numbers():
    def step(shift: int) -> np.ndarray:
        p = _parameters(np.float32)
        x = tw.tensor(np.random.default_rng(7 + shift).standard_normal((2, 16, 20 + shift, 20)).astype(np.float32))
        (_block(x, p) ** 2).mean().backward()
        return np.concatenate([v.grad.numpy().ravel() for v in p.values() if v.grad is not None])  # the block uses not all

    expected = [step(i) for i in range(3)]
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = step(i % 3)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, got in found.items():
        np.testing.assert_array_equal(got, expected[i % 3])
