"""IR text -> object code -> function pointers.

``compile_ir`` makes (or finds in the cache) the object of one module; ``link`` loads objects together, resolving what
they declare from each other and from the process (libm, libc). Code that a generator wrote as clean SSA gains nothing
from the middle-end pipeline and compiles 3-4 times faster without it (``level=0``); generic loops want ``level=3``.

``begin`` compiles a module in the background, ``compile_all`` waits for many: every module has an LLVM context of its own
and every thread a target machine, and parsing and code generation run outside the interpreter's lock and llvmlite's. So
kernels are compiled while the rest of a graph is still being lowered. A worker that gives up the interpreter's lock waits
for it as long as a switch interval (5 ms) while lowering goes on, longer than a small kernel takes: so it does that for
these two calls only (``_Emitter``), and files are read and written by whoever asks.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from twofold.backends.cpu import cache, elf
from twofold.backends.cpu.machine import Machine, available_cores, host
from twofold.base import locks
from twofold.base.errors import GraphError

_lock = locks.renewed(threading.RLock)  # over what follows, and the linker
_local = threading.local()  # target machines by Machine: LLVM lets one thread use each
_settings: list[str] = []  # of LLVM, that are not its defaults
_ready: list[bool] = []  # whether LLVM is initialised
_memory: dict[str, bytes] = {}  # objects of this process, by key
_started: dict[str, Future[bytes]] = {}  # objects on their way, by key
_unkept: dict[str, bytes] = {}  # objects that are not in the cache yet, by key
_workers: list[ThreadPoolExecutor] = []  # who makes them, once there is somebody
_numbers = itertools.count()  # of libraries: LLVM wants a name for each


def _llvm():
    import llvmlite.binding as llvm

    with _lock:
        if not _ready:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            llvm.initialize_native_asmparser()
            _ready.append(True)
    return llvm


def leave_out_strength_reduction() -> None:
    """For a process that compiles generated kernels and nothing else (LLVM's settings are the process's): their addresses are
    sums already that the machine adds up while it loads, and LLVM's search for better ones took a quarter of its time."""
    _llvm().set_option("twofold", "-disable-lsr")
    _settings.append("-disable-lsr")


def _target_machine(machine: Machine):
    machines: dict[Machine, Any] = _local.__dict__.setdefault("machines", {})
    if machine not in machines:
        llvm = _llvm()
        if machine.triple.split("-")[0] != host().triple.split("-")[0]:  # the other targets' tables take 10 MB
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(machine.triple)
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
    name = cache.key(ir, machine, level, _settings)
    payload = known(name)
    if payload is None:
        payload = _made(name, ir, machine, level)
        _keep(name)
    return payload


def _made(name: str, ir: str, machine: Machine, level: int) -> bytes:
    payload = None if level else _emitter().object(ir, _target_machine(machine))
    if payload is None:
        payload = _emit(ir, machine, level, assembly=False)
    _memory[name] = _unkept[name] = payload
    return payload


def _keep(name: str) -> None:
    payload = _unkept.pop(name, None)
    if payload is not None:
        cache.put(name, payload)


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
    name = cache.key(ir, machine, level, _settings)
    with _lock:
        future = _started.get(name)
        if future is not None:
            return future
        payload = known(name)
        if payload is not None:
            future = Future()
            future.set_result(payload)
            return future
        if not _workers:
            _workers.append(ThreadPoolExecutor(max(1, available_cores() - 1), "twofold-compile"))
        future = _started[name] = _workers[0].submit(_made, name, ir, machine, level)
        future.add_done_callback(lambda _: _started.pop(name, None))
        return future


def compile_all(modules: Sequence[tuple[str, int]], machine: Machine | None = None) -> dict[str, bytes]:
    """The objects of (IR text, level) pairs by their keys, equal ones compiled once, on as many threads as there are cores:
    this one takes what no worker has begun, the last first."""
    machine = machine or host()
    started = {(ir, level): begin(ir, machine, level) for ir, level in dict.fromkeys(modules)}
    for (ir, level), future in reversed(started.items()):
        if future.cancel():
            compile_ir(ir, machine, level)
    objects = {}
    for (ir, level), future in started.items():
        name = cache.key(ir, machine, level, _settings)
        try:
            objects[name] = future.result()
        except CancelledError:  # made above, or by another thread that waits for it
            objects[name] = compile_ir(ir, machine, level)
        _keep(name)
    return objects


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
    return target.emit_assembly(module) if assembly else target.emit_object(module)


class _Emitter:
    """llvmlite's way from IR text to an object, but without its lock, which lets one thread into LLVM at a time; calls that
    are over at once also keep the interpreter's lock."""

    def __init__(self) -> None:
        from llvmlite.binding import ffi

        quick, slow = (kind(ffi.lib._name, handle=ffi.lib._handle) for kind in (ctypes.PyDLL, ctypes.CDLL))
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        message = ctypes.POINTER(text)

        def known(library: Any, name: str, result: Any, *arguments: Any) -> Any:
            function = library[f"LLVMPY_{name}"]  # an object of its own: what llvmlite says of its types stays as it is
            function.restype, function.argtypes = result, arguments
            return function

        self._context = known(quick, "ContextCreate", pointer)
        self._parse = known(slow, "ParseAssembly", pointer, pointer, text, message)
        self._verify = known(quick, "VerifyModule", ctypes.c_bool, pointer, message)
        self._emit = known(slow, "TargetMachineEmitToMemory", pointer, pointer, pointer, ctypes.c_int, message)
        self._start = known(quick, "GetBufferStart", pointer, pointer)
        self._size = known(quick, "GetBufferSize", ctypes.c_size_t, pointer)
        self._free = known(quick, "DisposeMemoryBuffer", None, pointer)
        self._free_module = known(quick, "DisposeModule", None, pointer)
        self._free_context = known(quick, "ContextDispose", None, pointer)
        self._free_text = known(quick, "DisposeString", None, text)

    def object(self, ir: str, target: Any) -> bytes | None:
        """The object; None if LLVM does not take the text (llvmlite then tells why)."""
        message = ctypes.c_char_p()
        context = self._context()
        module = self._parse(context, ir.encode(), ctypes.byref(message))
        try:
            if not module or self._verify(module, ctypes.byref(message)):
                return None
            self._free_text(message)
            message.value = None
            buffer = self._emit(target._ptr, module, 1, ctypes.byref(message))
            if not buffer:
                return None
            try:
                return ctypes.string_at(self._start(buffer), self._size(buffer))
            finally:
                self._free(buffer)
        finally:
            if module:
                self._free_module(module)
            self._free_context(context)
            self._free_text(message)


@functools.cache
def _emitter() -> _Emitter:
    return _Emitter()


def _renew() -> None:
    """In a forked child: the workers are not there."""
    _started.clear()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Library:
    """Objects loaded into this process. Its code stays in memory as long as the library object lives.

    What ``elf`` cannot load LLVM does. Its JITLink gives an object one stretch of memory; its predecessor placed code and
    constants each wherever the process had a gap: more than 2 GB apart in large, long-lived processes, where 32-bit offsets
    do not reach and LLVM aborts.
    """

    def __init__(self, objects: Sequence[bytes]):
        distinct = list(dict.fromkeys(objects))
        self._image = elf.load(distinct)
        self._trackers: list[Any] = []
        if self._image is None:
            builder = _llvm().JITLibraryBuilder()
            for payload in distinct:
                builder.add_object_img(payload)
            builder.add_current_process()
            with _lock:
                self._name = f"library{next(_numbers)}"
                self._trackers = [builder.link(_session(), self._name)]

    def address(self, symbol: str) -> int:
        """The address of a function. Raises GraphError if no object defines it."""
        if self._image is not None:
            if symbol not in self._image.symbols:
                raise GraphError(f"no loaded object defines {symbol!r}")
            return self._image.symbols[symbol]
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
        if self._image is not None:
            self._image.keep_forever()
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
