"""From kernels to a native program: the interface between kernels and whoever composes them.

A ``Kernel`` is a module of IR with one public function ``void symbol(ptr p0, ..., ptr pk, i64 tid, i64 n, ptr bar)``.
Every thread of the team calls it with its number ``tid``; it does its static share of the work. It may pass barriers
inside; it does not end with one. A ``ProgramBuilder`` strings kernels into ``run(tid, n, table, bar)``, where
``table`` is an array of base pointers (slots), and links everything:

    builder = ProgramBuilder(host())
    builder.call(conv, [Ref(0), Ref(1), Ref(2, offset=4096)])
    builder.barrier()                      # a later kernel reads what this one wrote
    builder.call(relu, [Ref(2, 4096), Ref(3)])
    program = builder.finish()
    program.run([x.ctypes.data, w.ctypes.data, arena.ctypes.data, y.ctypes.data])
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from twofold.backends.cpu import jit, team
from twofold.backends.cpu.llvm import Function, Module, Value
from twofold.backends.cpu.llvm.runtime import BARRIER, emit_barrier
from twofold.backends.cpu.machine import Machine, host
from twofold.base.errors import GraphError

_PLACEHOLDER = "tw_kernel_symbol"
ALONE, AWAKE, TEAM = "alone", "awake", "team"  # who runs a program: the caller; the team, if it is awake; the team
MANY = 64  # kernels of a program from which on the code that calls them is not worth LLVM's care


class Ref(NamedTuple):
    """A place in memory: byte ``offset`` from the pointer in a ``slot`` of the program's table."""

    slot: int
    offset: int = 0


@dataclass(frozen=True)
class Kernel:
    """One compiled-on-demand kernel. Equal IR gives an equal symbol, so that repeated kernels are compiled once.

    ``workspace`` bytes are shared by the team, ``scratch`` bytes are needed per thread (so ``scratch * n`` in all):
    where one is not 0, a pointer parameter of that name (64-byte aligned) comes after the others.
    """

    symbol: str
    ir: str = field(repr=False)
    params: tuple[str, ...]
    flops: int = 0
    workspace: int = 0
    scratch: int = 0
    level: int = 0
    note: str = ""  # what was chosen and why, for reports
    once: bool = False  # each result is stored once, after its epilogue: so results may lie over what the epilogue reads there


class KernelBuilder:
    """Opens a kernel's function; ``finish`` names it by its content.

    ``k.f`` is the function; its parameters are ``params`` (pointers), then ``tid``, ``n`` and ``bar``.
    """

    def __init__(self, machine: Machine, name: str, params: Sequence[str]):
        self.machine, self.name, self.params = machine, name, tuple(params)
        self.module = Module(machine)
        signature = [*(("ptr", p) for p in params), ("i64", "tid"), ("i64", "n"), ("ptr", "bar")]
        self.f: Function = self.module.function(_PLACEHOLDER, signature)

    def barrier(self) -> None:
        """All threads wait here for each other."""
        emit_barrier(self.f)

    def finish(self, **facts) -> Kernel:
        """The kernel; ``facts`` are the fields of Kernel (flops, workspace, scratch, level, note, once)."""
        text = self.module.text()
        symbol = f"{self.name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return Kernel(symbol, text.replace(_PLACEHOLDER, symbol), self.params, **facts)


class ProgramBuilder:
    """Strings kernels into one SPMD function and links it."""

    def __init__(self, machine: Machine | None = None):
        self.machine = machine or host()
        self.kernels: list[Kernel] = []  # in calling order
        self._module = Module(self.machine)
        params = [("i64", "tid"), ("i64", "n"), ("ptr", "table"), ("ptr", "bar")]
        self.f = self._module.function("run", params)
        self._bases: dict[int, Value] = {}

    def pointer(self, ref: Ref) -> Value:
        """The address of a place, as a value of ``run`` (slot pointers are loaded once)."""
        if ref.slot not in self._bases:
            self._bases[ref.slot] = self.f.load("ptr", self.f.gep(self.f.arg("table"), ref.slot, "ptr"))
        return self.f.gep(self._bases[ref.slot], ref.offset, "i8")

    def call(self, kernel: Kernel, refs: Sequence[Ref]) -> None:
        """Append a kernel; ``refs`` answer to ``kernel.params`` one to one."""
        if len(refs) != len(kernel.params):
            raise GraphError(f"kernel {kernel.symbol} takes {kernel.params}, got {len(refs)} places")
        team_args = [self.f.arg("tid"), self.f.arg("n"), self.f.arg("bar")]
        self.f.call(kernel.symbol, "void", [*map(self.pointer, refs), *team_args])
        self.kernels.append(kernel)

    def barrier(self) -> None:
        """All threads wait: what was written before is visible after."""
        emit_barrier(self.f)

    def custom(self, emit: Callable[[Function], None]) -> None:
        """Append instructions of one's own to ``run``; straight-line or structured (``f.when``, ``f.loop``)."""
        emit(self.f)

    def finish(self, crew: str = TEAM) -> Program:
        """Compile what is new, link, and return the program."""
        self._module.plain = len(self.kernels) >= MANY
        modules = [(k.ir, k.level) for k in self.kernels] + [(self._module.text(), 0)]
        objects = jit.compile_all(modules, self.machine)
        library = jit.link([*objects.values(), team.runtime_object()])
        return Program(library, list(self.kernels), crew, tuple(objects))


class Program:
    """A linked program. ``run`` is safe to call from several threads only with separate memory in the table.

    ``crew`` is who runs it: little work is done sooner on the caller's thread (``run_alone``) than a team is woken.
    ``objects`` are the cache's keys of what it is linked from.
    """

    def __init__(self, library: jit.Library, kernels: list[Kernel], crew: str = TEAM, objects: Sequence[str] = ()):
        self._library, self.kernels, self.crew, self.objects = library, kernels, crew, objects
        self.address = library.address("run")
        i64, pointer = ctypes.c_int64, ctypes.c_void_p
        self._alone = ctypes.CFUNCTYPE(None, i64, i64, pointer, pointer)(self.address)

    def run(self, pointers: Sequence[int], threads: int = 0) -> None:
        """Run with this pointer table on the process's team (``threads`` 0: the default number)."""
        table = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
        team.get(threads).run(self.address, ctypes.addressof(table))

    def run_alone(self, table: int) -> None:
        """Run on this thread with the pointer table at an address; a team of one passes no barriers."""
        self._alone(0, 1, table, None)


__all__ = ["BARRIER", "Kernel", "KernelBuilder", "Program", "ProgramBuilder", "Ref"]
