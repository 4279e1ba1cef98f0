"""XLA: the same graphs on GPUs, TPUs and many hosts. Importing this package does not load jax."""

from twofold.backends.xla.backend import XlaBackend

BACKEND = XlaBackend()

__all__ = ["BACKEND", "XlaBackend"]
