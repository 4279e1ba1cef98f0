"""Concatenations of images: parts are written where they belong, prefixes are views, and the numbers stay the same."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.lowering.concat import homes
from twofold.ir.interpret import interpret
from twofold.ir.text import parse_graph
from twofold.nn import functional as F


class Dense(tw.nn.Module):
    """Layers that each read all before them, then branches of an inception module."""

    def __init__(self):
        super().__init__()
        self.first, self.pool = tw.nn.Conv2d(3, 12, 3, padding=1, bias=False), tw.nn.MaxPool2d(2)
        self.norms = tw.nn.ModuleList([tw.nn.BatchNorm2d(12 + 8 * i) for i in range(4)])
        self.convs = tw.nn.ModuleList([tw.nn.Conv2d(12 + 8 * i, 8, 3, padding=1) for i in range(3)])
        self.left, self.right = tw.nn.Conv2d(36, 9, 1), tw.nn.Conv2d(36, 7, 3, padding=1)

    def forward(self, x):
        features = [self.pool(self.first(x))]
        for norm, conv in zip(self.norms, self.convs):
            features.append(conv(F.relu(norm(tw.concat(features, axis=1)))))
        y = F.relu(self.norms[3](tw.concat(features, axis=1)))
        pooled = F.max_pool2d(y, 3, stride=1, padding=1)
        return tw.concat([F.relu(self.left(y)), F.relu(self.right(y)), pooled, tw.flip(pooled, axis=2)], axis=1)


class Nested(Dense):
    """The same layers; each concatenation is of the one before and a layer's output."""

    def forward(self, x):
        y = self.pool(self.first(x))
        for norm, conv in zip(self.norms, self.convs):
            y = tw.concat([y, conv(F.relu(norm(y)))], axis=1)
        y = F.relu(self.norms[3](y))
        return tw.concat([F.relu(self.left(y)), F.relu(self.right(y))], axis=1)


def _train(device: str, kind: type[Dense] = Dense) -> tuple[list[float], np.ndarray, dict[str, np.ndarray]]:
    with tw.device(device):
        tw.random.seed(0)
        model = kind()
        optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = tw.tensor(np.random.default_rng(0).normal(3, 2, (4, 3, 16, 16)).astype(np.float32))

        @tw.compile
        def step(x):
            out = model(x)
            loss = (out**2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss, out

        results = [step(x) for _ in range(3)]
        state = {k: v.numpy() for k, v in model.state_dict().items()}
        return [float(loss) for loss, _ in results], results[-1][1].numpy(), state


@pytest.mark.parametrize("kind", [Dense, Nested])
def test_training_equals_the_reference(kind):
    expected, given = _train("reference", kind), _train("cpu", kind)
    np.testing.assert_allclose(given[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(given[1], expected[1], rtol=1e-3, atol=1e-4)
    for name, value in expected[2].items():
        np.testing.assert_allclose(given[2][name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_nothing_is_copied():
    """Of all parts only the flipped one is moved: the others are written in their places by the kernels that make them."""
    model = Dense().eval()
    graph = tw.compile(lambda x: model(x)).graph(tw.zeros((2, 3, 16, 16)))
    program = CpuProgram(graph)
    copies = [c.kernel.note for c in program.calls if "concat" in c.kernel.note]
    assert copies == [], program.report()


def test_statistics_of_nested_concatenations():
    """The middle one has no batch norm of its own: its new part must be gathered for the outer one."""
    rng = np.random.default_rng(2)
    x, *ws = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 8, 8), *[(4, 3, 3, 3)] * 4))

    def f(x, *ws):
        a, b, c, d = (F.conv2d(x, w, padding=1) for w in ws)
        inner = tw.concat([a, b], axis=1)
        middle = tw.concat([inner, c], axis=1)
        outer = tw.concat([middle, d], axis=1)
        norms = (F.batch_norm(y, None, None, training=True) for y in (inner, outer))
        return *norms, F.max_pool2d(middle, 2)

    outcomes = []
    for device in ("reference", "cpu"):
        with tw.device(device):
            outcomes.append([r.numpy() for r in tw.compile(f)(*map(tw.tensor, (x, *ws)))])
    for expected, given in zip(*outcomes):
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("twice", [False, True])
def test_a_part_used_elsewhere_and_twice(twice):
    """A part that is an output as well, and a value that is two parts of one concatenation."""
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((2, 5, 6, 6), (4, 5, 3, 3)))

    def f(x, w):
        y = F.conv2d(x, w, padding=1)
        z = F.relu(y)
        return y, tw.concat([z, z if twice else y, x], axis=1)

    outcomes = []
    for device in ("reference", "cpu"):
        with tw.device(device):
            outcomes.append([r.numpy() for r in tw.compile(f)(tw.tensor(x), tw.tensor(w))])
    for expected, given in zip(*outcomes):
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


SUMS = """graph f(%x: f32[2,6,5,5], %v: f32[4,6,1,1], %w: f32[8,6,1,1], %u: f32[16,6,1,1]) {
  %0 = conv(%x, %u) {ONE} : f32[2,16,5,5]
  %1 = slice(%0) {starts=(0, 0, 0, 0), stops=(2, 8, 5, 5), steps=(1, 1, 1, 1)} : f32[2,8,5,5]
  %2 = slice(%0) {starts=(0, FROM, 0, 0), stops=(2, 16, 5, 5), steps=(1, 1, 1, 1)} : f32[2,LEFT,5,5]
  %3 = conv(%x, %w) {ONE} : f32[2,8,5,5]
  %4 = add(%3, %1) : f32[2,8,5,5]
  %5 = slice(%4) {starts=(0, 0, 0, 0), stops=(2, 4, 5, 5), steps=(1, 1, 1, 1)} : f32[2,4,5,5]
  %6 = slice(%4) {starts=(0, 4, 0, 0), stops=(2, 8, 5, 5), steps=(1, 1, 1, 1)} : f32[2,4,5,5]
  %7 = conv(%x, %v) {ONE} : f32[2,4,5,5]
  %8 = add(%7, %5) : f32[2,4,5,5]
  %9 = conv_weight_grad(%x, %8) {kernel=(1, 1), ONE} : f32[4,6,1,1]
  %10 = conv_weight_grad(%x, %6) {kernel=(1, 1), ONE} : f32[4,6,1,1]
  %11 = conv_weight_grad(%x, %2) {kernel=(1, 1), ONE} : f32[LEFT,6,1,1]
  return %9, %10, %11
}""".replace("ONE", "strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1")


@pytest.mark.parametrize("start", [8, 6], ids=["side by side", "overlapping"])
def test_sums_lie_where_the_first_channels_did_that_they_are_made_of(start):
    """As gradients of nested concatenations are added; not where another slice reads the same channels."""
    graph = parse_graph(SUMS.replace("FROM", str(start)).replace("LEFT", str(16 - start)))
    whole, total, last = (graph.nodes[i].outputs[0] for i in (0, 4, 8))
    found = homes(graph).of
    assert (whole in found and found[total].buffer is found[whole].buffer) == (start == 8)
    assert found[last].buffer is found[total].buffer
    given = [np.random.default_rng(i).normal(size=v.shape).astype(np.float32) for i, v in enumerate(graph.inputs)]
    for a, b in zip(CpuProgram(graph)([g.copy() for g in given]), interpret(graph, given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
