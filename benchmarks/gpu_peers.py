"""One library on a GPU, in a process of its own: ``python gpu_peers.py NAME`` answers JSON lines on its standard input.

    {"do": "load", "folder": F, "mode": "infer" | "train", "device": "gpu:0", "precision": "fp32" | "tf32" | "bf16" | "fp16",
     "first": how many first steps}
    {"do": "run", "steps": K}    -> seconds a step: K steps begun one after another, the last one waited for
    {"do": "output"}             -> the first results (logits, or losses of steps one after another), the most memory

Weights, images and steps are those of ``peers.py``; images and labels lie on the device before anything is timed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers

FIRST_STEPS = 10  # whose losses are compared
NAMES = ("twofold", "torch", "torch channels-last", "torch.compile")


class Twofold:
    """Our step: one XLA program."""

    def __init__(self, folder: Path, mode: str, device: str, precision: str, name: str):
        os.environ["TWOFOLD_TF32"] = "1" if precision == "tf32" else "0"
        import twofold

        self.device, self.version = device, twofold.__version__
        self.step = peers.twofold_step(folder, mode, device, "fp32" if precision == "tf32" else precision)

    def wait(self, result: Any) -> np.ndarray:
        """The result on the host: there when its program has ended."""
        return np.asarray(result.numpy())

    def memory(self) -> int | None:
        from twofold.backends.xla.placement import resolve

        found = resolve(self.device)
        stats = found[0].memory_stats() if found else None
        return stats["peak_bytes_in_use"] if stats else None


class Torch:
    """PyTorch's step: its own functions, eager or through ``torch.compile``; cuDNN tries its algorithms first."""

    def __init__(self, folder: Path, mode: str, device: str, precision: str, name: str):
        import peer_torch
        import torch

        self.torch, self.version = torch, torch.__version__
        self.place = device.replace("gpu", "cuda").removeprefix("xla:")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        low = torch.bfloat16 if precision == "bf16" else None
        compiled = name == "torch.compile"
        last = compiled or name == "torch channels-last"
        rate = peers.rate(folder)
        self.step = peer_torch.device_step(folder, mode, rate, peers.MOMENTUM, last, compiled, self.place, low)

    def wait(self, result: Any) -> np.ndarray:
        if self.place.startswith("cuda"):
            self.torch.cuda.synchronize(self.place)
        return result.float().cpu().numpy()

    def memory(self) -> int | None:
        return self.torch.cuda.max_memory_allocated(self.place) if self.place.startswith("cuda") else None


class Worker:
    """What the process holds."""

    def __init__(self, name: str):
        self.name, self.first = name, [np.zeros(0)]
        self.peer: Any = None

    def load(self, folder: str, mode: str, device: str, precision: str, first: int = FIRST_STEPS) -> dict[str, Any]:
        start = time.perf_counter()
        make = Twofold if self.name == "twofold" else Torch
        self.peer = make(Path(folder), mode, device, precision, self.name)
        loaded = time.perf_counter()
        self.first = [self.peer.wait(self.peer.step())]
        answer = {"load": loaded - start, "first": time.perf_counter() - loaded, "version": self.peer.version}
        self.first += [self.peer.wait(self.peer.step()) for _ in range(first - 1)]
        return answer

    def run(self, steps: int) -> dict[str, Any]:
        self.peer.wait(self.peer.step())  # nothing is under way, nothing is asleep
        start = time.perf_counter()
        for _ in range(steps):
            result = self.peer.step()
        self.peer.wait(result)
        return {"seconds": (time.perf_counter() - start) / steps}

    def output(self, path: str) -> dict[str, Any]:
        np.save(path, np.stack([np.asarray(a, np.float32) for a in self.first]))
        peak, host = self.peer.memory(), peers.peak()
        return {"output": path, "memory": peak, "host_memory": host and int(host * 2**20)}


if __name__ == "__main__":
    peers.serve(Worker(sys.argv[1]))
