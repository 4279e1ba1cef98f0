"""A training step of every family of the zoo: XLA's numbers are the reference's.

The networks are those of ``zoo_families``. Everything that happens in a step is compared, dropout's and drop-path's bits
included, in float64, where rounding cannot hide a wrong number or tip a ReLU: loss, parameters, moments and batch-norm
statistics, against how far they moved.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

import twofold as tw
from twofold import zoo
from twofold.train.evaluate import criterion_of
from twofold.zoo.registry import Entry
from zoo_families import FAMILIES, least_side, small, training_step

# of the largest movement of an array. float64 rounds at 1e-16; sums in another order, and batch norms over a few numbers
# that nearly agree, make a million times that of it
SAME = {"float64": 1e-9, "float32": 2e-3}
# XLA's quickest way to machine code: nearly all of the time goes into it, and what is tested is the program that it is given
QUICK = {
    "xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _compiled_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.jit", partial(jax.jit, compiler_options=QUICK))


def one_step(entry: Entry, dtype: str, where: str) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The loss of a step, and every array of the training before and after it."""
    side = least_side(entry)
    tw.random.seed(3)
    tw.random.generator().move_("reference")
    with tw.device("reference"):
        model = small(entry, side).to(dtype=dtype)
        loss_of, optimizer = criterion_of(model), tw.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    step = training_step(model, loss_of, optimizer)
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
