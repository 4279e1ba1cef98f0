"""Random numbers that belong to a sample: the same for (seed, epoch, sample index) in any batch and thread."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twofold.base import rng

_WORD = np.uint64(0xFFFFFFFF)
_DRAWS_PER_STREAM = 1 << 16
ORDER, AUGMENTATION = 2**63 + 1, 2**63 + 2  # streams that set these keys apart from a program's own draws


def derived_seed(seed: int, purpose: int) -> int:
    """A 64-bit seed for one purpose, so that shuffling, augmentation and dropout under one seed stay independent."""
    low, high = rng.random_bits(rng.seed_state(seed, purpose), 2)
    return int(low) | int(high) << 32


class SampleRng:
    """Draws for the samples ``index`` (n of them): every method gives an array (n,).

    Philox with key = seed and counter = (draw, epoch, index low, index high). ``stream(k)`` gives the k-th of
    65,536 independent sequences: each transform of a ``Compose`` has its own, so that it may draw as often as it likes.

    >>> alone, together = SampleRng(seed=1, epoch=2, index=7), SampleRng(seed=1, epoch=2, index=[5, 7])
    >>> bool(alone.uniform()[0] == together.uniform()[1])
    True
    """

    def __init__(self, seed: int = 0, epoch: int = 0, index: object = 0):
        self._key = derived_seed(seed, AUGMENTATION)
        self._epoch = int(epoch)
        self._index = np.atleast_1d(np.asarray(index, np.uint64))
        self._draw, self._stream, self._block = 0, 0, -1
        self._words: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._index)

    def _copy(self, index: np.ndarray, stream: int) -> SampleRng:
        other = object.__new__(SampleRng)
        other.__dict__.update(self.__dict__, _index=index, _stream=stream, _block=-1, _words=[])
        return other

    def stream(self, number: int) -> SampleRng:
        """The ``number``-th sequence of the same samples, at its beginning."""
        other = self._copy(self._index, int(number))
        other._draw = 0
        return other

    def each(self) -> Iterator[SampleRng]:
        """One generator for each sample, at the same draw as this one."""
        for position in range(len(self)):
            yield self._copy(self._index[position : position + 1], self._stream)

    def bits(self) -> np.ndarray:
        """The next 32 random bits of each sample, uint64 (n,)."""
        block, word = divmod(self._draw, 4)
        if block >= _DRAWS_PER_STREAM:
            raise OverflowError(f"more than {4 * _DRAWS_PER_STREAM} draws by one transform of one sample")
        if block != self._block:
            counter = self._stream * _DRAWS_PER_STREAM + block
            words = [np.uint64(counter), np.uint64(self._epoch), self._index & _WORD, self._index >> np.uint64(32)]
            self._words = rng.philox(words, (self._key & 0xFFFFFFFF, self._key >> 32))
            self._block = block
        self._draw += 1
        return np.broadcast_to(self._words[word], self._index.shape)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """float64 (n,) in [low, high)."""
        return low + (high - low) * ((self.bits() >> np.uint64(8)) * 2.0**-24)

    def integers(self, count: object) -> np.ndarray:
        """int64 (n,) in [0, count); ``count`` is an int, or one for each sample, from 1 to 2**32."""
        return (self.bits() * np.asarray(count, np.uint64) >> np.uint64(32)).astype(np.int64)

    def normal(self) -> np.ndarray:
        """float64 (n,), mean 0, deviation 1 (Box and Muller, 1958; two draws)."""
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform()))
        return radius * np.cos(2.0 * np.pi * self.uniform())
