"""Random graphs, compiled, against the reference in float64. What longer runs found is in ``test_fuzz_findings.py``."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_check import FAMILIES, check, on_cpu, on_xla, verdicts
from fuzz_kernels import check_kernels
from fuzz_state import check_after_errors, check_steps

from twofold.backends.cpu.lowering import assemble, donate
from twofold.ir.op import OPS

STEPS = 30  # that keep state
KERNELS = 100
BY_JAX = ("plain", "double", "images", "training")


@pytest.mark.parametrize("family", FAMILIES)
def test_random_graphs(family):
    judged = [check(family, seed) for seed in range(FAMILIES[family].tests)]
    assert sum(map(bool, judged)) > 0.9 * len(judged), "the referee looked away too often"


def test_random_steps_that_keep_state():
    """Compiled, as they stand, by the reference: three steps in a row."""
    for seed in range(STEPS):
        check_steps(seed)


def test_random_steps_of_which_some_end_in_an_error():
    """They leave the state as it was."""
    for seed in range(STEPS // 2):
        check_after_errors(seed)


def test_random_convolutions():
    for seed in range(KERNELS):
        check_kernels(seed)


def test_the_referee_sees_state_that_is_overwritten_too_early(monkeypatch):
    """Within as many graphs as the tests have: with the rule for that, and the check of its results, out of force."""
    monkeypatch.setattr(assemble, "check", lambda *given: None)
    monkeypatch.setattr(donate, "safe", lambda *given: True)
    graphs = map(FAMILIES["state"].graph, range(FAMILIES["state"].tests))
    assert any(v.wrong for seed, graph in enumerate(graphs) for v in verdicts(graph, seed, on_cpu))


@pytest.mark.parametrize("family", BY_JAX)
def test_jax_is_judged_alike(family):
    """The referee is not ours alone: another compiler passes it."""
    pytest.importorskip("jax")
    for seed in range(4):
        check(family, seed, on_xla)


@pytest.mark.parametrize("family", ["plain", "images", "training"])
def test_the_referee_sees_what_is_wrong_and_it_is_shrunk(family):
    """Results that are off by a few parts in ten thousand wherever the graph has a certain op: the graph left has little else."""
    wrong = {"plain": "multiply", "images": "conv", "training": "matmul"}[family]

    def broken(graph, arguments):
        results = on_cpu(graph, arguments)
        if not any(node.op is OPS[wrong] for node in graph.nodes):
            return results
        return [np.asarray(r * (1 + 5e-4)).astype(r.dtype) if r.dtype.kind == "f" else r for r in results]

    seed = next(s for s in range(20) if any(n.op is OPS[wrong] for n in FAMILIES[family].graph(s).nodes))
    with pytest.raises(AssertionError, match=f"{family} {seed}: output") as caught:
        check(family, seed, broken)
    nodes = [line for line in str(caught.value).splitlines() if line.startswith("  %")]
    assert len(nodes) <= 4 and any(f" {wrong}(" in line for line in nodes), nodes
