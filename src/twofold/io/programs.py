"""``export`` and ``load``: programs to files and back. The suffix chooses the format.

A format is one row: suffix -> module with ``write(program, path, **options)`` and/or ``read(path, **options)``,
imported when it is first used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twofold.base.dims import symbol
from twofold.base.errors import ArgumentError, FormatError, ShapeError, TraceError
from twofold.base.tree import Structure, flatten
from twofold.ir import Graph, Spec, grad_mode
from twofold.static.compile import CompiledFunction
from twofold.static.loaded import LoadedFunction
from twofold.static.trace import Traced, is_array_like, spec_of, trace

FORMATS: dict[str, str] = {".onnx": "twofold.io.onnx.files", ".stablehlo": "twofold.io.stablehlo"}


@dataclass
class Program:
    """What is written: a graph, the present numbers of its state (in order), and how its results are nested."""

    graph: Graph
    state: list[np.ndarray]
    outputs: Structure | None = None


def export(
    model: Any, example_inputs: Any = None, path: str | os.PathLike = "", *, dynamic_batch: bool = True, **options: Any
) -> None:
    """Write a Module or function as a program that runs without its code; the suffix of ``path`` chooses the format.

    ``example_inputs``: an array, or a tuple of the arguments; only shapes and dtypes matter. Modules are traced in eval
    mode. With ``dynamic_batch`` dimension 0 of every input that has the first one's size there is symbolic ("N"), so
    that the file takes any batch size. A function that assigns variables (a training step) is saved with its state.
    What ``load`` returned can be written again, with its present state; ``example_inputs`` is then not needed.

    >>> import twofold as tw
    >>> tw.export(lambda x: tw.tanh(x), tw.zeros((1, 3)), "tanh.onnx")

    Raises FormatError for an unknown suffix, TraceError if the program cannot be traced with a symbolic batch size.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"export: path is a {type(path).__name__}; expected export(model, example_inputs, path)")
    if not os.fspath(path):
        raise ArgumentError("export: expected export(model, example_inputs, path); the path is missing")
    writer = _format(path, "write")
    writer(_program(model, example_inputs, dynamic_batch), path, **options)


def load(path: str | os.PathLike, **options: Any) -> LoadedFunction:
    """The program in a file, as a function of arrays by position or by name. It needs none of the code that made it.

    ONNX: ``external_data=True`` to read arrays that lie in other files of the model's folder; ``constants=`` (name:
    array) to fix inputs that decide shapes; ``devices=`` for where it runs.

    >>> import twofold as tw
    >>> tw.export(lambda x: x * 2, tw.zeros((1, 3)), "twice.onnx")
    >>> tw.load("twice.onnx")(tw.ones((2, 3))).shape
    (2, 3)

    Raises FormatError for a broken file, UnsafeFileError for one that asks for what is refused, UnsupportedOpError
    listing every operator without a translation.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)}: no such file")
    return _format(path, "read")(path, **options)


def _format(path: str | os.PathLike, verb: str) -> Any:
    suffix = Path(path).suffix.lower()
    module = importlib.import_module(FORMATS[suffix]) if suffix in FORMATS else None
    if not hasattr(module, verb):
        able = [s for s, name in FORMATS.items() if hasattr(importlib.import_module(name), verb)]
        raise FormatError(
            f"{os.fspath(path)}: cannot {verb} programs of suffix {suffix!r}; expected one of {', '.join(able)}"
        )
    return getattr(module, verb)


# ---- from a model or function to a program ---------------------------------------------------------------------------


def _program(model: Any, example: Any, dynamic_batch: bool) -> Program:
    if isinstance(model, LoadedFunction):
        return Program(model.graph, [v.numpy() for v in model.variables.values()], model.outputs)
    if example is None:
        raise ArgumentError(
            "export: example_inputs are missing; pass arrays of the shapes and dtypes the program takes"
        )
    compiled = isinstance(model, CompiledFunction)
    target, mode = (model.function, model.in_precision) if compiled else (model, contextlib.nullcontext)
    args = example if isinstance(example, tuple) else (example,)
    specs = _symbolic(args) if dynamic_batch else None
    with mode():
        traced = _trace(target, args, specs)
    kinds = sorted({type(leaf).__name__ for leaf in traced.constants.values()})
    if kinds:
        raise ArgumentError(
            f"export: the function returns {', '.join(kinds)} values; expected tensors, in tuples, lists and dicts"
        )
    if traced.gradient_inputs:
        raise ArgumentError(
            "export: the function adds to gradients of an earlier backward(); call zero_grad() in it first"
        )
    return Program(traced.graph, [v.numpy() for v in traced.variables], traced.outputs)


def _trace(target: Any, args: tuple, specs: Sequence[Spec] | None) -> Traced:
    """A trace in inference mode. Where it fails only because the batch size is symbolic, the error says how to fix that."""
    is_module = hasattr(target, "evaluating")  # also a compiled one
    run = lambda given: trace(target, args, specs=given, keep_gradients=False)
    with target.evaluating() if is_module else contextlib.nullcontext(), grad_mode(not is_module):
        try:
            return run(specs)
        except (ShapeError, TraceError) as error:
            run(None)  # raises the same if the batch size has nothing to do with it
            raise TraceError(f"with a batch of any size N: {error}. To fix it, pass dynamic_batch=False") from error


def _symbolic(args: Sequence[Any]) -> list[Spec]:
    """The arguments' specs, dimension 0 being N where it has the first argument's size."""
    specs = [spec_of(leaf) for leaf in flatten((args, {}))[0] if is_array_like(leaf)]
    batch = next((s.shape[0] for s in specs if s.ndim), None)
    return [Spec((symbol("N"), *s.shape[1:]), s.dtype) if s.ndim and s.shape[0] == batch else s for s in specs]


__all__ = ["FORMATS", "Program", "export", "load"]
