"""Where the processes of a job meet, and how each notices that another has died.

Process 0 listens on the coordinator's port. The others connect and say who they are; when all have come, process 0
answers with the port of jax's own service. The connections stay open: every process says a word a second, so that an end
without good-bye is noticed at once, and a machine that has vanished, or a process that hangs, after ``heartbeat`` seconds.

    worker -> 0   {"twofold": 2, "rank": 2, "processes": 4}
    0 -> worker   {"port": 40123}   or   {"error": "..."}
    both          "." each second;  "bye" at the end;  {"dead": "process 3 ..."} from process 0
    worker -> 0   {"through": 46}                                its program has ended, after 46 joint computations
    0 -> worker   {"through": 46, "rank": 2}                     somebody's has

A computation over devices of several processes waits for all of them. Each process counts those that it begins; whoever has
begun one more than a process that is through would wait for ever, and ends instead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twofold.base.errors import ArgumentError, TwofoldError

PROTOCOL = 2
BEAT = 1.0  # seconds between signs of life
HEARTBEAT = 30.0  # seconds without one after which a process counts as dead
_LONGEST = 4096  # bytes of a line; whoever sends more is none of ours
_HELLO = 5.0  # seconds for a newcomer to say who it is


@dataclass(frozen=True)
class Job:
    """Where the processes of a job meet, how many they are, and which one this is. ``device``: the number of the one
    accelerator that is this process's, where the machine runs several processes."""

    coordinator: str
    processes: int
    rank: int
    device: int | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Line:
    """A connection that carries lines of text."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.heard = time.monotonic()
        self._rest = b""

    def send(self, text: str) -> None:
        """Say a line; OSError if nobody is there."""
        self.socket.sendall(text.encode() + b"\n")

    def read(self, timeout: float) -> str | None:
        """The next line; None if none came in time. EOFError at the end, OSError where the connection broke."""
        self.socket.settimeout(max(timeout, 1e-3))
        while b"\n" not in self._rest:
            try:
                more = self.socket.recv(_LONGEST)
            except TimeoutError:
                return None
            if not more or len(self._rest) > _LONGEST:
                raise EOFError
            self._rest += more
            self.heard = time.monotonic()
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "replace")

    def close(self) -> None:
        self.socket.close()


def record(line: str | None) -> dict[str, Any]:
    """A line as a JSON object; empty if it is none."""
    try:
        found = json.loads(line or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# -- coming together ---------------------------------------------------------------------------------------------------


def meet(job: Job, timeout: float) -> tuple[dict[int, Line], int]:
    """Wait for the others: the lines to them (process 0 has one to each, the others one to process 0), and the port of
    jax's service. ArgumentError where they disagree, TwofoldError where somebody does not come."""
    return _receive(job, timeout) if job.rank == 0 else _report(job, timeout)


def _receive(job: Job, timeout: float) -> tuple[dict[int, Line], int]:
    deadline = time.monotonic() + timeout
    lines: dict[int, Line] = {}
    with _listen(job) as server, contextlib.ExitStack() as open_lines:
        while len(lines) < job.processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                line = Line(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(r) for r in range(1, job.processes) if r not in lines)
                wrong = (
                    f"of {job.processes} processes, {missing} did not come to {job.coordinator} within {timeout:g} s; "
                    "check that all were started, with the same coordinator, and that the port can be reached"
                )
                raise _refused(lines.values(), wrong, TwofoldError) from None
            hello = _hello(line)
            if hello.get("twofold") != PROTOCOL:  # somebody else's: a port scan, a browser
                line.close()
                continue
            open_lines.callback(line.close)
            wrong = _disagreement(job, hello, lines)
            if wrong:
                raise _refused([*lines.values(), line], wrong, ArgumentError)
            lines[hello["rank"]] = line
        open_lines.pop_all()
    port = _free_port()
    for line in lines.values():
        with contextlib.suppress(OSError):
            line.send(json.dumps({"port": port}))
    return lines, port


def _hello(line: Line) -> dict[str, Any]:
    try:
        return record(line.read(_HELLO))
    except (OSError, EOFError):
        return {}


def _disagreement(job: Job, hello: dict[str, Any], known: dict[int, Line]) -> str:
    rank, processes = hello.get("rank"), hello.get("processes")
    if processes != job.processes:
        return (
            f"process {rank} was started for {processes} processes, process 0 for {job.processes}; "
            "start all with the same number of processes"
        )
    if type(rank) is not int or not 0 < rank < job.processes or rank in known:
        return f"two processes came as rank {rank} of {job.processes}; give each process a rank of its own"
    return ""


def _refused(lines: Any, wrong: str, kind: type[TwofoldError]) -> TwofoldError:
    for line in lines:
        with contextlib.suppress(OSError):
            line.send(json.dumps({"error": wrong}))
        line.close()
    return kind(f"distributed: {wrong}")


def _listen(job: Job) -> socket.socket:
    """A socket on the coordinator's address, IPv4 or IPv6; on all of the machine's, where it is none of them (behind a
    forwarding address)."""
    host, port = job.address
    with contextlib.suppress(OSError):
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                return socket.create_server(place, family=family, backlog=job.processes)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _port_taken(job, error) from None
    try:
        return _everywhere(port, job.processes)
    except OSError as error:
        raise _port_taken(job, error) from None


def _port_taken(job: Job, error: OSError) -> TwofoldError:
    return TwofoldError(
        f"distributed: process 0 cannot listen on {job.coordinator} ({os.strerror(error.errno or 0)}); "
        "is another job running there? Choose another port, the same for all processes"
    )


def _everywhere(port: int, backlog: int = 1) -> socket.socket:
    """A socket that takes connections to any address of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", port), backlog=backlog)


def _free_port() -> int:
    with _everywhere(0) as probe:
        return int(probe.getsockname()[1])


def _report(job: Job, timeout: float) -> tuple[dict[int, Line], int]:
    deadline = time.monotonic() + timeout
    why = "nobody listens"
    while (left := deadline - time.monotonic()) > 0:
        line = None
        try:
            line = Line(socket.create_connection(job.address, timeout=left))
            line.send(json.dumps({"twofold": PROTOCOL, "rank": job.rank, "processes": job.processes}))
            answer = record(line.read(left + BEAT))  # process 0 gives up first, and says who is missing
        except (OSError, EOFError) as error:
            why = str(error) or "the connection was closed"
            if line is not None:
                line.close()
            time.sleep(min(0.1, left))
            continue
        if "error" in answer:
            line.close()
            raise ArgumentError(f"distributed: {answer['error']}")
        if type(answer.get("port")) is int:
            return {0: line}, answer["port"]
        line.close()
        why = "what listens there is no process of this job"
        break
    raise TwofoldError(
        f"distributed: process {job.rank} did not meet process 0 at {job.coordinator} within {timeout:g} s ({why}); "
        f"check that all {job.processes} processes were started, and that the port can be reached"
    )


# -- staying together --------------------------------------------------------------------------------------------------


def end_process(message: str) -> None:
    """Say why on stderr, and end at once: the main thread may wait for a process that is no more."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


class Watch:
    """Keeps the lines alive, one thread each; calls ``end(message)`` once when a process has died. ``advice`` is put
    after the message: what to do now."""

    def __init__(
        self, job: Job, lines: dict[int, Line], heartbeat: float = HEARTBEAT, end: Callable[[str], None] = end_process
    ):
        self.job, self.lines, self.heartbeat, self.end = job, dict(lines), heartbeat, end
        self.advice = "start all processes again"
        self.begun = 0  # joint computations of this process
        self.through: dict[int, int] = {}  # rank -> how many there will ever have been
        self._waiting, self._why = False, ""  # somebody waits in ``end_together``, and what they are to hear
        self._over = threading.Event()
        self._lock = threading.RLock()  # a signal's handler may leave while the main thread holds it
        for rank, line in lines.items():
            threading.Thread(target=self._listen, args=(rank, line), name=f"watch-{rank}", daemon=True).start()
        threading.Thread(target=self._speak, name="watch", daemon=True).start()

    def _speak(self) -> None:
        while not self._over.wait(BEAT):
            for line in list(self.lines.values()):
                with contextlib.suppress(OSError):
                    line.send(".")

    def _listen(self, rank: int, line: Line) -> None:
        line.heard = time.monotonic()
        while not self._over.is_set():
            try:
                said = line.read(BEAT / 2)
            except (EOFError, OSError):
                return self._dead(f"process {rank} of {self.job.processes} has died or ended early")
            if said == "bye":
                self.lines.pop(rank, None)
                return line.close()
            told = record(said if said and said.startswith("{") else "")
            if "dead" in told:
                return self._dead(str(told["dead"]))
            if "through" in told:
                self._note(int(told.get("rank", rank)), int(told["through"]))
            if time.monotonic() - line.heard > self.heartbeat:
                silent = f"has given no sign of life for {self.heartbeat:g} s"
                return self._dead(f"process {rank} of {self.job.processes} {silent}")
        return None

    def begins(self) -> None:
        """This process begins a computation that waits for all others."""
        self.begun += 1
        self._look_ahead()

    def end_together(self) -> None:
        """This process begins no more of them: tell the others, and wait until they have said so too. TwofoldError says
        why where the job ends instead."""
        self._waiting = True
        self._note(self.job.rank, self.begun)
        while len(self.through) < self.job.processes and not self._over.is_set():
            time.sleep(0.01)
        with self._lock:
            self._waiting = False
            if self._over.is_set():
                raise TwofoldError(self._why or "distributed: the job has ended")

    def _note(self, rank: int, count: int) -> None:
        """``rank`` is through: process 0 tells everybody, the others tell process 0 of themselves."""
        self.through[rank] = count
        if self.job.rank in (0, rank):
            for other, line in list(self.lines.items()):
                with contextlib.suppress(OSError):
                    if other != rank:
                        line.send(json.dumps({"through": count, "rank": rank}))
        self._look_ahead()

    def _look_ahead(self) -> None:
        early = [rank for rank, count in list(self.through.items()) if count < self.begun]
        if early:
            which = f"process {early[0]} of {self.job.processes}"
            self._dead(f"{which} has ended its program, and others wait for it in a computation of all processes")

    def _dead(self, what: str) -> None:
        with self._lock:
            if self._over.is_set():
                return
            waiting, self._why = self._waiting, f"distributed: {what}; the job has ended, {self.advice}"
            self._over.set()
        for line in list(self.lines.values()):
            with contextlib.suppress(OSError):
                line.send(json.dumps({"dead": what}))
        if not waiting:
            self.end(self._why)
        for line in list(self.lines.values()):
            line.close()

    def close(self, *, bye: bool) -> None:
        """Stop watching: with good-bye, or as one who ends early and wants it noticed."""
        with self._lock:
            over = self._over.is_set()
            self._over.set()
        for line in list(self.lines.values()):
            with contextlib.suppress(OSError):
                if bye and not over:
                    line.send("bye")
                line.socket.shutdown(socket.SHUT_WR)
            line.close()

    def wait_for_good_byes(self, seconds: float = 60.0) -> None:
        """Return once all others have said good-bye."""
        end = time.monotonic() + seconds
        while self.lines and time.monotonic() < end:
            time.sleep(0.01)

    def settle(self, seconds: float = 5.0) -> None:
        """After a failed computation: wait for the cause to show, if it is a death (the process ends then)."""
        self._over.wait(seconds)
        if self._over.is_set():
            time.sleep(1.0)
