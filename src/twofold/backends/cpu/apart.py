"""Programs made in a process of their own, which ends when it has put them into the cache.

To lower a large graph and to translate its kernels takes 100 to 200 MB more than to run it, LLVM alone 60; Python and the C
library give little of it back. So a process that wants such a program starts another one for that, and links what it finds
on disk then, as it would at any later time. Where this does not work (no interpreter to start, a graph that the text form
cannot express, an error), nothing is lost: the process makes the program itself, and has the error itself.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from twofold.backends.cpu import cache
from twofold.backends.cpu.batches import HEAVY
from twofold.ir import Graph
from twofold.ir.text import parse_graph, print_graph

LARGE = 20  # heavy ops of a graph from which on it is always worth half a second to start an interpreter
FEW = 3  # smaller graphs for which one is started, as long as this process has no LLVM

_START = "import sys; sys.path[:] = sys.argv[1:]; from twofold.backends.cpu import apart; apart.main()"


PATIENCE = 1800  # seconds, after which something other than compiling must be going on


class _State:
    alone = False  # this is the other process
    vain = False  # it ended well, but nothing was kept: no further one is started
    small = 0  # how many small graphs went there


def make(graph: Graph) -> bool:
    """Have the program of a recorded graph made elsewhere and kept under its key; whether that was done."""
    if not _pays(graph):
        return False
    import subprocess  # half a megabyte, for those that find their program on disk

    try:
        text = print_graph(graph, full=True).encode()
        own = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        command = [sys.executable, *own, "-c", _START, *(p for p in sys.path if isinstance(p, str))]
        done = subprocess.run(
            command, input=text, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=PATIENCE
        )
    except Exception:  # whatever it is: this process can do without
        return False
    return done.returncode == 0


def in_vain() -> None:
    """Say that a program made elsewhere was not to be found afterwards."""
    _State.vain = True


def _pays(graph: Graph) -> bool:
    if _State.alone or _State.vain or getattr(sys, "frozen", False):
        return False
    if not Path(sys.executable or "").name.startswith("python") or not cache.writable():
        return False
    if any(node.op.kind == "control" for node in graph.nodes):  # its program has parts in Python, which are not kept
        return False
    kernels = sum(node.op.kind in HEAVY for node in graph.nodes)
    if kernels >= LARGE:
        return True
    small = kernels > 0 and "llvmlite.binding" not in sys.modules and _State.small < FEW
    _State.small += small
    return small


def main() -> None:
    """The other process: a graph's text comes in, the cache has its program afterwards."""
    from twofold.backends.cpu import jit, team
    from twofold.backends.cpu.backend import BACKEND
    from twofold.passes import optimise

    _State.alone = True
    gc.disable()  # it does not live long
    team.runtime_object()  # whoever links the program looks for it among objects made as usual
    jit.leave_out_strength_reduction()
    BACKEND.whole(parse_graph(sys.stdin.read()), optimise)
    os._exit(0)  # nobody needs what it holds taken down piece by piece
