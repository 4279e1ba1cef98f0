"""ModelProto -> graph, the numbers of its state, and how its results stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from twofold.base.errors import FormatError, TwofoldError, UnsupportedOpError
from twofold.io.onnx.common import DOMAIN, DOMAIN_VERSION, METADATA, STANDARD
from twofold.io.onnx.load import control, elementwise, indexing, layers, movement, norms, optimisers, reduction, resize
from twofold.io.onnx.load.checks import check_expansion, refuse_unsupported
from twofold.io.onnx.load.engine import FAULTS, Loader
from twofold.io.onnx.load.known import Known
from twofold.io.onnx.load.reader import TensorReader
from twofold.ir import Graph, recording

OLDEST, NEWEST = 1, 28  # operator sets whose meaning the rows know


@dataclass
class Loaded:
    """What a file holds: the graph, its state's numbers by name, the structure of its results (None: a plain list)."""

    graph: Graph
    state: dict[str, np.ndarray]
    structure: Any
    output_names: list[str]


def from_model(model: ModelProto, *, folder: Path | None = None, constants: Mapping[str, Any] | None = None) -> Loaded:
    """The graph of a model. ``folder``: where external data may be read from (None: refused). ``constants``: inputs to
    fix at these arrays."""
    try:
        _check_versions(model)
        refuse_unsupported(model)
        check_expansion(model)
        return _read(model, folder, dict(constants or {}))
    except TwofoldError as error:
        if isinstance(error, (FormatError, UnsupportedOpError)):
            raise
        raise FormatError(f"malformed: {error}") from error
    except FAULTS as error:  # names that are no text, graphs that contradict themselves: nothing a sound file causes
        raise FormatError(f"malformed: {type(error).__name__}: {error}") from error


def _read(model: ModelProto, folder: Path | None, constants: dict[str, Any]) -> Loaded:
    meta = _metadata(model)
    entries = meta.get("state", []) if meta else []
    loader = Loader(
        model, TensorReader(folder), [s["input"] for s in entries] if meta else None, model.graph.name or "graph"
    )
    graph = loader.builder.graph
    environment: dict[str, Any] = dict(loader.initializers(model.graph))
    for entry in entries:
        if entry["input"] not in environment:
            raise FormatError(f"state {entry['name']!r}: there is no initializer {entry['input']!r}")
        loader.add_state(environment[entry["input"]]).name = entry["name"]
    _add_inputs(loader, environment, constants)
    with recording(loader.builder):
        loader.run(model.graph.node, environment, loader.opsets)
        written = [entry["output"] for entry in entries]
        names = [o.name for o in model.graph.output if not entries or o.name not in written]
        results = {name: loader.enter(_result(environment, name)) for name in [*names, *written]}
        loader.builder.finish([results[name] for name in names])
    _set_state(graph, entries, results)
    state = {record.name: array for record, array in loader.state.values()}
    return Loaded(graph, state, meta.get("structure") if meta else None, names)


def _check_versions(model: ModelProto) -> None:
    for opset in model.opset_import:
        if opset.domain in STANDARD and not OLDEST <= opset.version <= NEWEST:
            raise FormatError(
                f"operator set {opset.version}; expected {OLDEST} to {NEWEST}; use onnx.version_converter"
            )
        if opset.domain == DOMAIN and opset.version > DOMAIN_VERSION:
            raise FormatError(
                f"written by a newer twofold ({DOMAIN} {opset.version}; this one reads {DOMAIN_VERSION}); update it"
            )


def _metadata(model: ModelProto) -> dict[str, Any] | None:
    """Our JSON about state and structure, checked; None in a file of another maker."""
    for entry in model.metadata_props:
        if entry.key == METADATA:
            try:
                meta = json.loads(entry.value)
                rows = meta["state"]
                sound = all(isinstance(r[k], str) for r in rows for k in ("name", "input", "output")) and len(
                    {r["input"] for r in rows}
                ) == len(rows) == len({r["name"] for r in rows})
            except (ValueError, KeyError, TypeError, RecursionError):
                sound = False
            if not sound:
                raise FormatError(f"metadata {METADATA!r} cannot be read")
            return meta
    return None


def _add_inputs(loader: Loader, environment: dict[str, Any], constants: dict[str, Any]) -> None:
    """The model's inputs; those with a default (an initializer) or fixed by the caller are none of ours."""
    for info in loader.model.graph.input:
        if info.name in constants:
            environment[info.name] = Known(np.asarray(constants.pop(info.name)), info.name)
        elif info.name not in environment:
            environment[info.name] = loader.builder.input(loader.spec(info.type, f"input {info.name!r}"), info.name)
    if constants:
        raise FormatError(f"constants for {', '.join(map(repr, constants))}: the model has no such inputs")


def _result(environment: Mapping[str, Any], name: str) -> Any:
    if name not in environment:
        raise FormatError(f"output {name!r} is made by no node")
    return environment[name]


def _set_state(graph: Graph, entries: list[dict[str, str]], results: Mapping[str, Any]) -> None:
    for entry, record in zip(entries, graph.state):
        new = results[entry["output"]]
        if new.spec != record.input.spec:
            raise FormatError(f"state {record.name!r} is {record.input.spec}, its next value {new.spec}")
        record.output = new


__all__ = ["Loaded", "from_model"]
_ = (
    control,
    elementwise,
    indexing,
    layers,
    movement,
    norms,
    optimisers,
    reduction,
    resize,
)  # their rows register on import
