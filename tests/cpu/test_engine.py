"""The engine: builder, object cache, thread team, programs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_oracles import HOST, run

from twofold.backends.cpu import cache, jit, machine, team
from twofold.backends.cpu.llvm import Module, Value, const
from twofold.backends.cpu.program import MANY, KernelBuilder, ProgramBuilder, Ref
from twofold.base.errors import GraphError

COUNT = 4096


def scale(factor: float, count: int = COUNT):
    k = KernelBuilder(HOST, "scale", ["x", "y"])
    f = k.f
    low, high = f.share(count // HOST.lanes, f.arg("tid"), f.arg("n"))
    with f.loop(low, high) as loop:
        at = f.mul(loop.index, HOST.lanes)
        f.vstore(f.fmul(f.vload(f.gep(f.arg("x"), at)), factor), f.gep(f.arg("y"), at))
    return k.finish()


def chain(steps: int):
    """A program that multiplies by 2, ``steps`` times."""
    k = KernelBuilder(HOST, "reversed_double", ["x", "y"])
    f = k.f
    low, high = f.share(COUNT, f.arg("tid"), f.arg("n"))
    with f.loop(low, high) as loop:
        value = f.load("float", f.gep(f.arg("x"), f.sub(COUNT - 1, loop.index)))
        f.store(f.fmul(value, 2.0), f.gep(f.arg("y"), loop.index))
    kernel, builder = k.finish(), ProgramBuilder(HOST)
    for step in range(steps):
        builder.call(kernel, [Ref(step % 2), Ref(1 - step % 2)])
        builder.barrier()
    return builder.finish()


def run_chain(program, threads: int) -> np.ndarray:
    a, b = np.arange(COUNT, dtype=np.float32), np.zeros(COUNT, np.float32)
    program.run([a.ctypes.data, b.ctypes.data], threads)
    return a


# ---- builder ---------------------------------------------------------------------------------------------------------
def _scalar_function(emit, result: str = "i64"):
    module = Module(HOST)
    f = module.function("probe", [("i64", "a"), ("i64", "b")], result)
    f.ret(f.index(emit(f, f.arg("a"), f.arg("b"))))
    library = jit.link([jit.compile_ir(module.text())])
    return library.function("probe", ctypes.c_int64, ctypes.c_int64, result=ctypes.c_int64)


@pytest.mark.parametrize("bounds", [(0, 10, 1), (3, 3, 1), (5, 2, 1), (0, 10, 3)])
def test_loops_carry_values_and_may_run_no_times(bounds):
    start, stop, step = bounds

    def emit(f, a, b):
        with f.loop(a, b, step, carry=[const("i64", 100)]) as loop:
            loop.carry([f.index(f.add(loop.carried[0], loop.index))])
        return loop.results[0]

    assert _scalar_function(emit)(start, stop) == 100 + sum(range(start, stop, step))


def test_index_arithmetic_folds_constants_and_agrees_with_python():
    f = Module(HOST).function("f", [("i64", "a")])
    assert f.add(2, f.mul(3, 4)) == 14 and f.mul(f.arg("a"), 0) == 0 and f.add(f.arg("a"), 0) is f.arg("a")
    assert f.divmod_chain(23, [2, 3, 4]) == [1, 2, 3]
    for index in range(24):
        digits = _scalar_function(lambda f, a, b: f.dot(list(zip(f.divmod_chain(a, [2, 3, 4]), (100, 10, 1)))))
        assert digits(index, 0) == int("".join(map(str, np.unravel_index(index, (2, 3, 4)))))
        if index > 4:
            break


@pytest.mark.parametrize("count", range(1, 9))
def test_partial_vectors_touch_only_their_lanes(count):
    k = KernelBuilder(HOST, "part", ["x", "y"])
    count = min(count, HOST.lanes)
    k.f.vstore(k.f.vload(k.f.arg("x"), count), k.f.arg("y"), count)
    x, y = np.arange(1, 17, dtype=np.float32), np.zeros(16, np.float32)
    run(k.finish(), [x, y], 1)
    assert y[:count].tolist() == x[:count].tolist() and not y[count:].any()


def test_malformed_ir_is_our_error():
    with pytest.raises(GraphError, match="malformed LLVM IR"):
        jit.compile_ir("define void @f() { ret i32 1 }")


def test_call_checks_the_number_of_places():
    with pytest.raises(GraphError, match=r"takes \('x', 'y'\), got 1"):
        ProgramBuilder(HOST).call(scale(2.0), [Ref(0)])


def test_equal_kernels_have_equal_symbols_and_are_compiled_once():
    assert scale(2.0).symbol == scale(2.0).symbol != scale(3.0).symbol
    builder = ProgramBuilder(HOST)
    for _ in range(3):
        builder.call(scale(2.0), [Ref(0), Ref(0)])
        builder.barrier()
    x = np.ones(COUNT, np.float32)
    builder.finish().run([x.ctypes.data])
    assert (x == 8).all()


# ---- cache -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path))
    monkeypatch.setattr(jit, "_memory", {})
    return tmp_path


def _objects(home):
    return [path for path in (home / "objects").rglob("*") if path.is_file()] if (home / "objects").exists() else []


def test_objects_are_kept_in_a_private_folder(home, monkeypatch):
    payload = jit.compile_ir(scale(5.0).ir)
    [path] = _objects(home)
    assert (home / "objects").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(jit, "_memory", {})
    monkeypatch.setattr(jit, "_emit", lambda *a, **k: pytest.fail("compiled again"))
    assert jit.compile_ir(scale(5.0).ir) == payload
    assert path.name == cache.key(scale(5.0).ir, HOST, 0)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-7], lambda d: b"", lambda d: d[:60] + bytes([d[60] ^ 1]) + d[61:], lambda d: d + b"x"]
)
def test_a_damaged_object_is_compiled_again(home, monkeypatch, damage):
    payload = jit.compile_ir(scale(6.0).ir)
    [path] = _objects(home)
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(jit, "_memory", {})
    assert cache.get(path.name) is None
    assert jit.compile_ir(scale(6.0).ir) == payload
    assert cache.get(path.name) == payload


def test_the_key_depends_on_ir_machine_and_level():
    keys = {
        cache.key("a", HOST, 0),
        cache.key("b", HOST, 0),
        cache.key("a", machine.AVX512, 0),
        cache.key("a", HOST, 3),
    }
    assert len(keys) == 4


def test_the_cache_can_be_switched_off_and_refuses_an_open_folder(home, monkeypatch):
    monkeypatch.setenv("TWOFOLD_CACHE", "0")
    jit.compile_ir(scale(7.0).ir)
    assert not _objects(home)
    monkeypatch.delenv("TWOFOLD_CACHE")
    (home / "objects").mkdir()
    (home / "objects").chmod(0o777)
    assert cache.folder() is None
    monkeypatch.setattr(jit, "_memory", {})
    jit.compile_ir(scale(7.0).ir)
    assert not _objects(home)


def test_modules_compiled_side_by_side_are_those_compiled_alone(monkeypatch):
    monkeypatch.setenv("TWOFOLD_CACHE", "0")
    modules = [(scale(20.0 + i % 5).ir, i % 2) for i in range(20)]
    alone = [jit.compile_ir(*module) for module in [(ir, HOST, level) for ir, level in modules]]
    monkeypatch.setattr(jit, "_memory", {})
    together = jit.compile_all(modules)
    assert [together[cache.key(ir, HOST, level)] for ir, level in modules] == alone
    with pytest.raises(GraphError, match="malformed"):
        jit.compile_all([modules[0], ("define void @f() { ret i32 1 }", 0)])


def test_threads_that_wait_for_the_same_modules_take_work_from_each_other(home):
    modules = [(scale(30.0 + i).ir, 0) for i in range(24)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: jit.compile_all(modules), range(4)))
    alone = {cache.key(ir, HOST, level): jit._emit(ir, HOST, level, assembly=False) for ir, level in modules}
    assert found == [alone] * 4
    assert len(_objects(home)) == len(modules) and not jit._unkept and not jit._started


def test_processes_share_the_cache(home):
    code = "from twofold.backends.cpu import jit; import test_engine as t; print(len(jit.compile_ir(t.scale(9.0).ir)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    sizes = {process.communicate(timeout=60)[0] for process in running}
    assert len(sizes) == 1 and [process.returncode for process in running] == [0, 0, 0]
    assert len(_objects(home)) == 2  # and what LLVM says of the machine


# ---- team ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [40, MANY])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_barriers_order_what_threads_write(threads, steps):
    program = chain(steps)
    for _ in range(5):
        expected = np.arange(COUNT) * 2.0**steps
        assert np.array_equal(run_chain(program, threads), expected)


def test_python_threads_may_run_programs_at_once():
    programs, wrong = [chain(4), chain(6)], []

    def work(i: int) -> None:
        for _ in range(20):
            if not np.array_equal(run_chain(programs[i % 2], 2), np.arange(COUNT) * 2.0 ** (4 + 2 * (i % 2))):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_team_stops_and_starts_again():
    own, program = team.Team(3), chain(2)
    a, b = np.ones(COUNT, np.float32), np.zeros(COUNT, np.float32)
    table = (ctypes.c_void_p * 2)(a.ctypes.data, b.ctypes.data)
    for round in range(1, 4):
        own.run(program.address, ctypes.addressof(table))
        own.stop()
        assert (a == 4.0**round).all()


def test_little_work_is_done_by_a_team_that_is_awake_or_will_stay_so(monkeypatch):
    own, program, now = team.Team(2), chain(2), [0.0]
    monkeypatch.setattr(team.time, "monotonic", lambda: now[0])
    spin = own.crew._spin
    own._shares_small, own.crew.adapts = True, False  # as with two cores that nobody else wants
    a, b = np.ones(COUNT, np.float32), np.zeros(COUNT, np.float32)
    table = (ctypes.c_void_p * 2)(a.ctypes.data, b.ctypes.data)

    def asked(seconds: float) -> bool:
        now[0] += seconds
        before = a.copy()
        done = own.run_awake(program.address, ctypes.addressof(table))
        np.testing.assert_array_equal(a, before * 4 if done else before)
        return done

    spin.value = 0
    assert not asked(0.0), "nobody is there yet"
    assert not asked(1.0), "the last time was long ago"
    spin.value = 2**31 - 1
    assert not asked(team.OFTEN / 2), "its threads are started for the next"
    assert asked(1.0), "its threads spin"
    with own._lock:
        assert not asked(0.0), "somebody else has it"
    spin.value = 20_000_000  # about half a second
    own.run(program.address, ctypes.addressof(table))
    wait_until(lambda: own._asleep.value)
    assert not asked(1.0), "it sleeps"
    assert not asked(team.OFTEN / 2), "it is woken for the next"
    wait_until(lambda: not own._asleep.value)
    assert asked(1.0)
    own.stop()


def wait_until(condition) -> None:
    until = time.perf_counter() + 20
    while not condition() and time.perf_counter() < until:
        time.sleep(0.001)


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, test_engine as t
program = t.chain(4)
t.run_chain(program, 2)
child = os.fork()
if child == 0:
    good = all(np.array_equal(t.run_chain(program, 2), np.arange(t.COUNT) * 16.0) for _ in range(10))
    sys.exit(0 if good else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
good = np.array_equal(t.run_chain(program, 2), np.arange(t.COUNT) * 16.0)
sys.exit(code if good else 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_gets_a_team_of_its_own():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_threads_follow_the_flag_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setenv("TWOFOLD_NUM_THREADS", "5")
    assert machine.num_threads() == 5
    monkeypatch.delenv("TWOFOLD_NUM_THREADS")
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 4, 5}, raising=False)
    assert machine.num_threads() == 4
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: 2.0)
    assert machine.num_threads() == 2


def test_the_quota_is_the_smallest_of_the_groups_above(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert machine._cgroup_quota(tmp_path, membership) == 1.5


def test_values_print_as_llvm():
    assert str(const("<2 x float>", 1.5)) == "<2 x float> <float 0x3FF8000000000000, float 0x3FF8000000000000>"
    assert const("bfloat", 1.0).name == "0xR3F80" and const("half", 1.0).name == "0xH3C00"
    assert Value("<8 x i32>", "%v").lanes == 8 and Value("<8 x i32>", "%v").element == "i32"
