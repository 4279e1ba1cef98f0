"""twofold: one program, dynamic and static.

The public names. Arrays, gradients and dtypes are here at once; networks, data, files and compilers are loaded when
they are first asked for, so that ``import twofold`` stays quick.
"""

# ruff: noqa: F401, I001 (names are imported to be exported)

from __future__ import annotations

import importlib
import math
from typing import Any

from twofold import autodiff
from twofold.backends import Device, device
from twofold.base.dtypes import (
    DType, bfloat16, float16, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64,
)  # fmt: skip
from twofold.base.dtypes import bool_ as bool
from twofold.base.errors import (
    ArgumentError, DataError, DeviceError, DtypeError, FormatError, GradientError, GraphError, IndexRangeError,
    MissingDependencyError, NonFiniteError, OutOfMemoryError, ShapeError, TraceError, TwofoldError, UnsafeFileError,
    UnsupportedOpError, VerificationError, WeightsError,
)  # fmt: skip
from twofold.ops.precision import autocast
from twofold.tensor import (
    Tensor, Variable, asarray, checkpoint, custom_vjp, enable_grad, grad, gradients, hvp, jvp, no_grad, tensor,
    value_and_grad, vjp,
)  # fmt: skip
from twofold.tensor.functions import FUNCTIONS
from twofold.tensor.interop import from_dlpack
from twofold.tensor.types import can_cast, finfo, iinfo, isdtype, result_type
from twofold.tensor.types import namespace_info as __array_namespace_info__

newaxis = None
e, pi, inf, nan = math.e, math.pi, math.inf, math.nan

__version__ = "0.1.0"
__array_api_version__ = "2024.12"

# Public names that are loaded when first used: name -> module that has it
_LAZY = {
    **dict.fromkeys(("compile", "Graph", "placeholder", "Session"), "twofold.static"),
    **dict.fromkeys(("cond", "while_loop", "scan"), "twofold.static"),
    **dict.fromkeys(("export", "load", "save_weights", "load_weights"), "twofold.io"),
    "summary": "twofold.nn",
}
_SUBPACKAGES = ("backends", "data", "io", "nn", "ops", "optim", "passes", "static", "train", "viz", "zoo")
_TENSOR_MODULES = ("distributed", "linalg", "random")

globals().update(FUNCTIONS)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"twofold.{name}")
    if name in _LAZY:
        found = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = found
        return found
    if name in _TENSOR_MODULES:
        return importlib.import_module(f"twofold.tensor.{name}")
    raise AttributeError(f"module 'twofold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_SUBPACKAGES, *_TENSOR_MODULES})
