"""``twofold bench``: how long a network takes, and where the time goes."""

from __future__ import annotations

import json as text_of
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import twofold as tw
from twofold import zoo
from twofold.base import flags
from twofold.base.files import atomic_write
from twofold.cli.common import Json, Precision, emit
from twofold.nn.functional import cross_entropy
from twofold.train.evaluate import main_output


def command(
    network: Annotated[str, typer.Argument(help="A network of `twofold zoo`.")],
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 1,
    train: Annotated[bool, typer.Option("--train", help="Measure a training step instead of inference.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after two that warm up.")] = 10,
    profile: Annotated[bool, typer.Option("--profile", help="Print each kernel's time in a step, waiting, and rates.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write a recording of a step, by thread, for Perfetto or chrome://tracing.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads (0: TWOFOLD_NUM_THREADS, or all cores).")] = 0,
    precision: Precision = "fp32",
    json: Json = False,
) -> None:
    """Time a network of the zoo with random weights and images, compiled, on device cpu."""
    if threads:
        flags.put("TWOFOLD_NUM_THREADS", threads)
    run, arguments = step_of(network, batch, train, precision)
    with tw.device("cpu"):
        start = time.perf_counter()
        run(*arguments)
        first = time.perf_counter() - start
        run(*arguments)
        seconds = [_timed(run, arguments) for _ in range(steps)]
    median = statistics.median(seconds)
    record: dict[str, Any] = {
        "network": network, "batch": batch, "train": train, "precision": precision, "first_step_s": first,
        "median_ms": median * 1e3, "least_ms": min(seconds) * 1e3, "images_per_second": batch / median,
    }  # fmt: skip
    lines = [
        f"{network}, batch {batch}, {'training step' if train else 'inference'}: median {median * 1e3:.2f} ms of {steps} steps "
        f"(least {min(seconds) * 1e3:.2f}), {batch / median:.1f} images/s; first step {first:.2f} s"
    ]
    if profile or trace is not None:
        from twofold.backends.cpu import profile as profiler
        from twofold.backends.cpu.calibrate import Rates

        recording = profiler.of(run, arguments)
        if profile:
            rates = Rates.measure(recording.threads)
            rows = [{**asdict(r), "gflops": r.gflops, "of_roof": r.share(rates)} for r in recording.rows()]
            record |= {"rates": asdict(rates), "kernels": rows}
            lines += [profiler.table(recording, rates)]
        if trace is not None:
            with atomic_write(trace) as stream:
                stream.write(text_of.dumps(profiler.chrome_trace(recording, network)).encode())
            lines += [f"{trace}: open it at https://ui.perfetto.dev"]
    emit(record, json, "\n".join(lines))


def step_of(
    network: str, batch: int, train: bool, precision: str = "fp32", keep_gradients: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """The compiled step of a network and its arguments: inference, or a training step with SGD and momentum, after which
    parameters have no gradients, or still have them."""
    tw.random.seed(0)
    rng = np.random.default_rng(0)
    entry = zoo.info(network)
    with tw.device("cpu"):
        model = zoo.create(network)
        x = tw.tensor(rng.standard_normal((batch, *entry.input_shape)).astype(np.float32))
        y = tw.tensor(rng.integers(0, entry.classes, batch))
        optimizer = tw.optim.SGD(model.parameters(), lr=0.001, momentum=0.9) if train else None
    if optimizer is None:
        model.eval()

        @tw.compile(precision=precision)
        def infer(x: Any) -> Any:
            with tw.no_grad():
                return model(x)

        return infer, (x,)

    @tw.compile(precision=precision)
    def training(x: Any, y: Any) -> Any:
        loss = cross_entropy(main_output(model(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not keep_gradients:
            optimizer.zero_grad()
        return loss

    return training, (x, y)


def _timed(run: Any, arguments: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start
