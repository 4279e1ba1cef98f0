"""What this machine can do, measured: multiply-adds on registers, bytes read from memory and written to it.

    rates = Rates.measure(threads=2)
    rates.fma, rates.read, rates.write          # 1e9 operations or bytes a second, of all threads together

Each is a loop in machine code like the kernels' own. Kernels are judged by them, in the same minutes: what a virtual machine
gives varies.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np

from twofold.backends.cpu.llvm import const
from twofold.backends.cpu.machine import host
from twofold.backends.cpu.program import KernelBuilder, Program, ProgramBuilder, Ref

_CHAINS, _STEPS = 12, 100_000  # of multiply-adds: enough in flight for two units of latency 4 or 5, few enough for 16 registers
_BYTES = 256 << 20  # far beyond any last cache that a few cores have
_UNROLL = 8


@dataclass(frozen=True)
class Rates:
    """1e9 a second, all threads together: operations (a multiply-add is two), bytes read, bytes written."""

    fma: float
    read: float
    write: float
    threads: int

    @classmethod
    def measure(cls, threads: int, rounds: int = 5) -> Rates:
        """The best of some rounds each."""
        return cls(fma_rate(threads, rounds), read_rate(threads, rounds), write_rate(threads, rounds), threads)

    def least_seconds(self, flops: int, read: int, written: int) -> float:
        """What a kernel must take at least by the roofline: its operations at the peak, or its bytes from and to memory."""
        return max(flops / self.fma, read / self.read + written / self.write) / 1e9


def fma_rate(threads: int = 1, rounds: int = 5) -> float:
    """Float32 multiply-adds on registers alone, in 1e9 operations a second."""
    numbers = np.zeros(64, np.float32)
    best = _best(_fma_loop(), numbers, threads, rounds)
    return 2 * _CHAINS * _STEPS * host().lanes * threads / best / 1e9


def read_rate(threads: int = 1, rounds: int = 5) -> float:
    """1e9 bytes a second summed up from memory."""
    return _BYTES / _best(_memory_loop(store=False), _memory(), threads, rounds) / 1e9


def write_rate(threads: int = 1, rounds: int = 5) -> float:
    """1e9 bytes a second stored (where lines are fetched before they are written, that is in the time)."""
    return _BYTES / _best(_memory_loop(store=True), _memory(), threads, rounds) / 1e9


def _best(program: Program, data: np.ndarray, threads: int, rounds: int) -> float:
    """The least seconds of some runs; the first one only touches the memory."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        program.run([data.ctypes.data], threads)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _memory() -> np.ndarray:
    return np.ones(_BYTES // 4, np.float32)


@functools.cache
def _fma_loop() -> Program:
    k = KernelBuilder(host(), "peak", ["x"])
    start = k.f.vload(k.f.arg("x"))
    with k.f.loop(0, _STEPS, carry=[start] * _CHAINS) as loop:
        loop.carry([k.f.fma(start, start, value) for value in loop.carried])
    total = loop.results[0]
    for value in loop.results[1:]:
        total = k.f.fadd(total, value)
    k.f.vstore(total, k.f.arg("x"))
    return _program(k)


@functools.cache
def _memory_loop(store: bool) -> Program:
    """Every thread passes over its share of ``_BYTES``, storing or adding up."""
    k = KernelBuilder(host(), "write" if store else "read", ["x"])
    f, lanes = k.f, host().lanes
    zero = const(f.vec(), 0.0)
    low, high = f.share(_BYTES // (4 * lanes * _UNROLL), f.arg("tid"), f.arg("n"))
    with f.loop(low, high, carry=[] if store else [zero] * _UNROLL) as loop:
        places = [f.gep(f.arg("x"), f.add(f.mul(loop.index, lanes * _UNROLL), u * lanes)) for u in range(_UNROLL)]
        if store:
            for place in places:
                f.vstore(zero, place)
        else:
            loop.carry([f.fadd(total, f.vload(place)) for total, place in zip(loop.carried, places)])
    if not store:
        total = loop.results[0]
        for value in loop.results[1:]:
            total = f.fadd(total, value)
        with f.when(f.icmp("slt", high, 0)):  # never: but the sums are needed as far as the compiler knows
            f.vstore(total, f.arg("x"))
    return _program(k)


def _program(k: KernelBuilder) -> Program:
    builder = ProgramBuilder(host())
    builder.call(k.finish(), [Ref(0)])
    return builder.finish()
