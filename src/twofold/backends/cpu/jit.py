"""IR text -> object code -> function pointers.

``compile_ir`` makes (or finds in the cache) the object of one module; ``link`` loads objects together, resolving what
they declare from each other and from the process (libm, libc). Code that a generator wrote as clean SSA gains nothing
from the middle-end pipeline and compiles 3-4 times faster without it (``level=0``); generic loops want ``level=3``.

``begin`` compiles a module in the background, ``compile_all`` waits for many: every module has an LLVM context of its own
and every thread a target machine, and code generation, nine tenths of the time, runs outside the interpreter's lock and
llvmlite's. So kernels are compiled while the rest of a graph is still being lowered.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from twofold.backends.cpu import cache
from twofold.backends.cpu.machine import Machine, available_cores, host
from twofold.base import locks
from twofold.base.errors import GraphError

_lock = locks.renewed(threading.RLock)  # over what follows, and the linker
_local = threading.local()  # target machines by Machine: LLVM lets one thread use each
_ready: list[bool] = []  # whether LLVM is initialised
_memory: dict[str, bytes] = {}  # objects of this process, by key
_started: dict[str, Future[bytes]] = {}  # objects on their way, by key
_workers: list[ThreadPoolExecutor] = []  # who makes them, once there is somebody
_numbers = itertools.count()  # of libraries: LLVM wants a name for each


def _llvm():
    import llvmlite.binding as llvm

    with _lock:
        if not _ready:
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
            llvm.initialize_native_asmparser()
            _ready.append(True)
    return llvm


def _target_machine(machine: Machine):
    machines: dict[Machine, Any] = _local.__dict__.setdefault("machines", {})
    if machine not in machines:
        target = _llvm().Target.from_triple(machine.triple)
        # opt=1: no slower code from clean SSA than opt=3, an eighth less time
        machines[machine] = target.create_target_machine(
            cpu=machine.cpu, features=machine.features, opt=1, reloc="pic", codemodel="default"
        )
    return machines[machine]


def compile_ir(ir: str, machine: Machine | None = None, level: int = 0) -> bytes:
    """The relocatable object of one module of IR text.

    ``level`` 0 skips the middle-end passes (the code generator always optimises), 1-3 run LLVM's pipeline.
    Raises GraphError with LLVM's message if the IR is malformed.
    """
    machine = machine or host()
    return _object(cache.key(ir, machine, level), ir, machine, level)


def _object(name: str, ir: str, machine: Machine, level: int) -> bytes:
    payload = known(name)
    if payload is None:
        payload = _memory[name] = _emit(ir, machine, level, assembly=False)
        cache.put(name, payload)
    return payload


def known(name: str) -> bytes | None:
    """The object of a key, if this process or the cache has it."""
    payload = _memory.get(name)
    if payload is None:
        payload = cache.get(name)
        if payload is not None:
            _memory[name] = payload
    return payload


def begin(ir: str, machine: Machine | None = None, level: int = 0) -> Future[bytes]:
    """Start to compile a module on another thread, or join whoever does already."""
    machine = machine or host()
    name = cache.key(ir, machine, level)
    with _lock:
        future = _started.get(name)
        if future is None and name in _memory:
            future = Future()
            future.set_result(_memory[name])
        elif future is None:
            if not _workers:
                _workers.append(ThreadPoolExecutor(available_cores(), "twofold-compile"))
            future = _started[name] = _workers[0].submit(_object, name, ir, machine, level)
            future.add_done_callback(lambda _: _started.pop(name, None))
        return future


def compile_all(modules: Sequence[tuple[str, int]], machine: Machine | None = None) -> dict[str, bytes]:
    """The objects of (IR text, level) pairs by their keys, equal ones compiled once, on as many threads as there are
    cores."""
    machine = machine or host()
    distinct = sorted(dict.fromkeys(modules), key=lambda m: -len(m[0]))  # the longest first: no thread ends late
    futures = {cache.key(ir, machine, level): begin(ir, machine, level) for ir, level in distinct}
    return {name: future.result() for name, future in futures.items()}


def assembly(ir: str, machine: Machine | None = None, level: int = 0) -> str:
    """The assembly text of one module, for reading."""
    return _emit(ir, machine or host(), level, assembly=True)


def _emit(ir: str, machine: Machine, level: int, assembly: bool):
    llvm = _llvm()
    target = _target_machine(machine)
    try:
        module = llvm.parse_assembly(ir, llvm.create_context())
        module.verify()
    except RuntimeError as error:
        raise GraphError(f"the CPU backend wrote malformed LLVM IR, please report it: {error}") from None
    if level:
        options = llvm.create_pipeline_tuning_options(speed_level=level)
        options.loop_vectorization = options.slp_vectorization = level > 1
        builder = llvm.create_pass_builder(target, options)
        builder.getModulePassManager().run(module, builder)
    return target.emit_assembly(module) if assembly else _emit_object(target, module)


def _emit_object(target, module) -> bytes:
    """``target.emit_object(module)`` without llvmlite's lock, which lets one thread into LLVM at a time."""
    from llvmlite.binding import ffi

    locked = ffi.lib.LLVMPY_TargetMachineEmitToMemory
    emit = getattr(locked, "_cfn", locked)
    with ffi.OutputString() as message:
        buffer = emit(target, module, 1, message)
        if not buffer:
            raise GraphError(f"LLVM made no object code, please report it: {message}")
    try:
        return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer))
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _renew() -> None:
    """In a forked child: the workers are not there."""
    _started.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Library:
    """Objects loaded into this process. Its code stays in memory as long as the library object lives.

    LLVM's JITLink gives an object one stretch of memory. Its predecessor placed code and constants each wherever the process
    had a gap: more than 2 GB apart in large, long-lived processes, where 32-bit offsets do not reach and LLVM aborts.
    """

    def __init__(self, objects: Sequence[bytes]):
        builder = _llvm().JITLibraryBuilder()
        for payload in dict.fromkeys(objects):
            builder.add_object_img(payload)
        builder.add_current_process()
        with _lock:
            self._name = f"library{next(_numbers)}"
            self._trackers = [builder.link(_session(), self._name)]

    def address(self, symbol: str) -> int:
        """The address of a function. Raises GraphError if no object defines it."""
        with _lock:
            try:
                self._trackers.append(_session().lookup(self._name, symbol))
            except RuntimeError as error:
                raise GraphError(f"no loaded object defines {symbol!r}: {error}") from None
        return self._trackers[-1][symbol]

    def function(self, symbol: str, *argument_types, result=None):
        """A ctypes function (releases the GIL); it keeps the library alive."""
        function = ctypes.CFUNCTYPE(result, *argument_types)(self.address(symbol))
        function._library = self  # type: ignore[attr-defined]
        return function

    def keep_forever(self) -> None:
        """Never unload: threads may still be inside when the interpreter ends."""
        for tracker in self._trackers:
            tracker.detach()


@functools.cache
def _session() -> Any:
    """What libraries are loaded into: one for the process, for as long as it lives."""
    machine = host()
    target = _llvm().Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", codemodel="default", jit=True
    )
    session = _llvm().create_lljit_compiler(target, use_jit_link=True)
    session._owned = True  # nobody disposes of it: threads may still run its code when the interpreter ends
    return session


def link(objects: Sequence[bytes]) -> Library:
    """Load objects together; equal objects count once."""
    return Library(objects)
