"""ncnn as a peer, for inference: the ONNX file as its converter pnnx translates it, float32, one image after another (ncnn
knows no batches)."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncnn
import numpy as np


def step(folder: Path, threads: int) -> Callable[[], Any]:
    x = np.load(folder / "x.npy")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    found = importlib.util.find_spec("pnnx")  # imported, it would want PyTorch
    if found is None or found.origin is None:
        raise ModuleNotFoundError("pnnx, ncnn's converter, is not installed")
    converter = Path(found.origin).parent / "pnnx"
    model = folder / "single.onnx"
    subprocess.run([str(converter), str(model), "fp16=0"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    for load, suffix in ((net.load_param, ".ncnn.param"), (net.load_model, ".ncnn.bin")):
        if load(str(model.with_suffix(suffix))):
            raise NotImplementedError(f"pnnx left an operator untranslated: ncnn does not load {suffix}")
    images = [ncnn.Mat(image).clone() for image in x]

    def infer():
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            results.append(np.array(extractor.extract("out0")[1]))
        return np.stack(results)

    return infer
