"""The ``.onnx`` format of ``twofold.io.programs``: files on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twofold.base.errors import FormatError
from twofold.base.files import atomic_write
from twofold.base.tree import Structure
from twofold.io.onnx.export.model import to_model
from twofold.io.onnx.load.model import from_model
from twofold.io.onnx.load.reader import read_model
from twofold.io.programs import Program
from twofold.static.loaded import LoadedFunction

_KINDS = {"tuple": tuple, "list": list}


def write(
    program: Program, path: str | os.PathLike, *, output_names: Sequence[str] = (), portable: bool | None = None
) -> None:
    """Write a program as an ONNX file, atomically.

    ``portable`` (default: unless state is written) raises composites to standard operators and splits ops that have
    none into several; False keeps every op to the bit, in the domain ``ai.twofold`` where the standard has none.
    """
    structure = None if program.outputs is None else _plain(program.outputs)
    model = to_model(program.graph, program.state, output_names=output_names, structure=structure, portable=portable)
    with atomic_write(path) as stream:
        stream.write(model.SerializeToString(deterministic=True))


def read(
    path: str | os.PathLike,
    *,
    external_data: bool = False,
    constants: Mapping[str, Any] | None = None,
    devices: Any = None,
) -> LoadedFunction:
    """The function in an ONNX file of any maker. See ``twofold.io.programs.load``."""
    try:
        loaded = from_model(read_model(path), folder=Path(path).parent if external_data else None, constants=constants)
    except FormatError as error:
        if not str(error).startswith(os.fspath(path)):
            error.args = (f"{os.fspath(path)}: {error.args[0]}", *error.args[1:])
        raise
    outputs = _structure(loaded.structure, len(loaded.graph.outputs))
    for value, name in zip(loaded.graph.outputs, loaded.output_names):
        value.name = value.name or name
    state = {name: np.asarray(array) for name, array in loaded.state.items()}
    return LoadedFunction(loaded.graph, state, outputs=outputs, devices=devices)


# ---- the nest of the results as JSON: "*" a leaf, null None, ["tuple", ...], ["list", ...], {"key": ...} -------------


def _plain(structure: Structure) -> Any:
    if structure.kind == "leaf":
        return "*"
    if structure.kind is None:
        return None
    children = [_plain(c) for c in structure.children]
    if structure.kind is dict:
        if not all(isinstance(k, str) for k in structure.keys):
            raise FormatError(f"a dict of results with keys {structure.keys}; expected strings")
        return dict(zip(structure.keys, children))
    return ["list" if structure.kind is list else "tuple", *children]  # named tuples become tuples


def _structure(plain: Any, count: int) -> Structure | None:
    """The nest that was written, if it holds ``count`` leaves; None: as they come."""
    try:
        structure = _nest(plain)
        leaves = _leaves(structure)
    except (ValueError, KeyError, RecursionError):
        raise FormatError("the structure of the results cannot be read") from None
    return structure if leaves == count and plain is not None else None


def _nest(plain: Any) -> Structure:
    if plain == "*":
        return Structure("leaf", (), ())
    if plain is None:
        return Structure(None, (), ())
    if isinstance(plain, dict):
        return Structure(dict, tuple(plain), tuple(map(_nest, plain.values())))
    if isinstance(plain, list) and plain and isinstance(plain[0], str):
        return Structure(_KINDS[plain[0]], (), tuple(map(_nest, plain[1:])))
    raise ValueError


def _leaves(structure: Structure) -> int:
    return 1 if structure.kind == "leaf" else sum(map(_leaves, structure.children))
