"""Options of a training on several devices or in several processes, and what they mean."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

import twofold as tw
from twofold.backends import device as find_device
from twofold.base.errors import ArgumentError, DeviceError
from twofold.cli.common import use_device
from twofold.train.spread import BATCH_NORM

Distributed = Annotated[
    bool,
    typer.Option("--distributed", help="Be one process of several: found by the next three, the environment, or SLURM."),
]
Coordinator = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where process 0 can be reached.")]
Processes = Annotated[int | None, typer.Option("--num-processes", min=1, help="How many processes the job has.")]
Rank = Annotated[int | None, typer.Option("--process-id", help="Which of them this is, from 0.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the other processes at the start.")]
Heartbeat = Annotated[float, typer.Option(min=2.0, help="Seconds of silence after which a process counts as dead.")]
ShardState = Annotated[
    bool, typer.Option("--shard-state", help="Split parameters and moments over the devices, instead of a copy on each.")
]


def _batch_norm(value: str) -> str:
    if value not in BATCH_NORM:
        raise typer.BadParameter(f"{value!r}; expected {' or '.join(BATCH_NORM)}")
    return value


BatchNorm = Annotated[
    str, typer.Option(callback=_batch_norm, help="Statistics in training: synchronised, or per_replica.")
]


def is_group(name: str | None) -> bool:
    """Whether a device name stands for several: ``gpu:all``, ``gpu:0,1``."""
    return name is not None and (name.endswith(":all") or "," in name)


def place(device: str | None, distributed: bool) -> str | None:
    """Make ``device`` where arrays go; or, where it stands for several, give it back as a training's ``devices``. In a
    job it is all devices of its kind, by default of the first kind that is here."""
    if distributed:
        return _everywhere(device)
    if is_group(device):
        return device
    use_device(device)
    return None


def _everywhere(name: str | None) -> str:
    if name is not None:
        found = find_device(name)
        if found.kind not in ("gpu", "tpu", "xla"):
            raise ArgumentError(f"--distributed: device {name} is of one process; expected gpu, tpu or xla:cpu")
        return str(found.backend.everything_like(found))
    for kind in ("gpu", "tpu"):
        with contextlib.suppress(DeviceError):
            return str(find_device(f"{kind}:all"))
    return str(find_device("xla:cpu:all"))


@contextlib.contextmanager
def _results_alone_on_stdout() -> Iterator[None]:
    """What libraries print to stdout meanwhile (gloo does) goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def job(
    distributed: bool, coordinator: str | None, processes: int | None, rank: int | None, timeout: float, heartbeat: float
) -> Iterator[None]:
    """Within the block this process is part of the job, if there is one. An error ends the others too."""
    if not distributed:
        given = {"--coordinator": coordinator, "--num-processes": processes, "--process-id": rank}
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise typer.BadParameter(f"{', '.join(names)} given without --distributed; add it")
        yield
        return
    try:
        with _results_alone_on_stdout():
            tw.distributed.initialize(coordinator, processes, rank, timeout=timeout, heartbeat=heartbeat)
            yield
    except BaseException as error:
        tw.distributed.abandon(130 if isinstance(error, KeyboardInterrupt) else 1)
        raise
