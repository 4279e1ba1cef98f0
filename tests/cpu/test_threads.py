"""Every kernel gives the same bits on 1, 2, 3 and 4 threads, and every time."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_check import FAMILIES, arguments
from kernel_paths import PATHS

import twofold as tw
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.program import TEAM
from twofold.ir.text import parse_graph
from twofold.nn import functional as F


def _outcomes(graph, monkeypatch, given) -> list[list[np.ndarray]]:
    """Results on 1 to 4 threads, twice each; the team is woken however little there is to do."""
    found = []
    for threads in (1, 2, 3, 4):
        monkeypatch.setenv("TWOFOLD_NUM_THREADS", str(threads))
        program = CpuProgram(graph)
        for segment in program._built.segments:
            segment.crew = TEAM
        found += [program([a.copy() for a in given]) for _ in range(2)]
    return found


def _same_bits(found: list[list[np.ndarray]]) -> None:
    for results in found[1:]:
        for a, b in zip(found[0], results, strict=True):
            assert a.tobytes() == b.tobytes(), f"largest difference {np.max(np.abs(a.astype(float) - b.astype(float)))}"


@pytest.mark.parametrize("path", PATHS)
def test_same_bits_on_any_number_of_threads(path, monkeypatch):
    text, kernels = PATHS[path]
    graph = parse_graph(text)
    called = {c.kernel.symbol.rpartition("_")[0] for c in CpuProgram(graph).calls}
    assert called.issuperset(kernels.split()), called
    _same_bits(_outcomes(graph, monkeypatch, arguments(graph, 0)))


def _normalised(x, w, scale, shift):
    """Statistics gathered as the convolution ends, and the gradients through them."""
    y = F.batch_norm(F.conv2d(x, w, padding=1), None, None, scale, shift, training=True)
    return tw.gradients(F.relu(y + x).mean(), [x, w, scale, shift])


def _between(x, w, scale, shift):
    """Sums of batch norm's gradient gathered by the kernels of the data gradients that follow."""
    for _ in range(2):
        x = F.conv2d(F.relu(F.batch_norm(x, None, None, scale, shift, training=True)), w, padding=w.shape[2] // 2)
    return tw.gradients((x * x).mean(), [w, scale, shift])


COMPOSED = {
    "batch norm": (_normalised, [(3, 24, 9, 11), (24, 24, 3, 3), (24,), (24,)]),
    "batch norm between 3x3": (_between, [(3, 64, 14, 13), (64, 64, 3, 3), (64,), (64,)]),
    "batch norm between 1x1": (_between, [(3, 40, 14, 13), (40, 40, 1, 1), (40,), (40,)]),
    "cross-entropy": (
        lambda x: tw.gradients(F.cross_entropy(x, tw.arange(70) % 11), [x])[0],
        [(70, 11)],
    ),
    "softmax": (lambda x: F.softmax(x, axis=-1), [(37, 1000)]),
    "local response norm": (
        lambda x: tw.gradients(F.local_response_norm(x, 5).mean(), [x])[0],
        [(2, 33, 9, 9)],
    ),
    "update": (lambda w, g, m: (w - 0.1 * (0.9 * m + g + 1e-4 * w), 0.9 * m + g + 1e-4 * w), [(77, 131)] * 3),
    "variance": (lambda x: (x.var(axis=(0, 2)), x.std()), [(33, 17, 40)]),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_same_bits_of_what_is_composed(name, monkeypatch):
    function, shapes = COMPOSED[name]
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    graph = tw.compile(function).graph(*(tw.tensor(a, requires_grad=True) for a in given))
    _same_bits(_outcomes(graph, monkeypatch, given))


@pytest.mark.parametrize("family", ["images", "training", "numbers", "images bfloat16"])
def test_same_bits_of_random_networks(family, monkeypatch):
    for seed in range(500, 504):
        graph = FAMILIES[family].graph(seed)
        _same_bits(_outcomes(graph, monkeypatch, arguments(graph, seed)))
