"""Weights and images by formula: the same on every machine, from the names alone, so that none are stored.

A number is a hash (splitmix64) of its place and its tensor's name, as a fraction in [-1, 1), times the tensor's scale.
"""

from __future__ import annotations

import zlib

import numpy as np


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1), as if at random; ``name`` chooses which."""
    place = np.arange(int(np.prod(shape)), dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
    z = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a state dict's entry, float64.

    Matrices and filters have variance 2/fan-in (so that signals keep their size through ReLU), vectors named "weight"
    and variances lie in 0.5..1.5, biases and means in -0.1..0.1.
    """
    x = noise(name, shape)
    if len(shape) > 1:
        return x * (6.0 / np.prod(shape[1:])) ** 0.5
    return 1 + 0.5 * x if name.endswith(("weight", "running_var")) else 0.1 * x
