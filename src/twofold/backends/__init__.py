"""Backends: each takes a graph and gives a callable program."""

from twofold.backends.interface import (
    KINDS,
    Backend,
    Device,
    Layout,
    Program,
    chosen_device,
    default_device,
    device,
    device_group,
)

__all__ = ["KINDS", "Backend", "Device", "Layout", "Program", "chosen_device", "default_device", "device", "device_group"]
