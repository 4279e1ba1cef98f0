"""One library under measurement, in a process of its own: ``python peers.py NAME`` answers JSON lines on its standard input.

    {"do": "load", "folder": F, "mode": "infer" | "train", "threads": N}   the files of ``inputs.py`` are in F; the first step
    {"do": "run", "steps": K}                                              -> seconds of each step
    {"do": "settle"}                                                       -> the most memory so far; counts anew from here
    {"do": "output"}                                                       -> F/NAME.npy: logits, or the first losses

Inference files go to ONNX Runtime, OpenVINO and ncnn as they are; PyTorch, JAX and TensorFlow run the same graph with their
own functions (the last two channels-last, ``nhwc.py``), in training with batch statistics, cross-entropy and SGD with
momentum. A worker reads a weight at a time: no library's memory holds copies that are the worker's.
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
MOMENTUM = 0.9
CHECKED = 3  # steps of training whose losses are compared: the third one needs momentum


def rate(folder: Path) -> float:
    return json.loads((folder / "meta.json").read_text())["rate"]


def twofold(folder: Path, mode: str, threads: int) -> Step:
    step = twofold_step(folder, mode)
    return lambda: step().numpy()


def twofold_step(folder: Path, mode: str, device: str = "cpu", precision: str = "fp32") -> Step:
    """A step whose result stays on the device."""
    import twofold as tw

    step = twofold_function(folder, mode, device, precision)
    x, y = (tw.tensor(np.load(folder / name), device=device) for name in ("x.npy", "y.npy"))
    return (lambda: step(x)) if mode == "infer" else lambda: step(x, y)


def twofold_model(folder: Path, device: str = "cpu") -> Any:
    """The network with its weights."""
    import twofold as tw

    model = tw.zoo.create(json.loads((folder / "meta.json").read_text())["network"])
    tw.load_weights(model, folder / "model.safetensors")
    model.to(device)
    return model


def twofold_function(folder: Path, mode: str, device: str = "cpu", precision: str = "fp32") -> Callable[..., Any]:
    """Inference as a function of images, or a step of training as one of images and labels; the mode "eager" is training,
    not compiled."""
    import twofold as tw
    from twofold.nn import functional as F

    model = twofold_model(folder, device)
    if mode == "infer":
        model.eval()

        @tw.compile(precision=precision)
        def infer(x):
            with tw.no_grad():
                return model(x)

        return infer
    model.train()
    for module in model.modules():
        if type(module).__name__.startswith("Dropout"):
            module.p = 0.0  # for everybody: so that losses can be compared
    optimizer = tw.optim.SGD(model.parameters(), lr=rate(folder), momentum=MOMENTUM)

    scale = tw.optim.LossScale() if precision == "fp16" else None

    def train(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        if scale is None:
            loss.backward()
            optimizer.step()
        else:
            scale.scale(loss).backward()
            scale.step(optimizer)
        return loss

    return train if mode == "eager" else tw.compile(train, precision=precision)


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


def _torch(last: bool, compiled: bool) -> Callable[[Path, str, int], Step]:
    def build(folder: Path, mode: str, threads: int) -> Step:
        import peer_torch

        return peer_torch.step(folder, mode, threads, rate(folder), MOMENTUM, last, compiled)

    return build


def jax(folder: Path, mode: str, threads: int) -> Step:
    import peer_jax

    return peer_jax.step(folder, mode, rate(folder), MOMENTUM)


def tensorflow(folder: Path, mode: str, threads: int) -> Step:
    import peer_tensorflow

    return peer_tensorflow.step(folder, mode, threads, rate(folder), MOMENTUM)


def ncnn(folder: Path, mode: str, threads: int) -> Step:
    import peer_ncnn

    return peer_ncnn.step(folder, threads)


def convert_ncnn(folder: Path) -> None:
    import peer_ncnn

    peer_ncnn.convert(folder)


PEERS: dict[str, Callable[[Path, str, int], Step]] = {
    "twofold": twofold, "onnxruntime": onnxruntime, "openvino": openvino, "ncnn": ncnn,
    "torch": _torch(last=False, compiled=False), "torch channels-last": _torch(last=True, compiled=False),
    "torch.compile": _torch(last=True, compiled=True), "jax": jax, "tensorflow": tensorflow,
}  # fmt: skip
MODULE = {"torch channels-last": "torch", "torch.compile": "torch"}
CONVERT = {"ncnn": convert_ncnn}  # what a library needs done to the model once, ahead of its first use


def peak() -> float | None:
    """Most memory this process has had since its start or ``forget_peak``, in MiB (``ru_maxrss`` would count the parent's)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def forget_peak() -> bool:
    """Let ``peak`` count from what the process holds now; whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Worker:
    """The library's state between requests; a method for each."""

    def __init__(self, name: str):
        self.name, self.folder, self.settled = name, Path(), False
        self.step: Step = lambda: None
        self.results: list[np.ndarray] = []
        self.kept = 1

    def load(self, folder: str, mode: str, threads: int) -> dict[str, Any]:
        self.folder, self.kept = Path(folder), CHECKED if mode == "train" else 1
        start = time.perf_counter()
        module = __import__(MODULE.get(self.name, self.name))
        imported = time.perf_counter()
        if self.name in CONVERT:
            CONVERT[self.name](self.folder)
        converted = time.perf_counter()
        self.step = PEERS[self.name](self.folder, mode, threads)
        self._once()
        first = time.perf_counter() - converted
        return {
            "import": imported - start, "converting": converted - imported, "first": first, "version": module.__version__
        }  # fmt: skip

    def run(self, steps: int) -> dict[str, Any]:
        return {"seconds": [self._once() for _ in range(steps)]}

    def settle(self) -> dict[str, Any]:
        most = peak()
        self.settled = forget_peak()
        return {"peak_loading_mib": most}

    def output(self) -> dict[str, Any]:
        path = self.folder / f"{self.name}.npy"
        np.save(path, np.stack(self.results))
        return {"output": str(path), "peak_steps_mib": peak() if self.settled else None}

    def _once(self) -> float:
        start = time.perf_counter()
        result = self.step()
        seconds = time.perf_counter() - start
        if len(self.results) < self.kept:
            self.results.append(np.array(result))
        return seconds


def serve(worker: Any) -> None:
    """Let the worker's methods answer requests until the input ends. Libraries may print: answers go to the original
    standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # the parent decides; a peer that cannot run a row is a row without it
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Worker(sys.argv[1]))
