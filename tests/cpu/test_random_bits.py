"""Random bits in vectors are those of the reference, whether lanes fill whole blocks of Philox or not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twofold.backends.cpu.backend import CpuProgram
from twofold.base import rng
from twofold.ir.text import parse_graph

STATE = np.array([5, 7, 0xFFFFFFF0, 3], np.uint32)
SHAPES = [(1,), (64,), (1003,), (3, 5), (7, 19), (33, 20), (2, 6, 37), (8, 5, 13, 13)]


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits(shape, moved):
    """``moved``: read backwards."""
    spec = ",".join(map(str, shape))
    axes = f"flip(%0) {{axes=({len(shape) - 1},)}}" if moved else "bitwise_invert(%0)"
    text = f"%0 = random_bits(%s) {{shape=({spec},)}} : u32[{spec}]\n  %1 = {axes} : u32[{spec}]"
    graph = parse_graph(f"graph draw(%s: u32[4]) {{\n  {text}\n  return %1\n}}")
    bits = rng.random_bits(STATE, math.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(CpuProgram(graph)([STATE])[0], bits[..., ::-1] if moved else ~bits)
