"""Programs made in another process: the same bits, nothing of LLVM here, and no harm where there is no such process."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu import apart, backend, cache, elf, jit
from twofold.backends.cpu.machine import AVX2


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path))
    monkeypatch.delenv("TWOFOLD_CACHE", raising=False)
    return tmp_path


@pytest.fixture
def lowered(monkeypatch):
    """How often a graph was lowered in this process; small ones always are, whether or not it has LLVM already."""
    times = []
    monkeypatch.setattr(apart, "FEW", 0)
    real = backend._assembled
    monkeypatch.setattr(backend, "_assembled", lambda *a: times.append(1) or real(*a))
    return times


def losses():
    """Of three training steps of a network made anew; an array that the graph's text holds is in it."""
    tw.random.seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )  # fmt: skip
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    x, y = tw.tensor(rng.standard_normal((4, 3, 8, 8)).astype("f")), tw.tensor(rng.integers(0, 5, 4))
    mask = rng.standard_normal((3, 8, 8)).astype("f")

    @tw.compile
    def step(x, y):
        loss = nn.functional.cross_entropy(model(x * tw.asarray(mask)), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return [float(step(x, y)) for _ in range(3)]


def test_a_large_graph_is_lowered_elsewhere_to_the_same_bits(lowered, monkeypatch, tmp_path):
    here = losses()
    assert len(lowered) == 1
    monkeypatch.setattr(apart, "LARGE", 1)
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path / "other"))
    assert losses() == here and len(set(here)) == 3
    assert len(lowered) == 1


@pytest.mark.parametrize("trouble", ["no interpreter", "no python", "an error", "no cache"])
def test_what_cannot_be_made_elsewhere_is_made_here(trouble, lowered, monkeypatch, tmp_path):
    monkeypatch.setattr(apart, "LARGE", 1)
    if trouble == "no interpreter":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    elif trouble == "no python":  # an application with Python inside: it is not to be started again
        monkeypatch.setattr(sys, "executable", "/bin/false")
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was started"))
    elif trouble == "an error":
        monkeypatch.setattr(apart, "_START", "raise SystemExit(3)")
    else:
        monkeypatch.setenv("TWOFOLD_CACHE", "0")
    assert len(losses()) == 3
    assert len(lowered) == 1


CODE = """
import sys
from types import SimpleNamespace
import numpy as np, twofold as tw
from twofold import nn
from twofold.backends.cpu import apart, backend
lowered = []
backend._assembled = lambda *a, real=backend._assembled: lowered.append(1) or real(*a)
for channels in range(1, apart.FEW + 3):
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), *[nn.Tanh() for _ in range(16)])
    tw.compile(model)(tw.tensor(np.ones((1, channels, 6, 6), np.float32)))
    print(len(lowered), "llvmlite.binding" in sys.modules)
"""


@pytest.mark.skipif(not elf.SUPPORTED, reason="LLVM loads objects here")
def test_small_graphs_keep_llvm_away_from_a_process_a_few_times():
    done = subprocess.run([sys.executable, "-c", CODE], env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == ["0 False"] * apart.FEW + ["1 True", "2 True"]


def test_no_process_is_started_for_what_cannot_be_kept(monkeypatch, tmp_path):
    started = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: started.append(1) or real(*a, **k))
    monkeypatch.setattr(apart, "LARGE", 1)
    monkeypatch.setattr(apart._State, "vain", False)
    weight = tw.Variable(np.ones((3, 3), np.float32))

    @tw.compile
    def with_a_branch(x):
        return tw.cond(tw.sum(x) > 0, lambda: x @ weight, lambda: x)

    with_a_branch(tw.tensor(np.ones((2, 3), np.float32)))
    assert not started
    monkeypatch.setattr(apart, "_START", "pass")  # it ends well and keeps nothing
    losses()
    assert len(started) == 1
    losses()
    assert len(started) == 1


def test_objects_made_with_other_settings_have_other_keys(monkeypatch):
    usual = cache.key("ir", AVX2, 0)
    assert usual == cache.key("ir", AVX2, 0, []) != cache.key("ir", AVX2, 0, ["-disable-lsr"])
    asked = []
    monkeypatch.setattr(jit, "_settings", [])
    monkeypatch.setattr(jit, "_llvm", lambda: SimpleNamespace(set_option=lambda *option: asked.append(option[1])))
    jit.leave_out_strength_reduction()
    assert asked == jit._settings == ["-disable-lsr"]
