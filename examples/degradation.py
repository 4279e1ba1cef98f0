"""The degradation experiment: does a deeper plain network train worse than a shallow one, and do shortcuts mend it?

    python examples/degradation.py --steps 1400 --output degradation.png

He et al., "Deep residual learning for image recognition", 2015, figure 6: on CIFAR-10 a plain network of 56 layers has
a larger training error than one of 20, though it could copy it; with shortcuts the deeper one is the better. Here the
same four networks see the same batches of Fashion-MNIST, shrunk to 14x14. What is drawn is the training error: that of
each batch before the step it causes, averaged over ``WINDOW`` steps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from matplotlib.figure import Figure

import twofold as tw
from twofold import data
from twofold.data import transforms as T
from twofold.nn import functional as F

NETWORKS = ("plain20_cifar", "plain56_cifar", "resnet20_cifar", "resnet56_cifar")
COLOURS = {"plain20_cifar": "C1", "plain56_cifar": "C3", "resnet20_cifar": "C0", "resnet56_cifar": "C2"}
FAMILIES = {"plain": "without shortcuts", "resnet": "with shortcuts"}  # how names begin -> a heading
WINDOW = 100  # steps that an error is averaged over


def batches(name: str, side: int, size: int, seed: int):
    """Batches of the training images, shuffled again in every epoch, without end."""
    known = data.info(name)
    shrink = T.Compose([T.Resize((side, side)), T.Normalize(known.mean, known.std)])
    loader = data.DataLoader(data.load(name), size, shuffle=True, seed=seed, drop_last=True, transform=shrink)
    while True:
        yield from loader


def errors(network: str, stream, steps: int, lr: float) -> list[float]:
    """Train for ``steps`` steps by the paper's rule (the rate falls tenfold at 3/4); the error of each batch, in percent."""
    tw.random.seed(0)
    model = tw.zoo.create(network, in_channels=1)
    optimizer = tw.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    schedule = tw.optim.MultiStepLR(optimizer, [steps * 3 // 4])

    @tw.compile
    def step(images, labels):
        scores = model(images)
        optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
        return (scores.argmax(axis=1) != labels).astype(tw.float32).mean()

    found = []
    for _ in range(steps):
        found.append(100 * step(*next(stream)).item())
        schedule.step()
    return found


def smooth(values: list[float]) -> np.ndarray:
    """The mean of each ``WINDOW`` neighbours (of all, if there are fewer); the last is that of the last steps."""
    window = min(WINDOW, len(values))
    return np.convolve(values, np.full(window, 1 / window), "valid")


def draw(curves: dict[str, list[float]], title: str, path: str) -> None:
    """The curves, plain networks on the left and residual ones on the right, on one scale."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for side, (family, heading) in zip(axes, FAMILIES.items()):
        for name, values in curves.items():
            if name.startswith(family):
                curve = smooth(values)
                steps = np.arange(len(values) - len(curve), len(values)) + 1
                side.plot(steps, curve, color=COLOURS[name], label=f"{name}: {curve[-1]:.1f} %")
        side.set(title=heading, xlabel="step", ylim=(0, 90))  # 90 %: guessing one of ten classes
        side.grid(alpha=0.3)
        if side.lines:
            side.legend(title=f"error of the last {WINDOW} steps")
    axes[0].set_ylabel(f"training error, mean of {WINDOW} steps (%)")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("networks", nargs="*", default=NETWORKS, help=f"some of {', '.join(NETWORKS)}")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--side", type=int, default=14, help="images are shrunk to this height and width")
    options.add_argument("--steps", type=int, default=1400)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--lr", type=float, default=0.1)
    options.add_argument("--output", default="degradation.png")
    given = options.parse_args()
    curves = {}
    for name in given.networks:
        began = time.perf_counter()
        stream = batches(given.data, given.side, given.batch, seed=0)  # the same batches for all
        curves[name] = errors(name, stream, given.steps, given.lr)
        seconds = time.perf_counter() - began
        print(f"{name:16} training error {smooth(curves[name])[-1]:5.2f} %  ({seconds:.0f} s)", flush=True)
    what = f"{given.data} at {given.side}x{given.side}, batches of {given.batch}, {given.steps} steps"
    draw(curves, what, given.output)
    print(f"{given.output}: {what}")


if __name__ == "__main__":
    main()
