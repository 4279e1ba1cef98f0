"""Units of work that come in several loops, shared among threads as one list: a loop's share alone would leave the odd unit
of every loop to the last thread.

A loop is (units, work of each unit). Thread ``t`` of ``n`` does the units whose middle lies in its ``n``-th of all the work.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    works = [work for units, work in loops for _ in range(units)]
    total, done, loads = sum(works), 0, [0] * threads
    for work in works:
        loads[(2 * done + work) * threads // (2 * total)] += work
        done += work
    return max(loads) * threads / total - 1
