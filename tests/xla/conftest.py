"""XLA tests: four CPU devices in this process, asked for before jax starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
sys.path.insert(0, str(Path(__file__).parent))  # for xla_training, which two files share
# compiled for tests: little optimisation, so that compiling does not take most of the time
FLAGS = ("--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0")
os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *FLAGS])
