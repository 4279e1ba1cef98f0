"""The examples in the docstrings of ``twofold.io.weights`` run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["read", "report", "safetensors", "write_pth"])
def test_examples_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(f"twofold.io.weights.{name}"))
    assert result.attempted and not result.failed
