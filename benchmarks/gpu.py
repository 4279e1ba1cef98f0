"""Measure twofold against PyTorch on a GPU: same networks, weights and images, interleaved, outputs checked.

    pip install -e '.[gpu,test]' && pip install torch              # or torch in another environment: --python torch=PATH
    python benchmarks/gpu.py --write                               # everything, into docs/gpu-evidence.md
    python benchmarks/gpu.py --networks resnet50 --modes train --precisions bf16 --batch 128
    python benchmarks/gpu.py --device xla:cpu --networks lenet5 --batch 4 --rounds 2    # dry: does it run? no evidence

Each library is a process of its own (``gpu_peers.py``); all of them lie on the GPU at once, and one waits while another
runs. A turn is some steps, begun one after another as a training does, the last one waited for. Reported are medians of
turns, and PyTorch's best median over ours: above 1, twofold is quicker. Precisions:

    fp32   products in float32 (TWOFOLD_TF32=0; allow_tf32 = False for cuDNN and cuBLAS)
    tf32   products in TF32 (TWOFOLD_TF32=1; allow_tf32 = True for both)
    bf16   precision="bf16"; torch.autocast(dtype=torch.bfloat16): products in bfloat16, parameters in float32

Rows are appended to the results as they finish, and a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import inputs
import numpy as np
from gpu_peers import NAMES
from rows import HERE, Peer, PeerError
from tables import processor

NETWORKS = ("resnet50", "vgg16", "densenet121", "googlenet", "squeezenet1_1")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu-evidence.md"
BEGIN, END = "<!-- measured: benchmarks/gpu.py -->", "<!-- end of measured -->"
MODES, TORCH = ("train", "infer"), NAMES[1:]
# how far results may lie apart, of the largest; and how far the losses of a training may, of what the first steps move them
TOLERANCE = {"fp32": 2e-3, "tf32": 2e-2, "bf16": 6e-2}
MOVED = {"fp32": 0.02, "tf32": 0.1, "bf16": 0.25}
TURN = 1.0  # seconds of steps in one turn
LIMIT = 900.0  # seconds for an answer: the first step may compile and try algorithms
Row = dict[str, Any]


def ask(worker: Peer, found: Row, **request: Any) -> Row:
    """The answer of a library that has had no error; one that has its reason in ``found``."""
    if "error" in found:
        return {}
    try:
        return worker.ask(LIMIT, **request)
    except PeerError as error:
        found["error"] = str(error)
        return {}


def turns(workers: list[Peer], peers: dict[str, Row], rounds: int, turn: float) -> None:
    """Every library in turn, ``rounds`` times; how many steps a turn has is found in a turn that is not counted."""
    quick = {w: ask(w, peers[w.name], do="run", steps=2).get("seconds", turn) for w in workers}
    for _ in range(rounds):
        for worker, seconds in quick.items():
            steps = max(1, min(1000, round(turn / seconds)))
            if answer := ask(worker, peers[worker.name], do="run", steps=steps):
                peers[worker.name].setdefault("turns", []).append(answer["seconds"])


def measure(network: str, mode: str, precision: str, options: argparse.Namespace) -> Row:
    """One row."""
    pythons = dict(item.split("=", 1) for item in options.python)
    names = ["twofold", *options.peers]
    peers: dict[str, Row] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as place:
        inputs.write(network, options.batch, Path(place))
        interpreters = [pythons.get(n) or pythons.get(n.split()[0].split(".")[0], sys.executable) for n in names]
        command = [[python, str(HERE / "gpu_peers.py")] for python in interpreters]
        workers = [Peer(name, how, os.cpu_count() or 1) for name, how in zip(names, command)]
        try:
            load: Row = {"do": "load", "folder": place, "mode": mode, "device": options.device, "precision": precision}
            for w in workers:
                peers[w.name].update(ask(w, peers[w.name], **load))
            turns(workers, peers, options.rounds, options.turn)
            for w in workers:
                peers[w.name].update(ask(w, peers[w.name], do="output", path=str(Path(place, f"{w.name}.npy"))))
            check(peers, TOLERANCE[precision], MOVED[precision] if mode == "train" else None)
        finally:
            for w in workers:
                w.close()
    for found in peers.values():
        if seconds := found.pop("turns", None):
            found["ms"], found["range_ms"] = 1e3 * median(seconds), [1e3 * min(seconds), 1e3 * max(seconds)]
    return {
        "network": network, "mode": mode, "precision": precision, "batch": options.batch, "device": options.device,
        "machine": machine(), "peers": peers,
    }  # fmt: skip


def check(peers: dict[str, Row], tolerance: float, moved: float | None) -> None:
    """Every library's first results against ours; one that differs, or is not finite, is an error and does not count.

    ``moved``: of a training, where results are losses; their changes must agree too, or gradients might be anything.
    """
    results = {name: np.load(found.pop("output")) for name, found in peers.items() if "output" in found}
    ours = results.get("twofold")
    for name, result in results.items():
        if not np.isfinite(result).all():
            peers[name]["error"] = "its results are not finite"
        elif ours is not None and np.isfinite(ours).all():
            peers[name]["gap"] = gap = apart(result, ours)
            if gap > tolerance:
                peers[name]["error"] = f"its results lie {gap:.1e} of the largest from twofold's"
            elif moved is not None:
                peers[name]["gap of changes"] = gap = apart(result[1:] - result[0], ours[1:] - ours[0])
                if gap > moved:
                    peers[name]["error"] = (
                        f"its losses change otherwise than twofold's, by {gap:.1e} of the largest change"
                    )


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, as a part of the largest number of ``b``."""
    return float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else math.inf


def machine() -> str:
    """The GPU and its driver, else the processor."""
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        said = subprocess.run(ask, capture_output=True, text=True)
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.splitlines()[0].replace(", ", ", driver ")
    return processor()


def ratio(row: Row) -> float | None:
    """The time of PyTorch's quickest way, of those with right results, over ours."""
    usable = {n: p["ms"] for n, p in row["peers"].items() if "ms" in p and "error" not in p}
    others = [ms for name, ms in usable.items() if name != "twofold"]
    return min(others) / usable["twofold"] if others and "twofold" in usable else None


def _cell(found: Row | None) -> str:
    if found is None:
        return "-"
    if "error" in found or "ms" not in found:
        return f"error: {found.get('error', 'no time')[:80]}".replace("|", "/").replace("\n", " ")
    memory = found["memory"] or found["host_memory"]
    return f"{found['ms']:.4g} ms" + (f", {memory / 1e6:,.0f} MB" if memory else "")


def table(rows: list[Row]) -> str:
    """Markdown: a row for each network, mode and precision: time of a step, most memory, and the ratio."""
    names = list(dict.fromkeys(n for row in rows for n in row["peers"]))
    lines = [f"| network, batch | what | precision | {' | '.join(names)} | PyTorch's best / twofold |"]
    lines += ["|---" * (len(names) + 4) + "|"]
    for row in rows:
        quicker = ratio(row)
        cells = " | ".join(_cell(row["peers"].get(name)) for name in names)
        last = f"**{quicker:.2f}**" if quicker else "-"
        lines.append(f"| {row['network']}, {row['batch']} | {row['mode']} | {row['precision']} | {cells} | {last} |")
    ratios = [r for r in map(ratio, rows) if r]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"| geometric mean |{' |' * (len(names) + 2)} **{mean:.2f}** (least {min(ratios):.2f}) |")
    return "\n".join(lines)


def about(rows: list[Row]) -> str:
    """Where the rows come from."""
    versions = {name.split()[0]: p["version"] for row in rows for name, p in row["peers"].items() if "version" in p}
    where = ", ".join(sorted({f"{row['machine']} ({row['device']})" for row in rows}))
    return f"{where}; {', '.join(f'{n} {v}' for n, v in versions.items())}."


def write(rows: list[Row]) -> None:
    """The table between its markers on the page; only what ran on a GPU is evidence."""
    if any(not row["device"].startswith(("gpu", "cuda")) for row in rows):
        raise SystemExit("only rows of a GPU go into the docs: run without --write, or with --device gpu:0")
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{about(rows)}\n\n{table(rows)}\n{END}{after}")


def key(row: Row) -> tuple[Any, ...]:
    """What a row measures."""
    return tuple(row[name] for name in ("network", "mode", "precision", "batch", "device"))


def main() -> None:
    """Measure what is not in the results yet, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="gpu:0", help="twofold's name of it")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--precisions", nargs="+", default=list(TOLERANCE), choices=list(TOLERANCE))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peers", nargs="*", default=TORCH, choices=TORCH)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn", type=float, default=TURN, metavar="SECONDS", help="how long a turn is")
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="a library's own interpreter")
    parser.add_argument("--results", type=Path, default=Path("gpu-results.json"), help="rows, one JSON object a line")
    parser.add_argument("--write", action="store_true", help="write the table into docs/gpu-evidence.md")
    options = parser.parse_args()
    known = {}
    if options.results.exists():
        known = {key(row): row for row in map(json.loads, options.results.read_text().splitlines())}
    rows = []
    for network, mode, precision in product(options.networks, options.modes, options.precisions):
        row = known.get((network, mode, precision, options.batch, options.device))
        if row is None:
            row = measure(network, mode, precision, options)
            with options.results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        rows.append(row)
        print(table([row]).splitlines()[2], flush=True)
    print(f"\n{about(rows)}\n\n{table(rows)}")
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
