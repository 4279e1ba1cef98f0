"""Makes this folder's helper module importable, and keeps what the tests cache out of the user's cache."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TWOFOLD_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()
