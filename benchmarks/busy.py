"""Measure steps alone and beside other busy processes, for twofold (compiled and eager) and PyTorch in turns.

    python benchmarks/busy.py                                     # a table in Markdown, as in docs/performance.md
    python benchmarks/busy.py --networks lenet5 --modes train8 --busy 0 1 --rounds 3

A busy process is ``while True: pass``. Every library is a process of its own (``rows.py``) whose threads may use all of the
chosen cores; the busy ones may use the same. Each turn goes through all numbers of busy processes and all libraries. Told are
milliseconds a step: the mean of each turn (what a step costs counts, with those that the scheduler has hit), then the median of
the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import inputs
import peers
from rows import MODES, Measured, Settings

NETWORKS = ["lenet5", "resnet18"]
PEERS = ["twofold", "twofold eager", "torch"]
SECONDS = 0.5  # of a turn
SETTLE = 0.3  # after a busy process has started or ended: the system moves threads between cores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--modes", nargs="+", default=["infer1", "train8"], choices=MODES)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    columns = [f"{peer}{f', {k} busy' if k else ''}" for peer in options.peers for k in options.busy]
    print(f"| network | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}", flush=True)
    for network in options.networks:
        for mode in options.modes:
            found = measure(network, mode, options)
            cells = [f"{found[peer, k] * 1e3:.3g}" for peer in options.peers for k in options.busy]
            print(f"| {network} {mode} | {' | '.join(cells)} |", flush=True)


def measure(network: str, mode: str, options: argparse.Namespace) -> dict[tuple[str, int], float]:
    """Seconds a step, by peer and the number of busy processes."""
    kind, batch = MODES[mode]
    batch = 128 if network == "lenet5" and kind == "train" else batch
    settings = Settings(tuple(options.peers), workers={"twofold eager": __file__})
    turns: dict[tuple[str, int], list[float]] = {(p, k): [] for p in options.peers for k in options.busy}
    with tempfile.TemporaryDirectory() as place:
        inputs.write(network, batch, Path(place))
        measured = {name: Measured(name, settings, options.threads) for name in options.peers}
        try:
            for one in measured.values():
                one.load(Path(place), kind, options.threads)
            for _ in range(options.rounds):
                for k in options.busy:
                    with busy(k, options.threads):
                        for name, one in measured.items():
                            turns[name, k].append(turn(one))
        finally:
            for one in measured.values():
                one.peer.close()
    return {key: median(values) for key, values in turns.items()}


def turn(one: Measured) -> float:
    """The mean seconds of a step, of steps for about ``SECONDS``."""
    seconds: list[float] = []
    count = 1
    while one.alive and sum(seconds) < SECONDS:
        seconds += one._run(count)
        count = max(1, min(100_000, int((SECONDS - sum(seconds)) / mean(seconds))))
    if not one.alive:
        sys.exit(f"{one.name}: {one.found['error']}")
    return mean(seconds)


@contextlib.contextmanager
def busy(count: int, cores: int) -> Iterator[None]:
    """So many processes that never wait run meanwhile, on the cores that a peer of as many threads has."""
    chosen = set(sorted(os.sched_getaffinity(0))[:cores]) if hasattr(os, "sched_getaffinity") else None
    pin = (lambda: os.sched_setaffinity(0, chosen)) if chosen else None
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command, preexec_fn=pin) for _ in range(count)]
    try:
        time.sleep(SETTLE)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def eagerly(folder: Path, mode: str, threads: int) -> Any:
    """A step, or inference, that is not compiled."""
    import numpy as np

    import twofold as tw

    if mode == "train":
        return peers.twofold(folder, "eager", threads)
    model = peers.twofold_model(folder).eval()
    x = tw.tensor(np.load(folder / "x.npy"))

    def infer() -> Any:
        with tw.no_grad():
            return model(x).numpy()

    return infer


if __name__ == "__main__":
    if sys.argv[1:] == ["twofold eager"]:
        peers.PEERS["twofold eager"] = eagerly
        peers.MODULE["twofold eager"] = "twofold"
        peers.serve(peers.Worker("twofold eager"))
    else:
        main()
