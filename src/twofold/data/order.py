"""Which samples come when: the order of an epoch, its share for one host, its batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twofold.base import rng
from twofold.base.errors import ArgumentError
from twofold.data.randomness import ORDER, derived_seed


@dataclass(frozen=True)
class Order:
    """Everything that fixes the batches of an epoch.

    With ``shard=(rank, world)`` host ``rank`` takes the ``rank``-th of ``world`` equal pieces of each common batch of
    ``world * batch_size`` samples: the k-th batches of all hosts, put together by rank, are the k-th batch of one host,
    however many there are. All hosts get the same number of samples: the order is cut with ``drop_last``, else continued
    from its beginning.
    """

    samples: int
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool
    shard: tuple[int, int]

    def check(self) -> None:
        """ArgumentError if a number makes no sense."""
        rank, world = self.shard
        if self.batch_size < 1:
            raise ArgumentError(f"DataLoader: batch_size={self.batch_size}; expected at least 1")
        if not 0 <= rank < world:
            raise ArgumentError(f"DataLoader: shard={self.shard}; expected (rank, world) with 0 <= rank < world")

    @property
    def whole(self) -> int:
        """Samples in a batch of all hosts together."""
        return self.batch_size * self.shard[1]

    @property
    def share(self) -> int:
        """Samples that one host sees in an epoch."""
        world = self.shard[1]
        return self.samples // world if self.drop_last else -(-self.samples // world)

    def __len__(self) -> int:
        return self.share // self.batch_size if self.drop_last else -(-self.share // self.batch_size)

    def indices(self, epoch: int) -> np.ndarray:
        """Sample indices of this host for ``epoch``, int64 (share,)."""
        if self.shuffle:
            order = rng.permutation(derived_seed(self.seed, ORDER), epoch, self.samples)
        else:
            order = np.arange(self.samples)
        if not self.samples:
            return order
        rank, world = self.shard
        order = np.resize(order, self.share * world)
        common = [order[i : i + self.whole] for i in range(0, len(order), self.whole)]
        return np.concatenate([order[:0], *(np.split(batch, world)[rank] for batch in common)])

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The sample indices of each batch of ``epoch``."""
        indices = self.indices(epoch)
        return [indices[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]
