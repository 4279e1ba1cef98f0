"""Shared by the ONNX tests: graphs of functions and samples, run by our reference and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from twofold.base.dtypes import as_dtype
from twofold.ir import Builder, Graph, Op, Sample, Spec, Value, bind, interpret, recording
from twofold.passes import specialise


def sample_inputs(sample: Sample, dtype: str = "float64") -> list[np.ndarray]:
    """A sample's inputs: arrays as they are, shapes filled with fixed random numbers."""
    rng = np.random.default_rng(0)
    return [
        x if isinstance(x, np.ndarray) else rng.uniform(sample.low, sample.high, x).astype(dtype) for x in sample.inputs
    ]


def graph_of(function: Callable[..., Any], *specs: Spec, names: Sequence[str] = ()) -> Graph:
    """The graph of a function over values."""
    builder = Builder("test")
    labels = [*names, *(f"x{i}" for i in range(len(names), len(specs)))]
    inputs = [builder.input(spec, label) for spec, label in zip(specs, labels)]
    with recording(builder):
        out = function(*inputs)
        return builder.finish(out if isinstance(out, (tuple, list)) else [out])


def op_graph(op: Op, arrays: Sequence[np.ndarray], attrs: dict[str, Any]) -> Graph:
    """A graph of one node."""
    return graph_of(lambda *xs: bind(op, *xs, **attrs), *[Spec(a.shape, as_dtype(a.dtype)) for a in arrays])


def run(graph: Graph, arrays: Sequence[np.ndarray], state: Sequence[np.ndarray] = (), **sizes: int) -> list[np.ndarray]:
    """By the reference interpreter, symbols at the given sizes."""
    return interpret(specialise(graph, sizes) if sizes else graph, [*arrays, *state])


def run_ort(model: onnx.ModelProto, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """By ONNX Runtime, without its own optimiser: what is checked is the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays)))


def operators(model: onnx.ModelProto) -> list[str]:
    """Operator names in order, ours with their domain."""
    return [f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node]


def values_of(graph: Graph) -> list[Value]:
    """Every value a graph makes."""
    return [v for n in graph.nodes for v in n.outputs]
