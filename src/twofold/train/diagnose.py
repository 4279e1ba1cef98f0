"""Finding where numbers stopped being numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import twofold as tw
from twofold.base.errors import NonFiniteError
from twofold.ops.precision import policy_of
from twofold.tensor.variable import assignments_undone
from twofold.train.evaluate import main_output


def finite(tensor: Any) -> bool:
    """Whether every element is a number."""
    return bool(np.isfinite(np.asarray(tensor.numpy(), np.float64)).all())


def first_nonfinite(model: Any, images: Any, precision: Any = "fp32") -> str:
    """Which layer, run one by one on ``images``, is the first to give NaN or infinity; empty if none does. The model
    is left as it was."""
    if not finite(images):
        return "the images themselves"
    for name, parameter in model.named_parameters():
        if not finite(parameter):
            return f"parameter {name!r}"
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            tensor = main_output(output)
            if not found and isinstance(tensor, tw.Tensor) and not finite(tensor):
                found.append(f"layer {name!r} ({type(module).__name__})")

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with tw.no_grad(), tw.autocast(precision), assignments_undone():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def explain(
    model: Any, images: Any, loss: float, bad: Sequence[str], epoch: int, step: int, rate: float, precision: Any = "fp32"
) -> NonFiniteError:
    """The error for a step that was not made: for a loss that is no number, or for the gradients and statistics ``bad``."""
    fp16 = policy_of(precision) is policy_of("fp16")
    if math.isfinite(loss):
        what, others = f"{bad[0]} is not finite", f", and so are {len(bad) - 1} more" if len(bad) > 1 else ""
        where = f"the loss is ({loss:.4g}){others}" + ("; this is at the smallest loss scale" if fp16 else "")
    else:
        place = first_nonfinite(model, images, precision)
        what = f"loss is {loss}"
        where = (
            f"the first value that is not finite is in {place}"
            if place
            else "every layer's output is finite: it is the loss itself, or its gradient"
        )
    range_ = "--precision bf16 (float16 ends at 65504), " if fp16 else ""
    return NonFiniteError(
        f"{what} at epoch {epoch}, step {step} (learning rate {rate:g}): {where}. "
        f"Try {range_}a smaller --lr, a warm-up, or gradient clipping; "
        "the parameters are kept as they were before this step"
    )


def check_finite(arrays: Mapping[str, np.ndarray], step: int) -> None:
    """NonFiniteError that names the first array with NaN or infinity: these are not for a checkpoint."""
    for name, array in arrays.items():
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            raise NonFiniteError(
                f"{name} is not finite after step {step}: an update has overflowed. No checkpoint is written, the last one "
                "is kept; resume from it with a smaller --lr, a warm-up, or gradient clipping"
            )
