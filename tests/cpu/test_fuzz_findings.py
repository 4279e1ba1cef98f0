"""Graphs that random testing found to be compiled wrongly, shrunk: each gives what the reference gives in float64."""

from __future__ import annotations

import pytest
from fuzz_check import on_cpu, on_cpu_as_it_is, verdicts

from twofold.ir.text import parse_graph

FINDINGS = {
    # images of one channel: the width was taken for the channel, and the operand of the epilogue read far outside its buffer
    "epilogue over one channel": """graph f(%a: f32[1,24,3,3], %w: f32[24,1,1,3], %m: bool[1,1,3,7], %z: f32[], %v: f32[1,17,1,1]) {
  %0 = conv_input_grad(%a, %w) {input_shape=(3, 7), strides=(2, 2), padding=((1, 1), (0, 2)), dilation=(2, 2), groups=1} : f32[1,1,3,7]
  %1 = where(%m, %0, %z) : f32[1,1,3,7]
  %2 = conv_input_grad(%1, %v) {input_shape=(6, 6), strides=(3, 1), padding=((2, 1), (1, 0)), dilation=(1, 1), groups=1} : f32[1,17,6,6]
  return %2
}""",
    "residual of one channel": """graph f(%x: f32[2,5,4,6], %w: f32[1,5,3,3], %r: f32[2,1,4,6], %v: f32[3,1,1,1]) {
  %0 = conv(%x, %w) {strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1} : f32[2,1,4,6]
  %1 = add(%0, %r) : f32[2,1,4,6]
  %2 = conv(%1, %v) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[2,3,4,6]
  return %2
}""",
}  # fmt: skip


@pytest.mark.parametrize("run", [on_cpu, on_cpu_as_it_is])
@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_stays_mended(finding, run):
    graph = parse_graph(FINDINGS[finding])
    for seed in range(3):
        assert not any(v.wrong for v in verdicts(graph, seed, run))
