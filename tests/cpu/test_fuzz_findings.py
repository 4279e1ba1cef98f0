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
    # two convolutions wait to write into one concatenation; asked for the statistics of the first, the second ran before it
    "statistics of a part that another part reads": """graph f(%scale: f32[16], %shift: f32[16], %v: f32[12,16,1,1], %x: f32[2,64,3,5], %w: f32[16,64,1,1]) {
  %0 = conv(%x, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[2,16,3,5]
  %1 = conv(%0, %v) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[2,12,3,5]
  %2, %3, %4 = batch_norm_train(%0, %scale, %shift) {eps=0.01} : f32[2,16,3,5], f32[16], f32[16]
  %5 = relu(%2) : f32[2,16,3,5]
  %6 = concat(%0, %1, %5) {axis=1} : f32[2,44,3,5]
  return %6
}""",
    # a kernel wrote its part of a concatenation although what it reads was only being emitted: that reads another part
    "a part made of another part by two kernels": """graph f(%w2: f32[1,1,1,1], %w1: f32[1,12,1,1], %w: f32[7,1,1,1], %x: f32[3,12,7,3]) {
  %0 = relu(%x) : f32[3,12,7,3]
  %1 = conv(%0, %w1) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[3,1,7,3]
  %2 = conv(%1, %w2) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[3,1,7,3]
  %3 = conv(%2, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : f32[3,7,7,3]
  %4 = concat(%3, %0) {axis=1} : f32[3,19,7,3]
  %5 = add(%2, %1) : f32[3,1,7,3]
  %6 = concat(%5, %0, %4, %0) {axis=1} : f32[3,44,7,3]
  return %6
}""",
    # LRN of 16 bits: the kernel squared its result and left only that, though what divides by its sums reads the result
    "a result of 16 bits, widened once and read twice": """graph f(%x: f16[1,12,7,7], %w: f16[3,12,3,3]) {
  %0 = conv(%x, %w) {strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1} : f16[1,3,7,7]
  %1 = cast(%0) {dtype=f32} : f32[1,3,7,7]
  %2 = multiply(%1, %1) : f32[1,3,7,7]
  %3 = pad(%2) {widths=((0, 0), (1, 1), (0, 0), (0, 0)), interior=(0, 0, 0, 0), fill=1.0} : f32[1,5,7,7]
  %4 = slice(%3) {starts=(0, 2, 0, 0), stops=(1, 5, 7, 7), steps=(1, 1, 1, 1)} : f32[1,3,7,7]
  %5 = constant() {value=f32[]{1.0}} : f32[]
  %6 = add(%4, %5) : f32[1,3,7,7]
  %7 = divide(%1, %6) : f32[1,3,7,7]
  return %7
}""",
    # a product stored a second result of one column a whole vector at a time: beyond the end
    "another result of a single column": """graph f(%a: f16[11,1,1,1], %b: f16[11,1,1,1]) {
  %0 = matmul(%a, %b) : f16[11,1,1,1]
  %1 = constant() {value=f16[]{0.5}} : f16[]
  %2 = multiply(%0, %1) : f16[11,1,1,1]
  return %2, %0
}""",
}  # fmt: skip


@pytest.mark.parametrize("run", [on_cpu, on_cpu_as_it_is])
@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_stays_mended(finding, run):
    graph = parse_graph(FINDINGS[finding])
    for seed in range(3):
        assert not any(v.wrong for v in verdicts(graph, seed, run))
