"""Where a program's time goes: every kernel call timed alone, in order, on the program's own data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.machine import host
from twofold.backends.cpu.program import ProgramBuilder

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram


@dataclass(frozen=True)
class Row:
    """One kernel call: its symbol, what it computes, its best time in seconds, and the multiply-adds' rate (0: unknown)."""

    symbol: str
    note: str
    seconds: float
    flops: int

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9 if self.flops and self.seconds else 0.0


def profile(program: CpuProgram, buffers: Sequence[Any], rounds: int = 3) -> list[Row]:
    """Time every kernel call of ``program`` on ``buffers`` (``rounds`` times, the best counts). Donated buffers are copied."""
    program = program.opened
    copies = [b.copy() if i in program.donated else b for i, b in enumerate(buffers)]
    program(copies)
    pointers, keep = program.pointers(copies)
    rows = []
    for call in program.calls:
        builder = ProgramBuilder(host())
        builder.call(call.kernel, call.refs)
        alone = builder.finish()
        best = float("inf")
        for _ in range(rounds):
            start = time.perf_counter()
            alone.run(pointers, program.threads)
            best = min(best, time.perf_counter() - start)
        rows.append(Row(call.kernel.symbol, call.kernel.note, best, call.kernel.flops))
    del keep
    return rows


def table(rows: Sequence[Row], most: int = 30) -> str:
    """The rows that take longest, added up by kernel, as text."""
    totals: dict[str, list[Any]] = {}
    for row in rows:
        entry = totals.setdefault(row.symbol, [0.0, 0, 0, row.note])
        entry[0] += row.seconds
        entry[1] += 1
        entry[2] += row.flops
    whole = sum(entry[0] for entry in totals.values())
    lines = [f"{'ms':>9} {'share':>6} {'calls':>5} {'GFLOP/s':>8}  kernel"]
    for symbol, (seconds, calls, flops, note) in sorted(totals.items(), key=lambda t: -t[1][0])[:most]:
        rate = f"{flops / seconds / 1e9:8.1f}" if flops and seconds else " " * 8
        lines.append(f"{seconds * 1e3:9.3f} {seconds / whole:6.1%} {calls:5d} {rate}  {symbol}: {note}")
    return "\n".join([*lines, f"{whole * 1e3:9.3f} ms in {len(rows)} calls"])
