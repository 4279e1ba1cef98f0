"""Where a program's time goes: every kernel call timed alone, in order, on the program's own data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {**asdict(self), "gflops": self.gflops}


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


def of(function: Any, arguments: Sequence[Any], rounds: int = 3) -> list[Row]:
    """The profile of a function that ``tw.compile`` returned, which has been called with these arguments (tensors)."""
    entries = [entry for known in function._entries.values() for entry in known]
    runner = entries[-1].runner
    compiled = list(runner.programs.values())[-1]
    buffers = [a._own.buffer for a in [*arguments, *runner.variables]]
    return profile(compiled.program, buffers, rounds)


def chrome_trace(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The rows as events for Perfetto or chrome://tracing, one after another as in a step; times are in microseconds. Each
    was timed alone, with all threads: the gaps and overlaps of a real step are not in it."""
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}}]
    at = 0.0
    for row in rows:
        facts = {"symbol": row.symbol, "gflops": round(row.gflops, 2)}
        duration = row.seconds * 1e6
        shown = row.note or row.symbol
        events.append({"name": shown, "ph": "X", "pid": 1, "tid": 1, "ts": at, "dur": duration, "args": facts})
        at += duration
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def table(rows: Sequence[Row], most: int = 30, peak: float = 0.0) -> str:
    """The rows that take longest, added up by kernel, as text. ``peak`` is one core's measured rate: a column tells the
    kernels' shares of it (above 100 % with several threads, or by Winograd's algorithm)."""
    totals: dict[str, list[Any]] = {}
    for row in rows:
        entry = totals.setdefault(row.symbol, [0.0, 0, 0, row.note])
        entry[0] += row.seconds
        entry[1] += 1
        entry[2] += row.flops
    whole = sum(entry[0] for entry in totals.values())
    lines = [f"{'ms':>9} {'share':>6} {'calls':>5} {'GFLOP/s':>8} {'of peak':>8}  kernel"]
    for symbol, (seconds, calls, flops, note) in sorted(totals.items(), key=lambda t: -t[1][0])[:most]:
        gflops = flops / seconds / 1e9 if flops and seconds else 0.0
        rate = (
            f"{gflops:8.1f} {gflops / peak:8.0%}"
            if gflops and peak
            else f"{gflops:8.1f} {'':8}"
            if gflops
            else " " * 17
        )
        lines.append(f"{seconds * 1e3:9.3f} {seconds / whole:6.1%} {calls:5d} {rate}  {symbol}: {note}")
    about = f"{whole * 1e3:9.3f} ms in {len(rows)} calls" + (
        f"; one core's measured peak is {peak:.0f} GFLOP/s" if peak else ""
    )
    return "\n".join([*lines, about])
