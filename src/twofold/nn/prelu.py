"""The activation with a parameter."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.nn import functional as F
from twofold.nn.module import Module, Parameter, check_sizes


class PReLU(Module):
    """``x`` where positive, else ``weight * x``: one learned slope, or one for each channel (He et al. 2015)."""

    def __init__(self, num_parameters: int = 1, start: float = 0.25, *, dtype: Any = "float32", device: Any = None):
        check_sizes(self, num_parameters=num_parameters)
        self.weight = Parameter(np.full(num_parameters, start), dtype=dtype, device=device)

    def forward(self, x: Any) -> Any:
        return F.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.weight.size}"
