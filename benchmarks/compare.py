"""Measure twofold against other libraries: same machine, same run, same threads, interleaved, outputs checked.

    python benchmarks/compare.py                                   # everything; results.json, then docs/performance.md
    python benchmarks/compare.py --networks resnet18 --modes infer1 train8 --threads 2 --rounds 3 --no-docs
    python benchmarks/compare.py --python tensorflow=../other-venv/bin/python  # a peer's own interpreter
    python benchmarks/compare.py --render --results results.json               # tables and chart once more

Each peer is a process of its own (``peers.py``) that sleeps while another runs. A row is (network, mode, threads): the
weights and the input (random, never zeros) are written once, every peer loads and warms up, then rounds go through all
peers in turn. Reported are medians and the ratio of the best peer's median to ours. Rows are appended to the results file
as they finish, so an interrupted run loses nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
NETWORKS = [
    "lenet5", "alexnet", "vgg16", "googlenet", "squeezenet1_1", "resnet18", "resnet50", "densenet121",
    "resnext50_32x4d", "wide_resnet50_2",
]  # fmt: skip
MODES = {"infer1": ("infer", 1), "infer8": ("infer", 8), "train8": ("train", 8)}
TRAINING = ["torch", "torch channels-last", "torch.compile", "jax", "tensorflow"]
INFERENCE = ["onnxruntime", "openvino", "ncnn", *TRAINING]
TOLERANCE = 2e-3  # of the largest logit; of the loss: Winograd against direct, deep networks
LEAST_SECONDS = 0.2  # of steps in one turn


class Peer:
    """A worker process."""

    def __init__(self, name: str, python: str, threads: int):
        environment = dict(os.environ)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TWOFOLD_NUM_THREADS"):
            environment[variable] = str(threads)
        cores = set(sorted(os.sched_getaffinity(0))[:threads]) if hasattr(os, "sched_getaffinity") else None
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        self.name = name
        self.process = subprocess.Popen(
            [python, str(HERE / "peers.py"), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment, preexec_fn=pin,
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": f"{self.name} ended (code {self.process.poll()})"}

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def write_inputs(network: str, batch: int, folder: Path) -> None:
    """The model with random weights (as ONNX and safetensors), images and labels."""
    import twofold as tw

    tw.random.seed(0)
    entry, model = tw.zoo.info(network), tw.zoo.create(network)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *entry.input_shape)).astype(np.float32)
    calibrate(model, tw.tensor(x))
    model.eval()
    with tw.no_grad():
        classes = int(model(tw.tensor(x[:1])).shape[-1])
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", rng.integers(0, classes, batch))
    (folder / "meta.json").write_text(json.dumps({"network": network}))
    tw.save_weights(model, folder / "model.safetensors")
    tw.export(model, (tw.tensor(x),), str(folder / "model.onnx"), dynamic_batch=False)
    tw.export(model, (tw.tensor(x[:1]),), str(folder / "single.onnx"), dynamic_batch=False)


def calibrate(model: Any, x: Any) -> None:
    """Give batch norms the statistics of these images: with those of a fresh network activations can vanish, and
    arithmetic on denormal numbers would be measured."""
    import twofold as tw

    norms = [m for m in model.modules() if type(m).__name__.startswith("BatchNorm")]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    model.train()
    with tw.no_grad():
        model(x)
    for m, momentum in zip(norms, before):
        m.momentum = momentum


def measure(network: str, mode: str, threads: int, peers: list[str], pythons: dict[str, str], rounds: int) -> dict:
    """One row."""
    kind, batch = MODES[mode]
    if network == "lenet5" and mode == "train8":
        batch = 128
    row: dict[str, Any] = {"network": network, "mode": mode, "batch": batch, "threads": threads, "peers": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(network, batch, folder)
        wanted = [p for p in (INFERENCE if kind == "infer" else TRAINING) if p in peers]
        workers = [Peer(name, pythons.get(name, sys.executable), threads) for name in ["twofold", *wanted]]
        steps = {}
        for worker in workers:
            row["peers"][worker.name] = found = worker.ask(do="load", folder=str(folder), mode=kind, threads=threads)
            if "error" not in found:
                warm = worker.ask(do="run", steps=2)["seconds"]
                steps[worker.name] = max(1, min(200, int(LEAST_SECONDS / min(warm))))
                found["seconds"] = []
        for _ in range(rounds):
            for worker in workers:
                if worker.name in steps:
                    answer = worker.ask(do="run", steps=steps[worker.name])
                    row["peers"][worker.name]["seconds"] += answer.get("seconds", [])
        for worker in workers:
            if worker.name in steps:
                row["peers"][worker.name].update(worker.ask(do="output"))
        check(row["peers"])
        for worker in workers:
            worker.close()
    for found in row["peers"].values():
        if seconds := found.pop("seconds", None):
            found["ms"] = median(seconds) * 1e3
            found["quartiles_ms"] = [float(q) * 1e3 for q in np.quantile(seconds, [0.25, 0.75])]
    return row


def check(peers: dict[str, dict]) -> None:
    """Every peer's first result against ours; a peer that differs is marked and not counted."""
    outputs = {name: np.load(found.pop("output")) for name, found in peers.items() if "output" in found}
    if "twofold" not in outputs:
        return
    largest = max(1e-6, np.abs(outputs["twofold"]).max())
    for name, output in outputs.items():
        peers[name]["gap"] = gap = float(np.abs(output - outputs["twofold"]).max() / largest)
        if not gap < TOLERANCE:
            peers[name]["error"] = f"its result differs by {gap:.1e} of the largest value"


def best_peer(row: dict) -> tuple[str, float] | None:
    """The quickest other library with a right result."""
    known = [(p["ms"], n) for n, p in row["peers"].items() if n != "twofold" and "ms" in p and "error" not in p]
    return (min(known)[1], min(known)[0]) if known else None


def table(rows: list[dict]) -> str:
    """Markdown: a table for each mode and number of threads, and geometric means."""
    parts = []
    for mode in MODES:
        for threads in sorted({r["threads"] for r in rows}, reverse=True):
            chosen = [r for r in rows if r["mode"] == mode and r["threads"] == threads]
            if chosen:
                parts.append(_table(f"{mode}, {threads} thread{'s' * (threads > 1)}", chosen))
    return "\n\n".join(parts)


def costs(rows: list[dict]) -> str:
    """Markdown: what else a library costs: its import, the first step (compilation included), the most memory."""
    lines = ["### Seconds to import, seconds to the first step, most memory in MiB", ""]
    chosen = [r for r in rows if r["threads"] == max(q["threads"] for q in rows)]
    names = list(dict.fromkeys(n for r in chosen for n in r["peers"]))
    lines += [f"| network | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in chosen:
        cells = [_costs(row["peers"].get(n)) for n in names]
        lines.append(f"| {row['network']} {row['mode']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _costs(found: dict | None) -> str:
    if not found or "ms" not in found or "error" in found:
        return "-"
    return f"{found['import']:.1f}, {found['first']:.1f}, {found.get('peak_mib') or math.nan:.0f}"


def _table(title: str, rows: list[dict]) -> str:
    names = list(dict.fromkeys(n for r in rows for n in r["peers"]))
    header = ["network", *names, "best peer / twofold"]
    lines = [f"### {title} (ms a step)", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    ratios = []
    for row in rows:
        cells = [_cell(row["peers"].get(n)) for n in names]
        best, ours = best_peer(row), row["peers"]["twofold"].get("ms")
        ratio = best[1] / ours if best and ours else None
        ratios += [ratio] if ratio else []
        batch = f" ({row['batch']})" if row["network"] == "lenet5" else ""
        shown = f"**{ratio:.2f}** ({best[0]})" if ratio and best else "-"
        lines.append(f"| {row['network']}{batch} | {' | '.join(cells)} | {shown} |")
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"| geometric mean | {' | '.join('' for _ in names)} | **{mean:.2f}** (least {min(ratios):.2f}) |")
    return "\n".join(lines)


def _cell(found: dict | None) -> str:
    if not found or "ms" not in found or "error" in found:
        return "-"
    return f"{found['ms']:.3g}" if found["ms"] < 1000 else f"{found['ms']:.0f}"


def chart(rows: list[dict], path: Path) -> None:
    """Bars: the best peer's time over ours, a group for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    threads = max(r["threads"] for r in rows)
    networks = [n for n in NETWORKS if any(r["network"] == n for r in rows)]
    figure, axes = plt.subplots(figsize=(11, 4.2))
    for k, mode in enumerate(MODES):
        heights = []
        for name in networks:
            row = next((r for r in rows if (r["network"], r["mode"], r["threads"]) == (name, mode, threads)), None)
            best = best_peer(row) if row else None
            ours = row["peers"]["twofold"].get("ms") if row else None
            heights.append(best[1] / ours if best and ours else 0.0)
        axes.bar(np.arange(len(networks)) + (k - 1) * 0.27, heights, 0.25, label=mode)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(networks)), networks, rotation=25, ha="right")
    axes.set_ylabel("best peer's time / twofold's")
    axes.set_title(f"Above 1: twofold is quicker than the quickest other library ({threads} threads)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write_docs(rows: list[dict]) -> None:
    """The tables between the markers of docs/performance.md, and the chart."""
    docs = HERE.parent / "docs"
    (docs / "images").mkdir(exist_ok=True)
    chart(rows, docs / "images" / "performance.png")
    versions = {n: p["version"] for r in rows for n, p in r["peers"].items() if "version" in p}
    about = f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}; " + ", ".join(
        f"{n} {v}" for n, v in versions.items()
    )
    page = (docs / "performance.md").read_text()
    before, rest = page.split("<!-- results -->")
    after = rest.split("<!-- end of results -->")[1]
    middle = f"<!-- results -->\n{about}.\n\n{table(rows)}\n\n{costs(rows)}\n<!-- end of results -->"
    (docs / "performance.md").write_text(before + middle + after)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--peers", nargs="+", default=sorted({*INFERENCE, *TRAINING}))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="a peer's own interpreter")
    parser.add_argument("--results", type=Path, default=Path("results.json"), help="rows, one JSON object a line")
    parser.add_argument("--no-docs", action="store_true")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the docs from --results")
    options = parser.parse_args()
    if not options.render:
        run(options)
    if options.render or not options.no_docs:
        rows = {(r["network"], r["mode"], r["threads"]): r for r in map(json.loads, options.results.open())}
        order = {key: i for i, key in enumerate((n, m) for m in MODES for n in NETWORKS)}
        write_docs(sorted(rows.values(), key=lambda r: order[r["network"], r["mode"]]))


def run(options: argparse.Namespace) -> None:
    """Measure, appending each row to the results as it is there."""
    pythons = dict(item.split("=", 1) for item in options.python)
    for threads in options.threads:
        for mode in options.modes:
            for network in options.networks:
                row = measure(network, mode, threads, options.peers, pythons, options.rounds)
                with options.results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                best, ours = best_peer(row), row["peers"]["twofold"]
                text = {
                    n: round(p["ms"], 3) if "ms" in p else p.get("error", "?")[:60] for n, p in row["peers"].items()
                }
                ratio = f"{best[1] / ours['ms']:.2f}" if best and "ms" in ours else "-"
                print(f"{network:18} {mode} {threads}t  ratio {ratio}  {text}", flush=True)


if __name__ == "__main__":
    main()
