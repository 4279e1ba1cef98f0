"""Random graphs, compiled against the reference."""

from __future__ import annotations

import pytest
from graph_fuzz import check


@pytest.mark.parametrize("seed", range(40))
def test_random_graph(seed):
    check(seed)
