"""DataLoader: batches of a data set, shuffled, transformed, prepared ahead, and resumable in mid-epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError, DataError, TwofoldError
from twofold.data.dataset import ArrayDataset
from twofold.data.order import Order
from twofold.data.prefetch import in_order
from twofold.data.randomness import SampleRng
from twofold.data.tensors import to_tensors
from twofold.data.transforms.base import Transform, as_transform, stack
from twofold.data.transforms.color import to_float


class DataLoader:
    """Iterates over batches ``(images, labels)``: tensors float32 (N, C, H, W) and int64 (N,).

    uint8 images become float32 0..1 first; then ``transform`` (a ``Transform``, or a function of one image) is applied,
    random ones keyed by (``seed``, epoch, sample index). ``shuffle`` takes a new seeded permutation each epoch.
    ``num_workers`` threads prepare up to ``prefetch`` batches ahead (default two for each thread); the order and
    the numbers do not depend on them. ``shard=(rank, world)`` gives one host's share (see ``Order``); ``batch_size`` is
    that of this host. ``numpy=True`` yields arrays.

    Going through the loader once is an epoch; the next time is the next epoch. ``state_dict`` taken in mid-epoch and
    given to ``load_state_dict`` of an equal loader continues with the very next batch; so does one for another number of
    hosts, if ``world * batch_size`` is the same.

    Errors in the data set or the transform name the sample: they keep their class if twofold's, else become DataError.

    >>> from twofold.data import DataLoader, digits
    >>> loader = DataLoader(digits("train"), batch_size=64, shuffle=True, seed=1, numpy=True)
    >>> images, labels = next(iter(loader))
    >>> images.shape, str(images.dtype), labels.shape
    ((64, 1, 8, 8), 'float32', (64,))
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        seed: int = 0,
        drop_last: bool = False,
        transform: Transform | Callable | None = None,
        num_workers: int = 0,
        prefetch: int | None = None,
        shard: tuple[int, int] = (0, 1),
        numpy: bool = False,
    ):
        if not hasattr(batch_size, "__index__") or not hasattr(num_workers, "__index__"):
            raise ArgumentError(f"DataLoader: batch_size={batch_size!r}, num_workers={num_workers!r}; expected whole numbers")
        if num_workers < 0 or (prefetch is not None and prefetch < 0):
            raise ArgumentError(f"DataLoader: num_workers={num_workers}, prefetch={prefetch}; expected 0 or more")
        rank, world = shard
        self.order = Order(len(dataset), int(batch_size), bool(shuffle), int(seed), bool(drop_last), (rank, world))
        self.order.check()
        self.dataset = dataset
        self.transform = None if transform is None else as_transform(transform)
        self.num_workers = num_workers
        self.prefetch = 2 * num_workers if prefetch is None else prefetch
        self.numpy = numpy
        self._epoch = self._next = self._start = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.order)

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    @property
    def epoch(self) -> int:
        """The epoch under way, or that the next iteration will go through."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the current one; a place restored by ``load_state_dict`` in the same epoch is kept."""
        if epoch < 0:
            raise ArgumentError(f"DataLoader: epoch {epoch}; expected 0 or more")
        if epoch != self._epoch:
            self._epoch, self._next, self._start = int(epoch), 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The place (epoch, and how many of its batches were handed out) and the settings that give it a meaning."""
        settings = dataclasses.asdict(self.order)
        settings["shard"] = list(self.order.shard)
        return {"epoch": self._epoch, "batch": self._next, **settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the place of ``state_dict``. DataError if it was saved by a loader with other settings."""
        mine = self.state_dict()
        if not isinstance(state, dict):
            raise DataError(f"DataLoader state is a {type(state).__name__}; expected the result of state_dict()")
        if missing := mine.keys() - state.keys():
            raise DataError(f"DataLoader state lacks {', '.join(sorted(missing))}; expected the result of state_dict()")
        for key in mine.keys() - {"epoch", "batch", "batch_size", "shard"}:
            if state[key] != mine[key]:
                raise DataError(
                    f"DataLoader state was saved with {key}={state[key]}, this loader has {mine[key]}; "
                    "make the loader with the same settings to resume in mid-epoch"
                )
        epoch, batch, size, shard = (state[key] for key in ("epoch", "batch", "batch_size", "shard"))
        counts = [epoch, batch, size, *shard] if isinstance(shard, (list, tuple)) and len(shard) == 2 else [None]
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in counts):
            raise DataError(
                f"DataLoader state has epoch {epoch!r}, batch {batch!r}, batch_size {size!r}, shard {shard!r}; expected "
                "counts, and the shard as [rank, world]"
            )
        self._check_whole(size, list(shard))
        if batch > len(self):
            raise DataError(f"DataLoader state has batch {batch}; expected one up to {len(self)}")
        self._epoch, self._next, self._start = epoch, batch, batch

    def _check_whole(self, batch_size: int, shard: list[int]) -> None:
        """The hosts may be more or fewer than before; the batches of all of them together must be the same."""
        if batch_size * shard[1] != self.order.whole:
            hosts = "" if shard[1] == self.order.shard[1] else f" with shard={shard} ({batch_size * shard[1]} samples a step)"
            raise DataError(
                f"DataLoader state was saved with batch_size={batch_size}{hosts}, this loader has {self.batch_size}, "
                f"shard={list(self.order.shard)} ({self.order.whole} samples a step); "
                "give batch sizes that make the same step of all hosts together"
            )

    def __iter__(self) -> Iterator[tuple]:
        epoch, start = self._epoch, self._start
        self._next, self._start = start, 0
        batches = self.order.batches(epoch)[start:]
        work = functools.partial(self._make, epoch)
        with contextlib.closing(in_order(work, batches, self.num_workers, self.prefetch)) as results:
            for position, (images, labels) in enumerate(results, start + 1):
                self._next = position
                yield (images, labels) if self.numpy else to_tensors(images, labels)
        if self._epoch == epoch:
            self._epoch, self._next = epoch + 1, 0

    def _make(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One batch. Arrays in memory take the whole-batch way; if that fails, one by one, to name the sample."""
        if isinstance(self.dataset, ArrayDataset):
            try:
                images, labels = self.dataset.batch(indices)
                return self._prepare(images, epoch, indices), labels
            except Exception as error:
                for index in indices:
                    self._sample(epoch, int(index))
                raise _named(error, f"samples {indices.tolist()[:8]}...") from error
        samples = [self._sample(epoch, int(index)) for index in indices]
        return stack([image for image, _ in samples]), _label_array([label for _, label in samples])

    def _sample(self, epoch: int, index: int) -> tuple[np.ndarray, Any]:
        try:
            image, label = self.dataset[index]
            return self._prepare(np.asarray(image)[None], epoch, np.array([index]))[0], label
        except Exception as error:
            raise _named(error, f"sample {index}") from error

    def _prepare(self, images: np.ndarray, epoch: int, indices: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8:
            images = to_float(images)
        if self.transform is None:
            return images
        return self.transform(images, SampleRng(self.order.seed, epoch, indices))


def _label_array(labels: list) -> np.ndarray:
    array = np.asarray(labels)
    return array.astype(np.int64) if array.dtype.kind in "iub" else array


def _named(error: Exception, where: str) -> TwofoldError:
    """The error with its place in front: twofold's keep their class, others become DataError."""
    if isinstance(error, TwofoldError):
        return type(error)(f"{where}: {error}")
    return DataError(f"{where}: {type(error).__name__}: {error}")
