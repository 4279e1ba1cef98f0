"""Sizes that make no layer, and shapes that do not fit one, are errors that say what came and what was expected."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn

X = tw.ones((2, 3, 8, 8))
SIZES = {
    "kernel of 0": (lambda: nn.Conv2d(3, 2, 0), r"Conv2d: kernel_size=\(0, 0\); expected whole numbers from 1"),
    "negative channels": (lambda: nn.Conv2d(-3, 3, 1), "Conv2d: in_channels=-3"),
    "half a channel": (lambda: nn.Conv2d(3.0, 3, 3), "Conv2d: in_channels=3.0"),
    "no groups": (lambda: nn.Conv2d(3, 3, 1, groups=0), "Conv2d: groups=0"),
    "negative features": (lambda: nn.Linear(-1, 3), "Linear: in_features=-1"),
    "half a feature": (lambda: nn.Linear(3, 2.5), "Linear: out_features=2.5"),
    "batch norm": (lambda: nn.BatchNorm2d(3.5), "BatchNorm2d: num_features=3.5"),
    "no groups of channels": (lambda: nn.GroupNorm(0, 3), "GroupNorm: num_groups=0"),
    "slopes": (lambda: nn.PReLU(-1), "PReLU: num_parameters=-1"),
    "output of 0": (lambda: nn.AdaptiveAvgPool2d(0)(X), "adaptive_avg_pool2d: output_size=0"),
    "slopes of other channels": (lambda: nn.Sequential(nn.PReLU(4))(X), r"0: prelu: x has 3 channels \(shape \(2, 3, 8, 8\)\), the slopes have shape \(4,\)"),
    "flatten backwards": (lambda: nn.Flatten(3, 1)(X), r"flatten: dimensions 3 to 1 of \(2, 3, 8, 8\)"),
    "batch of two and a half": (lambda: tw.data.DataLoader([], 2.5), "batch_size=2.5"),
    "arguments exchanged": (lambda: tw.export(nn.Linear(2, 2), "x.onnx", tw.ones((1, 2))), "path is a Tensor; expected export"),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_refused(name):
    make, message = SIZES[name]
    with pytest.raises(tw.TwofoldError, match=message):
        make()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no/w\.safetensors cannot be written: there is no folder .*no; make it"):
        tw.save_weights(nn.Linear(2, 2), tmp_path / "no" / "w.safetensors")


def test_a_training_without_batches():
    data = tw.data.ArrayDataset(np.zeros((3, 1, 2, 2), np.float32), np.zeros(3, np.int64), ("a",))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1)
    for loader in (tw.data.DataLoader(data, 8, drop_last=True), []):
        with pytest.raises(tw.DataError, match="no batches"):
            tw.train.fit(model, loader, epochs=1, optimizer=optimizer, reporter=tw.train.Reporter(1, quiet=True))


@pytest.mark.parametrize("device", ["cpu", "reference", "xla:cpu"])
def test_negative_powers_of_integers_are_cut_quotients(device):
    if device.startswith("xla"):
        pytest.importorskip("jax")
    a, b = np.meshgrid(np.arange(-3, 4), np.arange(-4, 5))
    want = np.array([[(x**y if y >= 0 else 0 if x == 0 else int(float(x) ** y)) for x in range(-3, 4)] for y in range(-4, 5)])
    with tw.device(device):
        for dtype in ("int64", "int8"):
            x, y = tw.tensor(a.astype(dtype)), tw.tensor(b.astype(dtype))
            for power in (x**y, tw.compile(lambda x, y: x**y)(x, y)):
                np.testing.assert_array_equal(power.numpy(), want.astype(dtype))
