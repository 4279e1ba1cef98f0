"""Programs under stress: several Python threads, forks, spawned processes, Ctrl-C, one core, more threads than cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from fuzz_check import FAMILIES, arguments

from twofold.backends.cpu import machine
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.program import TEAM

HEAD = """
import multiprocessing, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
import numpy as np
from test_team import program, results

"""

# name: what a process does; it ends with exit code 0 if all was right
SCRIPTS = {
    "a fork in the middle of the calls of other threads": """
run, expected = program(0)
stop = threading.Event()
def work():
    while not stop.is_set():
        assert results(run, 0) == expected
workers = [threading.Thread(target=work) for _ in range(2)]
for w in workers: w.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a lock that a thread of the parent held would never be given back
        own, made_here = program(1)
        os._exit(0 if results(run, 0) == expected and results(own, 1) == made_here else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for w in workers: w.join()
assert codes == [0] * 5, codes
assert results(run, 0) == expected
""",
    "multiprocessing that forks": """
from test_team import in_child
run, expected = program(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(in_child, [0, 0, 1]) == [expected, expected, program(1)[1]]
assert results(run, 0) == expected
""",
    "multiprocessing that spawns": """
from test_team import in_child
if __name__ == "__main__":
    run, expected = program(0)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(in_child, [0, 1]) == [expected, program(1)[1]]
""",
    "one core": """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from twofold.backends.cpu import machine
assert machine.num_threads() == 1
run, expected = program(0)
assert results(run, 0) == expected
os.environ["TWOFOLD_NUM_THREADS"] = "3"  # more threads than cores take turns
assert program(0)[1] == expected
""",
    "many more threads than cores": """
run, expected = program(0)
os.environ["TWOFOLD_NUM_THREADS"] = "17"
many, same = program(0)
assert many.threads == 17 and same == expected
start = time.perf_counter()
for _ in range(20): assert results(many, 0) == expected
assert time.perf_counter() - start < 20, "a spinning team starves itself"
""",
    "interrupts while programs run": """
run, expected = program(0)
armed, seen = False, 0
def interrupt(*_):  # at most once each time it is armed, so none lands where nothing catches it
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
main, stop = threading.main_thread().ident, threading.Event()
def nag():
    while not stop.is_set():
        time.sleep(0.003)
        signal.pthread_kill(main, signal.SIGINT)
nagger = threading.Thread(target=nag)
nagger.start()
until = time.perf_counter() + 1.5
while time.perf_counter() < until:
    try:
        armed = True
        while time.perf_counter() < until:
            got = results(run, 0)
            assert got == expected
        armed = False
    except KeyboardInterrupt:
        seen += 1
stop.set()
nagger.join()
assert seen and results(run, 0) == expected, seen
""",
}


def program(seed: int) -> tuple[CpuProgram, list[bytes]]:
    """The program of a random network, woken up however small, and its results."""
    made = CpuProgram(FAMILIES["images"].graph(seed))
    for segment in made._built.segments:
        segment.crew = TEAM
    return made, results(made, seed)


def results(run: CpuProgram, seed: int) -> list[bytes]:
    graph = FAMILIES["images"].graph(seed)
    return [r.tobytes() for r in run(arguments(graph, seed))]


def in_child(seed: int) -> list[bytes]:
    return program(seed)[1]


@pytest.mark.slow
@pytest.mark.skipif(not machine.host().is_linux, reason="forks and pins")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_process(name, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(HEAD + SCRIPTS[name])
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "TWOFOLD_NUM_THREADS": "2"}
    if name == "one core":
        del environment["TWOFOLD_NUM_THREADS"]
    done = subprocess.run([sys.executable, str(script)], env=environment, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def test_threads_that_share_programs_and_threads_that_do_not():
    """Calls of one program take turns; those of several share the team."""
    made = [program(seed) for seed in range(3)]
    wrong: list[int] = []

    def work(i: int) -> None:
        run, expected = made[i % 3]
        wrong.extend(i for _ in range(10) if results(run, i % 3) != expected)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize(
    ("files", "membership", "cores"),
    [
        ({"cpu.max": "200000 100000"}, "0::/", 2.0),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"a/cpu.max": "50000 100000", "cpu.max": "300000 100000"}, "0::/a", 0.5),
        ({"a/cpu.max": "garbage"}, "0::/a", None),
        ({}, "0::/gone/away", None),
        ({"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/a", 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", None),
        ({"cpu.max": "400000 100000", "cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, "0::/\n4:cpu:/", 1.0),
        ({"cpu.max": "200000 100000"}, "0::/../outside", 2.0),
        ({"cpu.max": "100000 100000"}, "no such line", None),
    ],
)  # fmt: skip
def test_control_groups_as_linux_writes_them(files, membership, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    quota = machine._cgroup_quota(tmp_path, tmp_path / "membership")
    assert quota == cores
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.available_cores() == (8 if cores is None else max(1, int(cores + 0.5)))
