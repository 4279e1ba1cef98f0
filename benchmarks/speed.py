"""What the machine gives while a row is measured: a virtual one has minutes in which it gives much less. Rows that fell into
such minutes are known by this alone, whatever their ratios are: they are measured again, or marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

SLOW = 0.9  # of the rates that most rows of the same results had (there are also moments in which it gives more)
Row = dict[str, Any]


def now(threads: int) -> dict[str, float]:
    """1e9 multiply-adds (as two operations) and bytes read a second, at this moment."""
    from twofold.backends.cpu import calibrate

    return {"fma": calibrate.fma_rate(threads, 3), "read": calibrate.read_rate(threads, 3)}


def during(samples: Iterable[dict[str, float]]) -> dict[str, float]:
    """A row's rates, of what was found before each of its rounds."""
    samples = list(samples)
    return {rate: median(s[rate] for s in samples) for rate in samples[0]}


def shares(rows: Iterable[Row]) -> dict[int, float]:
    """By ``id`` of the row: the smaller of its rates' shares of the median of rows with as many threads. Rows without rates are
    left out."""
    rows, usual = [r for r in rows if "speed" in r], dict[tuple[int, str], float]()
    for r in rows:
        for rate in r["speed"]:
            usual[r["threads"], rate] = median(q["speed"][rate] for q in rows if q["threads"] == r["threads"])
    return {id(r): min(value / usual[r["threads"], rate] for rate, value in r["speed"].items()) for r in rows}
