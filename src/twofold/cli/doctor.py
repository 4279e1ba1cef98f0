"""``twofold doctor``: what is installed, which devices there are, and whether they compute."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import numpy as np

import twofold as tw
from twofold.base import flags
from twofold.cli.common import Json, emit

PACKAGES = ("numpy", "llvmlite", "ml_dtypes", "onnx", "safetensors", "rich", "typer", "jax", "Pillow", "matplotlib")


def command(json: Json = False) -> None:
    """Print versions, devices and settings, and run a small check on each device. Exit code 3 if one computes wrongly."""
    record: dict[str, Any] = {
        "twofold": tw.__version__, "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "settings": {name: str(flags.get(name)) for name in flags.FLAGS},
        "devices": {name: _check(name) for name in ("cpu", "xla:cpu", "gpu", "tpu")},
    }  # fmt: skip
    lines = [
        f"twofold {record['twofold']}, Python {record['python']}, {record['machine']}, {record['cores']} cores",
        "packages:",
    ]
    lines += [f"  {name:<12} {version or 'not installed'}" for name, version in record["packages"].items()]
    lines += ["devices:", *(f"  {name:<12} {state}" for name, state in record["devices"].items())]
    lines += ["settings:", *(f"  {name:<20} {value}" for name, value in record["settings"].items())]
    emit(record, json, "\n".join(lines))
    wrong = [name for name, state in record["devices"].items() if state.startswith("WRONG")]
    if wrong:
        raise tw.VerificationError(f"{', '.join(wrong)} computes wrong results")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check(name: str) -> str:
    """A small program's gradient on the device against its value by hand."""
    try:
        with tw.device(name):
            x = tw.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
            (x * x).sum().backward()
            ok = x.grad is not None and np.array_equal(x.grad.cpu().numpy(), 2 * np.arange(6).reshape(2, 3))
        return "computes correctly" if ok else "WRONG: the gradient of sum(x*x) is not 2x"
    except (tw.DeviceError, tw.MissingDependencyError) as error:
        return f"not available: {error}"
