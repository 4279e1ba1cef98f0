"""Matrix products and convolutions: what cuDNN and cuBLAS do on a GPU.

The two gradients of a convolution are linear in their first operand's partner, so each is jax's transpose of the same
``conv_general_dilated``: XLA then sees the forms that it hands to the library.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from twofold.backends.xla import runtime


def _conv(x: Any, w: Any, *, strides: Any, padding: Any, dilation: Any, groups: int) -> Any:
    return lax.conv_general_dilated(
        x, w, strides, padding, rhs_dilation=dilation, feature_group_count=groups, precision=runtime.precision()
    )


def _input_grad(g: Any, w: Any, *, input_shape: Any, **attrs: Any) -> Any:
    x = jax.ShapeDtypeStruct((g.shape[0], w.shape[1] * attrs["groups"], *input_shape), g.dtype)
    return jax.linear_transpose(lambda x: _conv(x, w, **attrs), x)(g)[0]


def _weight_grad(x: Any, g: Any, *, kernel: Any, **attrs: Any) -> Any:
    w = jax.ShapeDtypeStruct((g.shape[1], x.shape[1] // attrs["groups"], *kernel), g.dtype)
    return jax.linear_transpose(lambda w: _conv(x, w, **attrs), w)(g)[0]


def _solve(a: Any, b: Any) -> Any:
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    wide = jnp.promote_types(a.dtype, jnp.float32)  # LAPACK has no 16-bit floats
    first, second = (jnp.broadcast_to(x, lead + x.shape[-2:]).astype(wide) for x in (a, b))
    return jnp.linalg.solve(first, second).astype(a.dtype)


ROWS = {
    "matmul": lambda a, b: jnp.matmul(a, b, precision=runtime.precision()),
    "solve": _solve,
    "conv": _conv, "conv_input_grad": _input_grad, "conv_weight_grad": _weight_grad,
}  # fmt: skip
