"""Philox4x32-10 in jax: the same bits as ``twofold.base.rng``, computed in parallel from the element's number."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from twofold.base.rng import MULTIPLIERS, ROUNDS, WEYL


def _product(word: Any, multiplier: int) -> tuple[Any, Any]:
    """High and low half of a 32 x 32 bit product."""
    wide = word.astype(jnp.uint64) * jnp.uint64(multiplier)
    return (wide >> 32).astype(jnp.uint32), wide.astype(jnp.uint32)


def _philox(counter: list[Any], key: list[Any]) -> list[Any]:
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _product(counter[0], MULTIPLIERS[0]), _product(counter[2], MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [k + jnp.uint32(w) for k, w in zip(key, WEYL)]
    return counter


def _random_bits(state: Any, *, shape: Any) -> Any:
    count = math.prod(shape)
    blocks = jnp.arange((count + 3) // 4, dtype=jnp.uint64)
    draw = [jnp.broadcast_to(state[i], blocks.shape) for i in (2, 3)]
    counter = [blocks.astype(jnp.uint32), (blocks >> 32).astype(jnp.uint32), *draw]
    words = jnp.stack(_philox(counter, [state[0], state[1]]), axis=1)
    return words.reshape(-1)[:count].reshape(shape)


def _rng_next(state: Any) -> Any:
    low = state[2] + jnp.uint32(1)
    return jnp.stack([state[0], state[1], low, state[3] + (low == 0).astype(jnp.uint32)])


ROWS = {"random_bits": _random_bits, "rng_next": _rng_next}
