"""The XLA backend: GPUs, TPUs, and the CPU device of XLA itself, on which everything here is tested."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.interface import Backend, Device, Program
from twofold.backends.xla import runtime
from twofold.backends.xla.placement import ALL, PLATFORMS, SHARDED, local_devices, placement, put, resolve, split_name
from twofold.base.errors import DeviceError
from twofold.ir import Op, Spec

if TYPE_CHECKING:
    from twofold.backends.xla.program import Pending
    from twofold.ir import Graph

_CACHED_OPS = 4096
_INSTALL = {
    "gpu": "install the CUDA build with `pip install twofold[gpu]`, and check that `nvidia-smi` lists the device",
    "tpu": "install `jax[tpu]` on the TPU host",
}


class XlaBackend(Backend):
    """Buffers are jax arrays. Single ops run as jitted functions, cached by op, attributes and shapes."""

    name = "xla"

    def __init__(self) -> None:
        self._ops: dict[Any, tuple[Any, list[str]]] = {}
        self._pending: Pending | None = None

    # -- devices -------------------------------------------------------------------------------------------------------
    def devices(self) -> list[Device]:
        """One name per device of this process: ``gpu:0``, ``tpu:0``, ``xla:cpu``, ``xla:cpu:1``."""
        runtime.load()
        found = []
        for prefix in PLATFORMS:
            count = len(local_devices(prefix)[0])
            found += [Device(prefix if prefix == "xla:cpu" and i == 0 else f"{prefix}:{i}") for i in range(count)]
        return found

    def find(self, name: str) -> Device | None:
        """The device or group of a name, in its one spelling."""
        runtime.load()
        devices = resolve(name)
        if devices is None:
            return None
        prefix, places, sharded = split_name(name)
        if places == ALL and len(devices) == 1:
            places = "0"
        if not places or (prefix == "xla:cpu" and places == "0"):
            places = "" if prefix == "xla:cpu" else "0"
        return Device(prefix + (f":{places}" if places else "") + (SHARDED if sharded and len(devices) > 1 else ""))

    def everything_like(self, device: Device) -> Device:
        prefix, _, _ = split_name(device.name)
        found = self.find(f"{prefix}:{ALL}")
        assert found is not None, device
        return found

    def count(self, device: Device) -> int:
        return len(placement(device).devices)

    def group(self, devices: Sequence[Device], *, shard_state: bool = False) -> Device:
        names = [split_name(d.name) for d in devices]
        if len({prefix for prefix, _, _ in names}) != 1:
            raise DeviceError(f"devices {', '.join(map(str, devices))} are of several kinds; a program runs on one")
        places = [p or "0" for _, p, _ in names]
        suffix = SHARDED if shard_state or any(sharded for _, _, sharded in names) else ""
        name = f"{names[0][0]}:{','.join(places)}{suffix}"
        found = self.find(name)
        if found is None:
            raise DeviceError(f"devices {', '.join(map(str, devices))}: expected distinct devices of this process")
        return found

    def advice(self, name: str) -> str:
        """Why a device may be missing, and what to install."""
        prefix, _, _ = split_name(name)
        if not prefix:
            return "XLA's own CPU device is called 'xla:cpu'"
        local, said = local_devices(prefix)
        if local:
            hint = "; XLA_FLAGS=--xla_force_host_platform_device_count=4 makes four" if prefix == "xla:cpu" else ""
            return f"{prefix} has {len(local)} device(s), numbered from 0{hint}"
        platforms = os.environ.get("JAX_PLATFORMS")
        limited = f"; JAX_PLATFORMS={platforms} limits what jax looks for" if platforms else ""
        return f"jax said: {said.rstrip('.')}{limited}; {_INSTALL.get(prefix, '')}"

    # -- buffers -------------------------------------------------------------------------------------------------------
    @property
    def pending(self) -> Pending:
        """Range checks of programs that have not been looked at."""
        if self._pending is None:
            from twofold.backends.xla.program import Pending

            self._pending = Pending()
        return self._pending

    def put(self, array: np.ndarray, device: Device) -> Any:
        with runtime.x64():
            try:
                return put(np.asarray(array), placement(device).whole)
            except runtime.load().errors.JaxRuntimeError as error:
                raise runtime.translated(error, f"moving {array.nbytes} bytes to {device}") from error

    def get(self, buffer: Any) -> np.ndarray:
        """The content on the host. Waits for the device; reports an index that was out of range in what ran before."""
        self.pending.look()
        if not runtime.is_joint(buffer):
            return runtime.fetch(buffer)
        from jax.experimental import multihost_utils

        runtime.begins_joint()
        with runtime.x64():
            return np.asarray(multihost_utils.process_allgather(buffer, tiled=True))

    def copy(self, buffer: Any) -> Any:
        with runtime.x64():
            return buffer.copy()

    # -- running -------------------------------------------------------------------------------------------------------
    def run(
        self, op: Op, buffers: Sequence[Any], attrs: dict[str, Any], specs: Sequence[Spec], device: Device
    ) -> Sequence[Any]:
        if op.name == "constant":
            return [self.put(attrs["value"], device)]
        if op.name == "custom_vjp":  # nothing to compute; its rule must not be kept alive by the cache below
            return buffers[attrs["args"] : attrs["args"] + attrs["results"]]
        from twofold.backends.xla import checks

        runtime.begins(buffers)
        with runtime.x64():
            function, messages = self._function(op, attrs, buffers)
            try:
                results, flag = function(*buffers)
            except runtime.load().errors.JaxRuntimeError as error:
                raise runtime.translated(error, op.name) from error
            if messages:
                checks.report(runtime.fetch(flag.addressable_data(0), op.name), messages)
            return results if buffers else [put(r, placement(device).whole) for r in results]

    def call(self, function: Any, buffers: Sequence[Any], what: str) -> Sequence[Any]:
        """A jitted function of ours (from a file) on buffers, with our settings and errors."""
        runtime.begins(buffers)
        with runtime.x64():
            try:
                return function(*buffers)
            except runtime.load().errors.JaxRuntimeError as error:
                raise runtime.translated(error, what) from error

    def _function(self, op: Op, attrs: dict[str, Any], buffers: Sequence[Any]) -> tuple[Any, list[str]]:
        key = (op, tuple(attrs.items()), tuple((b.shape, b.dtype) for b in buffers))
        known = self._ops.get(key)
        if known is None:
            from twofold.backends.xla import lower

            if len(self._ops) >= _CACHED_OPS:
                self._ops.clear()
            messages: list[str] = []
            known = self._ops[key] = (runtime.load().jit(lower.function_of_op(op, attrs, messages)), messages)
        return known

    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        from twofold.backends.xla.program import XlaProgram

        runtime.load()
        return XlaProgram(graph, device, donated, self.pending)
