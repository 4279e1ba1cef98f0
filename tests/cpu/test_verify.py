"""verify=True and TWOFOLD_VERIFY=1 on the CPU compiler: the first wrong node is named, wherever it is."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu.emit import functions
from twofold.backends.cpu.loops import const
from twofold.backends.cpu.lowering import rules
from twofold.backends.cpu.lowering.epilogue import Formula
from twofold.backends.cpu.lowering.rules import NESTS
from twofold.nn import functional as F


@pytest.fixture
def cpu(monkeypatch):
    """The CPU compiler, whose kernels may be broken: none of them is kept."""
    rules.native._remembered.cache_clear()
    with tw.device("cpu"):
        yield monkeypatch
    rules.native._remembered.cache_clear()


def _nothing(low, node):
    """A rule that gives zeros."""
    for value in node.outputs:
        low.formula(node, value, lambda index, dtype=value.dtype: const(dtype, 0))


def _near(f, dtype, x):
    """Almost tanh."""
    return f.fmul(functions.ROWS["sin"](f, dtype, x), 0.9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 4))

    def forward(self, x):
        return self.head(F.relu(self.norm(self.stem(x))))


def _step(verify: bool = True):
    model = Net()
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    x, y = tw.tensor(rng.standard_normal((4, 3, 8, 8)).astype(np.float32)), tw.tensor(rng.integers(0, 4, 4))

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    compiled = tw.compile(step, verify=verify)
    return lambda: compiled(x, y)


def test_a_right_training_step_passes(cpu):
    step = _step()
    losses = [float(step()) for _ in range(3)]
    assert losses[2] < losses[0]


def test_a_wrong_function_is_named_with_its_layer_and_its_error(cpu):
    cpu.setitem(functions.ROWS, "tanh", _near)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    with pytest.raises(
        tw.VerificationError, match=r"cpu differs from the reference first at tanh in 1: .*, by \d.* of the"
    ):
        tw.compile(model, verify=True)(tw.ones((2, 5)) * 3.0)


def test_both_programs_of_a_function_with_gradients_are_verified(cpu):
    """The forward program, and the one that its outputs' gradients call."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    x = tw.tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    cpu.setitem(NESTS, "max_pool_grad", _nothing)
    y = tw.compile(model, verify=True)(x)
    with pytest.raises(tw.VerificationError, match="first at max_pool_grad"):
        y.sum().backward()


def test_the_environment_asks_as_well(cpu):
    cpu.setitem(functions.ROWS, "tanh", _near)
    x = tw.ones((2, 5))
    tw.compile(lambda x: tw.tanh(x))(x)
    cpu.setenv("TWOFOLD_VERIFY", "1")
    with pytest.raises(tw.VerificationError, match="first at tanh"):
        tw.compile(lambda x: tw.tanh(x) + 1.0)(x)


@pytest.mark.parametrize("name", ["conv", "max_pool", "max_pool_grad", "conv_weight_grad", "batch_norm_train"])
def test_a_wrong_node_of_a_training_step_is_named(name, cpu):
    cpu.setitem(NESTS, name, _nothing)
    with pytest.raises(tw.VerificationError, match=f"differs from the reference first at {name}[ :]"):
        _step()()


def test_what_is_wrong_only_in_an_epilogue_is_found(cpu):
    """What kernels do to their results; with every value an output, it would not be done there."""
    cpu.setattr(Formula, "apply", lambda self, f, x, site, columns: x)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = tw.tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    with tw.no_grad(), pytest.raises(tw.VerificationError, match=r"first at add in 0: .* when compiled together with"):
        tw.compile(model, verify=True)(x)


def _branch(x):
    return tw.cond(x.sum() > 0, lambda a: tw.tanh(a * 2.0), lambda a: a, x)


def _loop(x):
    return tw.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, tw.tanh(s[1]) + 0.5), (tw.asarray(0), x))[1]


def _sequence(x):
    return tw.scan(lambda c, row: (tw.tanh(c + row), c * row), x[0], x)[1]


@pytest.mark.parametrize(("function", "place"), [(_branch, "cond"), (_loop, "while_loop"), (_sequence, "scan")])
def test_a_wrong_node_of_a_sub_graph_is_named(function, place, cpu):
    cpu.setitem(functions.ROWS, "tanh", _near)
    with pytest.raises(tw.VerificationError, match=rf"first at tanh: .*\(inside {place}\)"):
        tw.compile(function, verify=True)(tw.ones((4, 3)))
