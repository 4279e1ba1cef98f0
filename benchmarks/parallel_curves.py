"""The same training on one device, four devices, two and four processes, and begun on two and ended on one: loss curves
side by side, written into docs/distributed.md (``python benchmarks/parallel_curves.py --write``)."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import twofold as tw
from twofold import data as datasets
from twofold.base.figures import new_figure, save
from twofold.train import Reporter, read_checkpoint
from twofold.train.task import build_model, build_optimizer, build_schedule, loader, prepare, settings_for

PAGE = Path(__file__).resolve().parents[1] / "docs" / "distributed.md"
PICTURE = PAGE.parent / "images" / "parallel_curves.png"
BEGIN, END = "<!-- curves: benchmarks/parallel_curves.py -->", "<!-- end of curves -->"
COMMAND = ("train", "lenet5", "--data", "digits", "--batch-size", "64")
# name -> stages: (when it ends, as a part of all epochs: before the last it is killed; processes; devices of each)
RUNS: dict[str, list[tuple[float, int, int]]] = {
    "one device": [(1.0, 1, 1)],
    "four devices": [(1.0, 1, 4)],
    "two processes": [(1.0, 2, 1)],
    "four processes": [(1.0, 4, 1)],
    "two processes, then one": [(0.5, 2, 1), (1.0, 1, 1)],
}


def train(folder: Path, epochs: int, until: int, processes: int, devices: int, resume: bool) -> None:
    """One stage of a training, in as many processes: to its end, or killed after the epoch ``until``."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "twofold", *COMMAND, "--epochs", str(epochs), "--output", str(folder)]
    command += ["--device", "xla:cpu:all", *(["--resume"] if resume else [])]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{probe.getsockname()[1]}"
        command += ["--distributed", "--coordinator", place, "--num-processes", str(processes), "--process-id"]
    ranks = [[str(rank)] if processes > 1 else [] for rank in range(processes)]
    started = [subprocess.Popen([*command, *rank], env=environment, stdout=subprocess.DEVNULL) for rank in ranks]
    if until < epochs:
        while epochs_done(folder) < until:
            time.sleep(0.1)
        started[-1].kill()
    codes = [process.wait() for process in started]
    if any(codes) == (until == epochs):
        raise SystemExit(f"{processes} process(es) with {devices} device(s) ended with {codes}")


def epochs_done(folder: Path) -> int:
    file = folder / "last.safetensors"
    return read_checkpoint(file)[1].epoch if file.exists() else 0


def history(name: str, epochs: int, folder: Path) -> list[dict[str, Any]]:
    for stage, (part, processes, devices) in enumerate(RUNS[name]):
        train(folder, epochs, max(1, round(part * epochs)), processes, devices, resume=stage > 0)
    return read_checkpoint(folder / "last.safetensors")[1].history


def table(curves: dict[str, list[dict[str, Any]]]) -> str:
    """Training loss and validation accuracy by epoch, and the largest difference of a loss from one device."""
    names = list(curves)
    first = curves[names[0]]
    lines = ["| epoch | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for i, row in enumerate(first):
        cells = [f"{curves[n][i]['loss']:.6f} ({curves[n][i]['val_accuracy']:.2%})" for n in names]
        lines.append(f"| {row['epoch']} | " + " | ".join(cells) + " |")
    far = [farthest(curves[n], first) for n in names]
    lines.append("| largest relative difference of a loss | " + " | ".join(f"{d:.1e}" for d in far) + " |")
    return "\n".join(lines)


def changed_by_rounding(epochs: int, trial: int) -> list[dict[str, Any]]:
    """One device again, each initial weight left alone or moved to a neighbouring float32: how far rounding alone drives
    the curves apart."""
    train_set = datasets.load("digits", "train", None)
    settings = settings_for("lenet5", "digits", train_set, epochs=epochs, batch_size=64, seed=0)
    tw.random.seed(0)
    model = build_model(settings)
    rng = np.random.default_rng(trial)
    for p in model.parameters():
        p.assign(np.nextafter(p.numpy(), rng.choice([-np.inf, np.inf], p.shape).astype(np.float32)))
    optimizer, batches = build_optimizer(model, settings), loader(prepare(train_set, settings), settings, training=True)
    schedule = build_schedule(optimizer, settings, len(batches))
    options = {"optimizer": optimizer, "schedule": schedule, "schedule_steps": True, "devices": "xla:cpu"}
    return tw.train.fit(model, batches, epochs=epochs, reporter=Reporter(epochs, quiet=True), **options)


def farthest(rows: list[dict[str, Any]], first: list[dict[str, Any]]) -> float:
    """The largest relative difference of a loss."""
    return max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(rows, first))


def draw(curves: dict[str, list[dict[str, Any]]]) -> None:
    figure = new_figure(6, 3.4)
    axes = figure.subplots()
    for width, (name, rows) in zip((9, 7, 5, 3, 1), curves.items()):
        axes.plot([r["epoch"] for r in rows], [r["loss"] for r in rows], linewidth=width, alpha=0.6, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    PICTURE.parent.mkdir(exist_ok=True)
    save(figure, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="write the table and the picture into the docs")
    options = parser.parse_args()
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(RUNS):
            curves[name] = history(name, options.epochs, Path(folder, str(number)))
    first = curves["one device"]
    control = ", ".join(f"{farthest(changed_by_rounding(options.epochs, t), first):.1e}" for t in range(5))
    scale = f"For scale, one device with every initial weight moved to a neighbouring float32, five times: {control}."
    text = f"{table(curves)}\n\n{scale}"
    print(text)
    if options.write:
        draw(curves)
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        picture = f"![The five curves lie on each other](images/{PICTURE.name})"
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n\n{picture}\n{END}{after}")


if __name__ == "__main__":
    main()
