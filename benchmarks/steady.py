"""Which take of a row is kept, and which rows are measured again because a process was slow by itself.

Each contestant (twofold, and the quickest of the others) is looked at alone: how its own times spread, and whether it took
as long in another take. Nothing here compares one with another, so no ratio can be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import speed
import tables

UNSTEADY = 0.15  # of a contestant's median: between its quartiles, or between it and the nearest of its other takes
Row = dict[str, Any]


def kept(takes: Sequence[Row]) -> Row:
    """Of a row's takes the steadiest, the first of equals, among those during which the machine was not slow."""
    usable = undisturbed(takes)
    return min(usable, key=lambda take: unrest(take, usable))


def undisturbed(takes: Sequence[Row]) -> list[Row]:
    """The takes during which the machine gave about as much as in the best of them."""
    rated = [t for t in takes if "speed" in t]
    if not rated:
        return list(takes)
    most = {rate: max(t["speed"][rate] for t in rated) for rate in rated[0]["speed"]}
    share = {id(t): min(t["speed"][rate] / most[rate] for rate in most) for t in rated}
    return [t for t in rated if share[id(t)] >= speed.SLOW * max(share.values())]


def unrest(take: Row, takes: Sequence[Row]) -> float:
    """The most that a contestant's times are apart, as a share of its median: its quartiles, or this take and the nearest
    other."""
    return max((max(_spread(take, name), _apart(take, takes, name)) for name in contestants(take)), default=0.0)


def contestants(row: Row) -> list[str]:
    """Twofold and the quickest other library, if their results are right."""
    best = tables.best_peer(row)
    return [name for name in ("twofold", best[0] if best else "") if tables.counts(row["peers"].get(name))]


def _spread(row: Row, name: str) -> float:
    found = row["peers"][name]
    low, high = found["quartiles_ms"]
    return (high - low) / found["ms"]


def _apart(take: Row, takes: Sequence[Row], name: str) -> float:
    own = take["peers"][name]["ms"]
    others = [t["peers"][name]["ms"] for t in takes if t is not take and tables.counts(t["peers"].get(name))]
    return min((abs(other - own) / own for other in others), default=0.0)
