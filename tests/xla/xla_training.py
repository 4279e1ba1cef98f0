"""A small training that every XLA test runs: convolution, batch norm, dropout, pools, SGD with momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

import twofold as tw
from twofold import nn


class Net(nn.Module):
    """Input (N, 3, 8, 8), four classes."""

    def __init__(self) -> None:
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.25),
        )  # fmt: skip
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.features(x))


def batches(count: int, size: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(size, 3, 8, 8)).astype(np.float32), rng.integers(0, 4, size)) for _ in range(count)]


def make_step(**options: Any) -> tuple[Net, Any, Any]:
    """A model from a fixed seed, its optimizer, and its compiled step."""
    tw.random.seed(11)
    tw.random.generator().move_("reference")
    with tw.device("reference"):
        model = Net()
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)

    @tw.compile(**options)
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step


def train(count: int = 4, *, place: Any = None, **options: Any) -> tuple[list[float], dict[str, np.ndarray], Any]:
    """Losses of ``count`` steps, the parameters and buffers after them, and the step."""
    model, _, step = make_step(**options)
    losses = [float(step(*(place(a) if place else a for a in batch))) for batch in batches(count)]
    state = {name: np.array(v.numpy()) for name, v in model.state_dict().items()}
    tw.random.generator().move_("cpu")
    return losses, state, step
