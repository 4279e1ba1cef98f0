"""One library under measurement, in a process of its own: ``python peers.py NAME`` answers JSON lines on its standard input.

    {"do": "load", "folder": F, "mode": "infer" | "train", "threads": N}   model.onnx, model.safetensors, x.npy, y.npy in F
    {"do": "run", "steps": K}                                              -> seconds of each step
    {"do": "output"}                                                       -> writes F/NAME.npy (logits, or the first loss)

All peers start from the same numbers. Inference files go to ONNX Runtime, OpenVINO and ncnn as they are; PyTorch, JAX and
TensorFlow run the same graph with their own functions (the last two channels-last, ``nhwc.py``), in training with batch
statistics, cross-entropy and SGD with momentum.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], Any]
RATE, MOMENTUM = 0.001, 0.9


def twofold(folder: Path, mode: str, threads: int) -> Step:
    import twofold as tw
    from twofold.nn import functional as F

    model = tw.zoo.create(json.loads((folder / "meta.json").read_text())["network"])
    tw.load_weights(model, folder / "model.safetensors")
    x, y = tw.tensor(np.load(folder / "x.npy")), tw.tensor(np.load(folder / "y.npy"))
    if mode == "infer":
        model.eval()

        @tw.compile
        def infer(x):
            with tw.no_grad():
                return model(x)

        return lambda: infer(x).numpy()
    model.train()
    for module in model.modules():
        if type(module).__name__.startswith("Dropout"):
            module.p = 0.0  # for everybody: so that losses can be compared
    optimizer = tw.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    @tw.compile
    def train(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return lambda: train(x, y).numpy()


def onnxruntime(folder: Path, mode: str, threads: int) -> Step:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(folder / "x.npy")}
    return lambda: session.run(None, feed)[0]


def openvino(folder: Path, mode: str, threads: int) -> Step:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    model = ov.Core().compile_model(str(folder / "model.onnx"), "CPU", settings)
    x = np.load(folder / "x.npy")
    request = model.create_infer_request()
    return lambda: request.infer([x])[model.output(0)].copy()


def torch(folder: Path, mode: str, threads: int) -> Step:
    return _torch(folder, mode, threads, last=False)


def torch_channels_last(folder: Path, mode: str, threads: int) -> Step:
    return _torch(folder, mode, threads, last=True)


def torch_compile(folder: Path, mode: str, threads: int) -> Step:
    return _torch(folder, mode, threads, last=True, compiled=True)


def jax(folder: Path, mode: str, threads: int) -> Step:
    import peer_jax

    return peer_jax.step(folder, mode, RATE, MOMENTUM)


def tensorflow(folder: Path, mode: str, threads: int) -> Step:
    import peer_tensorflow

    return peer_tensorflow.step(folder, mode, threads, RATE, MOMENTUM)


def ncnn(folder: Path, mode: str, threads: int) -> Step:
    import peer_ncnn

    return peer_ncnn.step(folder, threads)


def _torch(folder: Path, mode: str, threads: int, last: bool, compiled: bool = False) -> Step:
    import onnx
    import torch
    from onnx import numpy_helper

    torch.set_num_threads(threads)
    F, training = torch.nn.functional, mode == "train"
    graph = onnx.load(folder / "model.onnx").graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    form = torch.channels_last if last else torch.contiguous_format
    trained: dict[str, Any] = {}

    def parameter(name: str) -> Any:
        v = values[name]
        if name not in trained:
            if v.ndim == 4:
                v = v.contiguous(memory_format=form)
            values[name] = trained[name] = v.requires_grad_(training)
        return values[name]

    steps = []
    for node in graph.node:
        a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        if node.op_type in ("Conv", "Gemm", "BatchNormalization"):
            learned = node.input[1:3] if node.op_type == "BatchNormalization" else node.input[1:]
            for name in learned:
                parameter(name)
        if node.op_type == "Constant":
            values[node.output[0]] = torch.from_numpy(numpy_helper.to_array(a["value"]).copy())
            continue
        steps.append((TORCH[node.op_type], list(node.input), list(node.output), a))

    def forward(x: Any) -> Any:
        known = {**values, graph.input[0].name: x}
        for run, inputs, outputs, a in steps:
            known[outputs[0]] = run(F, a, training, *(known[i] if i else None for i in inputs))
        return known[graph.output[0].name]

    if compiled:
        forward = torch.compile(forward)
    x = torch.from_numpy(np.load(folder / "x.npy")).contiguous(memory_format=form)
    y = torch.from_numpy(np.load(folder / "y.npy"))
    if not training:

        def infer():
            with torch.inference_mode():
                return forward(x).numpy()

        return infer
    optimizer = torch.optim.SGD(list(trained.values()), lr=RATE, momentum=MOMENTUM)

    def train():
        loss = F.cross_entropy(forward(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach().numpy()

    return train


def _pads(a: dict[str, Any]) -> tuple[int, int]:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise NotImplementedError(f"uneven pads {a['pads']}")
    return top, left


def _max_pool(F: Any, a: dict[str, Any], training: bool, x: Any) -> Any:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    ceil = bool(a.get("ceil_mode", 0)) or (top, left) != (bottom, right)
    return F.max_pool2d(x, a["kernel_shape"], a.get("strides"), (top, left), ceil_mode=ceil)


# ONNX operator -> PyTorch's own layer: (functional, attributes, training, *inputs)
TORCH: dict[str, Callable[..., Any]] = {
    "Conv": lambda F, a, t, x, w, b=None: F.conv2d(x, w, b, a["strides"], _pads(a), a["dilations"], a["group"]),
    "BatchNormalization": lambda F, a, t, x, w, b, m, v: F.batch_norm(x, m, v, w, b, t, 0.1, a.get("epsilon", 1e-5)),
    "Relu": lambda F, a, t, x: F.relu(x),
    "MaxPool": _max_pool,
    "AveragePool": lambda F, a, t, x: F.avg_pool2d(x, a["kernel_shape"], a["strides"], _pads(a)),
    "GlobalAveragePool": lambda F, a, t, x: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda F, a, t, x, axes: x.mean(tuple(axes.tolist()), keepdim=bool(a.get("keepdims", 1))),
    "Gemm": lambda F, a, t, x, w, b=None: F.linear(x, w if a.get("transB") else w.T, b),
    "Flatten": lambda F, a, t, x: x.flatten(1),
    "Reshape": lambda F, a, t, x, shape: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())]),
    "Concat": lambda F, a, t, *xs: _cat(xs, a["axis"]),
    "Add": lambda F, a, t, x, y: x + y,
    "Pad": lambda F, a, t, x, pads, *_: F.pad(x, [n for d in (3, 2) for n in (int(pads[d]), int(pads[d + 4]))]),
    "LRN": lambda F, a, t, x: F.local_response_norm(x, a["size"], a["alpha"], a["beta"], a["bias"]),
    "Identity": lambda F, a, t, x: x,
}  # fmt: skip


def _cat(xs: Any, axis: int) -> Any:
    import torch

    return torch.cat(xs, axis)


PEERS: dict[str, Callable[[Path, str, int], Step]] = {
    "twofold": twofold, "onnxruntime": onnxruntime, "openvino": openvino, "torch": torch,
    "torch channels-last": torch_channels_last, "torch.compile": torch_compile, "jax": jax, "tensorflow": tensorflow,
    "ncnn": ncnn,
}  # fmt: skip
MODULE = {"torch channels-last": "torch", "torch.compile": "torch"}


def peak() -> float | None:
    """Most memory this process has had, in MiB (``ru_maxrss`` would count the parent's before the start)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def serve(name: str) -> None:
    """Answer requests until the input ends. Libraries may print: answers go to the original standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step: Step | None = None
    folder, first = Path(), None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                folder, start = Path(request["folder"]), time.perf_counter()
                module = __import__(MODULE.get(name, name))
                imported = time.perf_counter()
                step = PEERS[name](folder, request["mode"], request["threads"])
                first = np.array(step())
                done = time.perf_counter()
                answer = {"import": imported - start, "first": done - imported, "version": module.__version__}
            elif request["do"] == "run" and step is not None:
                times = []
                for _ in range(request["steps"]):
                    start = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - start)
                answer = {"seconds": times}
            else:
                path = folder / f"{name}.npy"
                np.save(path, first)
                answer = {"output": str(path), "peak_mib": peak()}
        except Exception as error:  # the parent decides; a peer that cannot run a row is a row without it
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
