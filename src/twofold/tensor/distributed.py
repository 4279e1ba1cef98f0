"""``tw.distributed``: several processes, on one machine or many, as one job (through XLA).

Each process runs the same program. After ``initialize`` the device group ``gpu:all`` (``tpu:all``, ``xla:cpu:all``)
holds the devices of all processes, and a compiled step on it computes what one process would on the whole batch:

    tw.distributed.initialize()                                   # from flags, environment variables, or SLURM
    step = tw.compile(step, devices="gpu:all")
    for images, labels in loader_of_my_part:                      # each process reads its own part of the data
        loss = step(tw.distributed.batch(images, "gpu:all"), tw.distributed.batch(labels, "gpu:all"))
    if tw.distributed.rank() == 0:
        tw.save_weights(model, "w.safetensors")                   # the variables are the same in every process
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twofold.backends import Device
from twofold.backends import device as find_device
from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError
from twofold.ir import Spec
from twofold.ops import as_numpy
from twofold.tensor.eager import Array
from twofold.tensor.tensor import Tensor

if TYPE_CHECKING:
    from twofold.backends.xla.distributed import Job

_job: list[Job] = []


def initialize(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None, *, timeout: int = 300
) -> Job:
    """Join the job. What is not given comes from MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, or from SLURM.

    Args:
        coordinator: ``host:port`` of process 0, reachable from all.
        processes: how many processes the job has.
        rank: which of them this one is, from 0.
        timeout: seconds to wait for the others.

    Raises ArgumentError for what is missing or impossible, TwofoldError if the others do not come in time.
    """
    from twofold.backends.xla import distributed

    _job[:] = [distributed.initialize(coordinator, processes, rank, timeout=timeout)]
    return _job[0]


def rank() -> int:
    """The number of this process in the job; 0 where there is none."""
    return _job[0].rank if _job else 0


def processes() -> int:
    """How many processes the job has; 1 where there is none."""
    return _job[0].processes if _job else 1


def batch(part: Any, device: str | Device) -> Tensor:
    """The whole batch, of which every process gives its ``part``: equal sizes along the first dimension, by rank.

    ``device`` is a group that holds devices of every process, such as ``"gpu:all"``; only the own part is copied to it.
    """
    where = find_device(device)
    if where.kind not in ("gpu", "tpu", "xla"):
        raise ArgumentError(f"distributed.batch: device {where}; expected a group of XLA devices such as 'gpu:all'")
    from twofold.backends.xla.distributed import global_batch

    local = as_numpy(part.numpy() if isinstance(part, Tensor) else part)
    shape, buffer = global_batch(local, where)
    return Tensor(Array(Spec(shape, as_dtype(local.dtype)), buffer, where))
