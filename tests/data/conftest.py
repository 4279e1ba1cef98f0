"""Fixtures of the data tests: no test sees the user's files or the net."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("data_test_server", Path(__file__).with_name("server.py"))
_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_server)


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """$TWOFOLD_HOME is an empty folder, and no proxy is asked."""
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mirror():
    """A web server (see server.py)."""
    with _server.serve() as running:
        yield running
