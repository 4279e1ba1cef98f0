"""The public ONNX backend suite: every case passes, except those listed, each under its reason, in a data file.

A listed case must fail: the list says what is missing today, and shrinks when something is added. One with a question mark
passes or fails as the machine rounds.
``python tests/io/onnx_suite.py`` prints counts and each failure's message.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from onnx_suite import KINDS, cases, run

LIST = Path(__file__).parent / "data" / "onnx_backend_failures.txt"
PASSING = {"node": 1316, "simple": 7, "pytorch-converted": 82, "pytorch-operator": 35, "light": 8}
WHOLE_WORDS = re.compile(r"(\? )?[a-z_0-9A-Z.\-]+\*?\Z")


def _expected_failures() -> list[str]:
    lines = [line.strip() for line in LIST.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in ("node", "light") else ()) for k in KINDS]
)
@pytest.mark.filterwarnings("ignore")
def test_suite(kind):
    patterns = _expected_failures()
    surprises, passed = [], 0
    for case in cases(kind):
        listed = [p for p in patterns if fnmatchcase(case.name, p.removeprefix("? "))]
        try:
            run(case)
        except Exception as error:
            if not listed:
                surprises.append(f"{case.name} fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            passed += 1
            if any(not p.startswith("? ") for p in listed):
                surprises.append(f"{case.name} passes; take it off {LIST.name}")
    assert not surprises, "\n".join(surprises)
    assert passed >= PASSING[kind], f"{passed} cases pass, there were {PASSING[kind]}: did the suite shrink?"


def test_the_list_is_well_formed():
    """Patterns are names, or beginnings of names; every group has its reason above it."""
    reason = ""
    for line in LIST.read_text().splitlines():
        reason = line if line.startswith("#") else "" if not line else reason
        assert not line or reason, f"{line!r} has no reason above it"
        assert not line or line.startswith("# ") or WHOLE_WORDS.match(line), line
