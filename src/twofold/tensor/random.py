"""``tw.random``: random tensors from a generator whose state is a variable.

Each draw reads the state and assigns the next one, so a traced program carries the state along and draws what an
eager run would. The bits depend on the seed and the number of draws before, and on nothing else: not on the device,
the number of threads, or the mode. The seed is 0 until ``seed`` sets one.

>>> import twofold as tw
>>> tw.random.seed(1)
>>> a = tw.random.uniform((2, 3))
>>> tw.random.seed(1)
>>> bool(tw.all(a == tw.random.uniform((2, 3))))
True
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.backends import device as find_device
from twofold.base.dtypes import float32, int64
from twofold.base.errors import ShapeError
from twofold.base.rng import next_state, seed_state
from twofold.ir import Value
from twofold.ops import random, sorting
from twofold.tensor.eager import Array, default_device
from twofold.tensor.tensor import Tensor, concrete
from twofold.tensor.variable import Variable


class Generator(Variable):
    """A source of random numbers: a ``uint32[4]`` variable that moves on at each draw."""

    __slots__ = ()
    advances = True  # a session runs its assignment whenever a draw is fetched

    def __init__(self, seed: int = 0, *, stream: int = 0, name: str = "random"):
        super().__init__(seed_state(seed, stream), name=name)

    def draw(self, where: Any = None) -> Value:
        """The state for one draw (on the device ``where``); the generator moves on."""
        state = self.value
        self.assign(Tensor(random.rng_next(state)))
        target = find_device(where) if where is not None else default_device()
        if isinstance(state, Array) and state.device != target:
            state = Array(state.spec, target.backend.put(state.numpy(), target), target)
        return state

    def take(self) -> np.ndarray:
        """The state for one draw as an array, also while a graph is being built; the generator moves on."""
        state = self.numpy().copy()
        self.set_array(concrete(next_state(state), where=self.device))
        return state


_default = Generator()


def generator() -> Generator:
    """The default generator, from which all functions here (and dropout and the initialisers) draw."""
    return _default


def seed(n: int) -> None:
    """Start the default generator anew: the same ``n`` gives the same draws from here on."""
    set_state(seed_state(n))


def get_state() -> np.ndarray:
    """A copy of the default generator's state, ``uint32[4]``."""
    return _default.numpy().copy()


def set_state(state: Any) -> None:
    """Continue from a state that ``get_state`` gave."""
    array = np.array(state, np.uint32)
    if array.shape != (4,):
        raise ShapeError(f"set_state: a state of shape {array.shape}; expected (4,), as get_state() gives")
    _default.set_array(concrete(array, where=_default.device))


def uniform(
    shape: Any = (), low: float = 0.0, high: float = 1.0, *, dtype: Any = float32, device: Any = None
) -> Tensor:
    """Uniform floats in [low, high)."""
    x = random.uniform(_default.draw(device), shape, dtype)
    return Tensor(x if (low, high) == (0.0, 1.0) else x * float(high - low) + float(low))


def normal(shape: Any = (), mean: float = 0.0, std: float = 1.0, *, dtype: Any = float32, device: Any = None) -> Tensor:
    """Normal floats with the given mean and standard deviation."""
    x = random.normal(_default.draw(device), shape, dtype)
    return Tensor(x if (mean, std) == (0.0, 1.0) else x * float(std) + float(mean))


def bernoulli(probability: float, shape: Any = (), *, device: Any = None) -> Tensor:
    """Booleans that are true with ``probability``."""
    return Tensor(random.bernoulli(_default.draw(device), probability, shape))


def randint(low: int, high: int, shape: Any = (), *, dtype: Any = int64, device: Any = None) -> Tensor:
    """Integers in [low, high)."""
    return Tensor(random.randint(_default.draw(device), low, high, shape, dtype))


def permutation(n: int, *, device: Any = None) -> Tensor:
    """The numbers 0 to n-1 in random order (int64): the order that sorts ``n`` random words."""
    return Tensor(sorting.argsort(random.random_bits(_default.draw(device), (n,))))
