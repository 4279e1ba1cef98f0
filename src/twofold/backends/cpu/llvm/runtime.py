"""The runtime, emitted like any kernel: a barrier, the worker loop of the thread team, and its launch.

State is one block of memory, a cache line (64 bytes) for what is written together:

    line 0  call       i64 the current call (its upper half a futex)       i32 sleepers waiting for the next
    line 1  function   ptr                                                 table ptr
    line 2  arrived    i32 threads at the barrier                          <- ``bar`` of every kernel points here
    line 3  phase      i32 barriers passed (futex)                         i32 sleepers
    line 4  spin       i32 rounds to spin before sleeping, i32 of them at barriers before a wait counts as long; i64 threads
                       of the team, i64 wanted, i64 patience; i64 nanoseconds of long waits at barriers

The first four of line 4 are the team's to set (``crew.py``).

Waiting spins for a short while (a barrier between threads that run takes under 100 ns). Then it goes on spinning, but offers
its core to others: threads of a team that share a core beside a busy process would spin for each other (a training step of
ResNet-18 took 300 ms instead of 200). Then it sleeps in the kernel: a waiter announces itself as a sleeper *before* it looks at
the word for the last time, and the waker looks for sleepers *after* it changed the word (both sequentially consistent), so no
wake-up is lost.

A call is one number, so that whoever looks at it sees all of it at once:

    bits 32-63  its number    16-30  threads wanted, thread 0 included; 0: workers shall leave
    bit 15      to all        14     closed: who is in is decided    0-13  workers that are in

*To all*: the crew is the whole team, each thread with a number of its own; thread 0 begins at once. *To those who come*: a
worker that finds the call open adds itself to it (compare and exchange) and takes the next number; the one that makes it
complete closes it, or thread 0 does when its patience ends. Then the crew is known: thread 0 and those who are in. Thread 0
returns only when all of the crew have met at the barrier after the work, and only they read the line of the function: a worker
that comes late sees a closed call, or a later one, touches nothing else and waits for the next. As many sleepers are woken as
are missing; one that finds the crew complete sleeps at once, so that it is not among those that spin when others are wanted.
"""

from __future__ import annotations

import sys

from twofold.backends.cpu.llvm.builder import Function, Module
from twofold.backends.cpu.llvm.values import Index, Value, const
from twofold.backends.cpu.machine import Machine

BARRIER = "tw_barrier"
STATE_BYTES = 320
BARRIER_OFFSET = 128
SPIN_OFFSET, SHORT_OFFSET, SIZE_OFFSET, WANTED_OFFSET, PATIENCE_OFFSET = 256, 260, 264, 272, 280
SLEEPERS_OFFSET = _CALL_SLEEPERS = 8
_CALL, _NUMBER, _FUNCTION, _TABLE = 0, 4, 64, 72
_PHASE, _PHASE_SLEEPERS, _SPIN, _SHORT, _WAITED = 64, 68, 128, 132, 160  # from the barrier's own base
_ALL, _CLOSED, _IN, _WANTED, _ONE = 1 << 15, 1 << 14, (1 << 14) - 1, 16, 1 << 32  # parts of a call
YIELD = 256  # rounds of a long wait after which a thread offers its core to others: about 6 microseconds, for a third of one
NEVER = 1 << 30
EVERYBODY = -1  # the patience of a launch to all

_FUTEX = {"x86_64": 202, "aarch64": 98}
MONOTONIC = 6 if sys.platform == "darwin" else 1  # the C library's CLOCK_MONOTONIC: what time.monotonic_ns() reads
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG


def runtime_ir(machine: Machine) -> str:
    """The module that defines ``tw_barrier(bar, n)``, ``tw_worker(state, tid)``, ``tw_launch(state, ...)`` and
    ``tw_rouse(state)``."""
    module = Module(machine)
    _wait_long(module)
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
    f.emit(f"store atomic {x}, {p} seq_cst, align {8 if x.type != 'i32' else 4}")


def _exchange(f: Function, p: Value, old: Value, new: Value) -> Value:
    """Store ``new`` (i64) if ``old`` is there; whether it was."""
    pair = f.value("{ i64, i1 }", f"cmpxchg {p}, {old}, {new} seq_cst seq_cst, align 8")
    return f.value("i1", f"extractvalue {pair}, 1")


def _bits(f: Function, x: Value, mask: int, shift: int = 0) -> Value:
    """A part of a call as a number."""
    return _op(f, "and", _op(f, "lshr", x, shift), mask)


def _op(f: Function, opcode: str, a: Value, b: Index) -> Value:
    return f.value(a.type, f"{opcode} {a}, {f.index(b).name}")


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


def _now(f: Function, room: Value) -> Value:
    """Nanoseconds of the monotonic clock; ``room`` for two i64 is overwritten."""
    f.call("clock_gettime", "i32", [const("i32", MONOTONIC), room])
    seconds = _op(f, "mul", f.load("i64", room), 1_000_000_000)
    return _op(f, "add", seconds, f.load("i64", _at(f, room, 8)))


def _wake(f: Function, word: Value, most: Value | None = None) -> None:
    number = _FUTEX.get(f.machine.triple.split("-")[0])
    if f.machine.is_linux and number:
        f.module.declare("syscall", "i64", ["i64", "..."])
        f.value("i64", f"call i64 (i64, ...) @syscall(i64 {number}, {word}, i64 {_WAKE}, {most or 'i64 2147483647'})")


def _await_change(f: Function, word: Value, sleepers: Value, seen: Value, spin: Value) -> None:
    """Return once ``word`` differs from ``seen``: spin, then sleep; who is woken without a reason spins again."""
    sleeping, waiting = f.fresh("sleep"), f.fresh("wait")
    f.emit(f"br label %{waiting}")
    f.label(waiting)
    changed = _spin(f, word, seen, spin)
    out = f.fresh("out")
    f.emit(f"br {changed}, label %{out}, label %{sleeping}")
    f.label(sleeping)
    _add(f, sleepers, 1)
    _sleep(f, word, seen)
    _add(f, sleepers, -1)
    f.emit(f"br label %{waiting}")
    f.label(out)


def _spin(f: Function, word: Value, seen: Value, most: Value, yields: int = YIELD) -> Value:
    """Look at ``word`` until it differs from ``seen``, with so many pauses at most; whether it does. After every ``yields``
    rounds (a power of two) another thread may have the core: it may be the one that is waited for."""
    looking, resting, yielding, again, out = (f.fresh(s) for s in ("look", "rest", "yield", "again", "end"))
    rounds, following = Value("i32", f"%{f.fresh('r')}"), Value("i32", f"%{f.fresh('r')}")
    start = f._block
    f.emit(f"br label %{looking}")
    f.label(looking)
    f.emit(f"{rounds.name} = phi i32 [ 0, %{start} ], [ {following.name}, %{again} ]")
    changed = f.icmp("ne", _load(f, word), seen)
    ends = f.value("i1", f"or {changed}, {f.icmp('sge', rounds, most).name}")
    f.emit(f"br {ends}, label %{out}, label %{resting}")
    f.label(resting)
    _pause(f)
    f.emit(f"{following.name} = add {rounds}, 1")
    many = f.icmp("eq", f.value("i32", f"and {following}, {yields - 1}"), 0)
    f.emit(f"br {many}, label %{yielding}, label %{again}")
    f.label(yielding)
    f.call("sched_yield", "i32", [])
    f.emit(f"br label %{again}")
    f.label(again)
    f.emit(f"br label %{looking}")
    f.label(out)
    return changed


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
            with f.when(f.icmp("eq", _spin(f, word, seen, f.load("i32", _at(f, bar, _SHORT)), NEVER), False)):
                f.call("tw_wait_long", "void", [bar, seen])
            return []

        f.choose(last, release, wait)


def _wait_long(module: Module) -> None:
    """The rest of a wait at a barrier that is not short, timed."""
    f = module.function("tw_wait_long", [("ptr", "bar"), ("i32", "seen")], internal=True)
    bar, room = f.arg("bar"), f.stack(2, "i64")
    spin = _op(f, "sub", f.load("i32", _at(f, bar, _SPIN)), f.load("i32", _at(f, bar, _SHORT)))
    start = _now(f, room)
    _await_change(f, _at(f, bar, _PHASE), _at(f, bar, _PHASE_SLEEPERS), f.arg("seen"), spin)
    waited = f.sub(_now(f, room), start)
    f.value("i64", f"atomicrmw add {_at(f, bar, _WAITED)}, {waited} seq_cst")


def _do(f: Function, state: Value, tid: Value, n: Value) -> None:
    """Do this thread's part of the call, then meet the others."""
    function, table = f.load("ptr", _at(f, state, _FUNCTION)), f.load("ptr", _at(f, state, _TABLE))
    bar = _at(f, state, BARRIER_OFFSET)
    f.emit(f"call void {function.name}({tid}, {n}, {table}, {bar})")
    f.call(BARRIER, "void", [bar, n])


def _worker(module: Module) -> None:
    """Threads 1.. of a team live here until the team stops; thread ``tid`` knows the calls up to number ``seen``."""
    f = module.function("tw_worker", [("ptr", "state"), ("i64", "tid"), ("i32", "seen")])
    state = f.arg("state")
    call = _at(f, state, _CALL)
    seen, patience = Value("i32", "%seen_now"), Value("i1", "%patience")
    f.emit("br label %wait")
    f.label("wait")
    f.emit(f"{seen.name} = phi i32 [ %seen, %entry ], [ %number, %worked ], [ %number, %came_late ]")
    f.emit(f"{patience.name} = phi i1 [ true, %entry ], [ true, %worked ], [ %late, %came_late ]")
    spin = f.load("i32", _at(f, state, SPIN_OFFSET))
    spin = f.select(patience, spin, const("i32", 0))
    _await_change(f, _at(f, state, _NUMBER), _at(f, state, _CALL_SLEEPERS), seen, spin)
    f.emit("br label %look")

    f.label("look")
    now = _load(f, call, "i64")
    f.emit(f"%number = trunc {_op(f, 'lshr', now, 32)} to i32")
    wanted, others = _bits(f, now, (1 << 15) - 1, _WANTED), _bits(f, now, _IN)
    f.emit(f"br {f.icmp('eq', wanted, 0)}, label %leave, label %stay")
    f.label("stay")
    f.emit(f"br {f.icmp('ne', _bits(f, now, _ALL), 0)}, label %work, label %ask")
    f.label("ask")
    closed = f.icmp("ne", _bits(f, now, _CLOSED), 0)
    f.emit(f"br {closed}, label %came_late, label %join")
    f.label("join")
    own = f.add(others, 1)
    complete = f.icmp("eq", f.add(own, 1), wanted)
    joined = f.add(now, f.select(complete, const("i64", 1 + _CLOSED), const("i64", 1)))
    f.emit(f"br {_exchange(f, call, now, joined)}, label %gather, label %look")
    f.label("gather")
    whole = _load(f, call, "i64")
    _pause(f)
    f.emit(f"br {f.icmp('ne', _bits(f, whole, _CLOSED), 0)}, label %gathered, label %gather")
    f.label("gathered")
    crew = f.add(_bits(f, whole, _IN), 1)
    f.emit("br label %work")

    f.label("work")
    tid = f.value("i64", f"phi i64 [ %tid, %stay ], [ {own.name}, %gathered ]")
    n = f.value("i64", f"phi i64 [ {wanted.name}, %stay ], [ {crew.name}, %gathered ]")
    _do(f, state, tid, n)
    f.emit("br label %worked")
    f.label("worked")
    f.emit("br label %wait")
    f.label("came_late")
    f.emit(f"%late = icmp ult {f.add(others, 1)}, {wanted.name}")
    f.emit("br label %wait")
    f.label("leave")


def _rouse(module: Module) -> None:
    """Wake the workers that wait for a call, though there is none yet."""
    f = module.function("tw_rouse", [("ptr", "state")])
    _wake(f, _at(f, f.arg("state"), _NUMBER))


def _launch(module: Module) -> None:
    """Thread 0: publish the call, wake the workers, take part, return when all are done: nanoseconds of long waits at barriers
    (also of the launch before, by a thread that woke up late); negative, with those that it waited in vain, if not all came who
    were wanted."""
    f = module.function("tw_launch", [("ptr", "state"), ("ptr", "function"), ("ptr", "table")], "i64")
    state, function, table = f.arg("state"), f.arg("function"), f.arg("table")
    call, waited = _at(f, state, _CALL), _at(f, state, BARRIER_OFFSET + _WAITED)
    wanted, patience = f.load("i64", _at(f, state, WANTED_OFFSET)), f.load("i64", _at(f, state, PATIENCE_OFFSET))
    f.emit(f"br {f.icmp('eq', wanted, 1)}, label %alone, label %together")
    f.label("alone")
    f.emit(f"call void {function.name}(i64 0, i64 1, {table}, {_at(f, state, BARRIER_OFFSET)})")
    _taken(f, waited)
    f.emit("ret i64 0")

    f.label("together")
    f.store(function, _at(f, state, _FUNCTION))
    f.store(table, _at(f, state, _TABLE))
    to_all = f.icmp("slt", patience, 0)
    number = f.add(_op(f, "and", _load(f, call, "i64"), -_ONE), _ONE)
    opened = _op(f, "or", number, _op(f, "shl", wanted, _WANTED))
    _store(f, _op(f, "or", opened, f.select(to_all, const("i64", _ALL), const("i64", 0))), call)
    asleep = f.cast("zext", _load(f, _at(f, state, _CALL_SLEEPERS)), "i64")
    awake = f.sub(f.load("i64", _at(f, state, SIZE_OFFSET)), asleep)
    missing = f.select(to_all, asleep, f.sub(wanted, awake))
    with f.when(f.icmp("sgt", missing, 0)):
        _wake(f, _at(f, state, _NUMBER), missing)
    f.emit(f"br {f.icmp('eq', wanted, 0)}, label %stopped, label %begin")
    f.label("stopped")
    f.emit("ret i64 0")

    f.label("begin")
    n, late = f.choose(to_all, lambda: [wanted, const("i64", 0)], lambda: _gather(f, call, patience))
    _do(f, state, const("i64", 0), n)
    long = _taken(f, waited)
    f.ret(f.select(f.icmp("ne", late, 0), f.sub(const("i64", 0), f.add(late, long)), long))


def _taken(f: Function, word: Value) -> Value:
    """What is in ``word``, which is 0 from then on."""
    found = _load(f, word, "i64")
    with f.when(f.icmp("ne", found, 0)):
        _store(f, const("i64", 0), word)
    return found


def _gather(f: Function, call: Value, patience: Value) -> list[Value]:
    """Wait until the call is closed, or close it when patience ends: the threads of the crew, and nanoseconds if it is not
    complete."""
    room = f.stack(2, "i64")
    start = _now(f, room)
    f.emit("br label %gathering")
    f.label("gathering")
    now = _load(f, call, "i64")
    complete = f.icmp("ne", _bits(f, now, _CLOSED), 0)
    f.emit(f"br {complete}, label %gathered, label %incomplete")
    f.label("incomplete")
    _pause(f)
    late = _op(f, "sub", _now(f, room), start)
    f.emit(f"br {f.icmp('sgt', late, patience)}, label %close, label %gathering")
    f.label("close")
    closed = f.value("i64", f"or {now}, {_CLOSED}")
    f.emit(f"br {_exchange(f, call, now, closed)}, label %gathered, label %gathering")
    f.label("gathered")
    late = f.value("i64", f"phi i64 [ 0, %gathering ], [ {late.name}, %close ]")
    return [_op(f, "add", _bits(f, now, _IN), 1), late]
