"""One random graph: compiled, judged, and shrunk if it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from fuzz_images import ImageMaker
from fuzz_numbers import NumberMaker
from fuzz_referee import Verdict, judge
from fuzz_state import StateMaker
from fuzz_training import TrainingMaker
from graph_fuzz import Maker

from twofold.backends import device
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.interface import written_state
from twofold.ir import Graph, Value
from twofold.ir.text import print_graph
from twofold.passes import optimise

Run = Callable[[Graph, Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Family:
    """Graphs of one kind; ``tests`` of them are among the tests."""

    maker: type[Maker] | type[StateMaker]
    dtype: str = "float32"
    nodes: int = 12
    tests: int = 220

    def graph(self, seed: int) -> Graph:
        return self.maker(seed, self.dtype, self.nodes).finished()


FAMILIES = {
    "plain": Family(Maker),
    "half": Family(Maker, "float16"),
    "bfloat16": Family(Maker, "bfloat16"),
    "double": Family(Maker, "float64"),
    "images": Family(ImageMaker),
    "images, long": Family(ImageMaker, nodes=30),
    "images half": Family(ImageMaker, "float16", 8),
    "images bfloat16": Family(ImageMaker, "bfloat16", 8),
    "training": Family(TrainingMaker, nodes=9),
    "numbers": Family(NumberMaker, nodes=14),
    "state": Family(StateMaker, nodes=8, tests=30),
    "state, long": Family(StateMaker, nodes=16, tests=8),
}


def on_cpu(graph: Graph, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The graph through all passes and the CPU compiler, its state updated in place."""
    optimised = optimise(graph)
    return CpuProgram(optimised, written_state(optimised))([a.copy() for a in arguments])


def on_cpu_as_it_is(graph: Graph, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The graph through the CPU compiler alone, twice: results must not depend on what a program ran before."""
    program = CpuProgram(graph)
    first, second = (program([a.copy() for a in arguments]) for _ in range(2))
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    return second


def on_xla(graph: Graph, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The graph through JAX."""
    where = device("xla:cpu")
    put, get = where.backend.put, where.backend.get
    results = where.backend.compile(graph, where)([put(a.copy(), where) for a in arguments])
    return [np.asarray(get(r)) for r in results]


def arguments(graph: Graph, seed: int) -> list[np.ndarray]:
    """Random arrays for a graph's inputs and state."""
    rng = np.random.default_rng(seed)
    return [_array(rng, v) for v in graph.all_inputs]


def _array(rng: np.random.Generator, v: Value) -> np.ndarray:
    if v.dtype.kind == "b":
        return np.asarray(rng.random(v.shape) < 0.5)
    if v.dtype.is_floating:
        return np.asarray(rng.standard_normal(v.shape)).astype(v.dtype.numpy)
    return np.asarray(rng.integers(0 if v.dtype.kind == "u" else -20, 20, v.shape)).astype(v.dtype.numpy)


def verdicts(graph: Graph, seed: int, run: Run) -> list[Verdict]:
    given = arguments(graph, seed)
    return judge(graph, given, run(graph, given))


def check(family: str, seed: int, run: Run | None = None) -> int:
    """Raise AssertionError, with the smallest graph that shows it, if results are further from the exact ones than rounding
    explains; else how many outputs could be judged."""
    graph = FAMILIES[family].graph(seed)
    run = run or (on_cpu if seed % 2 else on_cpu_as_it_is)
    found = verdicts(graph, seed, run)
    if any(v.wrong for v in found):
        wrong = [f"output {i}: error {v.error:.3g}, allowed {v.allowed:.3g}" for i, v in enumerate(found) if v.wrong]
        small = shrunk(graph, lambda g: any(v.wrong for v in verdicts(g, seed, run)))
        raise AssertionError(f"{family} {seed}: {'; '.join(wrong)}\n{print_graph(small, full=True)}")
    return sum(not v.lost for v in found)


def shrunk(graph: Graph, fails: Callable[[Graph], bool]) -> Graph:
    """The graph cut down while it still fails: one output, an earlier one, and any value given instead of computed."""

    def tried(candidate: Graph) -> bool:
        try:
            return fails(candidate)
        except Exception:  # a graph that does not compile fails in another way
            return False

    for output in graph.all_outputs:
        if tried(alone := _cut(graph, [output], set())):
            graph = alone
            break
    before = len(graph.nodes) + 1
    while len(graph.nodes) < before:
        before = len(graph.nodes)
        for node in list(graph.nodes):
            shorter = _cut(graph, node.outputs, set())  # it alone as the output
            cuts = (_cut(graph, graph.outputs, set(given)) for given in (node.outputs, node.inputs))
            for candidate in (shorter, *cuts):
                if len(candidate.nodes) < len(graph.nodes) and tried(candidate):
                    graph = candidate
                    break
    return graph


def _cut(graph: Graph, outputs: Sequence[Value], given: set[Value]) -> Graph:
    """The part of ``graph`` that computes ``outputs`` from its inputs and from values that are ``given``."""
    wanted, nodes = {v for v in outputs if v not in given}, []
    for node in reversed(graph.nodes):
        if any(v in wanted for v in node.outputs if v not in given):
            nodes.append(node)
            wanted.update(v for v in node.inputs if v not in given)
    made = {v for node in nodes for v in node.outputs}
    inputs = list(dict.fromkeys(v for node in nodes for v in node.inputs if v not in made or v in given))
    return Graph(graph.name, inputs, nodes[::-1], [v for v in outputs if v in made], [])
