"""``tw.nn.init``: initial values of parameters. Each function fills a variable and returns it.

Numbers come from ``tw.random``'s generator: the same seed gives the same weights on every device. ``kaiming_*`` are
He et al. 2015 (arXiv 1502.01852), ``xavier_*`` are Glorot and Bengio 2010. A weight is ``(out, in/groups, *kernel)``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from twofold.backends import device as find_device
from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import show
from twofold.ir import Spec
from twofold.tensor import random
from twofold.tensor.eager import Array, default_device
from twofold.tensor.tensor import Tensor
from twofold.tensor.variable import Variable

_skipping = False


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Layers made in the block keep zeros: for networks whose weights are set right afterwards."""
    global _skipping
    before, _skipping = _skipping, True
    try:
        yield
    finally:
        _skipping = before


def blank(shape: Sequence[int], dtype: Any = "float32", device: Any = None) -> Tensor:
    """Zeros for a parameter that is filled right afterwards: their memory is not touched before."""
    kind, where = as_dtype(dtype), default_device() if device is None else find_device(device)
    zeros = np.zeros(tuple(shape), kind.numpy)
    return Tensor(Array(Spec(zeros.shape, kind), where.backend.put(zeros, where), where))


# ---- random numbers: the state keys NumPy's Philox, whose raw words are the same in every version --------------------


_BLOCK = 1 << 16  # numbers made at a time: they stay in the cache from raw word to weight


def _blocks(variable: Variable, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """float32 numbers for a variable, block by block, from the uint32 words of the next draw."""
    state = random.generator().take().astype("<u4").view("<u8")
    source, out = np.random.Philox(key=state), np.empty(_count(variable), np.float32)
    for start in range(0, out.size, _BLOCK):
        block = out[start : start + _BLOCK]
        words = source.random_raw(block.size // 2 + block.size % 2).astype("<u8", copy=False).view("<u4")
        block[:] = make(words)[: block.size]
    return out


def _unit(words: np.ndarray) -> np.ndarray:
    """float32 in [0, 1), multiples of 2**-24."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _standard_normal(words: np.ndarray) -> np.ndarray:
    """float32, by Box and Muller: a radius and an angle give two numbers."""
    u = _unit(words)
    half = len(u) // 2
    radius, angle = np.sqrt(np.float32(-2) * np.log(1 - u[:half])), u[half:] * np.float32(2 * math.pi)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _fill(variable: Variable, numbers: np.ndarray) -> Variable:
    """Give the variable an array of its own numbers (not copied again)."""
    shape, where = tuple(int(d) for d in variable.shape), variable.device
    array = numbers.reshape(shape).astype(variable.dtype.numpy, copy=False)
    variable.set_array(Array(Spec(shape, variable.dtype), where.backend.put(array, where), where))
    return variable


def _count(variable: Variable) -> int:
    return math.prod(int(d) for d in variable.shape)


# ---- plain distributions ---------------------------------------------------------------------------------------------


def constant_(variable: Variable, number: float) -> Variable:
    """Every element ``number``."""
    return _fill(variable, np.full(_count(variable), number, np.float32))


def zeros_(variable: Variable) -> Variable:
    """Every element 0."""
    return constant_(variable, 0.0)


def ones_(variable: Variable) -> Variable:
    """Every element 1."""
    return constant_(variable, 1.0)


def uniform_(variable: Variable, low: float = 0.0, high: float = 1.0) -> Variable:
    """Uniform in [low, high)."""
    width, start = np.float32(high - low), np.float32(low)
    return variable if _skipping else _fill(variable, _blocks(variable, lambda w: _unit(w) * width + start))


def normal_(variable: Variable, mean: float = 0.0, std: float = 1.0) -> Variable:
    """Normal with the given mean and standard deviation."""
    if _skipping:
        return variable
    scale, centre = np.float32(std), np.float32(mean)
    return _fill(variable, _blocks(variable, lambda w: _standard_normal(w) * scale + centre))


def trunc_normal_(
    variable: Variable, mean: float = 0.0, std: float = 1.0, low: float = -2.0, high: float = 2.0
) -> Variable:
    """Normal numbers, drawn again while outside ``[low, high]`` (absolute bounds, not in standard deviations)."""
    if not (low < high and mean - 8 * std < high and mean + 8 * std > low):
        raise ArgumentError(f"trunc_normal_: [{low}, {high}] holds next to nothing of a normal({mean}, {std})")
    if _skipping:
        return variable
    numbers = normal_(variable, mean, std).numpy().reshape(-1).astype(np.float32)
    while (outside := np.flatnonzero((numbers < low) | (numbers > high))).size:
        numbers[outside] = normal_(Variable(np.zeros(outside.size, np.float32)), mean, std).numpy()
    return _fill(variable, numbers)


# ---- scaled by the layer's size --------------------------------------------------------------------------------------


def fans(variable: Variable) -> tuple[int, int]:
    """Inputs and outputs of one unit: ``in/groups * kernel`` and ``out * kernel`` positions of the weight."""
    shape = tuple(int(d) for d in variable.shape)
    if len(shape) < 2:
        raise ShapeError(f"fan in and out need a weight of at least 2 dimensions; got shape {show(shape)}")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


_GAINS: dict[str, Callable[[float], float]] = {
    "linear": lambda _: 1.0,
    "conv": lambda _: 1.0,
    "sigmoid": lambda _: 1.0,
    "tanh": lambda _: 5.0 / 3,
    "relu": lambda _: math.sqrt(2.0),
    "leaky_relu": lambda slope: math.sqrt(2.0 / (1 + slope * slope)),
    "selu": lambda _: 3.0 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """What a nonlinearity's weights are scaled by, so that variances stay: ``sqrt(2)`` for "relu"."""
    if nonlinearity not in _GAINS:
        raise ArgumentError(f"nonlinearity {nonlinearity!r} is unknown; expected one of {', '.join(map(repr, _GAINS))}")
    return _GAINS[nonlinearity](0.01 if param is None else param)


def _kaiming_std(variable: Variable, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"mode={mode!r}; expected 'fan_in' or 'fan_out'")
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(variable)[mode == "fan_out"])


def kaiming_uniform_(
    variable: Variable, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Variable:
    """Uniform with standard deviation gain / sqrt(fan); ``a`` is the slope of a leaky ReLU."""
    bound = math.sqrt(3.0) * _kaiming_std(variable, a, mode, nonlinearity)
    return uniform_(variable, -bound, bound)


def kaiming_normal_(
    variable: Variable, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Variable:
    """Normal with standard deviation gain / sqrt(fan); ``a`` is the slope of a leaky ReLU."""
    return normal_(variable, 0.0, _kaiming_std(variable, a, mode, nonlinearity))


def xavier_uniform_(variable: Variable, gain: float = 1.0) -> Variable:
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out))."""
    bound = gain * math.sqrt(6.0 / sum(fans(variable)))
    return uniform_(variable, -bound, bound)


def xavier_normal_(variable: Variable, gain: float = 1.0) -> Variable:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out))."""
    return normal_(variable, 0.0, gain * math.sqrt(2.0 / sum(fans(variable))))


def caffe_xavier_(variable: Variable) -> Variable:
    """Caffe's "xavier": uniform in +-sqrt(3 / fan_in)."""
    bound = math.sqrt(3.0 / fans(variable)[0])
    return uniform_(variable, -bound, bound)


def lecun_uniform_(variable: Variable, scale: float = 2.4) -> Variable:
    """Uniform in +-scale / fan_in: LeNet-5's (LeCun et al. 1998, with 2.4)."""
    bound = scale / fans(variable)[0]
    return uniform_(variable, -bound, bound)


def orthogonal_(variable: Variable, gain: float = 1.0) -> Variable:
    """A (semi-)orthogonal matrix of the weight flattened to ``(out, rest)`` (Saxe et al. 2013), times ``gain``."""
    if _skipping:
        return variable
    rows, columns = int(variable.shape[0]), fans(variable)[0]
    numbers = _blocks(variable, _standard_normal).reshape(max(rows, columns), -1)
    q, r = np.linalg.qr(numbers.astype(np.float64))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return _fill(variable, gain * (q if rows >= columns else q.T))


def default_(weight: Variable, bias: Variable | None) -> None:
    """What PyTorch does for a convolution or a linear layer: uniform in +-1/sqrt(fan_in) for weight and bias."""
    bound = 1 / math.sqrt(max(1, fans(weight)[0]))
    uniform_(weight, -bound, bound)
    if bias is not None:
        uniform_(bias, -bound, bound)
