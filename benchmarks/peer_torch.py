"""PyTorch as a peer: the graph run with its own functional layers, in either layout, eagerly or through torch.compile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


def step(
    folder: Path, mode: str, threads: int, rate: float, momentum: float, last: bool, compiled: bool
) -> Callable[[], Any]:
    torch.set_num_threads(threads)
    one = device_step(folder, mode, rate, momentum, last, compiled)
    return lambda: one().numpy()


def device_step(
    folder: Path, mode: str, rate: float, momentum: float, last: bool, compiled: bool, device: str = "cpu", low: Any = None
) -> Callable[[], Any]:
    """A step whose result stays on the device; ``low``: the dtype of autocast's products."""
    autocast = torch.autocast(torch.device(device).type, dtype=low, enabled=low is not None)
    training, form = mode == "train", torch.channels_last if last else torch.contiguous_format
    graph = json.loads((folder / "graph.json").read_text())
    constants = graph["constants"].items()  # shapes and axes stay lists
    values = {k: torch.tensor(v, device=device) if "float" in kind else v for k, (kind, v) in constants}
    trained = []
    for op, inputs, _, _ in graph["nodes"]:
        for k, name in enumerate(inputs):
            if name in graph["learned"] and name not in values:
                values[name] = v = _weight(folder / graph["learned"][name], form).to(device)
                if not (op == "BatchNormalization" and k >= 3):
                    trained.append(v.requires_grad_(training))

    def forward(x: Any) -> Any:
        known = {**values, graph["input"]: x}
        for op, inputs, outputs, a in graph["nodes"]:
            known[outputs[0]] = OPS[op](a, training, *(known[i] if i else None for i in inputs))
        return known[graph["output"]]

    if compiled:
        forward = torch.compile(forward)
    x = torch.from_numpy(np.load(folder / "x.npy")).to(device).contiguous(memory_format=form)
    y = torch.from_numpy(np.load(folder / "y.npy")).to(device)
    if not training:

        def infer():
            with torch.inference_mode(), autocast:
                return forward(x)

        return infer
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=momentum)

    def train():
        with autocast:
            loss = F.cross_entropy(forward(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


def _weight(path: Path, form: Any) -> Any:
    v = torch.from_numpy(np.load(path))
    return v.contiguous(memory_format=form) if v.ndim == 4 else v


def _pads(a: dict[str, Any]) -> tuple[int, int]:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise NotImplementedError(f"uneven pads {a['pads']}")
    return top, left


def _max_pool(a: dict[str, Any], training: bool, x: Any) -> Any:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    ceil = bool(a.get("ceil_mode", 0)) or (top, left) != (bottom, right)
    return F.max_pool2d(x, a["kernel_shape"], a.get("strides"), (top, left), ceil_mode=ceil)


# ONNX operator -> PyTorch's own layer: (attributes, training, *inputs)
OPS: dict[str, Callable[..., Any]] = {
    "Conv": lambda a, t, x, w, b=None: F.conv2d(x, w, b, a["strides"], _pads(a), a["dilations"], a["group"]),
    "BatchNormalization": lambda a, t, x, w, b, m, v: F.batch_norm(x, m, v, w, b, t, 0.1, a.get("epsilon", 1e-5)),
    "Relu": lambda a, t, x: F.relu(x),
    "MaxPool": _max_pool,
    "AveragePool": lambda a, t, x: F.avg_pool2d(x, a["kernel_shape"], a["strides"], _pads(a)),
    "GlobalAveragePool": lambda a, t, x: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda a, t, x, axes: x.mean(tuple(axes), keepdim=bool(a.get("keepdims", 1))),
    "Gemm": lambda a, t, x, w, b=None: F.linear(x, w if a.get("transB") else w.T, b),
    "Flatten": lambda a, t, x: x.flatten(1),
    "Reshape": lambda a, t, x, shape: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)]),
    "Concat": lambda a, t, *xs: torch.cat(xs, a["axis"]),
    "Add": lambda a, t, x, y: x + y,
    "Pad": lambda a, t, x, pads, *_: F.pad(x, [n for d in (3, 2) for n in (pads[d], pads[d + 4])]),
    "LRN": lambda a, t, x: F.local_response_norm(x, a["size"], a["alpha"], a["beta"], a["bias"]),
    "Identity": lambda a, t, x: x,
}
