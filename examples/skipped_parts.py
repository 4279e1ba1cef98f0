"""What leaving parts out in training saves: the time of a step against the parts that ran.

    python examples/skipped_parts.py --steps 30 --output skipped_parts.png

Two networks leave parts out by one draw for each batch: ``resnet110_stochastic_depth`` residual blocks, and
``fractalnet20_cifar`` paths (drop-path). A part that is left out is a branch of the compiled step that is not taken.
Each is timed against its twin that never leaves out, in turns, so that a busy machine slows both alike: first
one step of one, then one of the other. Which parts ran is read after the step, out of the clock: their batch norms have
counted one batch more. A branch of a compiled step is compiled when it is first taken: ``--warm`` steps come before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

import twofold as tw
from twofold import data
from twofold.data import transforms as T
from twofold.nn import functional as F
from twofold.zoo.fractalnet import Unit
from twofold.zoo.stochastic_depth import StochasticBlock


@dataclass
class Pair:
    """A network, its twin in which everything runs, and the batch norm of each part, which counts its batches."""

    name: str
    part: str
    create: Callable[[], tw.nn.Module]
    twin: Callable[[], tw.nn.Module]
    norms: Callable[[tw.nn.Module], list]


def norms_of(kind: type, name: str) -> Callable[[tw.nn.Module], list]:
    return lambda model: [getattr(m, name) for m in model.modules() if isinstance(m, kind)]


def zoo(name: str, **options) -> Callable[[], tw.nn.Module]:
    return lambda: tw.zoo.create(name, in_channels=1, **options)


PAIRS = {
    "stochastic-depth": Pair(
        "resnet110_stochastic_depth", "residual blocks",
        zoo("resnet110_stochastic_depth"), zoo("resnet110_cifar"), norms_of(StochasticBlock, "bn1"),
    ),
    "drop-path": Pair(
        "fractalnet20_cifar", "convolutions",
        zoo("fractalnet20_cifar"), zoo("fractalnet20_cifar", drop_path=False), norms_of(Unit, "bn"),
    ),
}  # fmt: skip


def training_step(model: tw.nn.Module, compiled: bool):
    """A step of SGD with momentum."""
    optimizer = tw.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step(images, labels):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return tw.compile(step) if compiled else step


def measure(pair: Pair, stream, steps: int, warm: int, compiled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each step: parts that ran, its seconds, and the twin's."""
    tw.random.seed(0)
    model, twin = pair.create(), pair.twin()
    both = [training_step(model, compiled), training_step(twin, compiled)]
    norms, rows, batch = pair.norms(model), [], next(stream)
    for step in [both[0]] * warm + [both[1]]:
        step(*batch).item()
    for _ in range(steps):
        batch, before, row = next(stream), batches_seen(norms), []
        for step in both:
            began = time.perf_counter()
            step(*batch).item()
            row.append(time.perf_counter() - began)
        rows.append((batches_seen(norms) - before, *row))
    return tuple(np.array(column) for column in zip(*rows))


def batches_seen(norms: list) -> int:
    """The batches that batch norms have counted, all together."""
    return sum(norm.num_batches_tracked.item() for norm in norms)


def draw(found: dict[str, tuple], title: str, path: str) -> None:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (name, (ran, seconds, whole)) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items()):
        pair, usual = PAIRS[name], np.median(whole)
        total = len(pair.norms(pair.create()))
        axes.plot(ran, seconds / usual, "o", alpha=0.6, label=f"a step, of {len(ran)}")
        axes.axhline(np.median(seconds) / usual, color="C0", linestyle=":", label="their median")
        axes.plot([total], [1], "s", color="C3", label="median with all parts")
        axes.plot([0, total], [0, 1], color="0.6", linewidth=1, label="in proportion to the parts")
        axes.set(xlabel=f"{pair.part} that ran, of {total}", ylabel="time of a training step", xlim=(0, total * 1.05))
        axes.set_ylim(0, max(1.3, float(np.max(seconds / usual)) * 1.05))
        axes.set_title(f"{pair.name}: x{np.median(seconds) / usual:.2f}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("which", nargs="*", default=list(PAIRS), help=f"some of {', '.join(PAIRS)}")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--warm", type=int, default=8, help="steps that are not timed")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--eager", action="store_true", help="without compiling")
    options.add_argument("--output", default="skipped_parts.png")
    given = options.parse_args()
    known = data.info(given.data)
    chain = T.Compose([T.Resize((given.side, given.side)), T.Normalize(known.mean, known.std)])
    loader = data.DataLoader(data.load(given.data), given.batch, shuffle=True, drop_last=True, transform=chain)
    found = {}
    for name in given.which:
        ran, seconds, whole = found[name] = measure(PAIRS[name], iter(loader), given.steps, given.warm, not given.eager)
        ratio = np.median(seconds) / np.median(whole)
        few, many = ran <= np.median(ran), ran > np.median(ran)
        print(f"{PAIRS[name].name}: {np.mean(ran):.1f} {PAIRS[name].part} ran on average ({ran.min()} to {ran.max()})")
        print(f"  median step {np.median(seconds):.3f} s against {np.median(whole):.3f} s with all: x{ratio:.2f}")
        if many.any():
            print(
                f"  fewer parts {np.median(seconds[few]):.3f} s, more parts {np.median(seconds[many]):.3f} s",
                flush=True,
            )
    how = "eager" if given.eager else "compiled"
    draw(found, f"{how} steps of {given.batch} images of {given.side}x{given.side} ({given.data})", given.output)


if __name__ == "__main__":
    main()
