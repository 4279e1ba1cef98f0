"""Rows that make and move elements without computing."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax


def _pad(x: Any, *, widths: Any, interior: Any, fill: float) -> Any:
    value = jnp.asarray(np.full((), fill, x.dtype))
    return lax.pad(x, value, [(low, high, inner) for (low, high), inner in zip(widths, interior)])


ROWS = {
    "constant": lambda *, value: jnp.asarray(value),
    "full": lambda *, shape, fill, dtype: jnp.full(shape, fill, dtype.numpy),
    "iota": lambda *, size, dtype: jnp.arange(size).astype(dtype.numpy),
    "dim_size": lambda *, dim, dtype: jnp.asarray(dim, dtype.numpy),
    "reshape": lambda x, *, shape: jnp.reshape(x, shape),
    "permute_dims": lambda x, *, axes: jnp.transpose(x, axes),
    "broadcast_to": lambda x, *, shape: jnp.broadcast_to(x, shape),
    "concat": lambda *xs, axis: jnp.concatenate(xs, axis),
    "slice": lambda x, *, starts, stops, steps: lax.slice(x, starts, tuple(map(max, starts, stops)), steps),
    "pad": _pad,
    "flip": lambda x, *, axes: lax.rev(x, axes),
}
