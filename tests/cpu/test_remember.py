"""Programs on disk: the next compilation of the same graph links what an earlier one made, and computes the same bits."""

import os
import subprocess
import sys

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu import apart, backend, cache, elf, remember
from twofold.base.errors import IndexRangeError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path))
    monkeypatch.delenv("TWOFOLD_CACHE", raising=False)
    return tmp_path


@pytest.fixture
def lowered(monkeypatch):
    """How often a graph was lowered; all of them here."""
    times = []
    monkeypatch.setattr(apart, "make", lambda graph: False)
    real = backend._assembled
    monkeypatch.setattr(backend, "_assembled", lambda *a: times.append(1) or real(*a))
    return times


def network():
    tw.random.seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )  # fmt: skip


def training(classes=5):
    """Losses and parameters after three steps of a network made anew."""
    model, rng = network(), np.random.default_rng(0)
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = tw.tensor(rng.standard_normal((4, 3, 8, 8)).astype("f"))
    y = tw.tensor(rng.integers(0, classes, 4))

    @tw.compile
    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    losses = [float(step(x, y)) for _ in range(3)]
    return losses, [v.numpy() for v in model.state_dict().values()], step


def test_a_program_from_disk_computes_the_same_bits(lowered):
    first, parameters, step = training()
    assert len(lowered) == 1
    second, again, known = training()
    assert len(lowered) == 1
    assert first == second and len(set(first)) == 3
    for a, b in zip(parameters, again):
        np.testing.assert_array_equal(a, b)
    assert known.report() == step.report()


def test_what_is_inside_can_still_be_looked_at(lowered):
    step = training()[2]
    known = training()[2]
    mine, theirs = (
        [c.program for e in s._entries.values() for r in e for c in r.runner.programs.values()] for s in (step, known)
    )
    assert len(lowered) == 1
    assert [c.kernel.symbol for c in mine[0].calls] == [c.kernel.symbol for c in theirs[0].calls]
    assert len(theirs[0].steps) == len(mine[0].steps)
    assert len(lowered) == 2


def test_weights_kept_between_calls_follow_the_state(lowered, monkeypatch):
    monkeypatch.setattr(remember, "LEAST_NODES", 1)
    outputs, made = [], []
    for _ in range(2):
        model = network()
        model.eval()
        infer = tw.compile(model)
        x = tw.tensor(np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype("f"))
        count = len(lowered)
        before = infer(x).numpy()
        made.append(len(lowered) - count)
        model[0].weight.assign(model[0].weight * 2.0 + 0.1)
        outputs.append((before, infer(x).numpy()))
        np.testing.assert_allclose(outputs[-1][1], model(x).numpy(), rtol=1e-4, atol=1e-5)
        assert not np.allclose(*outputs[-1])
    assert made == [1, 0]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_errors_name_the_op_in_a_program_from_disk(lowered):
    for _ in range(2):
        with pytest.raises(IndexRangeError, match="out of range for axis 1"):
            training(classes=50)
    assert len(lowered) == 1


@pytest.mark.parametrize("change", ["conv", "threads", "graph", "source"])
def test_another_program_is_lowered(change, lowered, monkeypatch):
    training()
    if change == "conv":
        monkeypatch.setenv("TWOFOLD_CONV", "direct")
    elif change == "threads":
        monkeypatch.setenv("TWOFOLD_NUM_THREADS", "3")
    elif change == "source":
        monkeypatch.setattr(remember, "_source", lambda: "another version")
    else:
        monkeypatch.setattr(sys.modules[__name__], "network", lambda f=network: nn.Sequential(*f(), nn.ReLU()))
    training()
    assert len(lowered) == 2


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: d[:60] + b"x" + d[61:], lambda d: b"", None])
def test_damaged_entries_and_missing_objects_count_as_absent(damage, home, lowered, monkeypatch):
    from twofold.backends.cpu import jit

    first = training()[0]
    for path in (home / "objects").rglob("*"):
        if path.is_file() and damage:
            path.write_bytes(damage(path.read_bytes()))
        elif path.is_file() and b'"segments"' not in path.read_bytes():
            path.unlink()
    monkeypatch.setattr(jit, "_memory", {})
    assert training()[0] == first
    assert len(lowered) == 2


def test_entries_under_each_others_names_count_as_absent(home, lowered, monkeypatch):
    from twofold.backends.cpu import jit

    first = training()[0]
    paths = [path for path in (home / "objects").rglob("*") if path.is_file()]
    found = [path.read_bytes() for path in paths]
    for path, data in zip(paths, [*found[1:], found[0]]):
        path.write_bytes(data)
    monkeypatch.setattr(jit, "_memory", {})
    assert training()[0] == first
    assert len(lowered) == 2


def test_programs_with_python_parts_are_not_kept(lowered):
    def f(x):
        for _ in range(20):
            x = tw.tanh(x) + tw.eye(3)
        return tw.linalg.solve(x, x)

    x = tw.tensor(np.eye(3, dtype="f") + 0.1)
    for _ in range(2):
        np.testing.assert_allclose(tw.compile(f)(x).numpy(), f(x).numpy(), atol=1e-4)
    assert len(lowered) >= 2
    assert not any(b'"segments"' in p.read_bytes() for p in cache.folder().rglob("*") if p.is_file())


def test_another_process_takes_it_up(home):
    code = "import test_remember as t; from twofold.backends.cpu import apart, backend; import sys\n"
    code += "apart.make = lambda graph: False\n"
    code += "real = backend._assembled; n = []; backend._assembled = lambda *a: n.append(1) or real(*a)\n"
    code += "print(t.training()[0], len(n), 'llvmlite.binding' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True) for _ in range(2)
    ]
    assert [r.returncode for r in runs] == [0, 0], runs
    losses = [r.stdout.rsplit(" ", 2) for r in runs]
    assert losses[0][0] == losses[1][0]
    assert [int(n) for _, n, _ in losses] == [1, 0]
    assert [llvm.strip() for _, _, llvm in losses] == ["True", str(not elf.SUPPORTED)]


WARM = """
import sys
import numpy as np, twofold as tw
from twofold import nn
model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), *[nn.Tanh() for _ in range(16)], nn.Flatten(), nn.Linear(64, 5))
model.eval()
with tw.no_grad():
    tw.compile(model)(tw.tensor(np.ones((2, 3, 8, 8), np.float32)))
names = [name.removeprefix("twofold.backends.cpu.") for name in sys.modules]
made = ("kernels", "emit", "llvmlite", "lowering.rules", "lowering.lower", "lowering.assemble", "subprocess", "importlib.metadata")
print(*(name for name in names if name.startswith(made)))
"""


@pytest.mark.skipif(not elf.SUPPORTED, reason="LLVM loads objects here")
def test_a_process_that_finds_its_program_loads_nothing_of_the_compiler():
    run = lambda: subprocess.run([sys.executable, "-c", WARM], env=dict(os.environ), capture_output=True, text=True, timeout=300)
    first, again = run(), run()
    assert first.returncode == again.returncode == 0, first.stderr[-2000:] + again.stderr[-2000:]
    assert first.stdout.strip() and not again.stdout.strip()
