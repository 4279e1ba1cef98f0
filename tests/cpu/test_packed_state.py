"""Weights that stay packed between the steps of a compiled program: the same bits as without, whoever looks at them between."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST

import twofold as tw
from twofold import nn
from twofold.backends.cpu import machine
from twofold.backends.cpu.backend import BACKEND
from twofold.backends.cpu.blocks import Blocks
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.lowering import between
from twofold.backends.cpu.machine import AVX2
from twofold.ir.interpret import interpret
from twofold.ir.text import parse_graph
from twofold.optim.loss_scale import finite_each, keep_if, present
from twofold.tensor.eager import Array, LaidOut

F = nn.functional
OPTIMISERS = {
    "sgd": lambda p: tw.optim.SGD(p, lr=0.05),
    "momentum": lambda p: tw.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: tw.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p: tw.optim.Adam(p, lr=0.01),
    "adamw": lambda p: tw.optim.AdamW(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def nothing_from_disk(monkeypatch):
    monkeypatch.setenv("TWOFOLD_CACHE", "0")


class Net(nn.Module):
    """Four convolutions whose weights can stay packed (by Winograd, 1x1, in groups, strided) and two that cannot."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)  # few inputs
        self.wide = nn.Conv2d(32, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.point = nn.Conv2d(64, 64, 1)
        self.grouped = nn.Conv2d(64, 128, 3, stride=2, groups=2)
        self.odd = nn.Conv2d(128, 20, 1)  # a cut block
        self.last = nn.Conv2d(64, 32, 5, stride=2, padding=2)
        self.head = nn.Linear(52, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.wide(self.stem(x))))
        x = F.relu(self.point(x))
        a, b = self.odd(F.relu(self.grouped(x))), F.relu(self.last(x))
        return self.head(tw.concat([a.mean(axis=(2, 3)), b.mean(axis=(2, 3))], axis=1))


def batches(count, rows=4, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield tw.tensor(rng.standard_normal((rows, 3, 14, 14)).astype("f")), tw.tensor(rng.integers(0, 5, rows))


class Training:
    """A network, its optimiser and a compiled step."""

    def __init__(self, optimiser="momentum", net=Net, keep=False, change=lambda step: None, **options):
        tw.random.seed(0)
        self.model = net()
        self.optimiser = OPTIMISERS[optimiser](p for p in self.model.parameters() if p.requires_grad)

        def step(x, y):
            loss = F.cross_entropy(self.model(x), y)
            if keep:
                self.optimiser.zero_grad()
            loss.backward()
            change(self)
            self.optimiser.step()
            if not keep:
                self.optimiser.zero_grad()
            return loss

        self.step = tw.compile(step, **options)

    def run(self, count, rows=4, seed=0):
        return [self.step(*batch).item() for batch in batches(count, rows, seed)]

    @property
    def values(self):
        """All numbers of the state, by name."""
        return {**self.model.state_dict(), **self.optimiser.state_dict()}

    @property
    def packed(self):
        """Names of the parameters that lie packed now."""
        return [name for name, p in self.model.named_parameters() if isinstance(p._own, LaidOut)]


def bits(values):
    if isinstance(values, dict):
        return {name: bits(v) for name, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [*map(bits, values)]
    values = values.numpy() if hasattr(values, "numpy") else values
    return values.tobytes() if isinstance(values, np.ndarray) else values


def both(monkeypatch, play):
    """What ``play`` gives with packed state and without."""
    ours = play()
    with monkeypatch.context() as patch:
        patch.setattr(between, "_orders", lambda graph, machine: {})
        return ours, play()


PACKED = ["wide.weight", "point.weight", "grouped.weight", "last.weight"]


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_training_has_the_same_bits(optimiser, threads, monkeypatch):
    monkeypatch.setenv("TWOFOLD_NUM_THREADS", threads)

    def play():
        training = Training(optimiser)
        losses = training.run(4)
        return losses, training.packed, bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours[0] == plain[0] and ours[2] == plain[2]
    assert ours[1] == PACKED and plain[1] == []


@pytest.mark.skipif(not HOST.is_x86, reason="needs an x86 processor")
def test_training_has_the_same_bits_in_shorter_vectors(monkeypatch):
    monkeypatch.setattr(machine, "host", lambda: AVX2)

    def play():
        training = Training()
        return training.run(3), bool(training.packed), bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours == (plain[0], True, plain[2])


def test_gradients_that_are_wanted_come_in_the_plain_order(monkeypatch):
    def play():
        training = Training(keep=True)
        losses = training.run(3)
        return losses, {n: p.grad.numpy().tobytes() for n, p in training.model.named_parameters()}, bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours == plain
    training = Training(keep=True)
    training.run(1)
    assert training.packed == PACKED


def _evaluate(training, tmp_path):
    training.model.eval()
    with tw.no_grad():
        x = next(batches(1, seed=7))[0]
        result = tw.compile(training.model)(x).numpy().tobytes(), training.model(x).numpy().tobytes()
    training.model.train()
    return result


def _save_and_load(training, tmp_path):
    path = tmp_path / "w.safetensors"
    tw.save_weights(training.model, path)
    training.run(1, seed=5)
    tw.load_weights(training.model, path)


def _copy(training, tmp_path):
    found = bits(copy.deepcopy(training.model).state_dict())
    assert found == bits(pickle.loads(pickle.dumps(training.model)).state_dict())
    return found


def _assign(training, tmp_path):
    weight = training.model.point.weight
    weight.assign(weight * 0.5)
    training.model.wide.weight.assign(np.ones((64, 32, 3, 3), np.float32))


def _average(training, tmp_path):
    return bits({name: p * 2 for name, p in training.model.named_parameters()})


def _norms(training, tmp_path):
    return [float((p * p).sum()) for p in training.model.parameters()]


def _eager_step(training, tmp_path):
    x, y = next(batches(1, seed=3))
    F.cross_entropy(training.model(x), y).backward()
    training.optimiser.step()
    training.optimiser.zero_grad()


def _other_batch(training, tmp_path):
    return training.run(2, rows=2, seed=1)


def _verified(training, tmp_path):
    model = training.model
    return tw.compile(lambda x: model(x).sum(), verify=True)(next(batches(1))[0]).item()


@pytest.mark.parametrize(
    "between_steps",
    [_evaluate, _save_and_load, _copy, _assign, _average, _norms, _eager_step, _other_batch, _verified],
    ids=lambda f: f.__name__.strip("_"),
)
def test_whatever_is_done_between_steps(between_steps, monkeypatch, tmp_path):
    def play():
        training, seen = Training(), []
        for k in range(3):
            seen += training.run(1, seed=k)
            seen.append(between_steps(training, tmp_path))
        return seen, bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours == plain


def test_a_frozen_parameter_stays_plain(monkeypatch):
    class Frozen(Net):
        def __init__(self):
            super().__init__()
            self.point.weight.requires_grad = False

    def play():
        training = Training(net=Frozen)
        return training.run(3), training.packed, bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours == (plain[0], [n for n in PACKED if n != "point.weight"], plain[2])


class Shared(nn.Module):
    """One weight for two convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.body(F.relu(self.body(F.relu(self.stem(x))))).mean(axis=(2, 3)))


def test_a_shared_parameter(monkeypatch):
    def play():
        training = Training(net=Shared)
        return training.run(3), training.packed, bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours == (plain[0], ["body.weight"], plain[2])


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda t: nn.utils.clip_grad_norm_(t.model.parameters(), 0.1), []),
        (lambda t: nn.utils.clip_grad_value_(t.model.parameters(), 0.01), PACKED),
    ],
    ids=["norm", "value"],
)
def test_clipped_gradients(change, kept, monkeypatch):
    def play():
        training = Training(change=change)
        return training.run(3), training.packed, bits(training.values)

    ours, plain = both(monkeypatch, play)
    assert ours == (plain[0], kept, plain[2])


def test_a_step_left_out_where_a_gradient_is_not_finite(monkeypatch):
    """As ``fit`` does: all of the gradients are looked at, in whatever order they lie."""

    def play():
        tw.random.seed(0)
        model = Net()
        optimiser = OPTIMISERS["momentum"](model.parameters())

        @tw.compile
        def step(x, y, scale):
            before = present([*optimiser.variables(), *model.buffers()])
            (F.cross_entropy(model(x), y) * scale).backward()
            with tw.no_grad():
                fine = tw.Tensor(finite_each([p.grad.value for p in optimiser.parameters()]))
            optimiser.step()
            optimiser.zero_grad()
            keep_if(fine.all(), before)
            return fine.all()

        fine = [step(*batch, tw.tensor(np.float32(s))).item() for batch, s in zip(batches(3), (1.0, np.inf, 1.0))]
        return fine, [n for n, p in model.named_parameters() if isinstance(p._own, LaidOut)], bits(model.state_dict())

    ours, plain = both(monkeypatch, play)
    assert ours == ([True, False, True], PACKED, plain[2]) and plain[1] == []


def test_a_step_that_fails_leaves_numbers_that_can_be_read():
    training, x = Training(), next(batches(1))[0]
    evaluate = tw.compile(lambda x: training.model(x).sum())
    for _ in range(2):
        evaluate(x)
        with pytest.raises(tw.IndexRangeError):
            training.step(x, tw.tensor(np.full(4, 9)))
        gc.collect()
        assert np.isfinite(evaluate(x).item())  # its program pointed at buffers that the step has given up
        assert all(np.isfinite(v.numpy()).all() for v in training.model.state_dict().values())
        training.run(1)


def test_numbers_are_there_once():
    """A step gives up the plain buffers, and who asks for a plain one the packed."""
    training = Training()
    weight = training.model.wide.weight
    plain = weakref.ref(weight._own.buffer)
    training.run(1)
    packed = weakref.ref(_held(weight))
    assert plain() is None and packed() is not None
    training.run(1)
    assert _held(weight) is packed(), "updated in place"
    assert weight.numpy().shape == (64, 32, 3, 3) and type(weight._own) is Array
    assert packed() is None


def _held(variable):
    """What lies in a program's order."""
    from twofold.tensor import eager

    return eager._SLOT.__get__(variable._own).buffer


def test_a_leaf_that_somebody_looks_at_is_not_overwritten():
    training = Training()
    training.run(1)
    leaf = training.model.wide.weight._own
    before = training.model.wide.weight.device.backend.get(_held(training.model.wide.weight)).copy()
    training.run(1)
    layout = between.blocks_of(Packed(1, 64, 32, 3, 3, *_block(training)))
    assert np.array_equal(leaf.numpy(), layout.unpack(before))


def _block(training):
    from twofold.tensor import eager

    layout = eager._SLOT.__get__(training.model.wide.weight._own).layout
    return layout.block, layout.block


def test_threads_that_ask_at_once_get_the_same_buffer():
    training = Training()
    training.run(1)
    for p in training.model.parameters():
        found, start = [], threading.Barrier(8)

        def ask(p=p, found=found, start=start):
            start.wait()
            found.append(p._own.buffer)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8 and len({id(buffer) for buffer in found}) == 1


def test_a_program_from_disk_keeps_its_layouts(tmp_path, monkeypatch):
    monkeypatch.delenv("TWOFOLD_CACHE")
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path))
    first, second = Training(), Training()
    assert first.run(3) == second.run(3)
    assert first.packed == second.packed == PACKED
    assert bits(first.values) == bits(second.values)


# ---- the graph -------------------------------------------------------------------------------------------------------
STEP = """
graph step(%x: f32[2,16,5,5], %g: f32[2,32,5,5]) {
  state %w: f32[32,16,1,1]
  state %m: f32[32,16,1,1]
  state %lr: f32[]
  %0 = conv(%x, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[2,32,5,5]
  %1 = conv_weight_grad(%x, %g) {kernel=(1, 1), strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[32,16,1,1]
  %2 = add(%1, %m) : f32[32,16,1,1]
  %3 = multiply(%2, %lr) : f32[32,16,1,1]
  %4 = subtract(%w, %3) : f32[32,16,1,1]
  ANYTHING
  next %w = %4
  next %m = %2
  next %lr = %lr
  return RESULTS
}
"""


def _graph(anything="", results="%0"):
    return parse_graph(STEP.replace("ANYTHING", anything).replace("RESULTS", results))


@pytest.mark.parametrize("results", ["%0", "%0, %1"])
def test_the_graph_computes_the_same_in_another_order(results):
    graph = _graph(results=results)
    changed, orders = between.kept_packed(graph, HOST)
    assert list(orders) == [2, 3] and [v.shape for v in changed.all_inputs[2:4]] == [(512,), (512,)]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.shape).astype("f") for v in graph.all_inputs]
    layout = between.blocks_of(orders[2])
    expected = interpret(graph, arrays)
    got = interpret(changed, [layout.pack(a) if i in orders else a for i, a in enumerate(arrays)])
    first = len(graph.outputs)
    for i in (first, first + 1):
        got[i] = layout.unpack(got[i])
    assert all(np.array_equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize(
    ("anything", "results"),
    [
        ("%5 = sum(%1) {axes=(0, 1, 2, 3), keepdims=false} : f32[]", "%5"),
        ("%5 = exp(%2) : f32[32,16,1,1]", "%5"),
        ("%5 = reshape(%w) {shape=(512,)} : f32[512]", "%5"),
        ("", "%0, %4"),
        ("%5 = cast(%w) {dtype=bf16} : bf16[32,16,1,1]\n  %6 = permute_dims(%5) {axes=(1, 0, 2, 3)} : bf16[16,32,1,1]", "%6"),
    ],
    ids=["norm", "made of it", "read otherwise", "returned", "cast"],
)
def test_state_that_is_looked_at_stays_plain(anything, results):
    graph = _graph(anything, results)
    assert between.kept_packed(graph, HOST) == (graph, {})


def test_a_program_that_is_not_asked_to_takes_plain_state():
    device = tw.device("cpu")
    assert not BACKEND.compile(_graph(), device, donated=[2, 3]).layouts


# ---- the order -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [Packed(1, 64, 48, 3, 3, 32, 16), Packed(2, 32, 16, 1, 1, 32, 16), Packed(1, 48, 16, 1, 7, 16, 16)])
def test_kernels_move_weights_as_numpy_does(packed):
    if packed.lanes > HOST.lanes:
        packed = replace(packed, lanes=HOST.lanes)
    layout = between.with_kernels({0: packed}, HOST)[0]
    assert layout == between.blocks_of(packed) and all(layout.packs) and all(layout.unpacks)
    w = np.random.default_rng(0).standard_normal((packed.groups * packed.outs, packed.ins, packed.kh, packed.kw)).astype("f")
    there = layout.pack(w)
    assert np.array_equal(there, between.blocks_of(packed).pack(w)) and there.ctypes.data % 64 == 0
    assert np.array_equal(layout.unpack(there), w)
    assert np.array_equal(layout.pack(w[::-1]), between.blocks_of(packed).pack(w[::-1]))


def test_layouts_of_other_blocks_differ():
    assert Blocks(1, 64, 32, 3, 3, 32) != Blocks(1, 64, 32, 3, 3, 16)
