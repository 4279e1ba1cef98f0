"""ncnn as a peer, for inference: the ONNX file as its converter pnnx translates it, float32, one image after another (ncnn
knows no batches)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
from peer_ncnn_pads import without_pads

MODEL = "single.ncnn"


def convert(folder: Path) -> None:
    """Write the model as ncnn reads it. Done once, before ncnn would be used: no part of its first step."""
    found = importlib.util.find_spec("pnnx")  # imported, it would want PyTorch
    if found is None or found.origin is None:
        raise ModuleNotFoundError("pnnx, ncnn's converter, is not installed")
    converter = Path(found.origin).parent / "pnnx"
    subprocess.run([str(converter), "single.onnx", "fp16=0"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    graph = json.loads((folder / "graph.json").read_text())
    pads = [graph["constants"][inputs[1]][1] for op, inputs, _, _ in graph["nodes"] if op == "Pad"]
    text = folder / f"{MODEL}.param"
    text.write_text(without_pads(text.read_text(), pads))


def step(folder: Path, threads: int) -> Callable[[], Any]:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    for load, suffix in ((net.load_param, "param"), (net.load_model, "bin")):
        if load(str(folder / f"{MODEL}.{suffix}")):
            raise NotImplementedError(f"pnnx left an operator untranslated: ncnn does not load .{suffix}")
    images = [ncnn.Mat(image).clone() for image in np.load(folder / "x.npy")]

    def infer():
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            results.append(np.array(extractor.extract("out0")[1]))
        return np.stack(results)

    return infer
