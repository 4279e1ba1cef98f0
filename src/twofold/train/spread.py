"""A training on several devices or in several processes: where it runs, and batches put together from every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import twofold as tw
from twofold.backends import Device, device_group
from twofold.base.errors import ArgumentError
from twofold.data import DataLoader
from twofold.tensor import distributed

BATCH_NORM = ("synchronised", "per_replica")


def place_of(model: Any, devices: Any, shard_state: bool) -> Device | None:
    """The device or group that ``devices`` means: "all" are those of the kind that the model is on."""
    if devices is None:
        if distributed.processes() > 1:
            raise ArgumentError("fit: in a job of several processes devices= is needed, such as 'gpu:all' or 'all'")
        return None
    if devices == "all":
        where = next((p.device for p in model.parameters()), tw.tensor(0.0).device)
        devices = where.backend.everything_like(where)
    where = device_group(devices, shard_state=shard_state)
    if distributed.processes() > 1 and (where.kind == "cpu" or where.backend.count(where) < distributed.processes()):
        raise ArgumentError(
            f"fit: device {where} is not shared by the job's {distributed.processes()} processes; "
            "expected 'gpu:all', 'tpu:all' or 'xla:cpu:all'"
        )
    return where


def parts_of_statistics(batch_norm: str, where: Device | None) -> int:
    """Over how many parts of the batch batch-norm statistics are taken."""
    if batch_norm not in BATCH_NORM:
        raise ArgumentError(f"fit: batch_norm is {batch_norm!r}; expected {' or '.join(map(repr, BATCH_NORM))}")
    return where.backend.count(where) if where is not None and batch_norm == "per_replica" else 1


class Together:
    """Batches of a job: each process reads its share of every batch, all get the whole batch, spread over ``where``.

    ``loader`` is this process's: ``shard=(rank, processes)``, and ``batch_size`` its share.
    """

    def __init__(self, loader: DataLoader, where: Device):
        order = getattr(loader, "order", None)
        mine = (distributed.rank(), distributed.processes())
        if order is None or order.shard != mine:
            came = "no shard" if order is None else f"shard={order.shard}"
            raise ArgumentError(
                f"fit: the loader of process {mine[0]} of {mine[1]} has {came}; make it with DataLoader(..., shard={mine}) "
                f"and batch_size = the step's images / {mine[1]}"
            )
        self.loader, self.where = loader, where

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = self.loader.order
        for images, labels in self.loader:
            before = (self.loader.state_dict()["batch"] - 1) * order.whole
            size = min(order.whole, order.samples - before)
            yield distributed.batch(images, self.where, size), distributed.batch(labels, self.where, size)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


def together(loader: Any, where: Device | None) -> Any:
    """The loader as it is for one process, put together for several."""
    return Together(loader, where) if loader is not None and where is not None and distributed.processes() > 1 else loader
