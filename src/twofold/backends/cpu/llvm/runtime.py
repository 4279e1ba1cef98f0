"""The runtime, emitted like any kernel: a barrier, the worker loop of the thread team, and its launch.

State is one block of memory, a cache line (64 bytes) for what is written together:

    line 0  job        i32 number of the current job (futex)     i32 sleepers waiting for it
    line 1  function   ptr                                       table ptr, threads i64, stop i32
    line 2  arrived    i32 threads at the barrier                <- ``bar`` of every kernel points here
    line 3  phase      i32 barriers passed (futex)               i32 sleepers
    line 4  spin       i32 rounds to spin before sleeping

Waiting spins for a short while (a barrier between threads that run takes under 100 ns), then sleeps in the kernel: a
waiter announces itself as a sleeper *before* it looks at the word for the last time, and the waker looks for sleepers
*after* it changed the word (both sequentially consistent), so no wake-up is lost.
"""

from __future__ import annotations

from twofold.backends.cpu.llvm.builder import Function, Module
from twofold.backends.cpu.llvm.values import Value, const
from twofold.backends.cpu.machine import Machine

BARRIER = "tw_barrier"
STATE_BYTES = 320
BARRIER_OFFSET = 128
SLEEPERS_OFFSET = _JOB_SLEEPERS = 4
_JOB, _FUNCTION, _TABLE, _THREADS, _STOP = 0, 64, 72, 80, 88
_PHASE, _PHASE_SLEEPERS, _SPIN = 64, 68, 128  # from the barrier's own base

_FUTEX = {"x86_64": 202, "aarch64": 98}
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG


def runtime_ir(machine: Machine) -> str:
    """The module that defines ``tw_barrier(bar, n)``, ``tw_worker(state, tid)``, ``tw_launch(state, ...)`` and
    ``tw_rouse(state)``."""
    module = Module(machine)
    _barrier(module)
    _worker(module)
    _launch(module)
    _rouse(module)
    return module.text()


def emit_barrier(f: Function) -> None:
    """Call the barrier from a function with parameters ``n`` (threads) and ``bar``."""
    f.call(BARRIER, "void", [f.arg("bar"), f.arg("n")])


def _at(f: Function, base: Value, offset: int) -> Value:
    return f.gep(base, offset, "i8")


def _load(f: Function, p: Value, type: str = "i32") -> Value:
    return f.value(type, f"load atomic {type}, {p} seq_cst, align {8 if type != 'i32' else 4}")


def _store(f: Function, x: Value, p: Value) -> None:
    f.emit(f"store atomic {x}, {p} seq_cst, align 4")


def _add(f: Function, p: Value, amount: int) -> Value:
    return f.value("i32", f"atomicrmw add {p}, i32 {amount} seq_cst")


def _pause(f: Function) -> None:
    """Tell the core that this is a spin loop (an intrinsic: inline assembly needs the target's assembly parser)."""
    if f.machine.is_x86:
        f.call("llvm.x86.sse2.pause", "void", [])
    elif f.machine.triple.startswith(("aarch64", "arm64")):
        f.call("llvm.aarch64.hint", "void", [const("i32", 1)])


def _sleep(f: Function, word: Value, seen: Value) -> None:
    """Sleep until ``word`` is woken, unless it no longer holds ``seen``."""
    number = _FUTEX.get(f.machine.triple.split("-")[0])
    if f.machine.is_linux and number:
        f.module.declare("syscall", "i64", ["i64", "..."])
        f.value("i64", f"call i64 (i64, ...) @syscall(i64 {number}, {word}, i64 {_WAIT}, {seen}, ptr null)")
    else:
        f.call("sched_yield", "i32", [])


def _wake(f: Function, word: Value) -> None:
    number = _FUTEX.get(f.machine.triple.split("-")[0])
    if f.machine.is_linux and number:
        f.module.declare("syscall", "i64", ["i64", "..."])
        f.value("i64", f"call i64 (i64, ...) @syscall(i64 {number}, {word}, i64 {_WAKE}, i64 2147483647)")


def _await_change(f: Function, word: Value, sleepers: Value, seen: Value, spin: Value) -> None:
    """Return once ``word`` differs from ``seen``: spin, then sleep; who is woken without a reason spins again."""
    spinning, resting, sleeping, out = (f.fresh(s) for s in ("spin", "rest", "sleep", "out"))
    rounds, following = Value("i32", f"%{f.fresh('r')}"), Value("i32", f"%{f.fresh('r')}")
    start = f._block
    f.emit(f"br label %{spinning}")
    f.label(spinning)
    f.emit(f"{rounds.name} = phi i32 [ 0, %{start} ], [ {following.name}, %{resting} ], [ 0, %{sleeping} ]")
    changed = f.icmp("ne", _load(f, word), seen)
    f.emit(f"br {changed}, label %{out}, label %{resting}")
    f.label(resting)
    _pause(f)
    f.emit(f"{following.name} = add {rounds}, 1")
    more = f.icmp("slt", following, spin)
    f.emit(f"br {more}, label %{spinning}, label %{sleeping}")
    f.label(sleeping)
    _add(f, sleepers, 1)
    _sleep(f, word, seen)
    _add(f, sleepers, -1)
    f.emit(f"br label %{spinning}")
    f.label(out)


def _barrier(module: Module) -> None:
    f = module.function(BARRIER, [("ptr", "bar"), ("i64", "n")])
    bar = f.arg("bar")
    word, sleepers = _at(f, bar, _PHASE), _at(f, bar, _PHASE_SLEEPERS)
    with f.when(f.icmp("sgt", f.arg("n"), 1)):
        seen = _load(f, word)
        last = f.icmp("eq", f.cast("sext", _add(f, bar, 1), "i64"), f.value("i64", f"sub {f.arg('n')}, 1"))

        def release():
            _store(f, const("i32", 0), bar)
            _add(f, word, 1)
            with f.when(f.icmp("ne", _load(f, sleepers), 0)):
                _wake(f, word)
            return []

        def wait():
            _await_change(f, word, sleepers, seen, f.load("i32", _at(f, bar, _SPIN)))
            return []

        f.choose(last, release, wait)


def _call_job(f: Function, state: Value, tid: Value) -> None:
    """Do this thread's part of the job, then meet the others."""
    function = f.load("ptr", _at(f, state, _FUNCTION))
    table, threads = f.load("ptr", _at(f, state, _TABLE)), f.load("i64", _at(f, state, _THREADS))
    bar = _at(f, state, BARRIER_OFFSET)
    f.emit(f"call void {function.name}({tid}, {threads}, {table}, {bar})")
    f.call(BARRIER, "void", [bar, threads])


def _worker(module: Module) -> None:
    """Threads 1.. of a team live here until the team stops; thread ``tid`` has done the jobs up to ``seen``."""
    f = module.function("tw_worker", [("ptr", "state"), ("i64", "tid"), ("i32", "seen")])
    state = f.arg("state")
    seen, following = Value("i32", "%seen_now"), Value("i32", "%seen_next")
    f.emit("br label %wait")
    f.label("wait")
    f.emit(f"{seen.name} = phi i32 [ %seen, %entry ], [ {following.name}, %work ]")
    spin = f.load("i32", _at(f, state, BARRIER_OFFSET + _SPIN))
    _await_change(f, _at(f, state, _JOB), _at(f, state, _JOB_SLEEPERS), seen, spin)
    f.emit(f"{following.name} = add {seen}, 1")
    stop = f.icmp("ne", _load(f, _at(f, state, _STOP)), 0)
    f.emit(f"br {stop}, label %leave, label %work_start")
    f.label("work_start")
    _call_job(f, state, f.arg("tid"))
    f.emit("br label %work")
    f.label("work")
    f.emit("br label %wait")
    f.label("leave")


def _rouse(module: Module) -> None:
    """Wake the workers that wait for a job, though there is none yet."""
    f = module.function("tw_rouse", [("ptr", "state")])
    _wake(f, _at(f, f.arg("state"), _JOB))


def _launch(module: Module) -> None:
    """Thread 0: publish the job, wake the workers, take part, return when all are done. A null function stops the
    team.
    """
    f = module.function("tw_launch", [("ptr", "state"), ("ptr", "function"), ("ptr", "table"), ("i64", "threads")])
    state = f.arg("state")
    f.store(f.arg("function"), _at(f, state, _FUNCTION))
    f.store(f.arg("table"), _at(f, state, _TABLE))
    f.store(f.arg("threads"), _at(f, state, _THREADS))
    stop = f.value("i1", f"icmp eq {f.arg('function')}, null")
    _store(f, f.cast("zext", stop, "i32"), _at(f, state, _STOP))
    job = _at(f, state, _JOB)
    _add(f, job, 1)
    with f.when(f.icmp("ne", _load(f, _at(f, state, _JOB_SLEEPERS)), 0)):
        _wake(f, job)
    with f.when(f.value("i1", f"xor {stop}, true")):
        _call_job(f, state, const("i64", 0))
