"""Measure eager training steps, op by op without ``tw.compile``, against PyTorch eager, in both of its layouts.

    python benchmarks/eager.py                                             # eager.json, then docs/performance.md
    python benchmarks/eager.py --networks resnet18 --threads 2 --no-docs
    python benchmarks/eager.py --profile resnet18                          # where the step's time goes, by op

A step is forward, cross-entropy, backward and SGD with momentum; processes, turns, checks and medians are ``rows.py``'s, for
which this file is also the worker that stands for twofold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare
import inputs
import peers
import tables
from rows import HERE, Settings

NETWORKS = ["resnet18", "lenet5", "squeezenet1_1", "resnet50"]
SETTINGS = Settings(("torch", "torch channels-last"), workers={"twofold": __file__})


def main() -> None:
    """Measure, or profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each peer in a row")
    parser.add_argument("--results", type=Path, default=Path("eager.json"), help="rows, one JSON object a line")
    parser.add_argument("--no-docs", action="store_true")
    parser.add_argument("--profile", metavar="NETWORK", help="print seconds by op instead")
    options = parser.parse_args()
    if options.profile:
        profile(options.profile)
        return
    keys = [compare.Key(network, "train8", threads) for threads in options.threads for network in options.networks]
    running = compare.Run(replace(SETTINGS, rounds=options.rounds), options.results, None)
    running.measure(keys)
    running.measure_again()
    if not options.no_docs:
        rows = sorted(compare.read(options.results).values(), key=lambda r: NETWORKS.index(r["network"]))
        page = HERE.parent / "docs" / "performance.md"
        tables.insert(page, "eager", [tables.about(rows), tables.tables(rows), tables.gaps(rows)])


def profile(network: str, steps: int = 3) -> None:
    """Seconds of each op and each shape in a step, by the clock around the backend's call; the rest is Python's."""
    batch = 128 if network == "lenet5" else 8
    with tempfile.TemporaryDirectory() as place:
        inputs.write(network, batch, Path(place))
        step = peers.twofold(Path(place), "eager", 0)
        for _ in range(4):  # programs are made for what comes again
            step()
        spent = timed_ops()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        total = time.perf_counter() - start
    print(f"{total / steps * 1e3:.1f} ms a step, {sum(s for s, _ in spent.values()) / steps * 1e3:.1f} in ops")
    for key, (seconds, calls) in sorted(spent.items(), key=lambda item: -item[1][0])[:40]:
        print(f"{seconds / steps * 1e3:8.2f} ms {calls / steps:6.0f} calls  {key}")


def timed_ops() -> dict[str, list[float]]:
    """Has every eager op on the CPU timed from now on: (op, compiled or not, the result's shape) -> seconds, calls."""
    from twofold.backends.cpu.backend import BACKEND

    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    run = BACKEND.run

    def timed(op: Any, buffers: Any, attrs: Any, specs: Any, device: Any) -> Any:
        start = time.perf_counter()
        out = run(op, buffers, attrs, specs, device)
        row = spent[f"{op.name} {' '.join(str(b.shape) for b in buffers)} -> {specs[0]}"]
        row[0] += time.perf_counter() - start
        row[1] += 1
        return out

    BACKEND.run = timed  # type: ignore[method-assign]
    graph = BACKEND.run_graph

    def timed_graph(of: Any, buffers: Any, device: Any) -> Any:
        start = time.perf_counter()
        out = graph(of, buffers, device)
        row = spent[f"{of.name} {' '.join(str(b.shape) for b in buffers)} -> {' '.join(str(v.spec) for v in of.outputs)}"]
        row[0] += time.perf_counter() - start
        row[1] += 1
        return out

    BACKEND.run_graph = timed_graph  # type: ignore[assignment, method-assign]
    return spent


def eagerly(folder: Path, mode: str, threads: int) -> peers.Step:
    """The step that is measured."""
    return peers.twofold(folder, "eager", threads)


if __name__ == "__main__":
    if sys.argv[1:] == ["twofold"]:
        peers.PEERS["twofold"] = eagerly
        peers.serve(peers.Worker("twofold"))
    else:
        main()
