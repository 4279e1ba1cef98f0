"""A graph run channels-last by an array library: what JAX's and TensorFlow's users would write by hand.

    graph = Graph(folder)
    parameters, running = graph.load(convert)
    logits, running = graph.forward(library, parameters, running, x, training)

A library offers ``conv``, ``max_pool``, ``mean_pool``, ``batch_norm``, ``pad``, ``relu``, ``mean``, ``concat``, ``transpose``,
``reshape`` and ``matmul`` on images of (n, h, w, c) and weights of (kh, kw, in, out).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MOMENTUM = 0.1  # of running statistics


class Graph:
    """The nodes of ``graph.json`` and its small constants; the weights stay in their files until ``load``."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "graph.json").read_text())
        self.folder, self.input, self.output = folder, facts["input"], facts["output"]
        self.nodes, self.learned = facts["nodes"], facts["learned"]
        self.constants = {k: np.array(v, kind) for k, (kind, v) in facts["constants"].items()}

    def load(self, convert: Callable[[np.ndarray], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is learned and the running statistics, by name, as ``convert`` makes them of arrays: read one at a time."""
        parameters: dict[str, Any] = {}
        running: dict[str, Any] = {}
        for op, inputs, _, a in self.nodes:
            for k, name in enumerate(inputs):
                if name in self.learned and name not in parameters:
                    into = running if op == "BatchNormalization" and k >= 3 else parameters
                    into[name] = convert(self._array(op, a, name))
        return parameters, running

    def _array(self, op: str, a: dict[str, Any], name: str) -> np.ndarray:
        array = np.load(self.folder / self.learned[name])
        if op == "Conv" and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if op == "Gemm" and array.ndim == 2 and a.get("transB"):
            array = array.T
        return np.ascontiguousarray(array)

    def forward(self, lib: Any, parameters: Any, running: Any, x: Any, training: bool) -> tuple[Any, Any]:
        """Logits for images (n, h, w, c), and the running statistics afterwards."""
        known, running = {self.input: x}, dict(running)
        for op, inputs, outputs, a in self.nodes:
            if op == "BatchNormalization":
                y, w, b, m, v = inputs
                result, mean, var = lib.batch_norm(
                    known[y], parameters[w], parameters[b], running[m], running[v], a.get("epsilon", 1e-5), training
                )
                if training:
                    running[m] = running[m] * (1 - MOMENTUM) + mean * MOMENTUM
                    running[v] = running[v] * (1 - MOMENTUM) + var * MOMENTUM
                known[outputs[0]] = result
            else:
                values = [
                    known[i] if i in known else parameters[i] if i in parameters else self.constants[i] for i in inputs
                ]
                known[outputs[0]] = OPS[op](lib, a, *values)
        return known[self.output], running


def _pads(a: dict[str, Any]) -> list[tuple[int, int]]:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    return [(top, bottom), (left, right)]


def _conv(lib: Any, a: dict[str, Any], x: Any, w: Any, b: Any = None) -> Any:
    y = lib.conv(x, w, a["strides"], _pads(a), a["dilations"], a["group"])
    return y if b is None else y + b


def _max_pool(lib: Any, a: dict[str, Any], x: Any) -> Any:
    window, strides, pads = a["kernel_shape"], a["strides"], _pads(a)
    if a.get("ceil_mode", 0):
        for d in (0, 1):
            size = int(x.shape[1 + d]) + sum(pads[d]) - window[d]
            short = -size % strides[d]
            if size + short - (strides[d] - 1) < int(x.shape[1 + d]) + pads[d][0]:  # the last window starts inside
                pads[d] = (pads[d][0], pads[d][1] + short)
    return lib.max_pool(x, window, strides, pads)


def _mean_pool(lib: Any, a: dict[str, Any], x: Any) -> Any:
    if any(map(any, _pads(a))):
        raise NotImplementedError(f"average pooling with pads {a['pads']}")
    return lib.mean_pool(x, a["kernel_shape"], a["strides"])


def _mean(lib: Any, a: dict[str, Any], x: Any, axes: Any) -> Any:
    y = lib.mean(x)
    return y if a.get("keepdims", 1) else lib.reshape(y, (int(x.shape[0]), -1))


def _flat(lib: Any, x: Any) -> Any:
    """(n, c*h*w), in the order of the weights that follow."""
    x = lib.transpose(x, (0, 3, 1, 2)) if len(x.shape) == 4 else x
    return lib.reshape(x, (int(x.shape[0]), -1))


def _pad(lib: Any, a: dict[str, Any], x: Any, pads: Any, *_: Any) -> Any:
    n = [int(p) for p in pads]
    return lib.pad(x, [(0, 0), (n[2], n[6]), (n[3], n[7]), (0, 0)])


def _lrn(lib: Any, a: dict[str, Any], x: Any) -> Any:
    before, c = (a["size"] - 1) // 2, int(x.shape[3])
    squares = lib.pad(x * x, [(0, 0), (0, 0), (0, 0), (before, a["size"] - 1 - before)])
    total = sum(squares[..., k : k + c] for k in range(a["size"]))
    return x / (a["bias"] + a["alpha"] / a["size"] * total) ** a["beta"]


OPS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _mean_pool,
    "Pad": _pad,
    "LRN": _lrn,
    "Relu": lambda lib, a, x: lib.relu(x),
    "GlobalAveragePool": lambda lib, a, x: lib.mean(x),
    "ReduceMean": _mean,
    "Gemm": lambda lib, a, x, w, b=None: lib.matmul(x, w) + (0.0 if b is None else b),
    "Flatten": lambda lib, a, x: _flat(lib, x),
    "Reshape": lambda lib, a, x, shape: _flat(lib, x),
    "Concat": lambda lib, a, *xs: lib.concat(xs),
    "Add": lambda lib, a, x, y: x + y,
    "Identity": lambda lib, a, x: x,
}
