"""From device names to jax devices, and how arrays lie on a group of them.

    gpu, gpu:1, tpu, xla:cpu      one device of this process
    gpu:all                       every device of the kind, of every process of the job
    gpu:0,2                       some devices of this process
    gpu:all/sharded               the same, with the state split over them too

On a group the first dimension of a program's inputs (the batch) is split over the devices where it divides, and every
other array is whole on each; ``/sharded`` also splits the state (parameters and optimiser moments, as in ZeRO:
Rajbhandari et al., SC 2020) along its first dimension that divides. XLA inserts the collectives. Where things lie
changes no result, so a batch-norm statistic is that of the whole batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

from twofold.backends.interface import Device
from twofold.backends.xla import runtime
from twofold.ir import Spec

PLATFORMS = {"gpu": "gpu", "tpu": "tpu", "xla:cpu": "cpu"}  # our prefix -> jax's platform
ALL, SHARDED = "all", "/sharded"
_AXIS = "devices"


def split_name(name: str) -> tuple[str, str, bool]:
    """``xla:cpu:0,1/sharded`` as (``xla:cpu``, ``0,1``, True); the prefix is empty if it is none of ours."""
    body, sharded = (name.removesuffix(SHARDED), True) if name.endswith(SHARDED) else (name, False)
    for prefix in PLATFORMS:
        if body == prefix or body.startswith(f"{prefix}:"):
            return prefix, body[len(prefix) + 1 :], sharded
    return "", body, sharded


@functools.cache
def local_devices(prefix: str) -> tuple[list[Any], str]:
    """jax's devices of this process, and what jax said if it found none."""
    try:
        return runtime.load().local_devices(backend=PLATFORMS[prefix]), ""
    except RuntimeError as error:
        return [], str(error).splitlines()[0]


def resolve(name: str) -> list[Any] | None:
    """The jax devices of a name; None if it names none that are here."""
    prefix, places, _ = split_name(name)
    if not prefix:
        return None
    local, _ = local_devices(prefix)
    if not local:
        return None
    if places == ALL:
        return runtime.load().devices(PLATFORMS[prefix])
    try:
        numbers = [int(p) for p in places.split(",")] if places else [0]
    except ValueError:
        return None
    if len(set(numbers)) != len(numbers) or not all(0 <= n < len(local) for n in numbers):
        return None
    return [local[n] for n in numbers]


@dataclass(frozen=True)
class Placement:
    """How arrays lie on the devices of one name."""

    devices: tuple[Any, ...]
    split_state: bool

    @property
    def is_group(self) -> bool:
        return len(self.devices) > 1

    @functools.cached_property
    def whole(self) -> Any:
        """Every element on every device."""
        jax = runtime.load()
        if not self.is_group:
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())

    @functools.cached_property
    def _mesh(self) -> Any:
        import numpy as np

        return runtime.load().sharding.Mesh(np.array(self.devices), (_AXIS,))

    def _split(self, axis: int) -> Any:
        spec = runtime.load().sharding.PartitionSpec(*[None] * axis, _AXIS)
        return runtime.load().sharding.NamedSharding(self._mesh, spec)

    def of_data(self, spec: Spec) -> Any:
        """Inputs and outputs: split along the batch if it divides."""
        batch = int(cast(int, spec.shape[0])) if spec.shape else 0
        return self.batch if batch > 0 and batch % len(self.devices) == 0 else self.whole

    @property
    def batch(self) -> Any:
        """The first dimension split over the devices."""
        return self._split(0) if self.is_group else self.whole

    def of_state(self, spec: Spec) -> Any:
        """State: whole, or (floating arrays) split along the first dimension that divides."""
        if self.is_group and self.split_state and spec.dtype.is_floating:
            for axis, size in enumerate(cast("tuple[int, ...]", spec.shape)):
                if size > 0 and size % len(self.devices) == 0:
                    return self._split(axis)
        return self.whole


@functools.cache
def placement(device: Device) -> Placement:
    """The placement of a device that ``resolve`` has found."""
    devices = resolve(device.name)
    assert devices, device
    return Placement(tuple(devices), split_name(device.name)[2])


def put(array: Any, sharding: Any) -> Any:
    """``array`` (NumPy, or a jax array that lies elsewhere) laid out by ``sharding``; NumPy's memory is not shared."""
    jax = runtime.load()
    if isinstance(array, jax.Array):
        return array if array.sharding == sharding else jax.device_put(array, sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
