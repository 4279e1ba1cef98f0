"""Several processes: how a job is found, two of them training together on loopback, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xla_training import train

import twofold as tw
from twofold.backends.xla.distributed import find_job, first_host
from twofold.backends.xla.meeting import Job
from twofold.base.errors import ArgumentError

FOLDER = Path(__file__).parent
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NODELIST": "gpu[07-09,12],login1", "SLURM_JOB_ID": "5"}
TORCHRUN = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1"}

JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.2:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (("host:1", 3, 2), {}, Job("host:1", 3, 2)),
        ((), TORCHRUN, Job("10.0.0.1:29500", 2, 1)),
        ((), SLURM, Job("gpu07:12384", 4, 2)),
        ((), JAX, Job("10.0.0.2:1", 3, 2)),
        ((), {**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Job("10.0.0.1:29500", 2, 1, 1)),
        ((), {**SLURM, "SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, Job("gpu07:12384", 4, 2, 3)),
        ((), {**TORCHRUN, "MASTER_ADDR": "fd00::1"}, Job("[fd00::1]:29500", 2, 1)),
        (("[::1]:5", 2, 1), {}, Job("[::1]:5", 2, 1)),
        ((), {**SLURM, **TORCHRUN}, Job("10.0.0.1:29500", 2, 1)),
        (("other:7", None, 0), TORCHRUN, Job("other:7", 2, 0)),
    ],
)
def test_the_job_is_found(arguments: Any, environment: dict[str, str], expected: Job) -> None:
    assert find_job(*arguments, environment=environment) == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "coordinator, processes, rank unknown; give coordinator='host:port'"),
        ((), {"MASTER_ADDR": "a", "RANK": "0"}, "processes unknown"),
        (("host", 2, 0), {}, "has no port; expected host:port"),
        (("host:port", 2, 0), {}, "coordinator is 'host:port'; expected host:port, such as node1:12379"),
        (("fd00::1:5", 2, 0), {}, r"an IPv6 address stands in brackets, as in \[fd00::1\]:12379"),
        (("host:1", 2, 2), {}, "rank 2 of 2 processes; expected 0 <= rank"),
        ((), {**TORCHRUN, "RANK": "first"}, "rank is 'first'; expected an integer"),
        ((), {**SLURM, "SLURM_NTASKS": "1"}, "unknown"),
        ((), {**SLURM, "SLURM_NTASKS": "four"}, "SLURM_NTASKS is 'four'; expected an integer"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(arguments: Any, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        find_job(*arguments, environment=environment)


def test_first_host_of_slurms_lists() -> None:
    assert [first_host(n) for n in ("node1,node2", "n[3,5-7]", "a", "")] == ["node1", "n3", "a", ""]


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(processes: int, *arguments: str) -> list[subprocess.Popen[str]]:
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    base = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": path}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(processes)}
    command = [sys.executable, str(FOLDER / "distributed_worker.py"), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=base | {"RANK": str(r)}, **pipes) for r in range(processes)]


@pytest.mark.parametrize("layout", [pytest.param("replicated", marks=pytest.mark.slow), "sharded"])
def test_two_processes_equal_one(layout: str) -> None:
    steps = 2
    workers = start(2, layout, str(steps))
    outputs = [w.communicate(timeout=120) for w in workers]
    assert [w.returncode for w in workers] == [0, 0], outputs
    results = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    losses, state, _ = train(steps, devices="reference")
    for rank, result in enumerate(results):
        assert result["rank"] == rank and result["device"].startswith("xla:cpu:all")
        np.testing.assert_allclose(result["losses"], losses, rtol=2e-5)
        np.testing.assert_allclose(result["weight"], state["head.weight"], rtol=2e-5, atol=2e-6)


ENDED = "process 1 of 2 has ended its program, and others wait for it in a computation of all processes"


@pytest.mark.parametrize(
    ("last", "told", "codes", "reason"),
    [
        ("exit", ENDED, [1, 3], f"error: distributed: {ENDED}"),
        ("eager", ENDED, [1, 0], f"error: distributed: {ENDED}"),
        ("device", "process 1 of 2 has died or ended early", [1, 1], "call it once, at the start of the program, before any"),
    ],
)
def test_a_program_that_ends_too_soon_leaves_nobody_waiting(last: str, told: str, codes: list[int], reason: str) -> None:
    """Python does not tell at the end of a program whether it was meant (``sys.exit``), and others may be in a step."""
    outputs = [w.communicate(timeout=120) + (w.returncode,) for w in start(2, "replicated", "3", last)]
    assert [code for _, _, code in outputs] == codes, outputs
    assert f"error: distributed: {told}; the job has ended" in outputs[0][1] and reason in outputs[1][1]


def test_without_a_job_there_is_one_process() -> None:
    assert (tw.distributed.rank(), tw.distributed.processes()) == (0, 1)
    with pytest.raises(ArgumentError, match="expected a group of XLA devices"):
        tw.distributed.batch(np.ones(2), "reference")
    assert tw.distributed.batch(np.ones((4, 2), np.float32), "xla:cpu:all").shape == (4, 2)


def test_the_pages_program_runs_in_two_processes(tmp_path: Path) -> None:
    page = (FOLDER.parents[1] / "docs" / "distributed.md").read_text()
    program = next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "initialize" in b)
    command = next(b for b in re.findall(r"```bash\n(.*?)```", page, re.S) if "train.py" in b)
    (tmp_path / "train.py").write_text(program)
    assert "29511" in command and " python " in command
    command = command.replace("29511", free_port()).replace(" python ", f" {sys.executable} ")
    options: dict[str, Any] = {"env": os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}, "timeout": 120}
    run = subprocess.run(["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stderr
    losses = [float(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("loss ")]  # gloo talks too
    alone = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, **options)
    np.testing.assert_allclose(losses, [float(line.split()[1]) for line in alone.stdout.splitlines()], rtol=1e-5)
    assert len(losses) == 3 and (tmp_path / "weights.safetensors").exists()
