"""The examples in the docstrings of graphs, passes and gradient transforms run."""

from __future__ import annotations

import doctest
import importlib
import sys

import pytest

MODULES = {
    "twofold.ir.parse": 3,
    "twofold.ir.rewrite": 3,
    "twofold.autodiff.check": 2,
    "twofold.tensor.transforms": 13,
    "twofold.tensor.gradients": 10,
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    importlib.import_module(name)
    found = doctest.testmod(sys.modules[name])  # by name: a package may export a function called like its module
    assert found.failed == 0 and found.attempted >= MODULES[name]
