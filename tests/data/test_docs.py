"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import twofold.data

MODULES = ["twofold.data"] + [m.name for m in pkgutil.walk_packages(twofold.data.__path__, "twofold.data.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
