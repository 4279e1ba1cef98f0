"""Units of work that come in several loops, shared among threads as one list: a loop's share alone would leave the odd unit
of every loop to the last thread.

A loop is (units, work of each unit, at least 1). Thread ``t`` of ``n`` does the units whose middle lies in its ``n``-th of all
the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from twofold.backends.cpu.llvm import Function, Index

Loops = Sequence[tuple[int, int]]


def parts(f: Function, loops: Loops) -> list[tuple[Index, Index]]:
    """For every loop the units [low, high) that this thread does."""
    total, tid, threads = sum(units * work for units, work in loops), f.arg("tid"), f.arg("n")
    ends = [f.div(f.mul(2 * total, at), threads) for at in (tid, f.add(tid, 1))]  # in halves of a unit of work
    found, before = [], 0
    for units, work in loops:
        low, high = (f.imin(f.div(f.imax(f.add(end, work - 1 - 2 * before), 0), 2 * work), units) for end in ends)
        found.append((low, high))
        before += units * work
    return found


def idle(loops: Loops, threads: int) -> float:
    """The part of the work that the thread with most has above an even share: 1 if it takes twice as long."""
    total = sum(units * work for units, work in loops)

    def before(thread: int) -> int:
        """The work of all threads before this one."""
        done = found = 0
        for units, work in loops:
            first = 2 * total * thread - (2 * done + work) * threads  # of units whose middle lies before the thread's part
            found += work * min(max(-(-first // (2 * work * threads)), 0), units)
            done += units * work
        return found

    ends = [before(thread) for thread in range(threads + 1)]
    return max(high - low for low, high in pairwise(ends)) * threads / total - 1
