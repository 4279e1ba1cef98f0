"""Mutated ONNX files: an error or the right result; never a crash, a hang, or memory beyond what the file holds."""

from __future__ import annotations

import resource
import time

import numpy as np
import onnx
import pytest
from onnx_tools import run_ort

import twofold as tw
from twofold import nn
from twofold.base.dims import symbols_in
from twofold.base.errors import TwofoldError
from twofold.io.onnx.load.model import from_model
from twofold.io.onnx.load.reader import parse_model
from twofold.ir import interpret
from twofold.nn import functional as F
from twofold.passes import specialise

BYTES, FIELDS = 700, 400  # mutations of each base file
SECONDS, MEGABYTES = 20, 400  # one mutation; all of them together


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return F.softmax(self.fc(x.reshape(x.shape[0], -1)), axis=-1)


def _network(path):
    tw.export(Net(), tw.zeros((2, 1, 4, 4)), path)


def _training_step(path):
    net = Net()

    def step(x, labels):
        loss = F.cross_entropy(net(x), labels)
        for p, g in zip(net.parameters(), tw.gradients(loss, list(net.parameters()))):
            p.assign(p - 0.1 * g)
        return loss

    tw.export(step, (tw.zeros((2, 1, 4, 4)), tw.tensor([0, 1])), path)


def _control(path):
    def function(x):
        y = tw.cond(x.sum() > 0.0, lambda: x * 2.0, lambda: x - 1.0)
        y = tw.while_loop(lambda c: (c * c).sum() > 1.0, lambda c: c * 0.5, y)
        total, sums = tw.scan(lambda c, row: (c + row, c * row), tw.zeros((3,)), y)
        return total, tw.concat([sums, y[::-1]])

    tw.export(function, tw.zeros((4, 3)), path, dynamic_batch=False)


BASES = {"network": _network, "step": _training_step, "control": _control}


def _mutated_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, a stretch cut out, doubled or cut off."""
    out = bytearray(data)
    at = int(rng.integers(len(out)))
    kind = rng.integers(6)
    if kind <= 2:
        for place in rng.integers(len(out), size=rng.integers(1, 4)):
            out[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
    elif kind == 3:
        del out[at : at + int(rng.integers(1, 40))]
    elif kind == 4:
        out[at:at] = out[at : at + int(rng.integers(1, 40))]
    else:
        del out[at:]
    return bytes(out)


NUMBERS = [0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63)]


def _mutated_fields(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """One field of the message changed: a size, an attribute, a name, an operator, an order. What a byte flip rarely is."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    node = graph.node[rng.integers(len(graph.node))]
    other = graph.node[rng.integers(len(graph.node))]
    number = NUMBERS[rng.integers(len(NUMBERS))]
    names = [o for n in graph.node for o in n.output] + [i.name for i in graph.initializer]
    kind = rng.integers(8)
    if kind == 0 and node.attribute:
        attribute = node.attribute[rng.integers(len(node.attribute))]
        if attribute.ints:
            attribute.ints[rng.integers(len(attribute.ints))] = number
        else:
            attribute.i, attribute.type = number, onnx.AttributeProto.INT
    elif kind == 1 and node.input:
        node.input[rng.integers(len(node.input))] = names[rng.integers(len(names))]
    elif kind == 2:
        node.op_type, node.domain = other.op_type, other.domain
    elif kind == 3:
        tensor = graph.initializer[rng.integers(len(graph.initializer))]
        if tensor.dims and rng.integers(2):
            tensor.dims[rng.integers(len(tensor.dims))] = number
        elif tensor.data_type == onnx.TensorProto.INT64 and tensor.raw_data:
            tensor.raw_data = np.full(len(tensor.raw_data) // 8, number, np.int64).tobytes()
        else:
            tensor.data_type = int(rng.integers(24))
    elif kind == 4:
        del graph.node[rng.integers(len(graph.node))]
    elif kind == 5:
        node.CopyFrom(other)
    elif kind == 6 and node.attribute:
        del node.attribute[rng.integers(len(node.attribute))]
    else:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[rng.integers(len(dims))].dim_value = number
    return out


def _arrays(graph, rng):
    """Inputs for a graph that loaded (symbols at 2), or None if it is too large to run here."""
    sizes = {name: 2 for v in graph.all_inputs for d in v.shape for name in symbols_in(d)}
    fixed = specialise(graph, sizes)
    values = [*fixed.inputs, *(v for n in fixed.nodes for v in n.outputs)]
    if sum(int(v.spec.nbytes) for v in values) > 1 << 24:
        return fixed, None
    make = lambda v: rng.integers(0, 2, v.shape) if not v.dtype.is_floating else rng.normal(size=v.shape)
    return fixed, [np.asarray(make(v)).astype(v.dtype.numpy) for v in fixed.inputs]


def _outcome(data: bytes, rng: np.random.Generator) -> str:
    """What becomes of a file: refused, or a result, which must be ONNX Runtime's wherever that takes the file too."""
    try:
        loaded = from_model(parse_model(data))
        graph, arrays = _arrays(loaded.graph, rng)
        if arrays is None or any(n.op.name == "while_loop" for n in graph.nodes):
            return "read"  # a mutated loop need not end: that is what its author asked for
        results = interpret(graph, [*arrays, *(loaded.state[s.name] for s in graph.state)])
    except TwofoldError:
        return "refused"
    try:
        theirs = run_ort(onnx.load_from_string(data), arrays)
    except Exception:
        return "ran"
    for mine, other in zip(results, theirs):
        if mine.shape == other.shape and np.isfinite(other).all():
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
    return "agreed"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["bytes", "fields"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutations(base, kind, tmp_path):
    tw.random.seed(0)
    path = tmp_path / "base.onnx"
    BASES[base](path)
    data = path.read_bytes()
    model = onnx.load_from_string(data)
    rng = np.random.default_rng(len(base) + len(kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: dict[str, int] = {}
    for _ in range(BYTES if kind == "bytes" else FIELDS):
        mutant = _mutated_bytes(data, rng) if kind == "bytes" else _mutated_fields(model, rng).SerializeToString()
        start = time.perf_counter()
        outcome = _outcome(mutant, rng)
        assert time.perf_counter() - start < SECONDS
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES
    assert outcomes["refused"] > 50 and sum(outcomes.values()) - outcomes["refused"] > 10, outcomes
