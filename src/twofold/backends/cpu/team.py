"""The thread team: N threads that run one compiled function together (SPMD).

``team.run(address, table)`` calls ``function(tid, n, table, bar)`` on every thread and returns when all are done: one
Python call per step. Workers live in native code (``tw_worker``), without the interpreter lock; they spin shortly and
then sleep. While other processes want the cores fewer threads may take part (``crew.py``): n is how many do. A lock makes a
team safe for several Python threads and programs; a forked child gets a new team.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import math
import os
import threading
import time
from collections.abc import Iterator

from twofold.backends.cpu import jit
from twofold.backends.cpu.crew import Crew
from twofold.backends.cpu.llvm.runtime import SLEEPERS_OFFSET, STATE_BYTES, runtime_ir
from twofold.backends.cpu.machine import available_cores, host, num_threads
from twofold.base import locks
from twofold.base.errors import TwofoldError

OFTEN = 500e-6  # seconds from one small program to the next within which a team that spins stays awake


@functools.cache
def runtime_object() -> bytes:
    """The object that defines the barrier and the team's native half; every program links it."""
    return jit.compile_ir(runtime_ir(host()))


@functools.cache
def _runtime() -> jit.Library:
    return jit.link([runtime_object()])


class Team:
    """``threads`` threads, the caller's included.

    Spinning is left out when there are more threads than cores: it would only keep the others from running.
    """

    def __init__(self, threads: int):
        self.threads = max(1, threads)
        self._lock, self._keeping = threading.Lock(), threading.RLock()
        self._block = ctypes.create_string_buffer(STATE_BYTES + 64)
        self._state = (ctypes.addressof(self._block) + 63) & ~63
        self.crew = Crew(self._state, self.threads, adapts=1 < self.threads <= available_cores())
        pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self._launch = _runtime().function("tw_launch", pointer, pointer, pointer, result=i64)
        self._work = _runtime().function("tw_worker", pointer, i64, i32)
        self._rouse = _runtime().function("tw_rouse", pointer)
        self._workers: list[threading.Thread] = []
        self._shares_small = self.crew.adapts
        self._asleep = i32.from_address(self._state + SLEEPERS_OFFSET)
        self._asked = -math.inf  # when a small program last found it asleep

    def _start(self) -> None:
        for tid in range(1, self.threads):
            worker = threading.Thread(target=self._work, args=(self._state, tid, 0), name=f"twofold-{tid}", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:
                self._dismiss()
                raise TwofoldError(
                    f"of {self.threads} threads the system started {tid}: {error}; set TWOFOLD_NUM_THREADS to fewer"
                ) from None
            self._workers.append(worker)

    def run(self, address: int, table: int) -> None:
        """Run the function at ``address`` on all threads with the pointer table at ``table``; wait for all."""
        with self._lock:
            if not self._workers and self.threads > 1:
                self._start()
            if not self.crew.calm:
                self.crew.try_more()
            self._run(address, table)

    def _run(self, address: int, table: int) -> None:
        waited = self._launch(self._state, address, table)
        if waited:
            self.crew.note(waited, self._workers)

    def run_awake(self, address: int, table: int) -> bool:
        """Run it as ``run`` does if nobody has to be woken or waited for; whether that was so. Where such work comes so often
        that they will stay awake, the threads are woken for the next (which may take milliseconds)."""
        if not self._shares_small or not self._lock.acquire(blocking=False):
            return False
        try:
            if not self.crew.calm:
                self.crew.try_more()
                if self.crew.size < self.threads:
                    return False
            if not self._workers or self._asleep.value:
                now = time.monotonic()
                often, self._asked = now - self._asked < OFTEN, now
                if often and self._workers:
                    self._rouse(self._state)
                elif often:
                    self._start()
                return False
            self._run(address, table)
        finally:
            self._lock.release()
        return True

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """All threads take part meanwhile, whoever else wants the cores."""
        with self._keeping:  # of two that overlap the second would keep the first one's choice for good
            adapts = self.crew.adapts
            with self._lock:
                self.crew.be_calm()
                self.crew.adapts = False
            try:
                yield
            finally:
                self.crew.adapts = adapts

    def stop(self) -> None:
        """End the workers; the next ``run`` would start new ones."""
        with self._lock:
            if self._workers:
                self._dismiss()

    def _dismiss(self) -> None:
        self.crew.leave()
        self._launch(self._state, None, None)
        for worker in self._workers:
            worker.join(timeout=5)
        self._workers.clear()
        ctypes.c_int64.from_address(self._state).value = 0
        self.crew.be_calm()


_teams: dict[int, Team] = {}
_teams_lock = locks.renewed()


def get(threads: int = 0) -> Team:
    """The process's team of ``threads`` threads (0: TWOFOLD_NUM_THREADS, or the cores the process may use)."""
    threads = threads or num_threads()
    team = _teams.get(threads)
    if team is None:
        with _teams_lock:
            team = _teams.setdefault(threads, Team(threads))
    return team


def _stop_all() -> None:
    """At exit: no thread may be inside machine code while the interpreter frees it."""
    for team in list(_teams.values()):
        team.stop()


def _forget_teams() -> None:
    """In a forked child: the parent's workers do not exist here."""
    _teams.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)
