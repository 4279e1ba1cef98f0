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

import numpy as np

from twofold.backends import Device
from twofold.backends import device as find_device
from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError
from twofold.ir import Spec
from twofold.ops import as_numpy
from twofold.tensor.eager import Array
from twofold.tensor.tensor import Tensor

if TYPE_CHECKING:
    from twofold.backends.xla.distributed import Membership

_job: list[Membership] = []


def initialize(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None, *, timeout: float = 300,
    heartbeat: float = 30,
) -> None:  # fmt: skip
    """Join the job. What is not given comes from MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, from jax's variables
    (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or from SLURM.

    Args:
        coordinator: ``host:port`` of process 0, reachable from all.
        processes: how many processes the job has.
        rank: which of them this one is, from 0.
        timeout: seconds to wait for the others.
        heartbeat: seconds of silence after which a process counts as dead. One that ends before ``leave`` is noticed at
            once. All others then end with exit code 1 and a message that names it.

    Raises ArgumentError for what is missing or impossible, or where the processes disagree; TwofoldError if the others do
    not come in time.
    """
    from twofold.backends.xla import distributed

    if _job:
        raise ArgumentError(f"distributed: this process is already {_job[0].job.rank} of {_job[0].job.processes}; join once")
    _job[:] = [distributed.initialize(coordinator, processes, rank, timeout=timeout, heartbeat=heartbeat)]


def leave() -> None:
    """The job is done: wait for all processes to come here, and go on as one process. Otherwise the end of the program
    does it. Arrays that were split over processes can no longer be read."""
    while _job:
        _job.pop().leave()


def abandon(code: int = 1) -> None:
    """End this process's part early, after an error: the others are told, and end; this one will, with ``code``."""
    while _job:
        _job.pop().abandon(code)


def advise(what: str) -> None:
    """What the message of a process's death tells people to do: where the last checkpoint is, say."""
    for membership in _job:
        membership.watch.advice = what


def rank() -> int:
    """The number of this process in the job; 0 where there is none."""
    return _job[0].job.rank if _job else 0


def processes() -> int:
    """How many processes the job has; 1 where there is none."""
    return _job[0].job.processes if _job else 1


def check_same(what: str, text: str) -> None:
    """ArgumentError, in every process, unless ``text`` is the same in all of them. All must call it."""
    if processes() == 1:
        return
    from twofold.backends.xla.distributed import different

    if ranks := different(text):
        raise ArgumentError(
            f"distributed: process {', '.join(map(str, ranks))} has another {what} than process 0 (here {text}); "
            "start all processes with the same options, the same data and the same checkpoint"
        )


def agreed(answer: bool) -> bool:
    """What process 0 answers, in every process. All must call it."""
    if processes() == 1:
        return answer
    from twofold.backends.xla.distributed import gather

    return bool(gather(np.array([answer]))[0])


def batch(part: Any, device: str | Device, size: int | None = None) -> Tensor:
    """The whole batch, of which every process gives its ``part``: equal sizes along the first dimension, by rank.

    ``device`` is a group that holds devices of every process, such as ``"gpu:all"``; only the own part is copied to it.
    ``size``: how many samples the batch has, where the last parts are filled up, or it does not divide over the devices.
    """
    where = find_device(device)
    if where.kind not in ("gpu", "tpu", "xla"):
        raise ArgumentError(f"distributed.batch: device {where}; expected a group of XLA devices such as 'gpu:all'")
    from twofold.backends.xla.distributed import global_batch

    local = as_numpy(part.numpy() if isinstance(part, Tensor) else part)
    shape, buffer = global_batch(local, where, size)
    return Tensor(Array(Spec(shape, as_dtype(local.dtype)), buffer, where))
