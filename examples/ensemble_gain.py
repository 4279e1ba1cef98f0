"""What an ensemble gains: several small networks that differ only in their seeds, alone and averaged.

    python examples/ensemble_gain.py --members 7 --epochs 3 --output ensemble_gain.png

Every winner of the ImageNet challenge from 2012 to 2017 averaged several networks: seven AlexNets went from 18.2 to
15.4 % top-5 error. Here LeNet-5 is trained on Fashion-MNIST once for each seed (other first values, other order of
the images), and ``tw.zoo.ensemble`` averages the softmax outputs. For each number of members the picture has the mean
over all choices of so many of the networks, so that no lucky order decides.
"""

from __future__ import annotations

import argparse
import time
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

import twofold as tw
from twofold import data
from twofold.data import transforms as T
from twofold.nn import functional as F
from twofold.train import evaluate, fit


def batches(name: str, split: str, size: int, seed: int = 0, *, side: int | None):
    known = data.info(name)
    resize = [] if side is None else [T.Resize((side, side))]
    chain = T.Compose([*resize, T.Normalize(known.mean, known.std)])
    return data.DataLoader(data.load(name, split), size, shuffle=split == "train", seed=seed, transform=chain)


def member(given: argparse.Namespace, seed: int) -> tw.nn.Module:
    """One network, trained."""
    tw.random.seed(seed)
    model = tw.zoo.create("lenet5")
    optimizer = tw.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = tw.optim.CosineAnnealingLR(optimizer, given.epochs)
    images = batches(given.data, "train", given.batch, seed, side=given.side)
    fit(model, images, epochs=given.epochs, optimizer=optimizer, schedule=schedule)
    return model.eval()


def probabilities(model: tw.nn.Module, loader) -> np.ndarray:
    """Softmax outputs for every image, (images, classes)."""
    predict = tw.compile(lambda x: F.softmax(model(x), axis=-1))
    with tw.no_grad():
        return np.concatenate([predict(images).numpy() for images, _ in loader])


def by_size(outputs: list[np.ndarray], labels: np.ndarray) -> list[list[float]]:
    """Test errors in percent: of each network, of the mean of each pair, ... and of all."""
    return [
        [100 * float((np.mean(chosen, axis=0).argmax(1) != labels).mean()) for chosen in combinations(outputs, k)]
        for k in range(1, len(outputs) + 1)
    ]


def draw(errors: list[list[float]], title: str, path: str) -> None:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = np.arange(1, len(errors) + 1)
    for k, values in zip(sizes, errors):
        axes.plot(
            [k] * len(values), values, ".", color="C0", alpha=0.35, label="one choice of networks" if k == 1 else None
        )
    axes.plot(sizes, [np.mean(values) for values in errors], "o-", color="C3", label="mean of all choices")
    axes.set(xlabel="networks whose softmax outputs are averaged", ylabel="test error (%)")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(sizes)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--side", type=int, help="images are resized to this height and width")
    options.add_argument("--members", type=int, default=7)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--output", default="ensemble_gain.png")
    given = options.parse_args()
    began = time.perf_counter()
    models = [member(given, seed) for seed in range(given.members)]
    test = batches(given.data, "test", 500, side=given.side)
    labels = np.concatenate([labels.numpy() for _, labels in test])
    errors = by_size([probabilities(model, test) for model in models], labels)
    for k, values in enumerate(errors, 1):
        print(f"{k} of {len(models)}: test error {np.mean(values):.2f} %, from {min(values):.2f} to {max(values):.2f}")
    score = evaluate(tw.zoo.ensemble(models), test)  # the same as one network: it compiles, and exports as one graph
    print(f"tw.zoo.ensemble of all: {100 - 100 * score.accuracy:.2f} %  ({time.perf_counter() - began:.0f} s in all)")
    draw(errors, f"lenet5 on {given.data}, {given.epochs} epochs each, {len(labels):,} test images", given.output)


if __name__ == "__main__":
    main()
