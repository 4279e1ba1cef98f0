"""``twofold run``: run an exported file on arrays, without the code that built it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import twofold as tw
from twofold.base.dims import Sym, substitute, symbols_in
from twofold.base.errors import ArgumentError, FormatError
from twofold.cli.common import DeviceName, Json, emit, use_device

NAME = "run"


def command(
    file: Annotated[Path, typer.Argument(help="An exported file, such as lenet5.onnx.")],
    input: Annotated[
        list[Path] | None, typer.Option(help="Inputs as .npy files, in order; random numbers by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Size of symbolic dimensions for random inputs.")] = 1,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Run an exported program and print what it gives."""
    use_device(device)
    function = tw.load(file)
    arrays = [_read(p) for p in input] if input else [_random(v.spec, batch) for v in function.graph.inputs]
    if len(arrays) != len(function.graph.inputs):
        raise ArgumentError(
            f"{file} takes {len(function.graph.inputs)} inputs ({', '.join(function.input_names)}); got {len(arrays)}"
        )
    results = function(*arrays)
    outputs = results if isinstance(results, (tuple, list)) else [results]
    named = {f"output{i}": np.asarray(o) for i, o in enumerate(outputs)}
    if output:
        np.savez(output, **named)  # type: ignore[arg-type]
    records = [{"name": n, "shape": list(a.shape), "dtype": str(a.dtype), **_statistics(a)} for n, a in named.items()]
    emit(
        records,
        json,
        "\n".join(
            f"{r['name']}: {r['dtype']}{r['shape']} mean {r['mean']:.6g}, min {r['min']:.6g}, max {r['max']:.6g}"
            for r in records
        ),
    )


def _statistics(array: np.ndarray) -> dict[str, float]:
    wide = array.astype(np.float64)
    return {k: float(getattr(wide, k)()) if wide.size else float("nan") for k in ("mean", "min", "max")}


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path}: is not an array file (.npy): {error}") from None


def _random(spec: Any, batch: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = []
    for dim in spec.shape:
        size = substitute(dim, dict.fromkeys(symbols_in(dim), batch)) if isinstance(dim, Sym) else dim
        shape.append(int(size))
    values = rng.standard_normal(shape) if spec.dtype.is_floating else rng.integers(0, 2, shape)
    return np.asarray(values).astype(spec.dtype.numpy)
