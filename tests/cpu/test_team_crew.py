"""Crews of fewer threads than the team has: who comes in time takes part, who comes late touches nothing; when fewer are asked."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from twofold.backends.cpu import crew, machine, team
from twofold.backends.cpu.crew import CALM, LEAST, LONGEST, PATIENCE, SHORTEST
from twofold.backends.cpu.llvm import const
from twofold.backends.cpu.llvm.runtime import EVERYBODY, STATE_BYTES
from twofold.backends.cpu.program import KernelBuilder, ProgramBuilder, Ref
from twofold.base.errors import TwofoldError

HOST = machine.host()
COUNT, STEPS = 64, 6
SECOND = 1_000_000_000


def counting():
    """A program that adds 1 to each of COUNT numbers, STEPS times between barriers, each time to those of other threads; and
    tells who took part: a thread stores in its place of ``who`` how many they are."""
    k = KernelBuilder(HOST, "count", ["x", "who"])
    f = k.f
    f.store(f.arg("n"), f.gep(f.arg("who"), f.arg("tid"), "i64"))
    for step in range(STEPS):
        with f.loop(*f.share(COUNT, f.arg("tid"), f.arg("n"))) as loop:
            place = f.gep(f.arg("x"), f.sub(COUNT - 1, loop.index) if step % 2 else loop.index, "i64")
            f.store(f.value("i64", f"add {f.load('i64', place)}, {const('i64', 1).name}"), place)
        k.barrier()
    builder = ProgramBuilder(HOST)
    builder.call(k.finish(), [Ref(0), Ref(1)])
    return builder.finish()


def launch(own: team.Team, program, wanted: int, patience: int) -> int:
    """Launch as asked for, in memory of its own; all was done once, by a crew without gaps, of the size that is returned.
    Nobody may look at the table afterwards: its pointers lead nowhere then."""
    own.crew._wanted.value, own.crew._patience.value = wanted, patience
    x, who = np.zeros(COUNT, np.int64), np.zeros(own.threads, np.int64)
    table = (ctypes.c_void_p * 2)(x.ctypes.data, who.ctypes.data)
    own.run(program.address, ctypes.addressof(table))
    table[0] = table[1] = 16
    assert (x == STEPS).all(), x
    n = int(who[0])
    assert 1 <= n <= wanted and who.tolist() == [n] * n + [0] * (own.threads - n)
    return n


def steady(threads: int) -> team.Team:
    """A team whose crew is the test's to choose."""
    own = team.Team(threads)
    own.crew.adapts = False
    return own


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_a_launch_to_all_is_done_by_all_whatever_came_before(threads):
    own, program, chance = steady(threads), counting(), random.Random(threads)
    for _ in range(60):
        launch(own, program, chance.randint(1, threads), chance.choice([0, 10_000, 100_000]))
        assert launch(own, program, threads, EVERYBODY) == threads
    own.stop()


@pytest.mark.parametrize("threads", [2, 5])
def test_all_who_are_wanted_may_take_part(threads):
    own, program = steady(threads), counting()
    found = {launch(own, program, wanted, 10 * SECOND) for wanted in range(1, threads + 1)}
    assert found == set(range(1, threads + 1))
    own.stop()


def test_nobody_is_waited_for_without_patience():
    own, program = steady(2), counting()
    found = [launch(own, program, 2, 0) for _ in range(500)]
    assert 1 in found
    own.stop()


def test_late_workers_of_several_teams_and_busy_python_threads():
    """More threads than cores, so that workers come late, also to calls that are long over."""
    program, ends = counting(), threading.Event()
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        own, chance = steady(2 + 3 * seed), random.Random(seed)
        try:
            for _ in range(300):
                launch(own, program, chance.randint(1, own.threads), chance.choice([EVERYBODY + 1, 1_000, 50_000, 500_000]))
            own.stop()
            launch(own, program, own.threads, 20_000)
            own.stop()
        except BaseException as error:
            wrong.append(error)

    def spin() -> None:
        while not ends.is_set():
            pass

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    spinner = threading.Thread(target=spin)
    for thread in [spinner, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    ends.set()
    spinner.join()
    assert not wrong


BESIDE = """
import os, subprocess, sys, time
from test_team import program, results
from twofold.backends.cpu import team
made = [program(seed) for seed in range(4)]
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
try:
    until = time.perf_counter() + 3
    while time.perf_counter() < until:
        for seed, (run, expected) in enumerate(made):
            assert results(run, seed) == expected, seed
    child = os.fork()  # not calm, perhaps; a child has a team of its own
    if child == 0:
        os._exit(0 if all(results(run, seed) == expected for seed, (run, expected) in enumerate(made)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
finally:
    for process in busy:
        process.kill()
"""


@pytest.mark.slow
@pytest.mark.skipif(not HOST.is_linux, reason="forks")
def test_the_same_bits_beside_busy_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(BESIDE)
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "TWOFOLD_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, str(script)], env=environment, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


# ---- when fewer are asked ----------------------------------------------------------------------------------------------
@pytest.fixture
def chosen(monkeypatch):
    """``chosen(threads)``: a crew whose clock, and whose threads' run delays, are the test's."""
    world = SimpleNamespace(now=SECOND, delay=0)
    monkeypatch.setattr(crew.time, "monotonic_ns", lambda: world.now)
    monkeypatch.setattr(crew, "run_delay", lambda thread: world.delay)

    def make(threads: int, adapts: bool = True):
        world.block = ctypes.create_string_buffer(STATE_BYTES)
        world.crew = crew.Crew(ctypes.addressof(world.block), threads, adapts)
        return world

    return make


def lose(world, waited: int, delay: int) -> None:
    world.delay += delay
    world.crew.note(waited, [])


def test_the_works_own_waits_and_small_delays_change_nothing(chosen):
    world = chosen(2)
    lose(world, 50 * LEAST, LEAST // 2)
    lose(world, LEAST // 2, 50 * LEAST)
    lose(world, 50 * LEAST, 0)
    assert world.crew.calm and world.crew.size == 2


def test_a_team_that_shares_cores_by_itself_is_always_calm(chosen):
    world = chosen(8, adapts=False)
    lose(world, 50 * LEAST, 50 * LEAST)
    assert world.crew.calm and world.crew.size == 8 and world.crew._spin.value == 0


def test_one_loss_makes_alert_a_second_one_soon_makes_the_crew_smaller(chosen):
    world = chosen(3)
    crew, lost = world.crew, 2 * SHORTEST
    lose(world, lost, lost)
    assert not crew.calm and crew.size == 3 and crew._patience.value == PATIENCE
    world.now += lost
    lose(world, lost, lost)
    assert crew.size == 2
    world.now += lost - 1
    crew.try_more()
    assert crew.size == 2, "it rests for as long as was lost"
    world.now += 1
    crew.try_more()
    assert crew.size == 3, "one more is tried"
    lose(world, -LEAST, 0)  # nobody came
    assert crew.size == 2
    world.now += 2 * lost - 1
    crew.try_more()
    assert crew.size == 2, "the rest is twice as long"
    lose(world, lost, lost)
    lose(world, lost, lost)
    lose(world, lost, lost)
    assert crew.size == 1, "one is always there"


def test_rests_have_a_longest_and_get_shorter_by_crews_that_were_worth_it(chosen):
    world = chosen(2)
    for _ in range(20):
        lose(world, SHORTEST, SHORTEST)
    assert world.crew._rest == LONGEST
    for _ in range(10):
        world.now = world.crew._tries_at
        world.crew.try_more()
        world.now += SECOND
        lose(world, SHORTEST, SHORTEST)
        assert world.crew.size == 2
    assert world.crew._rest < SHORTEST


def test_calm_again_after_a_while(chosen):
    world = chosen(2)
    lose(world, SHORTEST, SHORTEST)
    lose(world, SHORTEST, SHORTEST)
    assert world.crew.size == 1
    world.now = world.crew._tries_at
    world.crew.try_more()
    world.now += CALM - 1
    world.crew.try_more()
    assert world.crew.size == 2 and not world.crew.calm
    world.now += 1
    world.crew.try_more()
    assert world.crew.calm and world.crew._patience.value == EVERYBODY


def test_small_work_is_for_the_whole_team_or_for_one():
    """Alert, the team takes it as when calm; resting, it does not."""
    own, program = team.Team(2), counting()
    own._shares_small = own.crew.adapts = True
    x, who = np.zeros(COUNT, np.int64), np.zeros(2, np.int64)
    table = (ctypes.c_void_p * 2)(x.ctypes.data, who.ctypes.data)
    small = lambda: own.run_awake(program.address, ctypes.addressof(table))
    own.run(program.address, ctypes.addressof(table))
    own.crew.note(-SHORTEST, [])
    own.crew._tries_at -= SECOND
    own.crew.calm = False
    own._asleep = SimpleNamespace(value=0)
    assert small() and own.crew.size == 2
    own.crew.note(-SECOND, [])
    own.crew.note(-SECOND, [])
    assert own.crew.size == 1 and not small()
    own.stop()


def test_a_system_without_so_many_threads_is_an_error_and_leaves_none(monkeypatch):
    own, program, start = team.Team(4), counting(), threading.Thread.start
    x, who = np.zeros(COUNT, np.int64), np.zeros(4, np.int64)
    table = (ctypes.c_void_p * 2)(x.ctypes.data, who.ctypes.data)

    def refuse(self):
        if self.name == "twofold-3":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TwofoldError, match=r"of 4 threads the system started 3: can't .* TWOFOLD_NUM_THREADS to fewer"):
            own.run(program.address, ctypes.addressof(table))
    assert not own._workers
    own.run(program.address, ctypes.addressof(table))
    assert x.tolist() == [STEPS] * COUNT
    own.stop()


def test_a_recording_is_of_the_whole_team():
    own, program = team.Team(2), counting()
    own.crew.adapts = True
    for _ in range(2):
        own.crew.note(-SHORTEST, [])
    assert own.crew.size == 1
    x, who = np.zeros(COUNT, np.int64), np.zeros(2, np.int64)
    table = (ctypes.c_void_p * 2)(x.ctypes.data, who.ctypes.data)
    with own.whole():
        own.crew.note(-SECOND, [])
        own.run(program.address, ctypes.addressof(table))
    assert who.tolist() == [2, 2] and own.crew.adapts
    own.stop()


@pytest.mark.skipif(not HOST.is_linux, reason="asks Linux")
def test_recordings_that_overlap_leave_the_choice_as_it_was():
    own, inside, done = team.Team(2), threading.Event(), threading.Event()
    own.crew.adapts = True

    def record():
        with own.whole():
            inside.set()
            done.wait(5)

    first, second = threading.Thread(target=record), threading.Thread(target=record)
    first.start()
    assert inside.wait(5)
    second.start()
    second.join(0.2)
    assert not own.crew.adapts
    done.set()
    first.join(5)
    second.join(5)
    assert own.crew.adapts


def test_run_delays_are_asked_for_by_thread():
    assert crew.run_delay(threading.get_native_id()) >= 0
    assert crew.run_delay(2**30) == 0
