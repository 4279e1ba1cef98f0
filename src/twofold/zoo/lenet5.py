"""LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.

``lenet5`` is the form of today: every map of the second convolution sees all of the first's, pooling has no parameters,
ReLU, and a linear layer with cross-entropy at the end. ``lenet5_1998`` is the paper's (section II.B): the partial table
of C3, subsampling with a trainable coefficient and bias, the scaled tanh, and Euclidean RBF units on fixed codes.

60,000 against 61,706 parameters: C3 +900, S2 and S4 -44, the output layer +850.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError, ShapeError
from twofold.nn import functional as F
from twofold.zoo.digit_codes import codes
from twofold.zoo.recipes import NORMALIZE, QUICK, Recipe, Schedule, step
from twofold.zoo.registry import MNIST, Error, Family, Paper

PAPER = Paper(
    "Gradient-based learning applied to document recognition", "LeCun, Bottou, Bengio, Haffner", 1998, "Proc. IEEE 86"
)
FIELD = 32  # height and width of the input field, in which smaller images are centred


def centred(x: Any, fill: float = 0.0) -> Any:
    """Images of up to 32x32 in the middle of a 32x32 field (28x28 digits: 2 pixels on each side, as the paper)."""
    height, width = x.shape[2:]
    if height > FIELD or width > FIELD:
        raise ShapeError(f"LeNet-5: images are {height}x{width}; expected at most {FIELD}x{FIELD}; make them smaller")
    if (height, width) == (FIELD, FIELD):
        return x
    around = [((FIELD - side) // 2, FIELD - side - (FIELD - side) // 2) for side in (height, width)]
    return tw.pad(x, [(0, 0), (0, 0), *around], fill)


class LeNet5(nn.Module):
    """conv 6@5x5, pool, conv 16@5x5, pool, fc 120, fc 84, fc. ``(N, 1, H, W)`` up to 32x32 to ``(N, num_classes)``.

    ``activation``: "relu" or "tanh"; ``pool``: "max" or "mean".
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, activation: str = "relu", pool: str = "max"):
        choices = {"relu": F.relu, "tanh": F.tanh}, {"max": F.max_pool2d, "mean": F.avg_pool2d}
        for what, given, known in (("activation", activation, choices[0]), ("pool", pool, choices[1])):
            if given not in known:
                raise ArgumentError(f"lenet5: {what}={given!r}; expected one of {', '.join(map(repr, known))}")
        self.activation, self.pool = choices[0][activation], choices[1][pool]
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Any) -> Any:
        x = centred(x)  # 32x32
        x = self.pool(self.activation(self.conv1(x)), 2)  # 6 x 14x14
        x = self.pool(self.activation(self.conv2(x)), 2)  # 16 x 5x5
        x = self.activation(self.fc1(F.flatten(x, 1)))
        return self.fc3(self.activation(self.fc2(x)))


def squash(a: Any) -> Any:
    """f(a) = 1.7159 tanh(2a/3): f(1) = 1, f(-1) = -1, and the curvature is largest there."""
    return F.tanh(a * (2 / 3)) * 1.7159


class Subsampling(nn.Module):
    """S2, S4: the sum of each 2x2 field, times a trainable coefficient, plus a trainable bias, one pair a map."""

    def __init__(self, channels: int):
        self.weight = nn.Parameter(np.zeros(channels, np.float32))
        self.bias = nn.Parameter(np.zeros(channels, np.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-2.4 / 4: four inputs."""
        nn.init.uniform_(self.weight, -0.6, 0.6)
        nn.init.zeros_(self.bias)

    def forward(self, x: Any) -> Any:
        total = F.avg_pool2d(x, 2) * 4.0
        return total * tw.reshape(self.weight, (1, -1, 1, 1)) + tw.reshape(self.bias, (1, -1, 1, 1))


# Table I: the maps of S2 that each map of C3 reads. Six read 3 neighbours, nine read 4, the last all 6.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5), (0, 1, 3, 4), (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip


class PartialConv(nn.Module):
    """C3: a convolution in which each output map reads some input maps only.

    Rows of ``table`` with the same number of inputs, which stand together, are one grouped convolution on the maps they
    read: no weight and no multiplication is spent on links that do not exist.
    """

    def __init__(self, table: tuple[tuple[int, ...], ...], kernel_size: int):
        widths = sorted({len(row) for row in table})
        groups = [[row for row in table if len(row) == width] for width in widths]
        if [row for rows in groups for row in rows] != list(table):
            raise ArgumentError("PartialConv: rows of the table must stand in the order of their lengths")
        self.reads = [np.array([i for row in rows for i in row], np.int64) for rows in groups]
        self.parts = nn.ModuleList(
            nn.Conv2d(width * len(rows), len(rows), kernel_size, groups=len(rows))
            for width, rows in zip(widths, groups)
        )

    def forward(self, x: Any) -> Any:
        return tw.concat([part(tw.take(x, reads, axis=1)) for reads, part in zip(self.reads, self.parts)], axis=1)


class LeNet5Original(nn.Module):
    """The paper's network. ``(N, 1, H, W)`` up to 32x32 to scores ``(N, num_classes)``: minus the squared distances.

    The paper's outputs are ``distances``, of which the smallest wins; ``forward`` returns them negated, so that the
    largest wins, as with every other network. Digits are expected as the paper has them, background -0.1 and ink 1.175.
    """

    codes: tw.Variable

    def __init__(self, num_classes: int = 10, in_channels: int = 1, background: float = -0.1):
        self.background = background
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = PartialConv(C3_TABLE, 5)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.register_buffer("codes", codes(num_classes))

    def distances(self, x: Any) -> Any:
        """y_i = sum over j of (x_j - w_ij)**2: how far F6 is from the code of each class."""
        x = centred(x, self.background)
        x = squash(self.s2(squash(self.c1(x))))  # 6 x 14x14
        x = squash(self.s4(squash(self.c3(x))))  # 16 x 5x5
        x = squash(self.f6(F.flatten(squash(self.c5(x)), 1)))
        gaps = tw.expand_dims(x, axis=1) - self.codes
        return (gaps * gaps).sum(axis=2)

    def forward(self, x: Any) -> Any:
        return -self.distances(x)

    def loss(self, scores: Any, targets: Any, j: float = 0.1) -> Any:
        """The paper's discriminative criterion (equation 9): mean of ``y_c + log(e**-j + sum of e**-y_i)``.

        It is cross-entropy with one more class at the constant distance ``j``, which keeps all distances from
        collapsing to zero.
        """
        rest = tw.zeros_like(scores[:, :1]) - j
        return F.cross_entropy(tw.concat([scores, rest], axis=1), targets)


UNITS = (step("Scale", factor=1.275, offset=-0.1),)  # background -0.1, ink 1.175
RECIPES = {
    "paper": Recipe(
        lr=5e-4, epochs=20, batch_size=1, momentum=0.0, loss="model",
        schedule=Schedule("table", rates=((0, 5e-4), (2, 2e-4), (5, 1e-4), (8, 5e-5), (12, 1e-5))),
        augmentation=UNITS, evaluation=UNITS,
        notes="The paper divides each step by mu + h_kk, a running estimate of the second derivative (stochastic "
        "diagonal Levenberg-Marquardt, mu = 0.02, from 500 images before each pass); the rates are those of that "
        "method.",
    ),
    "quick": QUICK.but(lr=0.002, batch_size=32, loss="model", augmentation=UNITS, evaluation=UNITS),
}  # fmt: skip

# 1,438 digits are few: seen shifted by up to two pixels they are more
SHIFTED = (step("RandomCrop", size="input", padding=2), NORMALIZE)
MODERN = QUICK.but(batch_size=32, epochs=20, notes="Ours: no paper has one for this form.")
lenet = Family(LeNet5, PAPER, MNIST, {"paper": MODERN, "quick": MODERN.but(epochs=15, augmentation=SHIFTED)})
original = Family(LeNet5Original, PAPER, MNIST, RECIPES, init="lenet5_1998")

lenet5_1998 = original(
    "lenet5_1998", params=60_000, macs=325_680, error=Error(0.95, None, "MNIST test"),
    about="the paper's: partial C3, trainable subsampling, scaled tanh, RBF units",
)  # fmt: skip
lenet5 = lenet(
    "lenet5", params=61_706, macs=416_520, error=Error(0.95, None, "MNIST test, the paper's network"),
    about="the form of today",
)  # fmt: skip
