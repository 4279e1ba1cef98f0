"""Inference in stages, a few images at a time: the same numbers as all at once, and no stages where images meet."""

from __future__ import annotations

import re

import numpy as np
import pytest

import twofold as tw
import twofold.nn.functional as F
from twofold import nn
from twofold.backends.cpu import apart, batches, profile, room
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.batches import stages
from twofold.backends.cpu.staged import StagedProgram
from twofold.ir.interpret import interpret
from twofold.passes import optimise

BATCH = 6
RNG = np.random.default_rng(0)
WEIGHT, MIX = (tw.tensor(RNG.normal(size=s).astype(np.float32)) for s in ((5, 3, 3, 3), (5 * 64, 4)))


def conv(x):
    return tw.nn.functional.conv2d(x, WEIGHT, padding=1)


def row_mean(x):
    return x.reshape((BATCH, -1)).mean(axis=1, keepdims=True)


ALONE = {
    "pool": lambda x: tw.nn.functional.max_pool2d(conv(x), 2),
    "linear": lambda x: conv(x).reshape((BATCH, -1)) @ MIX,
    "softmax": lambda x: tw.nn.functional.softmax(conv(x).reshape((BATCH, -1)) @ MIX, axis=1),
    "with a number an image": lambda x: conv(x) * row_mean(x).reshape((BATCH, 1, 1, 1)),
    "concat": lambda x: tw.nn.functional.avg_pool2d(tw.concat([conv(x), x], axis=1), 2),
    "slices and pads": lambda x: tw.nn.functional.avg_pool2d(tw.nn.functional.local_response_norm(conv(x), 3), 4),
    "turned": lambda x: conv(tw.flip(tw.permute_dims(x, (0, 1, 3, 2)), axis=(2,))),
    "two outputs": lambda x: (tw.nn.functional.max_pool2d(conv(x), 4), row_mean(conv(x))),
    "three steps": lambda x: tw.nn.functional.max_pool2d(tw.nn.functional.relu(conv(conv(x)[:, :3])), 2),
}
LATE = {  # images meet after the last convolution: what comes then is done with the whole batch
    "batch's mean taken away": lambda x: row_mean(conv(x)) - row_mean(conv(x)).mean(),
    "sorted out": lambda x: tw.flip(row_mean(conv(x)), axis=(0,)),
    "a constant for each image": lambda x: row_mean(conv(x)) * tw.tensor(np.arange(BATCH, dtype=np.float32)[:, None]),
    "products of images": lambda x: row_mean(conv(x)) @ row_mean(conv(x)).T,
    "batch into channels": lambda x: row_mean(conv(x)).reshape((BATCH // 2, 2)).sum(axis=1),
    "one image": lambda x: row_mean(conv(x))[2:3],
}
EARLY = {  # images meet before there is anything large
    "mean of the batch first": lambda x: conv(x - x.mean(axis=0, keepdims=True)),
    "next image's": lambda x: conv(tw.concat([x[1:], x[:1]], axis=0)),
    "images as channels": lambda x: conv(x.reshape((BATCH // 3, 3, 24, 8))[:, :, :8]),
    "not from the input": lambda x: tw.zeros((2, 2)),
    "itself": lambda x: x,
}


def graph_of(f, shape=(BATCH, 3, 8, 8)):
    @tw.compile
    def inference(x):
        with tw.no_grad():
            return f(x)

    return inference.graph(tw.tensor(RNG.normal(size=shape).astype(np.float32)))


def in_stages(graph, monkeypatch, choose):
    """The program in stages, with ``choose(k)`` images at a time for the heavy node ``k``."""
    monkeypatch.setattr(batches, "_together", lambda heavy, *_: {n: choose(k) for k, n in enumerate(heavy)})
    found = stages(graph, 1, 1)
    return StagedProgram(graph, found, [CpuProgram(optimise(s.graph)) for s in found]) if found else None


def arrays(graph):
    state = [s.variable._own.buffer for s in graph.state]
    return [RNG.normal(size=v.shape).astype(np.float32) for v in graph.inputs] + state


def check(graph, program):
    given = arrays(graph)
    expected = interpret(graph, given)
    for got, right in zip(program(given), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5 * (1 + np.abs(right).max()))


@pytest.mark.parametrize("name", ALONE)
def test_images_that_keep_to_themselves_go_one_by_one(name, monkeypatch):
    graph = graph_of(ALONE[name])
    program = in_stages(graph, monkeypatch, lambda k: 1)
    assert program is not None and {stage.images for stage, _ in program.stages} == {1}
    check(graph, program)


@pytest.mark.parametrize("name", LATE)
def test_where_images_meet_late_the_rest_is_done_with_all(name, monkeypatch):
    graph = graph_of(LATE[name])
    program = in_stages(graph, monkeypatch, lambda k: 1)
    assert program is not None and [stage.images for stage, _ in program.stages] == [1, BATCH]
    check(graph, program)


@pytest.mark.parametrize("images", [(1, 6, 6), (1, 2, 6), (2, 2, 6), (1, 1, 3), (3, 3, 3)], ids=str)
def test_what_goes_out_may_also_go_on(images, monkeypatch):
    def f(x):
        first = tw.nn.functional.max_pool2d(tw.nn.functional.relu(conv(x)), 4)
        second = conv(first[:, :3])
        return first, second, conv(second[:, 1:4]) + first, first

    graph = graph_of(f)
    program = in_stages(graph, monkeypatch, lambda k: images[max(k - 1, 0)])
    assert [stage.images for stage, _ in program.stages] == sorted({*images})
    check(graph, program)


def random_network(rng):
    """A function of images that grows by random layers; some mix the images."""
    weights = [tw.tensor(rng.normal(size=(int(rng.integers(1, 9)), 9, 3, 3)).astype(np.float32) / 8) for _ in range(8)]
    choices = [[int(n) for n in rng.integers(0, 1 << 30, 3)] for _ in range(int(rng.integers(4, 14)))]
    F = tw.nn.functional

    def step(values, kind, a, b):
        x = values[a % len(values)]
        alike = [v for v in values if v.shape == x.shape]
        beside = [v for v in values if v.shape[2:] == x.shape[2:]]
        other, near = alike[b % len(alike)], beside[b % len(beside)]
        return [
            lambda: F.conv2d(x, weights[b % 8][:, : x.shape[1]], padding=1, stride=1 + b % 2),
            lambda: F.conv2d(x, weights[b % 8][:, : x.shape[1]], padding=1),
            lambda: F.max_pool2d(x, 2, ceil_mode=True) if x.shape[2] > 1 else F.relu(x),
            lambda: F.relu(x),
            lambda: x + other,
            lambda: tw.concat([x, near], axis=1)[:, :9],
            lambda: x[:, : 1 + b % x.shape[1]],
            lambda: x * x.mean(axis=(2, 3), keepdims=True),
            lambda: tw.flip(x, axis=(3,)),
            lambda: tw.flip(x, axis=(0,)) if b % 4 == 0 else F.relu(x),
            lambda: x - x.mean(axis=(0, 2), keepdims=True) if b % 4 == 0 else x * 2,
        ][kind % 11]()

    def network(x):
        values = [x, F.conv2d(x, weights[0][:, :3], padding=1)]
        for choice in choices:
            values.append(step(values, *choice))
        return values[-1], values[1 + choices[0][1] % (len(values) - 1)], values[-2]

    return network


@pytest.mark.parametrize("seed", range(24))
def test_random_networks_cut_at_random(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    graph = graph_of(random_network(rng))
    images = sorted(int(n) for n in rng.choice([1, 2, 3, 6], 12))
    monkeypatch.setattr(batches, "_maps", lambda node: 1 << 40)  # however large the outputs are
    program = in_stages(graph, monkeypatch, lambda k: images[k % 12] if k < 12 else 6)
    if program is not None:
        check(graph, program)
    else:
        rows = batches._kinds(graph, BATCH).rows
        heavy = any(n.op.kind in batches.HEAVY and n.outputs[0] in rows for n in graph.nodes)
        assert images[0] == 6 or not heavy or any(v in graph.inputs for v in graph.outputs)


def test_a_stage_made_elsewhere_is_not_cut_again(monkeypatch):
    monkeypatch.setattr(batches, "_together", lambda heavy, *_: {n: 1 if k < len(heavy) // 2 else 2 for k, n in enumerate(heavy)})
    monkeypatch.setattr(apart._State, "vain", False)
    model = tw.zoo.create("squeezenet1_1", num_classes=3).eval()
    x = tw.tensor(RNG.normal(size=(2, 3, 33, 33)).astype(np.float32))
    made = []
    real = apart.make
    monkeypatch.setattr(apart, "make", lambda graph: made.append(real(graph)) or made[-1])
    with tw.no_grad():
        compiled = tw.compile(model)
        np.testing.assert_allclose(compiled(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-4)
    assert len(made) == 2 and not apart._State.vain


def test_memory_is_asked_for_before_the_first_stage(staged_resnet, monkeypatch):
    _, inference = staged_resnet
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room, "available", lambda: 300_000)
    with pytest.raises(tw.OutOfMemoryError, match=r"planned for a batch of 8, .* fit"):
        inference(tw.zeros((8, 3, 32, 32)))


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_the_batch_that_is_said_to_fit_does(share, monkeypatch):
    """Within a twentieth: what the first stage works in is the same for every batch, and does not count as growing with it."""
    model = tw.zoo.create("resnet20_cifar").eval()

    def planned(batch):
        return in_stages(graph_of(model, (batch, 3, 32, 32)), monkeypatch, lambda k: 2 if k < 9 else batch)

    def needed(program):
        return max(program.memory.temporaries, program.memory.preparing) + program.memory.kept

    program = planned(32)
    free = int(share * needed(program))
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room, "available", lambda: free)
    with pytest.raises(tw.OutOfMemoryError, match="a batch of about") as caught:
        program(arrays(program._graph))
    said = int(re.search(r"about (\d+) fits", str(caught.value))[1])
    assert abs(needed(planned(said)) - free) < 0.05 * free


@pytest.mark.parametrize("name", EARLY)
def test_where_images_meet_at_once_there_are_no_stages(name, monkeypatch):
    assert in_stages(graph_of(EARLY[name]), monkeypatch, lambda k: 1) is None


@pytest.mark.parametrize("name", ["alexnet_2012", "googlenet", "resnet18", "densenet121", "fractalnet20_cifar"])
@pytest.mark.parametrize("change", [3, 5])
def test_networks_cut_anywhere(name, change, monkeypatch):
    side = {"alexnet_2012": 67, "fractalnet20_cifar": 32}.get(name, 64)
    tw.random.seed(0)
    model = tw.zoo.create(name, num_classes=7).eval()
    graph = graph_of(model, (4, 3, side, side))
    program = in_stages(graph, monkeypatch, lambda k: (1, 2, 4)[min(k // change, 2)])
    assert [stage.images for stage, _ in program.stages] == [1, 2, 4]
    check(graph, program)


def test_how_many_go_together_is_weighed():
    model = tw.zoo.create("resnet18").eval()
    graph = graph_of(model, (8, 3, 112, 112))
    images = [stage.images for stage in stages(graph, 1 << 18, 1 << 20)]
    assert images == sorted(images) and images[0] < images[-1] == 8  # the last layers' weights are larger than their maps
    assert not stages(graph, 1 << 28, 1 << 28)  # everything has room
    assert not stages(graph_of(model, (1, 3, 112, 112)), 1 << 18, 1 << 20)


def test_training_has_no_stages():
    model = tw.zoo.create("resnet20_cifar")

    @tw.compile
    def step(x):
        return model(x).sum()

    assert not stages(step.graph(tw.zeros((4, 3, 32, 32))), 1, 1)


@pytest.fixture
def staged_resnet(monkeypatch):
    monkeypatch.setattr(batches, "_together", lambda heavy, *_: {n: 2 if k < 9 else 8 for k, n in enumerate(heavy)})
    model = tw.zoo.create("resnet20_cifar").eval()

    @tw.compile
    def inference(x):
        with tw.no_grad():
            return model(x)

    return model, inference


def test_compiled_functions_use_them_and_notice_new_weights(staged_resnet):
    model, inference = staged_resnet
    x = tw.tensor(RNG.normal(size=(8, 3, 32, 32)).astype(np.float32))
    for _ in range(2):
        with tw.no_grad():
            right = model(x).numpy()
        np.testing.assert_allclose(inference(x).numpy(), right, rtol=0, atol=1e-5 * np.abs(right).max())
        for p in model.parameters():
            p.assign(p.numpy() * 1.1)
    assert "at a time" in inference.report()
    inference(x[:1])
    assert inference.report().count("stage 1") == 1


def test_a_recording_has_every_turn_and_memory_is_told(staged_resnet):
    _, inference = staged_resnet
    x = tw.zeros((8, 3, 32, 32))
    inference(x)
    program = next(iter(next(iter(inference._entries.values()))[0].runner.programs.values())).program
    assert isinstance(program, StagedProgram)
    turns = [8 // stage.images * len(p.calls) for stage, p in program.stages]
    recording = profile.of(inference, [x], rounds=1)
    assert len(recording.spans) == sum(turns)
    starts = [span.times.min() for span in recording.spans]
    assert starts == sorted(starts)
    memory = program.memory
    assert memory.arguments == 8 * 3 * 32 * 32 * 4 and memory.results == 8 * 10 * 4
    assert memory.kept == sum(p.memory.kept for p in program.programs) > 0


@pytest.mark.parametrize(("images", "channels", "size", "window"), [(16, 32, 32, 8), (16, 32, 48, 12), (8, 32, 64, 16)])
def test_stages_and_bits_are_the_same_for_any_number_of_threads(images, channels, size, window, monkeypatch):
    conv, linear = nn.Conv2d(3, channels, 3, padding=1), nn.Linear(channels * (size // window) ** 2, 10)
    x = tw.tensor(RNG.normal(size=(images, 3, size, size)).astype(np.float32))
    found = []
    for threads in (1, 2, 3, 5):
        monkeypatch.setenv("TWOFOLD_NUM_THREADS", str(threads))
        inference = tw.compile(lambda x: linear(F.max_pool2d(F.relu(conv(x)), window).reshape((images, -1))))
        with tw.no_grad():
            found.append((inference(x).numpy().tobytes(), inference.report().count("at a time")))
    assert found[0][1] > 0 and len(set(found)) == 1
