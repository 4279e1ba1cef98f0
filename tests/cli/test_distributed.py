"""``twofold train --distributed`` on loopback: the page's commands, killed processes, resuming on fewer and on more, mistakes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofold.base.errors import FormatError
from twofold.train import read_checkpoint

pytest.importorskip("jax")
PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
FAST = "--xla_backend_optimization_level=0"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TWOFOLD_NUM_THREADS": "1",
}  # fmt: skip
TRAIN = ["train", "lenet5", "--data", "digits", "--batch-size", "64"]  # 22 steps an epoch
# relative, after 44 steps: initial weights that differ by one rounding change these losses by up to 3e-5, another order of
# the data by 1e-3
CLOSE = 3e-4


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "twofold", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT | {"XLA_FLAGS": FAST}, **pipes)


def start_job(processes: int, *arguments: Any) -> list[subprocess.Popen[str]]:
    place = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", processes, "--process-id"]
    return [start(*arguments, *place, rank) for rank in range(processes)]


def finish(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    ends = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *end) for process, end in zip(started, ends)]


def page_command(word: str) -> str:
    block = next(b for b in re.findall(r"```bash\n(.*?)```", PAGE, re.S) if word in b and "twofold train" in b)
    command = block.replace("twofold train", f"{sys.executable} -m twofold train").replace("29510", free_port())
    return command.replace("unset XLA_FLAGS", f"export XLA_FLAGS={FAST}").replace("=4\n", f"=4\\ {FAST}\n")


def losses(folder: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["val_loss"]) for row in read_checkpoint(folder / "last.safetensors")[1].history]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """The losses of two epochs on one device, without a break."""
    folder = tmp_path_factory.mktemp("alone")
    ((code, _, err),) = finish([start(*TRAIN, "--epochs", 2, "--device", "xla:cpu", "--output", folder)])
    assert code == 0, err
    return losses(folder)


@pytest.mark.slow
def test_the_pages_commands_four_devices_and_two_processes(alone: Any, tmp_path: Path) -> None:
    for word, folder in (("device_count=4", "devices"), ("--distributed", "processes")):
        run = subprocess.run(
            ["bash", "-c", page_command(word)], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
        assert run.stdout.count("of the validation images right") == 1 and "Gloo" not in run.stdout
        np.testing.assert_allclose(losses(tmp_path / "runs" / folder), alone, rtol=CLOSE, err_msg=folder)


def kill_after(step: int, victim: int, started: list[subprocess.Popen[str]], file: Path) -> list[tuple[int, str, str]]:
    """SIGKILL to one process once the checkpoint holds ``step``; how they ended, all within ten seconds."""
    end = time.monotonic() + 90
    while _step_of(file) < step:
        if time.monotonic() > end or any(p.poll() is not None for p in started):
            pytest.fail(f"no checkpoint of step {step}: {finish(started)}")
        time.sleep(0.02)
    began = time.monotonic()
    started[victim].send_signal(signal.SIGKILL)
    ends = finish(started)
    assert time.monotonic() - began < 10
    assert ends[victim][0] == -signal.SIGKILL
    return ends


def _step_of(file: Path) -> int:
    try:
        return read_checkpoint(file)[1].step
    except FormatError:
        return -1


@pytest.mark.slow
def test_killed_processes_end_the_job_and_any_number_goes_on(alone: Any, tmp_path: Path) -> None:
    """Four processes, two, one and two again, each broken off within an epoch: the losses of an unbroken training."""
    last = tmp_path / "last.safetensors"
    go_on = [*TRAIN, "--epochs", 2, "--checkpoint-every", 0, "--output", tmp_path, "--resume"]
    ends = kill_after(3, 2, start_job(4, *go_on[:-1]), last)
    for rank in (0, 1, 3):
        code, _, err = ends[rank]
        assert code == 1 and "error: distributed: process 2 of 4 has died" in err and "again with --resume" in err
    kept = read_checkpoint(last)[1]
    assert kept.epoch == 0 and 3 <= kept.step < 22 and not list(tmp_path.glob("*.part"))

    ends = kill_after(max(10, kept.step + 2), 0, start_job(2, *go_on), last)
    assert ends[1][0] == 1 and "error: distributed: process 0 of 2 has died" in ends[1][2], ends[1]
    assert "Check failure" not in ends[1][2] and "again with --resume" in ends[1][2]
    kill_after(max(26, read_checkpoint(last)[1].step + 2), 0, [start(*go_on, "--device", "xla:cpu")], last)
    assert read_checkpoint(last)[1].step < 44
    ends = finish(start_job(2, *go_on, "--shard-state"))  # a checkpoint then gathers from both
    assert [code for code, _, _ in ends] == [0, 0], ends
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=CLOSE)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--distributed", "--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"], 1,
         "rank 2 of 2 processes; expected 0 <= rank < processes"),
        (["--distributed", "--num-processes", "2", "--process-id", "0"], 1, "coordinator unknown; give"),
        (["--coordinator", "h:1"], 2, "--coordinator given without --distributed; add it"),
        (["--batch-norm", "none"], 2, "expected synchronised or per_replica"),
    ],
)  # fmt: skip
def test_mistakes(arguments: list[str], code: int, message: str, capsys: Any, tmp_path: Path) -> None:
    from twofold.cli.app import run

    assert run(["train", "--output", str(tmp_path), *arguments]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_processes_that_were_started_differently_are_told() -> None:
    port = free_port()
    place = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes"]
    ends = finish([start(*TRAIN, *place, 2, "--process-id", 0), start(*TRAIN, *place, 3, "--process-id", 1)])
    for code, _, err in ends:
        assert code == 1 and "process 1 was started for 3 processes, process 0 for 2" in err and "Traceback" not in err
