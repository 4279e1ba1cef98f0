"""tw.export and tw.load: networks at any batch size, training steps continued without their code, nests, errors."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx_tools import operators, run_ort

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError, FormatError, GraphError, TraceError
from twofold.nn import functional as F


class Net(nn.Module):
    """A small CNN with batch norm, dropout and every usual layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.25)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8 * 3 * 3, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = F.avg_pool2d(tw.tanh(self.conv2(x)), 2)
        return self.fc(self.drop(x.reshape(x.shape[0], -1)))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(4, 1, 16, 16)).astype(np.float32)


@pytest.fixture
def net():
    tw.random.seed(1)
    return Net()


def test_network(net, images, tmp_path):
    """Exported == eager == ONNX Runtime at two batch sizes; names are kept; training mode is restored."""
    path = tmp_path / "net.onnx"
    tw.export(net, tw.tensor(images), path)
    assert net.training
    net.eval()
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == [
        "Conv", "BatchNormalization", "Relu", "MaxPool", "Conv", "Tanh", "AveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    assert {i.name for i in model.graph.initializer} >= {name for name, _ in net.named_parameters()}
    assert [i.name for i in model.graph.input] == ["x"]
    loaded = tw.load(path)
    for batch in (4, 1):
        want = net(tw.tensor(images[:batch])).numpy()
        np.testing.assert_allclose(loaded(images[:batch]).numpy(), want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loaded(x=images[:batch]).numpy(), want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run_ort(model, [images[:batch]])[0], want, rtol=1e-4, atol=1e-5)


def test_export_of_what_was_loaded_is_the_same_file(net, images, tmp_path):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    tw.export(net, tw.tensor(images), first)
    tw.export(tw.load(first), None, second)
    a, b = onnx.load(first), onnx.load(second)
    assert operators(a) == operators(b)
    arrays = lambda m: {i.name: i.raw_data for i in m.graph.initializer}
    assert arrays(a) == arrays(b)


def _step(net):
    optimizer = tw_sgd(net)

    @tw.compile
    def step(x, labels):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return step


def tw_sgd(net):
    from twofold import optim

    return optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


CONTINUE = """
import sys, numpy as np
import twofold as tw
data = np.load(sys.argv[2])
step = tw.load(sys.argv[1])
losses = [float(step(x, y)["loss"]) for x, y in zip(data["x"], data["y"])]
assert not any(name.startswith("twofold.nn") or name.startswith("twofold.optim") for name in sys.modules), "model code"
tw.export(step, None, sys.argv[3])
print(losses)
"""


def test_training_goes_on_in_a_process_without_the_code(net, tmp_path):
    """A step with momentum, batch-norm statistics and dropout's random key: saved, run elsewhere, saved again, run
    here: the same losses and parameters to the bit as an uninterrupted run."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 5, 1, 16, 16)).astype(np.float32), rng.integers(0, 10, (6, 5))
    step = _step(net)
    example = (tw.tensor(x[0]), tw.tensor(y[0]))
    step(*example)
    tw.export(step, example, tmp_path / "step.onnx")
    want = [float(step(tw.tensor(a), tw.tensor(b))["loss"]) for a, b in zip(x, y)]
    np.savez(tmp_path / "data.npz", x=x[:3], y=y[:3])
    command = [sys.executable, "-c", CONTINUE, *(str(tmp_path / n) for n in ("step.onnx", "data.npz", "again.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    again = tw.load(tmp_path / "again.onnx")
    got = json.loads(done.stdout) + [float(again(a, b)["loss"]) for a, b in zip(x[3:], y[3:])]
    assert got == want
    state = again.state()
    for name, parameter in net.named_parameters():
        np.testing.assert_array_equal(state[name], parameter.numpy())


def test_a_training_step_runs_at_another_batch_size(net, tmp_path):
    step = _step(net)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 1, 16, 16)).astype(np.float32), rng.integers(0, 10, 5)
    tw.export(step, (tw.tensor(x), tw.tensor(y)), tmp_path / "step.onnx")
    loaded = tw.load(tmp_path / "step.onnx")
    want = float(step(tw.tensor(x[:3]), tw.tensor(y[:3]))["loss"])
    assert float(loaded(x[:3], y[:3])["loss"]) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, (b, a)],
        lambda a, b: {"sum": a, "rest": [b, None]},
        lambda a, b: (a,),
        lambda a, b: {"x": a, "same": a},
    ],
)
def test_results_keep_their_nest(nest, tmp_path):
    function = lambda x, y: nest(x + y, x * y)
    a, b = tw.tensor([1.0, 2.0]), tw.tensor([3.0, 5.0])
    tw.export(function, (a, b), tmp_path / "f.onnx")
    got, want = tw.load(tmp_path / "f.onnx")(a, b), function(a, b)
    from twofold.base.tree import flatten

    (leaves, structure), (expected, form) = flatten(got), flatten(want)
    assert structure == form
    assert [leaf.tolist() for leaf in leaves] == [leaf.tolist() for leaf in expected]


def test_control_flow_in_a_file(tmp_path):
    """Python-free branches and loops: If, Loop and Scan, also run by ONNX Runtime."""

    def function(x):
        big = tw.cond(x.sum() > 0.0, lambda: x * 2.0, lambda: x - 1.0)
        count, halved = tw.while_loop(
            lambda c: (c[1] * c[1]).sum() > 1.0, lambda c: (c[0] + 1, c[1] * 0.5), (tw.asarray(0), big)
        )
        total, sums = tw.scan(lambda c, row: (c + row, c * row), tw.zeros((3,)), x)
        return halved, count, total, sums

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    tw.export(function, tw.tensor(x), tmp_path / "f.onnx", dynamic_batch=False)
    model, loaded = onnx.load(tmp_path / "f.onnx"), tw.load(tmp_path / "f.onnx")
    assert {"If", "Loop", "Scan"} <= set(operators(model))
    for sign in (1, -1):
        want = [v.numpy() for v in function(tw.tensor(sign * x))]
        for results in ([v.numpy() for v in loaded(sign * x)], run_ort(model, [sign * x])):
            for got, expected in zip(results, want, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_fixed_batch_and_output_names(net, images, tmp_path):
    tw.export(net, tw.tensor(images), tmp_path / "n.onnx", dynamic_batch=False, output_names=["logits"])
    model = onnx.load(tmp_path / "n.onnx")
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [4, 1, 16, 16]
    assert [o.name for o in model.graph.output] == ["logits"]
    with pytest.raises(tw.ShapeError, match=r"\(2, 1, 16, 16\).*\(4, 1, 16, 16\)"):
        tw.load(tmp_path / "n.onnx")(images[:2])


def test_int_bool_and_half_inputs(tmp_path):
    function = lambda i, b, h: (i * 2, tw.logical_not(b), tw.astype(h, tw.float32) + 1.0)
    args = (tw.tensor([1, 2]), tw.tensor([True, False]), tw.tensor([0.5, 1.5], dtype=tw.bfloat16))
    tw.export(function, args, tmp_path / "f.onnx")
    got = tw.load(tmp_path / "f.onnx")(*args)
    assert [v.tolist() for v in got] == [[2, 4], [False, True], [1.5, 2.5]]


ERRORS = [
    (lambda p: tw.export(lambda x: x, tw.ones(2), p / "f.txt"), FormatError, r"'.txt'; expected one of .*onnx"),
    (lambda p: tw.export(lambda x: x, tw.ones(2)), ArgumentError, "path is missing"),
    (lambda p: tw.export(lambda x: x, None, p / "f.onnx"), ArgumentError, "example_inputs are missing"),
    (lambda p: tw.export(lambda x: (x, 3), tw.ones(2), p / "f.onnx"), ArgumentError, "returns int values"),
    (lambda p: tw.export(lambda x: x if x.sum() > 0 else -x, tw.ones(2), p / "f.onnx"), TraceError, "tw.cond"),
    (lambda p: tw.export(lambda x: x.reshape((2, 2)), tw.ones(4), p / "f.onnx"), TraceError, "dynamic_batch=False"),
    (lambda p: tw.export(Net(), tw.ones((1, 3, 9, 9)), p / "f.onnx"), tw.ShapeError, "^conv1: .*3 channels"),
    (lambda p: tw.load(p / "none.onnx"), FileNotFoundError, "no such file"),
]


@pytest.mark.parametrize("call, error, message", ERRORS, ids=[e[2][:18] for e in ERRORS])
def test_errors_say_what_to_do(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_a_loaded_function_checks_its_arguments(net, images, tmp_path):
    tw.export(net, tw.tensor(images), tmp_path / "n.onnx")
    f = tw.load(tmp_path / "n.onnx")
    with pytest.raises(GraphError, match="expected inputs x"):
        f(image=images)
    with pytest.raises(tw.ShapeError, match="'x' has shape"):
        f(images[:, :, :8])
    with pytest.raises(tw.DtypeError, match="float64, expected float32"):
        f(images.astype(np.float64))


def test_a_full_disk_leaves_the_old_file(net, images, tmp_path, monkeypatch):
    path = tmp_path / "n.onnx"
    tw.export(net, tw.tensor(images), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        tw.export(net, tw.tensor(images), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["n.onnx"]


def test_importing_io_does_not_import_onnx():
    code = "import sys, twofold, twofold.io; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_layer_with_a_function_of_its_own_is_exported_whole(tmp_path):
    """Not mistaken for what tw.compile returns, which has an attribute of that name too."""
    layer = tw.nn.Conv2d(2, 3, 3)
    x = tw.ones((1, 2, 5, 5))
    tw.export(layer, x, tmp_path / "conv.onnx")
    np.testing.assert_allclose(tw.load(tmp_path / "conv.onnx")(x).numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-6)
