"""What mixed precision costs and saves: whole training steps in fp32, bf16 and fp16, interleaved, on one device.

    python benchmarks/precision.py                           # the CPU compiler
    python benchmarks/precision.py --device gpu:0            # where 16 bits are computed with
    python benchmarks/precision.py --only lenet5 --rounds 20

Prints a Markdown table: time of an fp32 step (median), the speed of the others as a multiple of it, memory of temporaries.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import twofold as tw
from twofold.backends.interface import Memory
from twofold.nn import functional as F
from twofold.ops.precision import PRECISIONS

CASES = {"lenet5": (64, 28), "resnet20_cifar": (64, 32), "resnet50": (4, 224)}  # network: batch, height and width


def step_of(network: str, batch: int, side: int, precision: str) -> tuple[Callable[[], float], Memory | None]:
    """A function that makes one training step and waits for its loss; and what it takes."""
    tw.random.seed(0)
    model = tw.zoo.create(network, num_classes=10)
    opt = tw.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scale = tw.optim.LossScale()

    def step(images: Any, labels: Any) -> Any:
        loss = F.cross_entropy(model(images), labels)
        opt.zero_grad()
        if precision == "fp16":
            scale.scale(loss).backward()
            scale.step(opt)
        else:
            loss.backward()
            opt.step()
        opt.zero_grad()
        return loss

    shape = (batch, tw.zoo.info(network).input_shape[0], side, side)
    images = tw.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    labels = tw.tensor(np.arange(batch) % 10)
    compiled = tw.compile(step, precision=precision)
    return lambda: compiled(images, labels).item(), compiled.memory(images, labels)


def megabytes(memory: Memory | None) -> str:
    """What the program's temporaries take, if that is known."""
    return f"{memory.temporaries / 2**20:.2f} MiB" if memory else "-"


def measure(network: str, rounds: int) -> str:
    """One row of the table."""
    steps = {precision: step_of(network, *CASES[network], precision) for precision in PRECISIONS}
    times: dict[str, list[float]] = {precision: [] for precision in steps}
    for turn in range(rounds + 2):
        for precision, (run, _) in steps.items():
            start = time.perf_counter()
            run()
            if turn > 1:  # the first two compile and warm up
                times[precision].append(time.perf_counter() - start)
    median = {precision: statistics.median(t) for precision, t in times.items()}
    memory = " / ".join(megabytes(taken) for _, taken in steps.values())
    ratios = " | ".join(f"{median['fp32'] / median[p]:.2f}" for p in ("bf16", "fp16"))
    return f"| {network}, batch {CASES[network][0]} | {1e3 * median['fp32']:.1f} ms | {ratios} | {memory} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=CASES, help="one network")
    options = parser.parse_args()
    print("| training step | fp32 | bf16 | fp16 | temporaries: fp32 / bf16 / fp16 |\n|---|---|---|---|---|")
    with tw.device(options.device):
        for network in [options.only] if options.only else CASES:
            print(measure(network, options.rounds), flush=True)


if __name__ == "__main__":
    main()
