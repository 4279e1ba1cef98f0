"""Counter-based random bits: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A state is four 32-bit words: (key0, key1, draw_low, draw_high). Element ``i`` of a draw is word ``i % 4`` of the block
whose counter is (i // 4, 0, draw_low, draw_high) (for more than 2**34 elements the second word carries). The same state
gives the same bits on every backend, eager or compiled, in any order and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def seed_state(seed: int, stream: int = 0) -> np.ndarray:
    """The uint32[4] state for an integer seed; ``stream`` selects an independent sequence of draws."""
    seed, stream = int(seed) & (2**64 - 1), int(stream) & (2**64 - 1)
    words = [seed & 0xFFFFFFFF, seed >> 32, stream & 0xFFFFFFFF, stream >> 32]
    return np.array(words, np.uint32)


def next_state(state: np.ndarray) -> np.ndarray:
    """The state after one draw: the 64-bit draw number plus one."""
    draw = (int(state[2]) | int(state[3]) << 32) + 1
    return np.array([state[0], state[1], draw & 0xFFFFFFFF, (draw >> 32) & 0xFFFFFFFF], np.uint32)


def philox(counter: Sequence[Any], key: Iterable[Any]) -> list[np.ndarray]:
    """The block function: four arrays (uint64, values below 2**32, broadcastable) of counter words to four of output.

    ``key`` is two ints. Everything random goes through here: a draw of a program, or of a data sample.
    """
    c, words = list(counter), [int(k) for k in key]
    for _ in range(ROUNDS):
        p0, p1 = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
        c = [
            (p1 >> _HALF) ^ c[1] ^ np.uint64(words[0]),
            p1 & _MASK,
            (p0 >> _HALF) ^ c[3] ^ np.uint64(words[1]),
            p0 & _MASK,
        ]
        words = [(k + w) & 0xFFFFFFFF for k, w in zip(words, WEYL)]
    return c


def random_bits(state: np.ndarray, count: int) -> np.ndarray:
    """``count`` random uint32 words for this state."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    c = philox([blocks & _MASK, blocks >> _HALF, np.uint64(state[2]), np.uint64(state[3])], state[:2])
    words = np.stack([np.broadcast_to(w, blocks.shape) for w in c], axis=1).astype(np.uint32)
    return words.reshape(-1)[:count]


def uniform(state: np.ndarray, count: int) -> np.ndarray:
    """``count`` float64 values in [0, 1) from the top 24 bits of each word."""
    return (random_bits(state, count) >> np.uint32(8)) * 2.0**-24


def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """A seeded permutation of ``range(count)`` (int64): sorts 64 random bits per element."""
    words = random_bits(seed_state(seed, stream), 2 * count).astype(np.uint64)
    return np.argsort(words[::2] << _HALF | words[1::2], kind="stable")
