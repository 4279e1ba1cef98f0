"""What programs keep between calls (packed weights, folded batch norms): made once, and again when the state has changed,
however it was changed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu.execution import Execution
from twofold.backends.cpu.kernels import choose, winograd
from twofold.backends.cpu.lowering.rules import native

F = nn.functional
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _native():
    with tw.device("cpu"):
        yield


@pytest.fixture
def runs(monkeypatch):
    """Counts how often programs prepare."""
    counted = []
    original = Execution._prepare

    def prepare(self, arrays, version):
        counted.append(version)
        original(self, arrays, version)

    monkeypatch.setattr(Execution, "_prepare", prepare)
    return counted


def test_one_convolution_at_two_sizes_has_weights_for_each(monkeypatch):
    """The kernels for them want the same weights transformed differently."""
    by_size = lambda machine, conv, *a, **k: winograd.F2 if conv.h == 7 else winograd.F4
    monkeypatch.setattr(choose, "winograd_scheme", by_size)
    native._remembered.cache_clear()
    conv = nn.Conv2d(16, 16, 3, padding=1)
    conv.eval()
    x, y = (tw.tensor(RNG.standard_normal((1, 16, side, side)).astype(np.float32)) for side in (14, 7))
    results = tw.compile(lambda x, y: (conv(x), conv(y)))(x, y)
    native._remembered.cache_clear()
    monkeypatch.undo()
    for result, image in zip(results, (x, y)):
        np.testing.assert_allclose(result.numpy(), conv(image).numpy(), atol=1e-4)


def make_model():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 16, 4),
    )  # fmt: skip
    model[1].running_mean.assign(RNG.standard_normal(16).astype(np.float32))
    model[1].running_var.assign(RNG.uniform(0.5, 2.0, 16).astype(np.float32))
    return model


def image(n=2):
    return tw.tensor(RNG.standard_normal((n, 3, 12, 12)).astype(np.float32))


def eager(model, x):
    with tw.no_grad(), tw.device("reference"):
        twin = make_model().eval()
        twin.load_state_dict({k: v.numpy() for k, v in model.state_dict().items()})
        return twin(tw.tensor(x.numpy())).numpy()


def close(a, b):
    np.testing.assert_allclose(a.numpy(), b, rtol=2e-4, atol=2e-5)


def programs(compiled):
    return [c.program for entries in compiled._entries.values() for e in entries for c in e.runner.programs.values()]


def test_weights_are_prepared_at_the_first_call_only(runs):
    model = make_model().eval()
    f = tw.compile(model)
    with tw.no_grad():
        for _ in range(3):
            x = image()
            close(f(x), eager(model, x))
    assert len(runs) == 1
    (program,) = programs(f)
    names = {n.op.name for s in program.steps for n in s.nodes}
    assert names.isdisjoint({"sqrt", "reciprocal", "divide"}), "the batch norm's vectors are worked out at every call"
    assert not any("pack" in call.kernel.symbol for call in program.calls)


@pytest.mark.parametrize("change", ["assign", "load_state_dict", "set_array", "step", "item"])
def test_every_change_of_the_state_is_seen(change, runs):
    model = make_model().eval()
    f = tw.compile(model)
    opt = tw.optim.SGD(model.parameters(), lr=0.5)
    with tw.no_grad():
        f(image())
        weight = model[4].weight
        if change == "assign":
            weight.assign(weight * 2.0)
        elif change == "load_state_dict":
            model.load_state_dict({k: v.numpy() * 1.5 for k, v in model.state_dict().items()})
        elif change == "set_array":
            weight.set_array(tw.tensor(weight.numpy() * 3).value)
        elif change == "item":
            weight[0] = 1.0
    if change == "step":
        F.cross_entropy(model(image()), tw.tensor([0, 1])).backward()
        opt.step()
    with tw.no_grad():
        for _ in range(2):
            x = image()
            close(f(x), eager(model, x))
    assert len(set(runs)) == 2


def test_training_and_evaluation_take_turns():
    model = make_model()
    opt = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @tw.compile
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    evaluate = tw.compile(lambda x: model(x))
    for _ in range(3):
        model.train()
        step(image(4), tw.tensor([0, 1, 2, 3]))
        model.eval()
        with tw.no_grad():
            for n in (2, 3):  # two programs of one runner each
                x = image(n)
                close(evaluate(x), eager(model, x))


def test_a_step_updates_its_state_in_place():
    w = tw.Variable(np.ones(64, np.float32), name="w")
    step = tw.compile(lambda x: w.assign(w * 0.5 + x).sum())
    step(tw.ones(64))
    buffer = w._own.buffer
    where = buffer.ctypes.data
    del buffer
    step(tw.ones(64))
    assert w._own.buffer.ctypes.data == where
    view, before = w.numpy(), w.numpy().copy()
    step(tw.ones(64))
    np.testing.assert_array_equal(view, before)  # somebody looks: a copy was updated


def test_a_step_leaves_the_numbers_that_an_eager_record_needs():
    w = tw.Variable(np.full(8, 3.0, np.float32), requires_grad=True, name="w")
    step = tw.compile(lambda: w.assign(w * 10.0))
    step()
    w.assign(np.full(8, 3.0, np.float32))
    loss = (w * w).sum()
    step()
    loss.backward()
    np.testing.assert_array_equal(w.grad.numpy(), np.full(8, 6.0))


def test_loaded_programs_and_captured_constants(tmp_path, runs):
    model = make_model().eval()
    x = image()
    expected = eager(model, x)
    tw.export(model, (x,), tmp_path / "model.onnx")
    loaded = tw.load(tmp_path / "model.onnx")
    for _ in range(3):
        close(loaded(x), expected)
    assert len(runs) == 1
    weight = tw.tensor(RNG.standard_normal((8, 3, 3, 3)).astype(np.float32))
    f = tw.compile(lambda v: F.conv2d(v, weight, padding=1))
    expected = F.conv2d(x, weight, padding=1).numpy()
    for _ in range(3):
        close(f(x), expected)
    assert len(runs) == 2


def test_sessions_see_assignments():
    with tw.Graph() as g:
        x = tw.placeholder((None, 3, 12, 12), tw.float32, "x")
        w = tw.Variable(RNG.standard_normal((8, 3, 3, 3)).astype(np.float32), name="w")
        y = F.conv2d(x, w)
        double = w.assign(w * 2.0)
    session, data = tw.Session(g), image().numpy()
    first = session.run(y, {x: data})
    session.run(double)
    np.testing.assert_allclose(session.run(y, {x: data}), first * 2, rtol=1e-4, atol=1e-5)


def test_gradients_through_a_compiled_model_follow_the_weights():
    model = make_model().eval()
    f = tw.compile(model)
    for scale in (1.0, 2.0):
        model[4].weight.assign(model[4].weight * scale)
        x = image().requires_grad_()
        f(x).sum().backward()
        got, x.grad = x.grad.numpy(), None
        model(x).sum().backward()
        np.testing.assert_allclose(got, x.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_several_threads_and_a_change_between_their_calls():
    model = make_model().eval()
    f = tw.compile(model)
    failures: list[str] = []

    def work(x, expected):
        with tw.no_grad(), tw.device("cpu"):
            for _ in range(20):
                if not np.allclose(f(x).numpy(), expected, rtol=2e-4, atol=2e-5):
                    failures.append("wrong")

    with tw.no_grad():
        for factor in (1.0, 0.5):
            model[0].weight.assign(model[0].weight * factor)
            data = [image(n) for n in (1, 2, 2)]
            threads = [threading.Thread(target=work, args=(x, eager(model, x))) for x in data]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
    assert not failures


def test_large_results_of_small_state_are_not_kept():
    v = tw.Variable(np.arange(512, dtype=np.float32), name="v")
    f = tw.compile(lambda x: tw.broadcast_to(tw.sqrt(v), (512, 512)) @ x)
    x = tw.ones((512, 2))
    np.testing.assert_allclose(f(x).numpy()[0], np.sqrt(np.arange(512)).sum(), rtol=1e-5)
    (program,) = programs(f)
    assert program.memory.kept <= 1 << 16


def test_what_is_returned_is_made_anew():
    w = tw.Variable(np.ones((300, 300), np.float32), name="w")
    f = tw.compile(lambda: w * 2.0)
    a, b = f(), f()
    assert not np.shares_memory(a.numpy(), b.numpy())


@pytest.mark.parametrize("outs, groups", [(48, 1), (70, 1), (64, 2), (64, 64)])
def test_scaled_weights_are_packed_without_a_copy(outs, groups, monkeypatch):
    monkeypatch.setenv("TWOFOLD_CONV", "direct")  # Winograd transforms what is packed: that is a copy
    model = nn.Sequential(nn.Conv2d(64, outs, 3, groups=groups, bias=False), nn.BatchNorm2d(outs)).eval()
    model[1].running_mean.assign(RNG.standard_normal(outs).astype(np.float32))
    model[1].running_var.assign(RNG.uniform(0.5, 2.0, outs).astype(np.float32))
    model[1].weight.assign(RNG.standard_normal(outs).astype(np.float32))
    x = tw.tensor(RNG.standard_normal((2, 64, 9, 9)).astype(np.float32))
    f = tw.compile(model)
    with tw.no_grad():
        with tw.device("reference"):
            right = F.batch_norm(
                F.conv2d(*(tw.tensor(v.numpy()) for v in (x, model[0].weight)), groups=groups),
                *(tw.tensor(getattr(model[1], n).numpy()) for n in ("running_mean", "running_var", "weight", "bias")),
            ).numpy()
        np.testing.assert_allclose(f(x).numpy(), right, rtol=1e-3, atol=1e-4)
        assert groups > 1 or f.memory(x).preparing < model[0].weight.numpy().nbytes / 4
