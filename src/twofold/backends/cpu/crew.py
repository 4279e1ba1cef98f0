"""How many of a team's threads take part while other processes want the cores, too.

A thread that loses its core gets it back after the other processes' time slices, some milliseconds later, and at the next
barrier all others wait for it: beside one busy process a step of LeNet-5 took 30 times as long, and an eager one 16 times.
Every program gives the same bits for any number of threads, so the number can be chosen at each launch:

- *Calm*, which costs nothing: a launch is to all, nobody is waited for (``llvm/runtime.py``). Waits at barriers of more than
  half a millisecond are timed, and where there was one, Linux tells how long each thread stood in line for a core (its run
  delay). The shorter of the two was *lost*; a long wait without a delay is the work's own (a part that one thread does).
- *Alert*, after a loss: who wants to take part must come within ``PATIENCE``; those who do are the crew. To wait in vain is a
  loss, too. Waits are timed sooner, and who waits sleeps sooner: its core is then free for the thread that it waits for.
- *Resting*, after a loss that came too soon after the last for the team to have been worth it: the crew is one thread smaller.
  Its core is left to the other process, and the rest run undisturbed: two threads beside one process become one, which takes
  less than twice as long. Then one more is tried. The rest doubles when that is in vain, and halves when it was worth it: a
  process that never waits costs tries of a few hundredths, one that works for 5 ms of 50 little more than those 5 ms.
- Calm again when the whole team has held for ``CALM``.

Times are in nanoseconds. Where the system does not tell of run delays, teams are always calm.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence

from twofold.backends.cpu.llvm.runtime import (
    EVERYBODY,
    PATIENCE_OFFSET,
    SHORT_OFFSET,
    SIZE_OFFSET,
    SPIN_OFFSET,
    WANTED_OFFSET,
)

# Each round is one `pause`, 20 to 40 ns: about a millisecond before a thread sleeps. On a virtual machine it costs some 100
# microseconds to wake a core that sleeps, so threads stay awake through the Python between two eager ops or two steps: the
# compiled training step of LeNet-5 takes 8.8 ms after a pause if they wait 2,000 rounds, 3.3 to 4.3 with 20,000 to 50,000.
CALM_ROUNDS = 40_000
# Who sleeps leaves its core to the thread that it waits for: 200 microseconds, timed after 50.
BUSY_ROUNDS, BUSY_SHORT = 8_000, 2_000
PATIENCE = 200_000  # for a worker that has to be woken
LEAST = 150_000  # that counts as lost: kernel threads take 30 to 100 microseconds now and then
SHORTEST, LONGEST = 2_000_000, 250_000_000  # rests; at most 8 times what was lost, if that is longer
GAIN = 3  # a crew was worth it if it held for so many times what was lost in the end
CALM = 50_000_000


class Crew:
    """The choice for one team of ``threads``, written into its ``state``; one that does not ``adapt`` (its threads take turns
    on fewer cores, and never spin) is always calm. The team's lock is held by whoever calls."""

    def __init__(self, state: int, threads: int, adapts: bool):
        i32, i64 = ctypes.c_int32, ctypes.c_int64
        self._spin, self._short = i32.from_address(state + SPIN_OFFSET), i32.from_address(state + SHORT_OFFSET)
        self._wanted, self._patience = i64.from_address(state + WANTED_OFFSET), i64.from_address(state + PATIENCE_OFFSET)
        i64.from_address(state + SIZE_OFFSET).value = threads
        self.threads, self.adapts = threads, adapts
        self._rest = self._tries_at = 0  # how long the last rest was; its end, or the last loss after which there was none
        self._delays: dict[int, int] = {}  # thread -> its run delay when last asked
        self.be_calm()

    @property
    def size(self) -> int:
        """Threads that are wanted."""
        return self._wanted.value

    def be_calm(self) -> None:
        """From now on all take part."""
        self.calm = True
        self._wanted.value, self._patience.value = self.threads, EVERYBODY
        self._spin.value = CALM_ROUNDS if self.adapts else 0
        self._short.value = self._spin.value // 2

    def leave(self) -> None:
        """The next launch tells all workers to leave."""
        self._wanted.value, self._patience.value = 0, EVERYBODY

    def try_more(self) -> None:
        """Before a launch when not calm: ask for one more if it is time to, be calm if all have held for long."""
        now = time.monotonic_ns()
        if now < self._tries_at:
            return
        if self.size < self.threads:
            self._wanted.value += 1
        elif now >= self._tries_at + CALM:
            self.be_calm()

    def note(self, waited: int, workers: Sequence[threading.Thread]) -> None:
        """After a launch that told how long somebody waited; a negative number: and that not all came who were wanted."""
        if not self.adapts:
            return
        delay = self._delay([threading.get_native_id(), *(w.native_id or 0 for w in workers)])
        lost = -waited if waited < 0 else min(waited, delay)
        if lost < LEAST:
            return
        now = time.monotonic_ns()
        if now - self._tries_at > GAIN * lost:
            self._rest, self._tries_at = self._rest // 2, now
        else:
            self._rest = min(max(LONGEST, 8 * lost), max(SHORTEST, lost, self._rest * 2))
            self._tries_at = now + self._rest
            self._wanted.value = max(1, self.size - 1)
        self.calm, self._patience.value = False, PATIENCE
        self._spin.value, self._short.value = BUSY_ROUNDS, BUSY_SHORT

    def _delay(self, threads: Sequence[int]) -> int:
        """How long these threads of the process (by the system's numbers) have stood in line since this was last asked."""
        found = {thread: run_delay(thread) for thread in threads}
        total = sum(delay - self._delays.get(thread, 0) for thread, delay in found.items())
        self._delays = found
        return total


def run_delay(thread: int) -> int:
    """How long a thread of this process has been ready to run without a core; 0 where the system does not tell."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat") as stream:
            return int(stream.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
