"""Several processes as one job: found out from flags, the usual environment variables or SLURM's, joined through
``jax.distributed``.

| who says it | coordinator | processes | rank |
|---|---|---|---|
| arguments | ``coordinator`` | ``processes`` | ``rank`` |
| twofold, torchrun | ``MASTER_ADDR:MASTER_PORT`` | ``WORLD_SIZE`` | ``RANK`` |
| SLURM | the first node of ``SLURM_JOB_NODELIST`` | ``SLURM_NTASKS`` | ``SLURM_PROCID`` |
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from twofold.backends.interface import Device
from twofold.backends.xla import placement, runtime
from twofold.base.errors import ArgumentError, TwofoldError

DEFAULT_PORT = 12379
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead


@dataclass(frozen=True)
class Job:
    """Where the processes of a job meet, how many they are, and which one this is."""

    coordinator: str
    processes: int
    rank: int


def find_job(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Job:  # fmt: skip
    """The job of this process: from the arguments, else the environment. ArgumentError says what is missing."""
    env = os.environ if environment is None else environment
    found = _from_slurm(env) | _from_variables(env)
    if coordinator is not None:
        found["coordinator"] = coordinator
    if processes is not None:
        found["processes"] = str(processes)
    if rank is not None:
        found["rank"] = str(rank)
    missing = [name for name in ("coordinator", "processes", "rank") if name not in found]
    if missing:
        raise ArgumentError(
            f"distributed: {', '.join(missing)} unknown; give coordinator='host:port', processes= and rank=, or set "
            "MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, or start the processes with SLURM's srun"
        )
    job = Job(found["coordinator"], _number("processes", found), _number("rank", found))
    if ":" not in job.coordinator:
        raise ArgumentError(f"distributed: coordinator {job.coordinator!r} has no port; expected host:port")
    if not 0 <= job.rank < job.processes:
        came = f"rank {job.rank} of {job.processes} processes"
        raise ArgumentError(f"distributed: {came}; expected 0 <= rank < processes")
    return job


def _number(name: str, found: Mapping[str, str]) -> int:
    try:
        return int(found[name])
    except ValueError:
        raise ArgumentError(f"distributed: {name} is {found[name]!r}; expected an integer") from None


def _from_variables(env: Mapping[str, str]) -> dict[str, str]:
    found = {name: env[key] for name, key in (("processes", "WORLD_SIZE"), ("rank", "RANK")) if key in env}
    if "MASTER_ADDR" in env:
        found["coordinator"] = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT', DEFAULT_PORT)}"
    return found


def _from_slurm(env: Mapping[str, str]) -> dict[str, str]:
    if int(env.get("SLURM_NTASKS", "1") or 1) < 2 or "SLURM_PROCID" not in env:
        return {}
    first = first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
    if not first:
        return {}
    port = DEFAULT_PORT + int(env.get("SLURM_JOB_ID", "0") or 0) % 4096  # two jobs on a node do not meet
    return {"coordinator": f"{first}:{port}", "processes": env["SLURM_NTASKS"], "rank": env["SLURM_PROCID"]}


def first_host(nodes: str) -> str:
    """The first name of SLURM's node list: ``gpu[07-09,12],login1`` -> ``gpu07``."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    return "" if found is None else found[1] + (found[2] or "")


def initialize(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None, *, timeout: int = 300
) -> Job:
    """Join the job; call it once in each process, before any XLA device is used.

    ``timeout``: seconds to wait for the others. TwofoldError if they do not come. A process that dies later is noticed
    within about ``HEARTBEAT`` seconds by all others, which then end with an error of jax's coordination service.
    """
    job = find_job(coordinator, processes, rank)
    jax = runtime.load()
    try:
        jax.distributed.initialize(
            job.coordinator, job.processes, job.rank,
            initialization_timeout=timeout, heartbeat_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except RuntimeError as error:
        if "before" in str(error) or "once" in str(error):
            advice = "call it once, at the start of the program, before any tensor is put on an XLA device"
        else:
            advice = f"check that all {job.processes} processes were started and that {job.coordinator} can be reached"
        first = str(error).splitlines()[0]
        raise TwofoldError(f"distributed: process {job.rank} could not join ({first}); {advice}") from error
    placement.local_devices.cache_clear()
    placement.placement.cache_clear()
    return job


def global_batch(local: np.ndarray, device: Device) -> tuple[tuple[int, ...], object]:
    """The shape and buffer of a batch of which this process holds ``local``: the parts stand in the order of ranks.

    Every process gives a part of the same size, which its devices divide.
    """
    jax = runtime.load()
    where = placement.placement(device)
    shape = (local.shape[0] * jax.process_count(), *local.shape[1:])
    if shape[0] % len(where.devices):
        parts = f"{local.shape[0]} from each of {jax.process_count()} processes"
        raise ArgumentError(
            f"distributed: a batch of {shape[0]} ({parts}) does not divide over {len(where.devices)} devices; "
            "drop or pad the last batch"
        )
    with runtime.x64():
        return shape, jax.make_array_from_process_local_data(where.batch, np.ascontiguousarray(local), shape)
