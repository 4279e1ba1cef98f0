"""FractalNet: Larsson, Maire, Shakhnarovich, "FractalNet: ultra-deep neural networks without residuals", 2016.

arXiv 1605.07648. A block repeats one rule: ``f_1 = conv``, ``f_{C+1}(z) = join(f_C(f_C(z)), conv(z))``. Unrolled it
has C columns; column c has 2**(c-1) convolutions one after another, and columns meet in joins, which take the mean.
Drop-path, once for each batch:

* local (half of the time): each join drops each input with probability 0.15, but never all;
* global: one column is picked for the whole network, and only its convolutions run.

A convolution whose output nobody takes is really skipped: by ``tw.cond``, which eagerly is a Python ``if``.

``fractalnet20_cifar``: 5 blocks of 3 columns, 5 * 2**2 = 20 layers deep. ``fractalnet34_imagenet``: the first and
last layers of ResNet-34 around 4 blocks of 4 columns. The paper prints 38.6M parameters for the former; its
channels (from the authors' generator) give 33.7M. (The generator's convolutions have biases, its batch norms no scale
and shift: 33,714,314 parameters.) The channels of the latter are not printed either; 128 to 1024 is what is believed.
"""

from __future__ import annotations

from typing import Any

import twofold as tw
from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.leaving_out import with_all_gradients
from twofold.zoo.recipes import CENTRE, CIFAR_AUGMENTED, CIFAR_PLAIN, INCEPTION, QUICK, Recipe, Schedule
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER = Paper(
    "FractalNet: ultra-deep neural networks without residuals", "Larsson, Maire, Shakhnarovich", 2016, "ICLR 2017",
    "1605.07648"
)  # fmt: skip
DROP = 0.15  # local drop-path


class Unit(nn.Module):
    """conv 3x3, dropout, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Any) -> Any:
        return F.relu(self.bn(self.dropout(self.conv(x))))


class FractalBlock(nn.Module):
    """``columns`` columns, from the shallowest (1 convolution) to the deepest (2**(columns-1)), and a pooling.

    Rows are numbered from 1 to the depth of the block. Column c ends a convolution at every ``step(c)``-th row; where
    several columns do, they are joined, and go on from the mean. ``pool_first``: each column is pooled before the last
    join, as in the authors' generator, instead of after it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, columns: int, dropout: float, pool: nn.Module, pool_first: bool
    ):
        self.columns, self.rows, self.pool, self.pool_first = columns, 2 ** (columns - 1), pool, pool_first
        for row in range(1, self.rows + 1):
            for column in self.ending(row):
                channels = in_channels if row == self.step(column) else out_channels
                setattr(self, f"conv{column}_{row}", Unit(channels, out_channels, dropout))

    def step(self, column: int) -> int:
        """Rows that one convolution of a column spans; columns count from 1, the shallowest."""
        return 2 ** (self.columns - column)

    def ending(self, row: int) -> list[int]:
        """The columns that end a convolution at a row."""
        return [c for c in range(1, self.columns + 1) if row % self.step(c) == 0]

    def forward(self, x: Any, alive: dict[tuple[int, int], Any] | None = None) -> Any:
        """``alive``: for each (row, column) a bool, whether the join takes this input; None: all are taken."""
        wanted = None if alive is None else self.wanted(alive)
        joined = {0: x}
        for row in range(1, self.rows + 1):
            last = row == self.rows
            outputs = {c: self._run(c, row, joined[row - self.step(c)], wanted, last) for c in self.ending(row)}
            joined[row] = mean(list(outputs.values()), None if alive is None else [alive[row, c] for c in outputs])
        return joined[self.rows] if self.pool_first else self.pool(joined[self.rows])

    def _run(self, column: int, row: int, x: Any, wanted: dict[tuple[int, int], Any] | None, last: bool) -> Any:
        unit = getattr(self, f"conv{column}_{row}")
        run = (lambda x: self.pool(unit(x))) if last and self.pool_first else unit
        if wanted is None:
            return run(x)
        shape = (x.shape[0], unit.conv.out_channels, *x.shape[2:])
        if last and self.pool_first:
            shape = (*shape[:2], *self.pooled(shape[2:]))
        return tw.cond(wanted[row, column], run, lambda x: tw.zeros(shape, dtype=x.dtype), x)

    def pooled(self, sides: tuple[Any, ...]) -> tuple[Any, ...]:
        """Height and width after the block's pooling."""
        return tuple((side + 1) // 2 if getattr(self.pool, "ceil_mode", False) else side // 2 for side in sides)

    def wanted(self, alive: dict[tuple[int, int], Any]) -> dict[tuple[int, int], Any]:
        """Which convolutions somebody takes: found from the last join, which is always wanted, upwards."""
        joins: dict[int, Any] = {self.rows: True}
        found = {}
        for row in range(self.rows, 0, -1):
            for column in self.ending(row):
                need = alive[row, column] if joins[row] is True else tw.logical_and(joins[row], alive[row, column])
                found[row, column] = need
                before = row - self.step(column)
                joins[before] = need if joins.get(before) is None else _or(joins[before], need)
        return found


def _or(a: Any, b: Any) -> Any:
    return True if a is True else tw.logical_or(a, b)


def mean(inputs: list[Any], alive: list[Any] | None) -> Any:
    """The mean of the inputs that are alive (the others are zero)."""
    if len(inputs) == 1:
        return inputs[0]
    total = sum(inputs[1:], inputs[0])
    if alive is None:
        return total * (1 / len(inputs))
    taken = [flag.to(dtype=total.dtype) for flag in alive]
    share = tw.stack(taken)
    count = share.sum()
    return sum((x * flag for x, flag in zip(inputs[1:], taken[1:])), inputs[0] * taken[0]) / tw.maximum(count, 1.0)


class DropPath:
    """The draws of one batch: is it a global one, and which column; and what each join drops otherwise."""

    def __init__(self, columns: int, local: float = DROP, share: float = 0.5):
        self.columns, self.local = columns, local
        self.is_global = tw.random.bernoulli(share)
        self.column = tw.random.randint(1, columns + 1)

    def flags(self, block: FractalBlock) -> dict[tuple[int, int], Any]:
        """For each input of each join of a block, whether it is taken."""
        found = {}
        for row in range(1, block.rows + 1):
            columns = block.ending(row)
            kept = self._local(len(columns))
            for i, column in enumerate(columns):
                found[row, column] = tw.where(self.is_global, self.column == column, kept[i])
        return found

    def _local(self, count: int) -> Any:
        """Bools ``(count,)``, each true with probability 1 - ``local``; if none is, one at random. A lone one is."""
        if count == 1:
            return tw.ones((1,), dtype=tw.bool)
        kept = tw.random.bernoulli(1 - self.local, (count,))
        saved = tw.arange(count) == tw.random.randint(0, count)
        return tw.logical_or(kept, tw.logical_and(saved, tw.logical_not(tw.any(kept))))


class FractalNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``.

    ``channels``: of each block; ``columns``: C; ``dropouts``: of each block. ``stem``: "none", or "resnet" (7x7
    with stride 2, pooling; 3x3 with ``small_input``). ``drop_path``: whether training drops paths. ``pool_first``:
    see ``FractalBlock``.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, channels: tuple[int, ...] = (64, 128, 256, 512, 512),
        columns: int = 3, dropouts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4), stem: str = "none",
        drop_path: bool = True, pool_first: bool = True, small_input: bool = False,
    ):  # fmt: skip
        self.columns, self.drop_path = columns, drop_path
        self.stem, width = None, in_channels
        if stem == "resnet":
            conv = (
                nn.Conv2d(width, 64, 3, padding=1, bias=False)
                if small_input
                else nn.Conv2d(width, 64, 7, 2, 3, bias=False)
            )
            pool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
            self.stem, width = nn.Sequential(conv, nn.BatchNorm2d(64), nn.ReLU(), pool), 64
        self.blocks = nn.ModuleList()
        for out, dropout in zip(channels, dropouts):
            self.blocks.append(
                FractalBlock(width, out, columns, dropout, nn.MaxPool2d(2, 2, ceil_mode=True), pool_first)
            )
            width = out
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Any, column: int | None = None) -> Any:
        """``column``: run this column alone (1 is the shallowest), a plain network inside the fractal one."""
        x = x if self.stem is None else self.stem(x)
        drop = DropPath(self.columns) if self.training and self.drop_path and column is None else None
        for block in self.blocks:
            if column is not None:
                flags = {(r, c): tw.tensor(c == column) for r in range(1, block.rows + 1) for c in block.ending(r)}
                x = block(x, flags)
            else:
                x = block(x, None if drop is None else drop.flags(block))
        scores = self.fc(x.mean(axis=(2, 3)))
        return scores if drop is None else with_all_gradients(scores, self)


RECIPE = Recipe(
    lr=0.02, epochs=400, batch_size=100, momentum=0.9, schedule=Schedule("multistep", milestones=(200, 300, 350, 375)),
    augmentation=CIFAR_AUGMENTED, evaluation=CIFAR_PLAIN, init="xavier",
    notes="The rate falls tenfold whenever the remaining epochs halve; weight decay is not stated.",
)  # fmt: skip
IMAGENET_RECIPE = Recipe(
    lr=0.001, epochs=70, batch_size=32, momentum=0.9, augmentation=INCEPTION, evaluation=CENTRE, init="xavier",
    notes="How the rate falls, decay, dropout and augmentation are not stated: a constant rate, none, none, GoogLeNet's.",
)

fractalnet20_cifar = Family(
    FractalNet, PAPER, Domain((3, 32, 32), 10, 8), {"paper": RECIPE, "quick": QUICK.but(lr=0.02)}, init="xavier"
)(
    "fractalnet20_cifar", params=33_724_618, macs=845_222_912, error=Error(4.60, None, "CIFAR-10+ test"), columns=3,
    channels=(64, 128, 256, 512, 512), dropouts=(0.0, 0.1, 0.2, 0.3, 0.4), about="5 blocks of 3 columns",
)  # fmt: skip
fractalnet34_imagenet = Family(
    FractalNet, PAPER, Domain((3, 224, 224), 1000, 32, 8), {"paper": IMAGENET_RECIPE, "quick": QUICK.but(lr=0.02)},
    init="xavier"
)(
    "fractalnet34_imagenet", params=164_031_016, macs=24_164_982_784,
    error=Error(24.12, 7.39, "ImageNet val, 10 crops"), columns=4, channels=(128, 256, 512, 1024),
    dropouts=(0.0, 0.0, 0.0, 0.0), stem="resnet", about="4 blocks of 4 columns in ResNet-34's frame",
)  # fmt: skip
