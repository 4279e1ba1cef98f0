"""A training step of every family of the zoo: XLA's numbers are the reference's.

The rows come from the zoo's table: of each architecture (module class) the variant with the fewest multiply-adds, at the least
depth and the smallest images that keep its form. Everything that happens in a step is compared, dropout's and drop-path's bits
included, in float64, where rounding cannot hide a wrong number or tip a ReLU: loss, parameters, moments and batch-norm
statistics, against how far they moved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import zoo
from twofold.train.evaluate import criterion_of
from twofold.zoo.registry import Entry

# of the largest movement of an array. float64 rounds at 1e-16; sums in another order, and batch norms over a few numbers
# that nearly agree, make a million times that of it
SAME = {"float64": 1e-9, "float32": 2e-3}
OPTIONS = {"hidden": 16, "aux_logits": True}  # where a network has them: small, and every part of it in use
LEAST_SIDE = 8
SHORT = {
    "depths": lambda depths: (1,) * len(depths), "width": lambda _: 1, "base_width": lambda _: 4,
    "columns": lambda _: 2, "channels": lambda channels: (8,) * len(channels), "first": lambda _: 8,
}  # fmt: skip
NOT_SHORT = {"SqueezeNet": ("first",)}  # a pair of channels and kernel there


def short(entry: Entry) -> Entry:
    """The entry at the least depth and width of its form."""
    keep = NOT_SHORT.get(entry.build.__name__, ())
    fixed = {k: SHORT[k](v) if k in SHORT and k not in keep else v for k, v in entry.fixed.items()}
    if "depth" in fixed:  # 6n + 2 or 6n + 4 layers, with bottlenecks 9n + 2: n = 1
        period = 9 if "Bottleneck" in str(fixed.get("block")) else 6
        fixed["depth"] = period + fixed["depth"] % period
    return replace(entry, fixed=fixed)


def families() -> dict[str, Entry]:
    """The cheapest entry of each architecture, in short, by name."""
    cheapest: dict[Any, Entry] = {}
    for entry in sorted(map(zoo.info, zoo.names()), key=lambda entry: entry.macs):
        cheapest.setdefault(entry.build, entry)
    return {entry.name: short(entry) for entry in cheapest.values()}


FAMILIES = families()


def one_step(entry: Entry, dtype: str, where: str) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The loss of a step, and every array of the training before and after it."""
    smallest = entry.domain.smallest_adapted or entry.domain.smallest
    side = entry.input_shape[1] if entry.name.startswith("lenet") else max(LEAST_SIDE, smallest)
    options = {name: value for name, value in OPTIONS.items() if name in entry.options}
    tw.random.seed(3)
    tw.random.generator().move_("reference")
    with tw.device("reference"):
        model = entry(5, **entry.options_for((entry.input_shape[0], side, side)), **options).to(dtype=dtype)
        loss_of, optimizer = criterion_of(model), tw.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def step(x: Any, y: Any) -> Any:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    arrays = lambda: {name: np.array(v.numpy(), np.float64) for name, v in model.state_dict().items()}
    x = np.random.default_rng(1).normal(size=(4, entry.input_shape[0], side, side)).astype(dtype)
    before = arrays()
    loss = float(tw.compile(step, devices=where)(x, np.array([0, 3, 1, 4])))
    after = arrays()
    moments = {f"optimizer.{k}": np.array(v.numpy(), np.float64) for k, v in optimizer.state_dict().items() if hasattr(v, "numpy")}
    tw.random.generator().move_("cpu")
    pairs = {name: (before[name], after[name]) for name in before}
    return loss, pairs | {name: (np.zeros_like(m), m) for name, m in moments.items()}


def compare(entry: Entry, dtype: str) -> None:
    loss, expected = one_step(entry, dtype, "reference")
    got_loss, got = one_step(entry, dtype, "xla:cpu")
    assert np.isfinite(loss) and abs(got_loss - loss) <= SAME[dtype] * abs(loss)
    assert got.keys() == expected.keys() and any(np.any(b != a) for b, a in expected.values())
    movement = {name: np.abs(after - before).max(initial=0.0) for name, (before, after) in expected.items()}
    # the gradient of a bias before a batch norm is nothing but what rounding leaves of sums that cancel
    cancelled = 100 * np.finfo(dtype).eps * max(movement.values())
    for name, (_, after) in expected.items():
        moved = movement[name]
        apart = np.abs(got[name][1] - after).max(initial=0.0)
        rounding = np.finfo(dtype).eps * np.abs(after).max(initial=0.0) + cancelled
        assert apart <= SAME[dtype] * moved + rounding, f"{name}: {apart:.1e} apart, moved by {moved:.1e}"


def test_every_architecture_of_the_zoo_is_here() -> None:
    assert {zoo.info(name).build for name in zoo.names()} == {entry.build for entry in FAMILIES.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_equals_the_references(name: str) -> None:
    compare(FAMILIES[name], "float64")


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1"])
def test_a_training_step_in_float32(name: str) -> None:
    compare(FAMILIES[name], "float32")
