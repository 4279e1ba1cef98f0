"""Setting variables from a state dict: all of it, or nothing and a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from twofold.base.errors import WeightsError
from twofold.base.shapes import show
from twofold.tensor.tensor import Variable, concrete


class LoadReport(NamedTuple):
    """What ``load_state_dict`` could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load(owner: str, variables: Mapping[str, Variable], state: Mapping[str, Any], strict: bool) -> LoadReport:
    """Give ``variables`` the arrays or tensors of ``state`` by name; WeightsError before anything changes if they misfit."""
    missing = [name for name in variables if name not in state]
    unexpected = [name for name in state if name not in variables]
    arrays = {name: _as_array(state[name]) for name in variables if name in state}
    wrong = [
        f"{name}: shape {show(tuple(a.shape))}, expected {show(variables[name].shape)}"
        for name, a in arrays.items()
        if tuple(a.shape) != variables[name].shape
    ]
    if wrong or (strict and (missing or unexpected)):
        raise WeightsError(_misfit(owner, missing, unexpected, wrong))
    for name, array in arrays.items():
        variable = variables[name]
        variable.set_array(concrete(array, variable.dtype, variable.device))
    return LoadReport(missing, unexpected)


def _as_array(data: Any) -> np.ndarray:
    """An array from a tensor of any kind, or from anything NumPy understands."""
    return data.numpy() if hasattr(data, "numpy") else np.asarray(data)


def _misfit(owner: str, missing: list[str], unexpected: list[str], wrong: list[str]) -> str:
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    parts = [f"{len(rows)} {what}: {_listed(rows)}" for what, rows in groups.items() if rows]
    hint = "" if wrong else "; strict=False loads what fits"
    return f"state dict does not fit {owner}: {' | '.join(parts)}{hint}"


def _listed(rows: list[str]) -> str:
    return "; ".join(rows[:10]) + ("; ..." if len(rows) > 10 else "")
