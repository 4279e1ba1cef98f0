"""Checkpoints: one safetensors file with every variable of a training, and what the loop needs to go on, as JSON.

A checkpoint holds the model (``model.*``), the optimizer (``optimizer.*``) and the random state; its metadata hold the
place in the data, the history and the settings. It is written aside and renamed, so a kill leaves the old one whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twofold.base.errors import FormatError
from twofold.io.weights import read_weights, write_safetensors

FORMAT = "twofold-checkpoint-1"
STATE_KEY = "random.state"


@dataclass
class Progress:
    """How far a training has come: what is needed to go on with the same bits."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps in all
    loader: dict[str, Any] = field(default_factory=dict)  # the loader's place
    schedule: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # one row for each finished epoch
    running: dict[str, Any] = field(default_factory=dict)  # sums of the epoch under way
    best: float = -1.0
    settings: dict[str, Any] = field(default_factory=dict)  # what was asked for: network, data, batch size ...


def host_arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors' content on the host. What is split over processes is gathered: all of them must call this."""
    return {n: np.asarray(t.numpy() if hasattr(t, "numpy") else t, order="C") for n, t in tensors.items()}


def save_checkpoint(path: str | os.PathLike, tensors: Mapping[str, Any], progress: Progress) -> None:
    """Write all ``tensors`` (name -> anything with ``numpy()``) and the progress to ``path``, atomically."""
    arrays = host_arrays(tensors)
    write_safetensors(path, arrays, {"format": FORMAT, "progress": json.dumps(asdict(progress))})


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Progress]:
    """The arrays and the progress of a checkpoint; FormatError where the file is none."""
    if not Path(path).exists():
        raise FormatError(f"{path}: there is no checkpoint; train without --resume first")
    found = read_weights(path)
    metadata = found.metadata
    if metadata.get("format") != FORMAT:
        raise FormatError(
            f"{path}: holds weights but is no checkpoint of a training (metadata 'format' is {metadata.get('format')!r})"
        )
    try:
        fields = json.loads(metadata["progress"])
        progress = Progress(**fields)
        _check(progress)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its record of progress cannot be read: {error}") from None
    return dict(found), progress


_KINDS: dict[str, Any] = {
    "epoch": int, "step": int, "loader": dict, "schedule": dict, "history": list, "running": dict, "best": (int, float),
    "settings": dict,
}  # fmt: skip


def _check(progress: Progress) -> None:
    for name, kind in _KINDS.items():
        value: Any = getattr(progress, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; expected {getattr(kind, '__name__', 'a number')}")
    if not (0 <= progress.epoch < 2**63 and 0 <= progress.step < 2**63):
        raise ValueError(f"epoch {progress.epoch}, step {progress.step}; expected counts")
    if not all(isinstance(row, dict) and {"epoch", "loss", "accuracy"} <= row.keys() for row in progress.history):
        raise ValueError("history is not a list of epochs with their loss and accuracy")
    if not all(_is_number(value) for row in (progress.running, *progress.history) for value in row.values()):
        raise ValueError("a sum or a row of the history holds what is no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def restore(tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Any) -> None:
    """Assign the arrays to the variables of the same names; nothing is changed unless all fit."""
    missing = sorted(set(tensors) - set(arrays))
    unexpected = sorted(set(arrays) - set(tensors))
    if missing or unexpected:
        raise FormatError(
            f"{path}: does not fit this training: missing {missing[:5] or 'nothing'}, "
            f"unexpected {unexpected[:5] or 'nothing'}; resume with the network, optimizer and precision it was made with"
        )
    for name, variable in tensors.items():
        if tuple(arrays[name].shape) != tuple(variable.shape):
            raise FormatError(f"{path}: {name} has shape {arrays[name].shape}, expected {tuple(variable.shape)}")
    for name, variable in tensors.items():
        variable.assign(arrays[name])
