"""One row of the comparison: a network, a mode and a number of threads, measured with every peer.

Whatever a peer does (it ends, hangs, answers nonsense, computes something else), the row is finished: that peer's entry has
an ``error`` with the reason, and what it measured is not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import inputs
import numpy as np
import speed

HERE = Path(__file__).parent
NETWORKS = [
    "lenet5", "alexnet", "vgg16", "googlenet", "squeezenet1_1", "resnet18", "resnet50", "densenet121",
    "resnext50_32x4d", "wide_resnet50_2",
]  # fmt: skip
MODES = {"infer1": ("infer", 1), "infer8": ("infer", 8), "train8": ("train", 8)}
TRAINING = ["torch", "torch channels-last", "torch.compile", "jax", "tensorflow"]
INFERENCE = ["onnxruntime", "openvino", "ncnn", *TRAINING]
TOLERANCE = {"infer": 2e-3, "train": 1e-4}  # of the largest logit; of the first loss
# How far what steps take off the loss may differ, beyond 1e-4 of the loss. Rounding flips ReLUs: at its first step ResNet-50's
# float32 gradients err by 2 to 3 % in every library (against float64), the third loss's change then by 1 to 7 %.
# Without momentum that would be 45 % off.
LEARNED = 0.15
TURN_SECONDS = 0.2  # of steps in one turn
MOST_STEPS = 200  # in one turn
PAUSE = 0.05  # between turns: threads of the last peer that still spin go to sleep


@dataclass(frozen=True)
class Settings:
    """How rows are measured. Limits are in seconds, also a row's ``budget``: slow peers may have fewer rounds, at least 2."""

    peers: tuple[str, ...]
    rounds: int = 7
    load_limit: float = 180.0
    step_limit: float = 60.0
    budget: float | None = None
    pythons: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)  # scripts of peers that ``peers.py`` does not know


class PeerError(Exception):
    """Why a peer has no result."""


class Peer:
    """A worker process; ``ask`` raises PeerError, after which the process is gone."""

    def __init__(self, name: str, command: list[str], threads: int):
        environment = dict(os.environ)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TWOFOLD_NUM_THREADS"):
            environment[variable] = str(threads)
        cores = set(sorted(os.sched_getaffinity(0))[:threads]) if hasattr(os, "sched_getaffinity") else None
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        self.name, self._said, self._complaints = name, b"", tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, env=environment,
            preexec_fn=pin, start_new_session=True,
        )  # fmt: skip

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The answer, within ``limit`` seconds."""
        try:
            answer = json.loads(self._line(limit, (json.dumps(request) + "\n").encode()))
            if not isinstance(answer, dict):
                raise PeerError(f"answered {str(answer)[:80]!r} instead of an object")
            if "error" in answer:
                raise PeerError(answer["error"])
        except ValueError as error:
            self.close()
            raise PeerError(f"did not answer in JSON: {error}") from error
        except PeerError:
            self.close()
            raise
        return answer

    def _line(self, limit: float, question: bytes) -> bytes:
        assert self.process.stdin and self.process.stdout
        until = time.monotonic() + limit
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(question)
            self.process.stdin.flush()
        while b"\n" not in self._said:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise PeerError(f"no answer within {limit:.0f} s (to {json.loads(question)['do']})")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise PeerError(self._ending())
            self._said += part
        line, self._said = self._said.split(b"\n", 1)
        return line

    def _ending(self) -> str:
        code = self.process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return how + (f": {lines[-1][:200]}" if lines else "")

    def close(self) -> None:
        """End the process and what it started."""
        if self._complaints.closed:
            return
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._complaints):
            with contextlib.suppress(OSError):
                stream.close()


class Measured:
    """A peer within a row: its process and its entry. After an error it takes no further part."""

    def __init__(self, name: str, settings: Settings, threads: int):
        script = settings.workers.get(name, str(HERE / "peers.py"))
        self.name, self.settings, self.found = name, settings, dict[str, Any]()
        self.seconds: list[float] = []
        self.step = 0.0
        self.peer = Peer(name, [settings.pythons.get(name, sys.executable), script], threads)

    @property
    def alive(self) -> bool:
        return "error" not in self.found

    def load(self, folder: Path, kind: str, threads: int) -> None:
        """Load, the first step, two to warm up; from there on the peak of memory is that of steps."""
        self._ask(self.settings.load_limit, do="load", folder=str(folder), mode=kind, threads=threads)
        warm = [self._run(1) for _ in range(2)]
        self.step = min((s[0] for s in warm if s), default=0.0)
        self._ask(self.settings.step_limit, do="settle")

    @property
    def steps(self) -> int:
        """Steps in one turn."""
        return max(1, min(MOST_STEPS, int(TURN_SECONDS / max(self.step, 1e-6))))

    @property
    def turn(self) -> float:
        """Seconds that a turn takes."""
        return self.steps * self.step + PAUSE

    def take_turn(self) -> None:
        self.seconds += self._run(self.steps)

    def finish(self) -> None:
        self._ask(self.settings.step_limit, do="output")
        self.peer.close()
        if self.seconds and self.alive:
            self.found["ms"] = median(self.seconds) * 1e3
            self.found["quartiles_ms"] = [float(q) * 1e3 for q in np.quantile(self.seconds, [0.25, 0.75])]
            self.found["steps"] = len(self.seconds)

    def _run(self, steps: int) -> list[float]:
        answer = self._ask(self.settings.step_limit, do="run", steps=steps)
        seconds = answer.get("seconds")
        if self.alive and not (isinstance(seconds, list) and len(seconds) == steps):
            self.found["error"] = f"answered {str(answer)[:80]} instead of {steps} times"
        return seconds if self.alive and seconds else []

    def _ask(self, limit: float, **request: Any) -> dict[str, Any]:
        if not self.alive:
            return {}
        try:
            answer = self.peer.ask(limit, **request)
        except PeerError as error:
            self.found["error"] = str(error)
            return {}
        if request["do"] != "run":
            self.found.update(answer)
        return answer


def measure(network: str, mode: str, threads: int, settings: Settings) -> dict[str, Any]:
    """One row, as it stands in the results."""
    begun = time.monotonic()
    kind, batch = MODES[mode]
    if network == "lenet5" and kind == "train":
        batch = 128
    wanted = [p for p in settings.peers if p in (INFERENCE if kind == "infer" else TRAINING) or p in settings.workers]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs.write(network, batch, folder)
        peers = [Measured(name, settings, threads) for name in ["twofold", *wanted]]
        try:
            for peer in peers:
                peer.load(folder, kind, threads)
            left = None if settings.budget is None else settings.budget - (time.monotonic() - begun)
            counts = share({p.name: p.turn for p in peers if p.alive}, settings.rounds, left)
            samples = []
            for k in range(settings.rounds):
                time.sleep(PAUSE)
                samples.append(speed.now(threads))
                for peer in peers:
                    n = counts.get(peer.name, 0)
                    if peer.alive and (k + 1) * n // settings.rounds > k * n // settings.rounds:  # evenly over the rounds
                        time.sleep(PAUSE)
                        peer.take_turn()
            for peer in peers:
                peer.finish()
        finally:
            for peer in peers:
                peer.peer.close()
        entries = {p.name: p.found | ({"rounds": counts[p.name]} if p.name in counts else {}) for p in peers}
        check(entries, kind)
    return {
        "network": network, "mode": mode, "batch": batch, "threads": threads, "peers": entries,
        "speed": speed.during(samples), "took_s": time.monotonic() - begun,
    }  # fmt: skip


def share(turns: dict[str, float], rounds: int, seconds: float | None) -> dict[str, int]:
    """How many rounds each peer takes part in, so that all fit into ``seconds`` if two each do; the costliest give way."""
    counts = dict.fromkeys(turns, rounds)
    while seconds is not None and sum(counts[p] * turns[p] for p in turns) > seconds:
        costly = [p for p in turns if counts[p] > 2]
        if not costly:
            break
        counts[max(costly, key=lambda p: counts[p] * turns[p])] -= 1
    return counts


def check(peers: dict[str, dict[str, Any]], kind: str) -> None:
    """Every peer's first results against ours; a peer that differs is marked and not counted."""
    outputs = {name: found for name, found in ((n, _output(p)) for n, p in peers.items()) if found is not None}
    ours = outputs.get("twofold")
    for name, output in outputs.items():
        if not np.isfinite(output).all():
            peers[name]["error"] = "its results are not finite"
        elif ours is not None and name != "twofold" and np.isfinite(ours).all():
            gaps = compare(output, ours, kind)
            peers[name].update(gaps)
            if "error" not in gaps and not gaps["gap"] < TOLERANCE[kind]:
                what = "results differ by {:.1e} of the largest value" if kind == "infer" else "first loss differs by {:.1e}"
                peers[name]["error"] = "its " + what.format(gaps["gap"])
            elif gaps.get("learned", 0.0) > LEARNED:
                peers[name]["error"] = f"what three steps take off the loss differs by {gaps['learned']:.1%}"


def compare(output: np.ndarray, ours: np.ndarray, kind: str) -> dict[str, Any]:
    """``gap``: of logits over the largest, of the first loss. ``learned``: how far the losses' changes differ from ours."""
    if output.size != ours.size:
        return {"error": f"its results have shape {output.shape}, ours {ours.shape}"}
    output, ours = (np.asarray(a, np.float64).reshape(-1) for a in (output, ours))
    largest = max(1e-6, np.abs(ours).max())
    compared = slice(1) if kind == "train" else slice(None)
    gaps = {"gap": float(np.abs(output - ours)[compared].max() / largest)}
    if kind == "train":
        change, other = np.diff(ours), np.diff(output)
        beyond = np.maximum(0.0, np.abs(other - change) - 1e-4 * largest)
        gaps["learned"] = float(beyond.max() / max(np.abs(change).max(), 1e-9))
    return gaps


def _output(found: dict[str, Any]) -> np.ndarray | None:
    """The results a peer has written; None if it has none."""
    path = found.pop("output", None)
    if path is None or "error" in found:
        return None
    try:
        return np.load(path)
    except (OSError, ValueError) as error:
        found["error"] = f"its results cannot be read: {error}"
        return None
