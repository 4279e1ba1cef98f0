"""``tw.train.fit`` on four devices: the numbers of one, with batch-norm statistics of the whole batch or of each replica."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
from xla_training import Net

import twofold as tw
from twofold.backends import device
from twofold.base.errors import ArgumentError
from twofold.data import ArrayDataset, DataLoader

SAME = {"rtol": 2e-5, "atol": 2e-6}  # float32, five steps, sums in another order


@pytest.fixture(autouse=True)
def _four() -> None:
    if len(device("xla:cpu").backend.devices()) < 4:
        pytest.skip("jax was started with one CPU device before these tests were loaded")


def data(count: int = 36) -> ArrayDataset:
    rng = np.random.default_rng(3)
    return ArrayDataset(rng.normal(size=(count, 3, 8, 8)).astype(np.float32), rng.integers(0, 4, count), list("abcd"))


def trained(devices: Any, **options: Any) -> tuple[Any, dict[str, np.ndarray], Any]:
    """Two epochs of batches of 16, 16 and 4 (a batch that four devices divide, as one does not: 4 of 3 and 1)."""
    tw.random.seed(11)
    model = Net()
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loaders = [DataLoader(data(37), 16, shuffle=True, seed=2), DataLoader(data(18), 16)]
    trainer = tw.train.Trainer(model, *loaders, optimizer=optimizer, devices=devices, **options)
    history = trainer.run(2, tw.train.Reporter(2, quiet=True))
    state = {n: np.array(v.numpy()) for n, v in trainer.variables().items()}
    tw.random.generator().move_("cpu")
    return history, state, trainer


@pytest.fixture(scope="module")
def one() -> Any:
    return trained("xla:cpu")


@pytest.mark.parametrize("shard_state", [False, True])
def test_all_devices_equal_one(one: Any, shard_state: bool) -> None:
    with tw.device("xla:cpu"):
        history, state, trainer = trained("all", shard_state=shard_state)
    assert trainer.where == ("xla:cpu:all/sharded" if shard_state else "xla:cpu:all")
    for row, expected in zip(history, one[0], strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            np.testing.assert_allclose(row[name], expected[name], **SAME, err_msg=name)
    for name, expected in one[1].items():
        np.testing.assert_allclose(state[name], expected, **SAME, err_msg=name)
    moments = [v for n, v in trainer.variables().items() if "momentum" in n and v.ndim and v.shape[0] % 4 == 0]
    assert moments
    for moment in moments:
        parts = moment._own.buffer.addressable_shards
        assert parts[0].data.size * (4 if shard_state else 1) == moment.size


@pytest.mark.parametrize("shard_state", [False, True])
def test_an_interruption_changes_no_bit(shard_state: bool, tmp_path: Any) -> None:
    """On four devices as on one: the step under way is done and counted first."""

    def make() -> Any:
        tw.random.seed(11)
        model = Net()
        optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(data(37), 16, shuffle=True, seed=2, num_workers=2)
        options = {"devices": "xla:cpu:all", "shard_state": shard_state, "output": tmp_path, "checkpoint_every": 1e9}
        return tw.train.Trainer(model, loader, optimizer=optimizer, **options)

    def numbers(trainer: Any) -> dict[str, bytes]:
        return {n: np.array(v.numpy()).tobytes() for n, v in trainer.variables().items()}

    whole, quiet = make(), tw.train.Reporter(2, quiet=True)
    whole.run(2, quiet)
    expected = numbers(whole)
    interrupted = make()
    plain = interrupted.step

    class Interrupts:
        prepare, calls = plain.prepare, 0

        def __call__(self, *batch: Any) -> Any:
            self.calls += 1
            if self.calls == 5:  # the second of the second epoch
                signal.raise_signal(signal.SIGINT)
            return plain(*batch)

    interrupted.step = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(2, quiet)
    again = make()
    again.resume()
    assert again.progress.step == 5
    again.run(2, quiet)
    assert numbers(again) == expected
    tw.random.generator().move_("cpu")


def test_statistics_of_each_replica_are_those_of_its_part() -> None:
    """By hand: four models, one for each quarter of the batch; gradients and running statistics are their means."""
    images, labels = data(16).batch(np.arange(16))

    def net() -> Any:
        tw.random.seed(5)
        return tw.nn.Sequential(
            tw.nn.Conv2d(3, 4, 3), tw.nn.BatchNorm2d(4), tw.nn.ReLU(), tw.nn.Flatten(), tw.nn.Linear(144, 4)
        )

    lr, found = 0.5, net()
    before = {n: p.numpy().copy() for n, p in found.named_parameters()}
    options = {"optimizer": tw.optim.SGD(found.parameters(), lr=lr), "epochs": 1, "batch_norm": "per_replica"}
    loader = DataLoader(ArrayDataset(images, labels, list("abcd")), 16)
    (row,) = tw.train.fit(found, loader, devices="xla:cpu:all", reporter=tw.train.Reporter(1, quiet=True), **options)

    parts = []
    for quarter in range(4):
        mine, part = slice(4 * quarter, 4 * quarter + 4), net()
        loss = tw.nn.functional.cross_entropy(part(tw.tensor(images[mine])), tw.tensor(labels[mine]))
        loss.backward()
        parts.append((float(loss), part))
    np.testing.assert_allclose(row["loss"], np.mean([loss for loss, _ in parts]), rtol=1e-5)
    for name, parameter in found.named_parameters():
        gradient = np.mean([dict(part.named_parameters())[name].grad.numpy() for _, part in parts], axis=0)
        np.testing.assert_allclose(parameter.numpy(), before[name] - lr * gradient, rtol=1e-4, atol=1e-6, err_msg=name)
    for name in ("running_mean", "running_var"):
        mean = np.mean([getattr(part[1], name).numpy() for _, part in parts], axis=0)
        np.testing.assert_allclose(getattr(found[1], name).numpy(), mean, rtol=1e-5, atol=1e-7, err_msg=name)


def test_statistics_of_parts_stay_on_their_devices() -> None:
    """The forward pass of per-replica statistics moves no activations: what crosses is a few numbers per channel."""
    norm = tw.nn.BatchNorm2d(4)

    def forward(x: Any) -> Any:
        with tw.nn.batch_statistics(4):
            return norm(x)

    step = tw.compile(forward, devices="xla:cpu:all")
    with tw.no_grad():
        step(np.zeros((16, 4, 8, 8), np.float32))
    (compiled,) = (c for entries in step._entries.values() for e in entries for c in e.runner.programs.values())
    text = compiled.program.text()
    assert not any(f" {op}(" in text for op in ("all-to-all", "collective-permute"))
    assert all("f32[16," not in line for line in text.splitlines() if "all-gather(" in line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm": "none"}, "batch_norm is 'none'; expected 'synchronised' or 'per_replica'"),
        ({"compiled": False}, "needs compiled steps"),
    ],
)
def test_wrong_use_is_refused(options: Any, message: str) -> None:
    model = tw.nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=message):
        tw.train.Trainer(model, [], optimizer=tw.optim.SGD(model.parameters(), lr=0.1), devices="xla:cpu:all", **options)
