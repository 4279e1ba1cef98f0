"""What a network's first layer learns from photographs, and what each stage makes of one.

    python examples/first_layer.py PHOTOGRAPHS/ --steps 2000 --output first_layer

ResNet-18, with its first layer of 64 filters of 7x7, learns to tell from which photograph of a folder a patch was cut: a
task that needs no labels. Each patch is brought to mean 0 in each colour and to contrast 1, so that it cannot be told by
its colour or brightness. Patches come from the left three quarters of each photograph; it is tested on the rest.
``first_layer-filters.png`` has the filters before and after training, ``first_layer-activations.png`` what the first
convolution and the four stages make of the middle of the first photograph.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import twofold as tw
from twofold import data, viz
from twofold.data import transforms as T

STAGES = {"conv1": "conv1", "layer1": "stage 1", "layer2": "stage 2", "layer3": "stage 3", "layer4": "stage 4"}


class Patches(data.Dataset):
    """``count`` square patches, in turns of each photograph; the label is the photograph's number.

    ``part``: the range of each photograph's width, from 0 to 1, that patches are cut from.
    """

    def __init__(self, photographs: list[np.ndarray], side: int, count: int, part: tuple[float, float], seed: int):
        self.photographs, self.side, self.count, self.part, self.seed = photographs, side, count, part, seed
        self.classes = tuple(map(str, range(len(photographs))))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = index % len(self.photographs)
        photograph = self.photographs[label]
        _, height, width = photograph.shape
        low, high = (int(end * width) for end in self.part)
        rng = np.random.default_rng((self.seed, index))
        top, left = rng.integers(height - self.side + 1), rng.integers(low, high - self.side + 1)
        return photograph[:, top : top + self.side, left : left + self.side], label


def read(folder: Path, least: int) -> list[np.ndarray]:
    """Every photograph of a folder, its shorter side ``least`` pixels."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = [T.Resize(least)(T.ToFloat()(data.read_image(p)[None]))[0] for p in files]
    return [(255 * image).astype(np.uint8) for image in images]


def contrast(image: np.ndarray) -> np.ndarray:
    """An image whose colours have mean 0 each, and deviation 1 together."""
    image = image - image.mean(axis=(1, 2), keepdims=True)
    return image / max(float(image.std()), 0.02)


def train(model: tw.nn.Module, loader, lr: float) -> None:
    """One pass over the patches."""
    optimizer = tw.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    schedule = tw.optim.CosineAnnealingLR(optimizer, len(loader))
    tw.train.fit(model, loader, epochs=1, optimizer=optimizer, schedule=schedule, schedule_steps=True)


def show(
    pictures: list[tuple[str, np.ndarray]], shape: tuple[int, int], size: tuple[float, float], title: str, path: str
):
    figure = Figure(figsize=size, layout="constrained")
    for axes, (name, picture) in zip(figure.subplots(*shape).flat, pictures):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    print(path)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, help="a folder of photographs")
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--side", type=int, default=64, help="of a patch, in pixels")
    options.add_argument("--lr", type=float, default=0.05)
    options.add_argument("--output", default="first_layer", help="how the names of the pictures begin")
    given = options.parse_args()
    began = time.perf_counter()
    photographs = read(given.folder, least=4 * given.side)
    training = Patches(photographs, given.side, given.steps * given.batch, (0.0, 0.75), seed=0)
    test = Patches(photographs, given.side, min(1000, given.steps * given.batch), (0.75, 1.0), seed=1)

    tw.random.seed(0)
    model = tw.zoo.create("resnet18", num_classes=len(photographs))
    first = model.conv1.weight
    tw.nn.init.normal_(first, std=0.005)  # a fifth of He's: the larger the first values, the longer their noise stays
    before = first.numpy().copy()
    change = T.Compose([T.RandomHorizontalFlip(), contrast])
    train(model, data.DataLoader(training, given.batch, transform=change, num_workers=1), given.lr)
    score = tw.train.evaluate(model, data.DataLoader(test, 100, transform=contrast))
    wrong = 100 * (1 - score.accuracy)
    what = (
        f"{given.steps} steps of {given.batch} patches of {given.side}x{given.side} from {len(photographs)} photographs"
    )
    print(f"{what}: error on the right quarters {wrong:.1f} %  ({time.perf_counter() - began:.0f} s)")

    filters = [("before", viz.filters(before)), ("after", viz.filters(first))]
    show(filters, (1, 2), (9, 4.9), f"ResNet-18's first layer, {what}", f"{given.output}-filters.png")
    _, height, width = photographs[0].shape
    side = min(224, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = T.ToFloat()(photographs[0][None, :, top : top + side, left : left + side])[0]
    model.eval()
    layers = [("the image", image.transpose(1, 2, 0))]
    for name, heading in STAGES.items():
        layers.append((f"{heading}, 36 maps", viz.activations(model, name, contrast(image), most=36)))
    show(layers, (2, 3), (9, 6.4), f"What each stage makes of an image; {what}", f"{given.output}-activations.png")


if __name__ == "__main__":
    main()
