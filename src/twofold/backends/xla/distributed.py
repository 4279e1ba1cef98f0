"""Several processes as one job: found out from flags, the usual environment variables or SLURM's, joined through
``jax.distributed``.

| who says it | coordinator | processes | rank |
|---|---|---|---|
| arguments | ``coordinator`` | ``processes`` | ``rank`` |
| twofold, torchrun | ``MASTER_ADDR:MASTER_PORT`` | ``WORLD_SIZE`` | ``RANK`` |
| jax | ``JAX_COORDINATOR_ADDRESS`` | ``JAX_NUM_PROCESSES`` | ``JAX_PROCESS_ID`` |
| SLURM | the first node of ``SLURM_JOB_NODELIST`` | ``SLURM_NTASKS`` | ``SLURM_PROCID`` |

The upper row wins. Where a machine runs several processes, ``LOCAL_RANK`` or ``SLURM_LOCALID`` numbers its accelerator.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import re
import sys
from collections.abc import Mapping

import numpy as np

from twofold.backends.interface import Device
from twofold.backends.xla import placement, runtime
from twofold.backends.xla.meeting import HEARTBEAT, Job, Watch, meet
from twofold.backends.xla.relay import Relay
from twofold.base.errors import ArgumentError, TwofoldError

DEFAULT_PORT = 12379
_JAX_HEARTBEAT = 600  # jax's own watch, slower than ours: it ends processes without saying why


def find_job(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Job:  # fmt: skip
    """The job of this process: from the arguments, else the environment. ArgumentError says what is missing."""
    env = os.environ if environment is None else environment
    found = _from_slurm(env) | _from_jax(env) | _from_variables(env)
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
            "MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, or start the processes with SLURM's srun "
            "(twofold train: --coordinator HOST:PORT --num-processes N --process-id R)"
        )
    job = Job(found["coordinator"], _number("processes", found), _number("rank", found), _own_device(env))
    port = job.coordinator.rpartition(":")[2]
    if ":" not in job.coordinator or not port:
        raise ArgumentError(f"distributed: coordinator {job.coordinator!r} has no port; expected host:port")
    if ":" in job.coordinator.rpartition(":")[0] and not job.coordinator.startswith("["):
        raise ArgumentError(
            f"distributed: coordinator is {job.coordinator!r}; an IPv6 address stands in brackets, as in [fd00::1]:12379"
        )
    if not port.isdecimal() or not 0 < int(port) < 65536 or job.coordinator.startswith(":"):
        raise ArgumentError(f"distributed: coordinator is {job.coordinator!r}; expected host:port, such as node1:12379")
    if not 0 <= job.rank < job.processes:
        came = f"rank {job.rank} of {job.processes} processes"
        raise ArgumentError(f"distributed: {came}; expected 0 <= rank < processes")
    return job


def _number(name: str, found: Mapping[str, str], default: str = "") -> int:
    value = found.get(name) or default
    try:
        return int(value)
    except ValueError:
        raise ArgumentError(f"distributed: {name} is {value!r}; expected an integer") from None


def _from_variables(env: Mapping[str, str]) -> dict[str, str]:
    found = {name: env[key] for name, key in (("processes", "WORLD_SIZE"), ("rank", "RANK")) if key in env}
    if "MASTER_ADDR" in env:
        host = env["MASTER_ADDR"]
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        found["coordinator"] = f"{host}:{env.get('MASTER_PORT', DEFAULT_PORT)}"
    return found


def _from_jax(env: Mapping[str, str]) -> dict[str, str]:
    names = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "rank": "JAX_PROCESS_ID"}
    return {name: env[key] for name, key in names.items() if key in env}


def _own_device(env: Mapping[str, str]) -> int | None:
    """The accelerator that a launcher gave this process, where it started several on the machine."""
    if _number("LOCAL_WORLD_SIZE", env, "1") > 1 and "LOCAL_RANK" in env:
        return _number("LOCAL_RANK", env)
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if "SLURM_LOCALID" in env and tasks and int(tasks[0]) > 1:
        return _number("SLURM_LOCALID", env)
    return None


def _from_slurm(env: Mapping[str, str]) -> dict[str, str]:
    if _number("SLURM_NTASKS", env, "1") < 2 or "SLURM_PROCID" not in env:
        return {}
    first = first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
    if not first:
        return {}
    port = DEFAULT_PORT + _number("SLURM_JOB_ID", env, "0") % 4096  # two jobs on a node do not meet
    return {"coordinator": f"{first}:{port}", "processes": env["SLURM_NTASKS"], "rank": env["SLURM_PROCID"]}


def first_host(nodes: str) -> str:
    """The first name of SLURM's node list: ``gpu[07-09,12],login1`` -> ``gpu07``."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    return "" if found is None else found[1] + (found[2] or "")


class Membership:
    """This process's place in a job: the watch over the others, and how it is left."""

    def __init__(self, job: Job, watch: Watch, relay: Relay | None):
        self.job, self.watch, self.relay = job, watch, relay
        self._left = False
        atexit.register(self._at_exit)

    def leave(self) -> None:
        """The work is done: wait for the others to come to the same point, and go on alone. Process 0 goes last: jax's
        service is its."""
        if not self._left:
            self.watch.end_together()
            self._left = True
            synchronise("leave")  # what still runs is finished first
            runtime.on_failure.clear()
            runtime.on_joint.clear()
            if self.job.rank == 0:
                self.watch.wait_for_good_byes()
            runtime.load().distributed.shutdown()
            if self.relay is not None:
                self.relay.close()
            self.watch.close(bye=True)

    def abandon(self, code: int = 1) -> None:
        """End early: the others are told at once, and this process ends with ``code`` without waiting for them."""
        if not self._left:
            self._left = True
            self.watch.close(bye=False)
            atexit.register(_end_now, code)

    def _at_exit(self) -> None:
        if self._left:
            return
        uncaught = getattr(sys, "last_value", None)
        if uncaught is not None:
            self.watch.close(bye=False)
            _end_now(130 if isinstance(uncaught, KeyboardInterrupt) else 1)
        try:
            self.leave()
        except TwofoldError as error:  # the program is over, and what it gave ``sys.exit`` stands
            print(f"error: {error}", file=sys.stderr, flush=True)
            self._left = True
            _end_alone()


def _end_now(code: int) -> None:
    """Jax would wait for the others at the end of the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_alone() -> None:
    """Let Python end with the exit code that it has (and tells nobody), without jax, which would wait for the others."""
    try:
        from jax._src import api, distributed, xla_bridge

        atexit.unregister(api.clean_up)
        state, clients = distributed.global_state, xla_bridge._backends.values()
        for kept in (state.client, state.service, *clients):  # what ends these would wait, too
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    except (ImportError, AttributeError):  # another jax
        _end_now(1)


def initialize(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None, *, timeout: float = 300,
    heartbeat: float = HEARTBEAT,
) -> Membership:  # fmt: skip
    """Join the job; call it once in each process, before any XLA device is used.

    ``timeout``: seconds to wait for the others. ``heartbeat``: seconds of silence after which one counts as dead; then,
    or at once if its process has ended, all others end with a message and exit code 1.
    """
    job = find_job(coordinator, processes, rank)
    jax = runtime.load()
    lines, port = meet(job, timeout)
    with contextlib.ExitStack() as undo:
        watch = Watch(job, lines, heartbeat)
        undo.callback(watch.close, bye=False)  # whoever fails from here on is missed by the others at once
        jax.config.update("jax_enable_recoverability", True)  # else jax ends processes by abort() when another has died
        relay = Relay((job.address[0], port)) if job.rank else None
        if relay is not None:
            undo.callback(relay.close)
        _join(job, relay.place if relay else f"127.0.0.1:{port}", timeout)
        undo.pop_all()
    placement.local_devices.cache_clear()
    placement.placement.cache_clear()
    runtime.on_failure[:], runtime.on_joint[:] = [watch.settle], [watch.begins]
    return Membership(job, watch, relay)


def _join(job: Job, place: str, timeout: float) -> None:
    """Connect jax to its service at ``place``, which process 0 starts."""
    try:
        runtime.load().distributed.initialize(
            place, job.processes, job.rank, local_device_ids=job.device, cluster_detection_method="deactivate",
            initialization_timeout=int(timeout) + 1, heartbeat_timeout_seconds=_JAX_HEARTBEAT,
        )  # fmt: skip
    except RuntimeError as error:
        if "before" in str(error) or "once" in str(error):
            advice = "call it once, at the start of the program, before any tensor is put on an XLA device"
        else:
            advice = f"check that the processes can reach each other at {job.address[0]}, on any port"
        first = str(error).splitlines()[0]
        raise TwofoldError(f"distributed: process {job.rank} could not join ({first}); {advice}") from error


def synchronise(name: str) -> None:
    """Wait until every process has come here."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes (equal shapes), put together along the first dimension in the order of ranks."""
    from jax.experimental import multihost_utils

    runtime.begins_joint()
    with runtime.x64():
        try:
            return np.asarray(multihost_utils.process_allgather(np.ascontiguousarray(array), tiled=True))
        except runtime.load().errors.JaxRuntimeError as error:
            raise runtime.translated(error, "gathering from all processes") from error


def different(text: str) -> list[int]:
    """The ranks of the processes whose ``text`` is not that of process 0."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = gather(digest[None])
    return [rank for rank, other in enumerate(digests) if not np.array_equal(other, digests[0])]


def global_batch(local: np.ndarray, device: Device, size: int | None = None) -> tuple[tuple[int, ...], object]:
    """The shape and buffer of a batch of which this process holds ``local``: the parts stand in the order of ranks.

    Every process gives a part of the same size, which its devices divide. With ``size``, the first ``size`` samples are
    the batch and the rest fills up the last parts; a batch that does not divide is then whole on every device.
    """
    jax = runtime.load()
    where = placement.placement(device)
    shape = (local.shape[0] * jax.process_count(), *local.shape[1:])
    if size is not None and (size != shape[0] or size % len(where.devices)):
        whole = gather(local)[:size]
        with runtime.x64():
            return whole.shape, placement.put(whole, where.whole)
    if shape[0] % len(where.devices):
        parts = f"{local.shape[0]} from each of {jax.process_count()} processes"
        raise ArgumentError(
            f"distributed: a batch of {shape[0]} ({parts}) does not divide over {len(where.devices)} devices; "
            "drop or pad the last batch, or say its size"
        )
    with runtime.x64():
        return shape, jax.make_array_from_process_local_data(where.batch, np.ascontiguousarray(local), shape)
