"""What mixed precision costs and saves: steps in fp32, bf16 and fp16, interleaved, PyTorch's beside ours in the same run.

    python benchmarks/precision.py                                     # the CPU compiler alone
    python benchmarks/precision.py --networks resnet50 --modes train --threads 1,2 --peers "torch channels-last"
    python benchmarks/precision.py --device gpu:0                      # where there is one; see also gpu.py

Each library and precision is a process of its own (``gpu_peers.py``), and one waits while another runs. Prints a Markdown
table: medians of an fp32 step, the speed of the others as a multiple of their own fp32, PyTorch's bf16 time over ours (above
1, twofold is quicker), and the memory of our programs' temporaries.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import inputs
import numpy as np
from gpu_peers import NAMES
from rows import HERE, Peer

OURS, THEIRS = ("fp32", "bf16", "fp16"), ("fp32", "bf16")  # precisions
TURN = 0.3  # seconds of steps in one turn
LIMIT = 600.0  # seconds for an answer: the first step compiles


def times(network: str, mode: str, threads: int, options: argparse.Namespace) -> dict[tuple[str, str], float]:
    """Milliseconds of a step, the median of turns, by library and precision."""
    wanted = [("twofold", p) for p in OURS] + [(name, p) for name in options.peers for p in THEIRS]
    with tempfile.TemporaryDirectory() as folder:
        inputs.write(network, options.batch, Path(folder))
        workers = {key: Peer(key[0], [sys.executable, str(HERE / "gpu_peers.py")], threads) for key in wanted}
        try:
            load: dict[str, Any] = {"do": "load", "folder": folder, "mode": mode, "device": options.device, "first": 1}
            for (_, precision), worker in workers.items():
                worker.ask(LIMIT, **load, precision=precision)
            quick = {key: worker.ask(LIMIT, do="run", steps=1)["seconds"] for key, worker in workers.items()}
            turns: dict[tuple[str, str], list[float]] = {key: [] for key in wanted}
            for _ in range(options.rounds):
                for key, worker in workers.items():
                    steps = max(1, min(200, round(TURN / quick[key])))
                    turns[key].append(worker.ask(LIMIT, do="run", steps=steps)["seconds"])
        finally:
            for worker in workers.values():
                worker.close()
    return {key: 1e3 * median(seconds) for key, seconds in turns.items()}


def temporaries(network: str, mode: str, options: argparse.Namespace) -> str:
    """Memory of what our programs compute on the way, by precision."""
    import peers

    import twofold as tw

    with tempfile.TemporaryDirectory() as folder:
        inputs.write(network, options.batch, Path(folder))
        x, y = (tw.tensor(np.load(Path(folder, name)), device=options.device) for name in ("x.npy", "y.npy"))
        arguments = (x,) if mode == "infer" else (x, y)
        functions = [peers.twofold_function(Path(folder), mode, options.device, precision) for precision in OURS]
        found = [function.memory(*arguments) for function in functions]  # type: ignore[attr-defined]
    return " / ".join(f"{memory.temporaries / 2**20:.0f}" if memory else "-" for memory in found)


def row(network: str, mode: str, threads: int, options: argparse.Namespace) -> str:
    """One row of the table."""
    found = times(network, mode, threads, options)
    cells = [f"{network}, {mode}, {threads}"]
    for name, precisions in [("twofold", OURS), *((name, THEIRS) for name in options.peers)]:
        whole = found[name, "fp32"]
        cells += [f"{whole:.4g} ms", *(f"{whole / found[name, low]:.2f}" for low in precisions[1:])]
    cells += [f"{found[name, 'bf16'] / found['twofold', 'bf16']:.2f}" for name in options.peers]
    return f"| {' | '.join([*cells, temporaries(network, mode, options)])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "vgg16"])
    parser.add_argument("--modes", nargs="+", default=["train", "infer"], choices=["train", "infer"])
    parser.add_argument("--threads", default=str(os.cpu_count()), help="numbers of threads, with commas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peers", nargs="*", default=[], choices=NAMES[1:])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    heads = [f"network, what, threads (batch {options.batch})", "fp32", "bf16", "fp16"]
    heads += [f"{name}, {p}" for name in options.peers for p in THEIRS] + [f"{name} / ours, bf16" for name in options.peers]
    print(f"| {' | '.join([*heads, 'temporaries, MiB'])} |\n{'|---' * (len(heads) + 1)}|")
    for threads, mode, network in product(map(int, options.threads.split(",")), options.modes, options.networks):
        print(row(network, mode, threads, options), flush=True)


if __name__ == "__main__":
    main()
