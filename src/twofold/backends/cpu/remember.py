"""Whole programs on disk: what lowering made of a graph, so that the next process need not do it again.

A key is the SHA-256 of all that lowering depends on: the recorded graph (its text before any pass, with the layer paths
that errors name), the threads, the flags, the machine, the versions, and twofold's own source. An entry holds no code: it
says where buffers lie and which objects of the cache (``cache.py``) to link. A program with parts in Python, or whose
objects are gone, is lowered as ever.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from twofold.backends.cpu import cache, jit, team
from twofold.backends.cpu.assembled import Assembled, Call, Segment
from twofold.backends.cpu.blocks import Blocks
from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import Check, Placed, Plan
from twofold.backends.cpu.machine import identity
from twofold.backends.cpu.program import Kernel, Program, Ref
from twofold.base import flags
from twofold.base.dtypes import BY_SHORT
from twofold.ir import Graph, Spec
from twofold.ir.text import print_graph

LEAST_NODES = 16  # graphs smaller than this are lowered quickly enough
_NUMBERS = ("arena", "prepare_arena", "kept", "barriers")  # fields of Assembled that are plain numbers


def key(graph: Graph, threads: int) -> str | None:
    """Where the program of a recorded graph is kept; None if it is not worth it."""
    if len(graph.nodes) < LEAST_NODES or cache.folder() is None:
        return None
    facts = [_source(), str(threads), flags.get("TWOFOLD_CONV"), print_graph(graph)]
    return hashlib.sha256("\0".join([cache.versions(), identity(), *facts]).encode()).hexdigest()


@functools.cache
def _source() -> str:
    """The digest of the source that lowering runs: another version may do otherwise."""
    digest, package = hashlib.sha256(), Path(__file__).parents[2]
    for folder in ("base", "ir", "ops", "passes", "backends/cpu"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def store(name: str, built: Assembled, written: Sequence[int]) -> None:
    """Keep a program, if it has native parts alone. ``written`` are the positions of the state that it writes."""
    plan = built.plan
    parts = [*built.segments, *built.prepare]
    if not all(isinstance(part, Program) for part in parts):
        return
    buffers = list(dict.fromkeys([*plan.inputs, *(p.buffer for p in plan.outputs), *plan.constants]))
    number = {b: i for i, b in enumerate(buffers)}
    facts = {
        "buffers": [[b.dtype.short, b.size, b.name, *built.places[b]] for b in buffers],
        "inputs": [number[b] for b in plan.inputs],
        "outputs": [[number[p.buffer], p.shape, p.strides, p.offset] for p in plan.outputs],
        "specs": [[[int(d) for d in s.shape], s.dtype.short] for s in plan.specs],
        "constants": [[number[b], a.shape] for b, a in plan.constants.items()],
        "checks": [[c.message, c.scope] for c in plan.checks],
        "notes": plan.notes,
        "donated": plan.donated,
        "layouts": [[i, *astuple(blocks)] for i, blocks in plan.layouts.items()],
        "written": list(written),
        "segments": [_of_program(p) for p in built.segments],
        "prepare": [_of_program(p) for p in built.prepare],
        "prepared": len(plan.prepare),
        "calls": [[c.kernel.symbol, c.kernel.note, c.kernel.flops, c.ops, c.layers] for c in built.calls],
        **{field: getattr(built, field) for field in _NUMBERS},
    }
    text = json.dumps(facts).encode()
    cache.put(name, struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in plan.constants.values()))


def recall(name: str, written: Sequence[int]) -> Assembled | None:
    """The program kept under ``name``, linked; None if there is none, or one that writes other state than the caller will
    believe: the passes may find that some is only copied."""
    data = cache.get(name)
    if data is None:
        return None
    (length,) = struct.unpack_from("<Q", data)
    facts = json.loads(data[8 : 8 + length])
    if facts["written"] != list(written):
        return None
    segments, prepare = ([_program(p) for p in facts[part]] for part in ("segments", "prepare"))
    if None in segments or None in prepare:
        return None
    buffers = [Buffer(BY_SHORT[dtype], size, label) for dtype, size, label, _, _ in facts["buffers"]]
    places = {b: Ref(slot, offset) for b, (_, _, _, slot, offset) in zip(buffers, facts["buffers"])}
    plan = Plan(
        steps=[],
        inputs=[buffers[i] for i in facts["inputs"]],
        outputs=[Placed(buffers[i], tuple(shape), tuple(strides), at) for i, shape, strides, at in facts["outputs"]],
        specs=[Spec(tuple(shape), BY_SHORT[dtype]) for shape, dtype in facts["specs"]],
        constants=_constants(facts["constants"], buffers, data[8 + length :]),
        checks=[Check(*check) for check in facts["checks"]],
        notes=facts["notes"],
        donated=facts["donated"],
        prepare=[None] * facts["prepared"],
        layouts={i: Blocks(*numbers) for i, *numbers in facts["layouts"]},
    )
    calls = [
        Call(Kernel(symbol, "", (), flops, note=note), [], None, ops=ops, layers=layers)
        for symbol, note, flops, ops, layers in facts["calls"]
    ]
    numbers = {field: facts[field] for field in _NUMBERS}
    return Assembled(plan, places, _whole(segments), _whole(prepare), calls=calls, **numbers)


def _whole(programs: Sequence[Program | None]) -> list[Segment]:
    return [p for p in programs if p is not None]


def _constants(rows: Sequence[Any], buffers: Sequence[Buffer], data: bytes) -> dict[Buffer, np.ndarray]:
    """The arrays fixed at compile time, from their bytes one after another."""
    found, at = {}, 0
    for i, shape in rows:
        dtype = buffers[i].dtype.numpy
        count = int(np.prod(shape, dtype=np.int64))
        found[buffers[i]] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return found


def _of_program(program: Any) -> list[Any]:
    return [list(program.objects), program.crew]


def _program(row: list[Any]) -> Program | None:
    """A native part linked again, or None if one of its objects is gone."""
    names, crew = row
    objects = [jit.known(name) for name in names]
    found = [o for o in objects if o is not None]
    if len(found) < len(objects):
        return None
    return Program(jit.link([*found, team.runtime_object()]), [], crew, tuple(names))
