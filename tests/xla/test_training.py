"""A training step on XLA: the reference's numbers, on one device, on four, and with its state split over four."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from xla_training import batches, train

import twofold as tw
from twofold.backends import device
from twofold.base.errors import DeviceError

FOUR = [f"xla:cpu:{i}" for i in range(4)]
SAME = {"rtol": 2e-5, "atol": 2e-6}  # float32, four steps, sums in another order


@pytest.fixture(scope="module")
def expected() -> tuple[list[float], dict[str, np.ndarray]]:
    losses, state, _ = train(devices="reference")
    return losses, state


def check(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got[0], expected[0], **SAME)
    assert got[1].keys() == expected[1].keys()
    for name, want in expected[1].items():
        np.testing.assert_allclose(got[1][name], want, **SAME, err_msg=name)


@pytest.fixture
def four() -> None:
    if len(device("xla:cpu").backend.devices()) < 4:
        pytest.skip("jax was started with one CPU device before these tests were loaded")


def test_one_device_equals_the_reference(expected: Any) -> None:
    check(train(devices="xla:cpu"), expected)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(("shard_state", "parts"), [(False, 1), (True, 4)], ids=["replicated", "sharded"])
def test_four_devices_equal_one(expected: Any, shard_state: bool, parts: int) -> None:
    losses, state, step = train(devices=FOUR, shard_state=shard_state)
    check((losses, state), expected)
    assert "(4 device(s))" in step.report() and "split over the devices: x, y" in step.report()
    variables = [v for v in step.trace(*batches(1)[0]).variables if v.dtype.is_floating]
    lying = {v.name: v._own.buffer for v in variables if v.ndim and v.shape[0] % 4 == 0}
    assert any("momentum" in name or "head.weight" in name for name in lying), sorted(lying)
    for name, buffer in lying.items():
        assert buffer.addressable_shards[0].data.size * parts == buffer.size, name


@pytest.mark.usefixtures("four")
def test_a_sum_over_the_batch_is_one_all_reduce() -> None:
    step = tw.compile(lambda x: x.sum(), devices=FOUR)
    step(np.ones((8, 3), np.float32))
    (compiled,) = (c for entries in step._entries.values() for e in entries for c in e.runner.programs.values())
    assert compiled.program.text().count("all-reduce(") == 1


@pytest.mark.usefixtures("four")
def test_all_means_every_device_of_the_default_kind() -> None:
    with tw.device("xla:cpu"):
        assert tw.compile(lambda x: x + 1.0, devices="all")(np.ones(8, np.float32)).device == "xla:cpu:all"
    assert tw.compile(lambda x: x + 1.0, devices="all")(np.ones(8, np.float32)).device == tw.tensor(0.0).device


@pytest.mark.usefixtures("four")
def test_a_batch_that_does_not_divide_gives_the_same_numbers() -> None:
    step = tw.compile(lambda x: (x * x).sum(axis=0), devices=FOUR)
    x = np.arange(18, dtype=np.float32).reshape(6, 3)
    np.testing.assert_allclose(step(x).numpy(), (x * x).sum(0))
    assert "split over the devices: nothing" in step.report()


@pytest.mark.usefixtures("four")
def test_groups_are_checked() -> None:
    with pytest.raises(DeviceError, match="distinct devices"):
        tw.compile(lambda x: x, devices=["xla:cpu:1", "xla:cpu:1"])(np.ones(4, np.float32))
    with pytest.raises(DeviceError, match="one device"):
        tw.compile(lambda x: x, devices=["reference", "xla:cpu"])(np.ones(4, np.float32))
    with pytest.raises(DeviceError, match="several kinds"):
        tw.compile(lambda x: x, devices=["xla:cpu", "reference"])(np.ones(4, np.float32))
    with pytest.raises(DeviceError, match="empty"):
        tw.compile(lambda x: x, devices=[])(np.ones(4, np.float32))


@pytest.mark.usefixtures("four")
def test_eager_work_on_a_group() -> None:
    x = tw.tensor(np.arange(8.0, dtype=np.float32), device="xla:cpu:all", requires_grad=True)
    (x * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == (2 * np.arange(8.0)).tolist()
