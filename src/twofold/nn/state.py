"""Setting variables from a state dict: all of it, or nothing and a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from twofold.base.errors import WeightsError
from twofold.base.shapes import show
from twofold.tensor.variable import Variable


class LoadReport(NamedTuple):
    """What ``load_state_dict`` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load(owner: str, variables: Mapping[str, Variable], state: Mapping[str, Any], strict: bool) -> LoadReport:
    """Give ``variables`` the arrays or tensors of ``state`` by name; WeightsError before anything changes if they misfit.

    Each array is copied just before it takes the old one's place, so that no more than one is there twice.
    """
    missing = [name for name in variables if name not in state]
    unexpected = [name for name in state if name not in variables]
    shapes = {name: _shape(state[name]) for name in variables if name in state}
    wrong = [
        f"{name}: shape {show(shape)}, expected {show(variables[name].shape)}"
        for name, shape in shapes.items()
        if shape != variables[name].shape
    ]
    if wrong or (strict and (missing or unexpected)):
        raise WeightsError(_misfit(owner, missing, unexpected, wrong))
    found = {name: _as_it_is(state[name]) for name in shapes}  # before any variable changes: they may be among them
    for name, variable in ((name, variables[name]) for name in shapes):
        array = np.array(found.pop(name), variable.dtype.numpy, order="C")
        variable.set_buffer(variable.device.backend.put(array, variable.device), variable.device)
    return LoadReport(missing, unexpected)


def _as_it_is(data: Any) -> Any:
    """A tensor's numbers as they are now, not copied; anything else is read when its turn comes."""
    return data.numpy() if hasattr(data, "numpy") else data


def _shape(data: Any) -> tuple[int, ...]:
    """The shape of a tensor of any kind, or of anything NumPy understands."""
    return tuple(data.shape if hasattr(data, "shape") else np.shape(data))


def _misfit(owner: str, missing: list[str], unexpected: list[str], wrong: list[str]) -> str:
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    parts = [f"{len(rows)} {what}: {_listed(rows)}" for what, rows in groups.items() if rows]
    hint = "" if wrong else "; strict=False loads what fits"
    return f"state dict does not fit {owner}: {' | '.join(parts)}{hint}"


def _listed(rows: list[str]) -> str:
    return "; ".join(rows[:10]) + ("; ..." if len(rows) > 10 else "")
