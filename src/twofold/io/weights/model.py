"""Weights of a model to a file and back: ``save_weights`` and ``load_weights``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from twofold.base import dtypes
from twofold.base.errors import FormatError, WeightsError
from twofold.io.weights.read import Weights, read_weights
from twofold.io.weights.report import MatchReport, match
from twofold.io.weights.safetensors import write_safetensors
from twofold.io.weights.source import read_out
from twofold.io.weights.write_pth import write_pth

EXPONENT = {"float16": 16, "bfloat16": 128, "float32": 128, "float64": 1024}  # values stay below 2**this
log = logging.getLogger("twofold")


class HasState(Protocol):
    """What is asked of a model: ``nn.Module`` has it. State dict values have ``shape``, ``dtype`` and ``numpy()``; what is
    loaded has ``shape`` and is read by ``np.array``."""

    def state_dict(self, *, keep_vars: bool = False) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


def save_weights(model: HasState, path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's ``state_dict`` to ``path``, atomically: ``.safetensors``, or ``.pth``/``.pt`` for PyTorch.

    Example: ``tw.save_weights(model, "lenet5.safetensors")``.

    Raises FormatError for another suffix, or for metadata with .pth, which has no place for it.
    """
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        write_safetensors(path, arrays, metadata)
    elif suffix in (".pth", ".pt"):
        if metadata:
            raise FormatError(f"{os.fspath(path)}: a .pth file has no place for metadata; use .safetensors")
        write_pth(path, arrays)
    else:
        raise FormatError(f"{os.fspath(path)}: unknown suffix {suffix!r} for weights; use .safetensors, .pth or .pt")


def load_weights(
    model: HasState,
    path: str | os.PathLike,
    *,
    strict: bool = True,
    reshaped: str = "error",
    ignore: Sequence[str] = (),
    key: str | None = None,
    verify: bool = True,
) -> MatchReport:
    """Load a weight file (safetensors, or PyTorch's .pth in either format) into ``model``; what fitted is returned.

    ``strict``: missing and unexpected entries are errors; otherwise they are logged as a warning. ``reshaped``:
    "error", or "keep" to leave the model's own values where shapes differ, as a network of another ``num_classes``
    needs for its classifier. ``ignore``: patterns of entries to leave out ("aux1.*"). Values are converted to the
    model's dtypes (float16 files load into float32 models). ``key`` and ``verify``: see ``read_weights``.

    Example::

        model = tw.zoo.create("resnet18", num_classes=10)
        print(tw.load_weights(model, "resnet18-f37072fd.pth", reshaped="keep"))

    The model is changed only if all fits. Raises WeightsError with the whole report when it does not, FormatError and
    UnsafeFileError as ``read_weights``.
    """
    if reshaped not in ("error", "keep"):
        raise ValueError(f"reshaped={reshaped!r} is unknown; expected 'error' or 'keep'")
    state = dict(model.state_dict(keep_vars=True))
    weights = read_weights(path, key=key, verify=verify)
    report = match({name: (tuple(value.shape), value.dtype) for name, value in state.items()}, weights, ignore=ignore)
    report.notes += _notes(weights)
    _refuse(report, path, strict, reshaped)
    for row in report.matched:
        dtype = dtypes.as_dtype(state[row.name].dtype).numpy
        _check_fits(weights[row.source], row.name, dtype)
        state[row.name] = _Entry(weights.pop(row.source), dtype)
    model.load_state_dict(state)
    log.log(logging.INFO if report.ok else logging.WARNING, "%s: %s", os.fspath(path), report)
    return report


def _notes(weights: Weights) -> list[str]:
    notes = []
    if weights.unwrapped:
        notes.append(f"the state dict was found under {'/'.join(weights.unwrapped)!r} of a checkpoint")
    if weights.ignored:
        notes.append("left aside, as no tensors of the state dict: " + ", ".join(map(repr, weights.ignored[:12])))
    return notes


def _refuse(report: MatchReport, path: str | os.PathLike, strict: bool, reshaped: str) -> None:
    """Raise WeightsError where the caller has not chosen to go on, with what to do about each kind of problem."""
    advice = []
    if report.retyped:
        advice.append("dtypes of different kinds are never converted: this is another network's file")
    if report.reshaped and reshaped == "error":
        advice.append(
            "for another num_classes, pass reshaped='keep' to keep the model's own classifier (to zoo.create: the "
            "num_classes you want), or build the model with the file's num_classes"
        )
    if strict and (report.missing or report.unexpected):
        advice.append(
            "for entries that are not wanted pass ignore=['aux1.*'] to tw.load_weights, or strict=False to load what fits"
        )
    if not report.matched and not advice:
        advice.append("no entry fits: this is another network's file")
    if advice:
        raise WeightsError(f"{os.fspath(path)} does not fit the model.\n{report}\nWhat to do: " + "; ".join(advice))


class _Entry:
    """An array of a weight file in the model's dtype, read when it is asked for: as an array (NumPy's protocol), which is
    a new one each time, so that the model may take it over."""

    def __init__(self, array: np.ndarray, dtype: np.dtype):
        self._array, self.dtype, self.shape = array, dtype, array.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return read_out(self._array, self.dtype if dtype is None else dtype)


def _check_fits(array: np.ndarray, name: str, dtype: np.dtype) -> None:
    """Raise WeightsError for values that the model's dtype cannot hold: an error rather than infinities."""
    if array.dtype == dtype or not array.size:
        return
    if array.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise WeightsError(f"{name}: values of the file ({array.dtype}) do not fit the model's {dtype}")
    elif EXPONENT.get(dtype.name, 0) < EXPONENT.get(array.dtype.name, 0):
        with np.errstate(over="ignore"):
            overflowed = int(np.isinf(array.astype(dtype)).sum() - np.isinf(array).sum())
        if overflowed:
            raise WeightsError(f"{name}: {overflowed} values of the file ({array.dtype}) overflow {dtype}")
