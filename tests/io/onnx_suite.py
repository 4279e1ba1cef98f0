"""The public ONNX backend suite run through our reader: models and expected results come from the onnx package.

python tests/io/onnx_suite.py [node|simple|pytorch-converted|pytorch-operator|light ...]      counts, and what fails
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

import twofold  # noqa: F401 (fills the op table)
from twofold.base.errors import UnsupportedOpError
from twofold.io.onnx.load.model import Loaded, from_model
from twofold.ir import interpret

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
SHAPES = re.compile(r"input '([^']*)' must be known")


class Case(NamedTuple):
    """One model with its inputs, expected results and tolerances."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Any]
    outputs: list[Any]
    rtol: float
    atol: float


def cases(kind: str) -> Iterator[Case]:
    """The suite's cases of one kind, in its order."""
    from onnx.backend.test.loader import load_model_tests

    if kind == "light":
        yield from map(_light, sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")))
        return
    for test in load_model_tests(kind=kind):
        model, sets = test.model, test.data_sets
        if model is None:
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            sets = [_read(folder / "test_data_set_0", model)]
        given, outputs = ([_array(v) for v in column] for column in sets[0])
        inputs = dict(zip([i.name for i in model.graph.input], given))
        yield Case(test.name, model, inputs, outputs, test.rtol or 1e-3, test.atol or 1e-7)


def _light(path: Path) -> Case:
    """A whole CNN with constant weights. Its input is a ramp, as the suite's runner makes it."""
    model = onnx.load(path)
    weights = {i.name for i in model.graph.initializer}
    inputs = {}
    for info in model.graph.input:
        if info.name not in weights:
            shape = [d.dim_value or 1 for d in info.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            inputs[info.name] = (np.arange(count).reshape(shape) / count).astype(np.float32)
    expected = sorted(path.parent.glob(f"{path.stem}_output_*.pb"))
    outputs = [numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes())) for p in expected]
    return Case(f"test_{path.stem}", model, inputs, outputs, 1e-3, 1e-7)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _read(folder: Path, model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    def column(word: str, infos: Any) -> list[Any]:
        out = []
        for i in range(len(list(folder.glob(f"{word}_*.pb")))):
            tensor = onnx.TensorProto()
            tensor.ParseFromString((folder / f"{word}_{i}.pb").read_bytes())
            out.append(numpy_helper.to_array(tensor))
        return out

    return column("input", model.graph.input), column("output", model.graph.output)


def read(case: Case) -> Loaded:
    """The case's graph. Inputs that decide shapes are fixed at the case's values, as a user would with ``constants=``."""
    fixed: dict[str, np.ndarray] = {}
    while True:
        try:
            return from_model(case.model, constants=fixed)
        except UnsupportedOpError as error:
            wanted = SHAPES.search(str(error))
            left = {k: np.asarray(v) for k, v in case.inputs.items() if k not in fixed and hasattr(v, "dtype")}
            small = {k: v for k, v in left.items() if v.ndim < 2 and v.dtype.kind in "iub"}
            if wanted is None or not (wanted[1] in left or small):
                raise
            fixed.update({wanted[1]: left[wanted[1]]} if wanted[1] in left else small)


def run(case: Case) -> None:
    """AssertionError where a result differs from the suite's in dtype, shape or numbers."""
    loaded = read(case)
    arguments = [np.asarray(case.inputs[v.name]) for v in loaded.graph.inputs]
    results = interpret(loaded.graph, [*arguments, *(loaded.state[s.name] for s in loaded.graph.state)])
    for got, expected in zip(results[: len(loaded.graph.outputs)], case.outputs, strict=True):
        expected = np.asarray(expected)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        if got.dtype.kind in "biu":
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), case.rtol, case.atol)


def _report(kinds: list[str]) -> None:
    for kind in kinds:
        passed, failed = 0, []
        for case in cases(kind):
            try:
                run(case)
                passed += 1
            except Exception as error:
                failed.append(f"  {case.name}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
        print(f"{kind}: {passed} of {passed + len(failed)} pass", *failed, sep="\n")


if __name__ == "__main__":
    _report(sys.argv[1:] or list(KINDS))
