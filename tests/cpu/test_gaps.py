"""What the CPU compiler does not compile is listed in one table, said on a page and named by a program's report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import twofold as tw
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.lowering.rules import HOST, INLINE, NESTS
from twofold.backends.cpu.lowering.steps import HostStep
from twofold.base.dtypes import as_dtype
from twofold.ir import OPS, Builder, Spec, recording

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def test_the_page_lists_the_gaps():
    section = PAGE.read_text().split("## What device `cpu` does not compile")[1].split("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M)) == HOST


def program(op, *arrays, **attrs):
    builder = Builder(op)
    with recording(builder):
        inputs = [builder.input(Spec(a.shape, as_dtype(a.dtype))) for a in arrays]
        made = builder.append(OPS[op], inputs, attrs)
    return CpuProgram(builder.finish(made if OPS[op].multi else [made]))


@pytest.mark.parametrize("name", sorted(HOST))
def test_a_report_names_what_runs_in_python(name):
    sample = next(iter(OPS[name].samples()))
    arrays = [np.eye(*x, dtype=np.float64) if isinstance(x, tuple) else np.asarray(x) for x in sample.inputs]
    report = program(name, *arrays, **sample.attrs).report()
    assert f"{name} runs in Python between native parts: {HOST[name]}" in report


def test_no_gap_is_also_a_rule():
    assert not set(HOST) & (set(INLINE) | set(NESTS))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int16", "uint64"])
def test_searchsorted_is_compiled(side, dtype):
    rng = np.random.default_rng(3)
    kind = as_dtype(dtype).numpy
    for size in (0, 1, 2, 3, 7, 8, 33, 100):
        x = np.sort(rng.integers(0, 40, size).astype(np.float64)).astype(kind)
        wanted = rng.integers(0, 42, (3, 19)).astype(kind)
        if kind.kind == "f":
            x[size - size // 4 :] = np.nan
            wanted[1, 3:6] = np.nan, np.inf, -np.inf
        compiled = program("searchsorted", x, wanted, side=side)
        assert not any(isinstance(step, HostStep) for step in compiled.steps)
        exact = [a.astype(np.float64) for a in (x, wanted)]
        np.testing.assert_array_equal(compiled([x, wanted])[0], np.searchsorted(*exact, side))


def test_searchsorted_of_computed_operands():
    x = tw.tensor([1.0, 2.0, 4.0, 8.0])
    found = tw.compile(lambda a, b: tw.searchsorted(a * 2.0, b + 1.0))(x, tw.tensor([0.0, 3.0, 99.0]))
    np.testing.assert_array_equal(found.numpy(), [0, 1, 4])
