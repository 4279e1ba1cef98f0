"""Gradients, statistics and updates that are no numbers stop a training, are named, and never reach a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.train import Reporter, Trainer, read_checkpoint

QUIET = Reporter(0, quiet=True)
IMAGES = np.random.default_rng(0).standard_normal((12, 2, 3, 3)).astype(np.float32)
LABELS = np.arange(12) % 2
BAD = 2  # a label that makes the gradient infinite


def trainer(images: np.ndarray, labels: np.ndarray, output: Any = None, **options: Any) -> Trainer:
    """Three steps an epoch, not shuffled."""
    tw.random.seed(1)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = tw.optim.Adam(model.parameters(), lr=0.01)

    def criterion(logits: Any, given: Any) -> Any:
        """Cross-entropy, and the slope of a square root at 0: the loss is finite, the gradient of the last bias is not."""
        hit = (given == BAD).any()
        return nn.functional.cross_entropy(logits, given) + tw.sqrt((model[5].bias * 0).sum() + tw.where(hit, 0.0, 1.0))

    data = tw.data.ArrayDataset(images, labels, ("a", "b", "c"))
    loader = tw.data.DataLoader(data, 4)
    return Trainer(model, loader, optimizer=optimizer, criterion=criterion, output=output, **options)


def state(t: Trainer) -> dict[str, bytes]:
    return {n: v.numpy().tobytes() for n, v in t.variables().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_gradient_that_is_no_number_is_named_and_changes_nothing(compiled, precision, tmp_path):
    whole = trainer(IMAGES, LABELS, compiled=compiled, precision=precision)
    for _ in range(2):  # steps 1 and 2 are good
        whole._batch(*_batch(whole, whole.progress.step), _sums(), {})
    labels = LABELS.copy()
    labels[9] = BAD
    t = trainer(IMAGES, labels, tmp_path, compiled=compiled, precision=precision)
    with pytest.raises(tw.NonFiniteError, match=r"the gradient of '5\.bias' is not finite at epoch 1, step 3 .*the loss is") as e:
        t.run(1, QUIET)
    assert "more" not in str(e.value)  # the others are fine
    assert state(t) == state(whole)
    arrays, progress = read_checkpoint(tmp_path / "last.safetensors")
    assert {n: a.tobytes() for n, a in arrays.items()} == state(whole) and (progress.step, progress.loader["batch"]) == (2, 2)
    again = trainer(IMAGES, LABELS, tmp_path, compiled=compiled, precision=precision)
    again.resume()
    again.run(1, QUIET)  # the same batch, now with good labels
    assert again.progress.step == 3


def _sums() -> dict[str, Any]:
    return {"loss": 0.0, "correct": 0, "images": 0, "steps": 0, "seconds": 0.0}


def _batch(t: Trainer, number: int) -> tuple[Any, Any]:
    t.model.train()
    rows = slice(4 * number, 4 * number + 4)
    return tw.tensor(IMAGES[rows]), tw.tensor(LABELS[rows])


class Grows(nn.Module):
    """A statistic that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", tw.tensor([1e20]))

    def forward(self, x: Any) -> Any:
        self.level.assign(self.level * 1e10)
        return x


@pytest.mark.parametrize("compiled", [True, False])
def test_a_batch_statistic_that_is_no_number_is_named(compiled):
    t = trainer(IMAGES, LABELS, compiled=compiled)
    t.model[1] = Grows()
    with pytest.raises(tw.NonFiniteError, match=r"'1\.level' is not finite at epoch 1, step 2"):
        t.run(1, QUIET)
    assert all(np.isfinite(v.numpy()).all() for v in t.model.state_dict(keep_vars=True).values())


def test_an_update_that_overflows_is_not_saved(tmp_path):
    t = trainer(IMAGES, LABELS, tmp_path)
    t.run(1, QUIET)
    before = (tmp_path / "last.safetensors").read_bytes()
    t.model[3].weight.assign(t.model[3].weight * np.inf)
    with pytest.raises(tw.NonFiniteError, match=r"model\.3\.weight is not finite after step 3.*the last one is kept"):
        t.save()
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_buffers_that_are_meant_to_be_infinite_are_no_matter(tmp_path):
    t = trainer(IMAGES, LABELS, tmp_path)
    t.model.register_buffer("mask", tw.tensor([0.0, -np.inf]))
    t.run(1, QUIET)
    assert np.isneginf(read_checkpoint(tmp_path / "last.safetensors")[0]["model.mask"]).any()
