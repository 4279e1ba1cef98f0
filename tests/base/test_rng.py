"""Philox against the published vectors and a second implementation, simple statistics, the rules of states."""

from __future__ import annotations

import numpy as np
import pytest

from twofold.base import rng

# Random123 1.14, tests/kat_vectors: philox4x32 10 rounds: counter, key, output.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.uint64]:
    return [np.uint64(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize("counter, key, output", KNOWN)
def test_known_answers(counter, key, output):
    assert [int(w) for w in rng.philox(words(counter), words(key))] == [int(w) for w in words(output)]


def test_the_first_block_of_seed_0_is_the_known_answer():
    assert rng.random_bits(rng.seed_state(0), 4).tolist() == [int(w) for w in words(KNOWN[0][2])]


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """The paper's round, in Python integers."""
    for _ in range(10):
        low, high = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (high >> 32) ^ counter[1] ^ key[0],
            high & 0xFFFFFFFF,
            (low >> 32) ^ counter[3] ^ key[1],
            low & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


@pytest.mark.parametrize("seed, stream", [(0, 0), (1, 0), (2**64 - 1, 3), (-1, 2**40), (123456789, 2**64 - 1)])
def test_layout_of_counter_and_key(seed, stream):
    seed_words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    draw = [stream & 0xFFFFFFFF, stream >> 32 & 0xFFFFFFFF]
    expected = [w for block in range(5) for w in philox_by_hand([block, 0, *draw], seed_words)]
    state = rng.seed_state(seed, stream)
    assert rng.random_bits(state, 20).tolist() == expected
    for count in (0, 1, 3, 4, 5, 19):  # a shorter draw is a prefix
        assert rng.random_bits(state, count).tolist() == expected[:count]


def test_next_state_counts_draws_with_carry():
    state = rng.seed_state(7, 2**32 - 1)
    assert rng.next_state(state).tolist() == [7, 0, 0, 1]
    assert rng.next_state(rng.seed_state(7, 2**64 - 1)).tolist() == [7, 0, 0, 0]
    assert not np.array_equal(rng.random_bits(state, 8), rng.random_bits(rng.next_state(state), 8))


def test_uniform_is_even_and_below_one():
    values = rng.uniform(rng.seed_state(3), 200_000)
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, 64, (0, 1))[0]
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 63 + 5 * np.sqrt(2 * 63)  # five standard deviations
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(values.size)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutations(count):
    first = rng.permutation(1, 0, count)
    assert first.dtype == np.int64 and sorted(first.tolist()) == list(range(count))
    assert np.array_equal(first, rng.permutation(1, 0, count))
    if count > 2:
        assert not np.array_equal(first, rng.permutation(1, 1, count))
        assert not np.array_equal(first, rng.permutation(2, 0, count))
