"""Graphs as StableHLO: a portable program with its weights inside, which XLA compiles for the device at hand.

The bytes are those of ``jax.export`` (a StableHLO module in its versioned bytecode, with the types of its inputs), so
``jax.export.deserialize`` reads them too. Indices are not checked in such a program: XLA clamps them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twofold.backends.xla import runtime
from twofold.base.dims import substitute
from twofold.base.errors import ArgumentError, FormatError, MissingDependencyError, TraceError, UnsafeFileError
from twofold.ir import Graph

PLATFORMS = ("cpu", "cuda")
# calls out of a program that are part of XLA or of jax's own linear algebra; anything else could run foreign code
_KNOWN_CALL = re.compile(r"shape_assertion|Sharding|mhlo\.\w+|stablehlo\.\w+|chlo\.\w+|lapack_\w+|cusolver_\w+|cublas_\w+")
_CALL = re.compile(r"custom_call\s*@?\"?([\w.$]+)")


def _exporter() -> Any:
    jax = runtime.load()
    try:
        import flatbuffers  # noqa: F401
        from jax import export
    except ImportError as error:
        raise MissingDependencyError(
            f"StableHLO files need the package flatbuffers ({error}); install it with `pip install flatbuffers`"
        ) from error
    return jax, export


def serialize(graph: Graph, state: Sequence[np.ndarray], platforms: Sequence[str] = PLATFORMS) -> bytes:
    """The program of ``graph`` for any size of its symbols, with ``state`` as constants.

    Raises ArgumentError for a graph that assigns state, TraceError where XLA cannot do with symbolic sizes.
    """
    written = [s.name for s in graph.state if s.written]
    if written:
        raise ArgumentError(
            f"{graph.name}: it assigns {', '.join(written)}; a StableHLO file holds a function without state; "
            "export to .onnx, or a function that assigns nothing (a Module in eval mode)"
        )
    jax, export = _exporter()
    from twofold.backends.xla import checks, lower

    with runtime.x64():
        scope = export.SymbolicScope()
        sizes = {name: export.symbolic_shape(name, scope=scope)[0] for name in sorted(graph.symbols())}
        shapes = [
            jax.ShapeDtypeStruct(tuple(substitute(d, sizes) for d in v.shape), v.dtype.numpy) for v in graph.inputs
        ]

        def program(*arguments: Any) -> list[Any]:
            with checks.collecting([], sizes):
                return lower.evaluate(graph, [*arguments, *map(jax.numpy.asarray, state)])[: len(graph.outputs)]

        try:
            return bytes(export.export(jax.jit(program), platforms=tuple(platforms))(*shapes).serialize())
        except Exception as error:
            if not sizes:
                raise
            raise TraceError(
                f"{graph.name}: XLA cannot do it with the symbolic size {', '.join(sizes)} ({str(error).splitlines()[0]}); "
                "pass dynamic_batch=False"
            ) from error


def deserialize(data: bytes) -> tuple[Callable[..., Any], list[Any]]:
    """A function of jax arrays from the bytes, and the types of its inputs. FormatError, UnsafeFileError."""
    jax, export = _exporter()
    with runtime.x64():
        try:
            exported = export.deserialize(bytearray(data))
            text = exported.mlir_module()
        except Exception as error:
            raise FormatError(f"not a StableHLO program of jax.export ({type(error).__name__}: {error})") from error
        foreign = sorted({name for name in _CALL.findall(text) if not _KNOWN_CALL.fullmatch(name)})
        if foreign:
            raise UnsafeFileError(f"the program calls out to {', '.join(foreign)}, which could run any code; refused")
        return jax.jit(exported.call), list(exported.in_avals)
