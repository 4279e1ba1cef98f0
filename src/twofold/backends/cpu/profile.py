"""Where a step's time goes: a recording of a real one.

The program is strung together once more with a clock read (``clock_gettime``) by every thread before it waits at a barrier,
after that, and after every kernel. Each costs about 30 ns; nothing of it is in programs that are not recorded. Barriers inside
a kernel count as the kernel's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu.assembled import CLOCK, Call
from twofold.backends.cpu.calibrate import Rates
from twofold.backends.cpu.llvm import Function, const
from twofold.backends.cpu.llvm.runtime import MONOTONIC
from twofold.backends.cpu.lowering.assemble import layers
from twofold.backends.cpu.lowering.steps import HostStep
from twofold.backends.cpu.machine import host
from twofold.backends.cpu.program import ProgramBuilder, Ref
from twofold.backends.cpu.staged import StagedProgram

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram

_ARRIVED, _STARTED, _ENDED, _STAMPS = 0, 1, 2, 3


@dataclass(frozen=True)
class Span:
    """One kernel call of the step, or a part in Python (``flops`` and bytes 0). Times are in seconds from the step's start, a
    row for each thread that took part: arrived at the barrier before it (if there is one), started, ended."""

    symbol: str
    note: str
    ops: str
    layers: str
    flops: int
    read: int
    written: int
    times: np.ndarray

    @property
    def seconds(self) -> float:
        """Of the thread that took longest."""
        return float((self.times[:, _ENDED] - self.times[:, _STARTED]).max())

    @property
    def waited(self) -> np.ndarray:
        """Each thread's seconds at the barrier before it."""
        return self.times[:, _STARTED] - self.times[:, _ARRIVED]


@dataclass(frozen=True)
class Row:
    """The calls of one kernel together: seconds (of the slowest thread each), and what the threads then waited for each other
    on average."""

    symbol: str
    note: str
    calls: int
    seconds: float
    waiting: float
    flops: int
    read: int
    written: int

    @property
    def gflops(self) -> float:
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gbytes(self) -> float:
        return (self.read + self.written) / self.seconds / 1e9 if self.seconds else 0.0

    def share(self, rates: Rates) -> float:
        """Of the roofline: the least time there is, by arithmetic or memory, over the time it took."""
        return rates.least_seconds(self.flops, self.read, self.written) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Recording:
    """One step: its spans in order, and its seconds from the first to the last."""

    spans: list[Span]
    seconds: float
    threads: int

    def rows(self) -> list[Row]:
        """By kernel, those that take longest first. Waiting counts for the kernel after which it is done."""
        after = [float(s.waited.mean()) for s in self.spans[1:]] + [0.0]
        together: dict[str, list[tuple[Span, float]]] = {}
        for span, waited in zip(self.spans, after):
            together.setdefault(span.symbol, []).append((span, waited))
        rows = []
        for symbol, pairs in together.items():
            facts = {of: sum(getattr(s, of) for s, _ in pairs) for of in ("seconds", "flops", "read", "written")}
            rows.append(Row(symbol, pairs[0][0].note, len(pairs), waiting=sum(w for _, w in pairs), **facts))
        return sorted(rows, key=lambda r: -r.seconds)


def of(function: Any, arguments: Sequence[Any], rounds: int = 5) -> Recording:
    """A step of a function that ``tw.compile`` returned, which has been called with these arguments (tensors)."""
    entries = [entry for known in function._entries.values() for entry in known]
    runner = entries[-1].runner
    compiled = list(runner.programs.values())[-1]
    return record(compiled.program, compiled.buffers([a._own for a in [*arguments, *runner.variables]]), rounds)


def record(program: CpuProgram | StagedProgram, buffers: Sequence[Any], rounds: int = 5) -> Recording:
    """The quickest of ``rounds`` steps, after one that warms up. What the program overwrites is copied first. Of a program in
    stages each turn of each stage is recorded so, and they follow each other."""
    if not isinstance(program, StagedProgram):
        return _record(program, buffers, rounds)
    turns: list[Recording] = []

    def turn(part: CpuProgram, arrays: Sequence[Any], version: int | None) -> Sequence[Any]:
        turns.append(_record(part, arrays, rounds))
        return part(arrays, version)

    program.run(buffers, None, turn)
    return _joined(turns)


def _joined(turns: Sequence[Recording]) -> Recording:
    """Recordings as one, each starting where the one before it ends."""
    spans: list[Span] = []
    start = 0.0
    for turn in turns:
        spans += [replace(span, times=span.times + start) for span in turn.spans]
        start += turn.seconds
    return Recording(spans, start, turns[0].threads)


def _record(program: CpuProgram, buffers: Sequence[Any], rounds: int) -> Recording:
    program = program.opened
    copies = [b.copy() if i in program.donated else b for i, b in enumerate(buffers)]
    clocks = np.zeros((program.threads, len(program.calls), _STAMPS, 2), np.int64)  # seconds and nanoseconds
    python: list[Span] = []
    segments = _timed_segments(program, python)
    best: Recording | None = None
    for k in range(rounds + 1):
        clocks[...] = 0
        python.clear()
        program.record(copies, segments, clocks.ctypes.data)
        if k:
            found = _read(program.calls, clocks, python, program.threads)
            best = found if best is None or found.seconds < best.seconds else best
    assert best is not None
    return best


def _timed_segments(program: CpuProgram, python: list[Span]) -> list[Any]:
    """The program's segments once more, with clocks."""
    segments: list[Any] = []
    for number, segment in enumerate(program.segments):
        if isinstance(segment, HostStep):
            segments.append(replace(segment, run=_timed(segment, python)))
            continue
        builder = ProgramBuilder(host())
        for i, call in enumerate(program.calls):
            if call.segment == number:
                _stamp(builder, len(program.calls), i, _ARRIVED)
                if call.waits:
                    builder.barrier()
                    _stamp(builder, len(program.calls), i, _STARTED)
                builder.call(call.kernel, call.refs)
                _stamp(builder, len(program.calls), i, _ENDED)
        segments.append(builder.finish(segment.crew))
    return segments


def _stamp(builder: ProgramBuilder, calls: int, call: int, which: int) -> None:
    """Store the time at ``clocks[tid, call, which]``."""
    base = builder.pointer(Ref(CLOCK))

    def emit(f: Function) -> None:
        place = f.add(f.mul(f.arg("tid"), calls * _STAMPS), call * _STAMPS + which)
        f.call("clock_gettime", "i32", [const("i32", MONOTONIC), f.gep(base, f.mul(place, 16), "i8")])

    builder.custom(emit)


def _timed(step: HostStep, python: list[Span]) -> Callable[..., Sequence[np.ndarray]]:
    def run(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        start = time.monotonic_ns()
        results = step.run(*arrays)
        times = np.array([[start, start, time.monotonic_ns()]], np.float64)
        python.append(Span(step.name, f"{step.name}, in Python", step.name, layers(step), 0, 0, 0, times))
        return results

    return run


def _read(calls: Sequence[Call], clocks: np.ndarray, python: list[Span], threads: int) -> Recording:
    """Spans of what the clocks hold, in nanoseconds so far, to seconds from the start."""
    stamps = clocks[..., 0].astype(np.float64) * 1e9 + clocks[..., 1]
    spans = list(python)
    for i, call in enumerate(calls):
        times = stamps[stamps[:, i, _ENDED] > 0, i]  # of those who took part: a small one is the caller's alone
        if not call.waits:
            times[:, _STARTED] = times[:, _ARRIVED]
        spans.append(_span(call, times))
    spans.sort(key=lambda s: s.times[:, _STARTED].min())
    start, end = spans[0].times.min(), max(s.times.max() for s in spans)
    return Recording([replace(s, times=(s.times - start) / 1e9) for s in spans], (end - start) / 1e9, threads)


def _span(call: Call, times: np.ndarray) -> Span:
    step, kernel = call.step, call.kernel
    written = list(dict.fromkeys(step.writes()))
    read = [b for b in dict.fromkeys(step.reads()) if b not in written]
    size = lambda buffers: sum(b.nbytes for b in buffers)
    return Span(kernel.symbol, kernel.note, call.ops, call.layers, kernel.flops, size(read), size(written), times)


def chrome_trace(recording: Recording, name: str) -> dict[str, Any]:
    """The recording for Perfetto or chrome://tracing: a row for each thread, times in microseconds."""
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": name}}]
    for tid in range(recording.threads):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": f"thread {tid}"}})
    for span in recording.spans:
        facts = {
            "kernel": span.symbol, "note": span.note, "layers": span.layers,
            "gflops": round(span.flops / span.seconds / 1e9, 2) if span.seconds else 0.0,
            "bytes": span.read + span.written,
        }  # fmt: skip
        for tid, (arrived, started, ended) in enumerate(span.times * 1e6):
            common = {"ph": "X", "pid": 1, "tid": tid}
            if started > arrived:
                events.append({**common, "name": "wait", "cat": "barrier", "ts": arrived, "dur": started - arrived})
            events.append({**common, "name": span.ops, "cat": "kernel", "ts": started, "dur": ended - started, "args": facts})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def table(recording: Recording, rates: Rates, most: int = 30) -> str:
    """The kernels that take longest, as text."""
    rows = recording.rows()
    lines = [f"{'ms':>9} {'share':>6} {'calls':>5} {'waiting':>8} {'GFLOP/s':>8} {'GB/s':>6} {'of roof':>7}  kernel"]
    for row in rows[:most]:
        gflops = f"{row.gflops:8.1f}" if row.flops else " " * 8
        lines.append(
            f"{row.seconds * 1e3:9.3f} {row.seconds / recording.seconds:6.1%} {row.calls:5d} {row.waiting * 1e3:8.3f} "
            f"{gflops} {row.gbytes:6.1f} {row.share(rates):7.0%}  {row.symbol}: {row.note}"
        )
    waiting = sum(row.waiting for row in rows)
    lines.append(
        f"{recording.seconds * 1e3:9.3f} ms a step on {recording.threads} threads, {waiting * 1e3:.3f} ms of it waiting; "
        f"measured peaks: {rates.fma:.0f} GFLOP/s, {rates.read:.1f} GB/s read, {rates.write:.1f} GB/s written"
    )
    return "\n".join(lines)
