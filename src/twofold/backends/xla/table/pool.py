"""Pools and their gradients, with the reference's rules: the first maximum wins, a NaN counts as the largest.

Forward passes are ``reduce_window``. Which tap of its window won is found, and its gradient sent back, one tap at a
time over the whole image, as in the reference: XLA fuses the taps. Windows of many taps (a global pool) run the same
step in a loop, so that the program does not grow with the window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from twofold.backends.xla.table.elementwise import is_narrow

UNROLLED = 32  # taps: a 5x5 window is written out, a 7x7 loops
Pads = list[tuple[int, int]]


def _spans(window: Any, dilation: Any) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(window, dilation)]


def _outputs(spatial: Any, window: Any, strides: Any, padding: Any, dilation: Any, ceil_mode: bool) -> tuple[int, ...]:
    from twofold.ops.windows import output_size

    return tuple(int(output_size(*row, ceil_mode)) for row in zip(spatial, window, strides, padding, dilation))


def _pads(spatial: Any, out: Any, window: Any, strides: Any, padding: Any, dilation: Any) -> Pads:
    """The padding that holds every tap of every window, the overhang of ceil mode too."""
    reach = [(o - 1) * s + span for o, s, span in zip(out, strides, _spans(window, dilation))]
    return [(low, max(0, r - n - low)) for n, r, (low, _) in zip(spatial, reach, padding)]


def _lowest(dtype: Any) -> Any:
    return np.array(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def _padded(x: Any, pads: Pads, fill: Any) -> Any:
    return lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0)] * 2 + [(low, high, 0) for low, high in pads])


def _widen(x: Any) -> Any:
    return x.astype(jnp.float32) if is_narrow(x) else x


# ---- forward ---------------------------------------------------------------------------------------------------------


def _windowed(x: Any, combine: Any, initial: Any, window: Any, strides: Any, pads: Any, dilation: Any) -> Any:
    return lax.reduce_window(
        x, jnp.asarray(initial, x.dtype), combine, (1, 1, *window), (1, 1, *strides), [(0, 0)] * 2 + list(pads),
        window_dilation=(1, 1, *dilation),
    )  # fmt: skip


def _max_pool(x: Any, *, window: Any, strides: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    out = _outputs(x.shape[2:], window, strides, padding, dilation, ceil_mode)
    pads = _pads(x.shape[2:], out, window, strides, padding, dilation)
    return _windowed(x, lax.max, _lowest(x.dtype), window, strides, pads, dilation)


def _counts(spatial: Any, out: Any, window: Any, strides: Any, padding: Any, include_pad: bool) -> np.ndarray:
    total = np.ones((), np.float64)
    for n, o, k, s, (low, high) in zip(spatial, out, window, strides, padding):
        first, last = (-low, n + high) if include_pad else (0, n)
        start = np.arange(o) * s - low
        total = total[..., None] * (np.minimum(start + k, last) - np.maximum(start, first))
    return total


def _avg_pool(x: Any, *, window: Any, strides: Any, padding: Any, ceil_mode: bool, include_pad: bool) -> Any:
    ones, wide = (1,) * len(window), _widen(x)
    out = _outputs(x.shape[2:], window, strides, padding, ones, ceil_mode)
    pads = _pads(x.shape[2:], out, window, strides, padding, ones)
    total = _windowed(wide, lax.add, 0, window, strides, pads, ones)
    counts = _counts(x.shape[2:], out, window, strides, padding, include_pad)
    return (total / counts.astype(total.dtype)).astype(x.dtype)


def _avg_pool_grad(
    g: Any, *, window: Any, strides: Any, padding: Any, ceil_mode: bool, include_pad: bool, input_shape: Any
) -> Any:
    """Each share laid ``stride`` apart, then summed over the windows that cover each position."""
    ones, wide = (1,) * len(window), _widen(g)
    out = _outputs(input_shape, window, strides, padding, ones, ceil_mode)
    share = wide / _counts(input_shape, out, window, strides, padding, include_pad).astype(wide.dtype)
    zero = jnp.zeros((), wide.dtype)
    apart = lax.pad(share, zero, [(0, 0, 0)] * 2 + [(0, 0, s - 1) for s in strides])
    total = _windowed(apart, lax.add, 0, window, ones, [(k - 1, k - 1) for k in window], ones)
    cut = [(-low, n + low - r, 0) for n, r, (low, _) in zip(input_shape, total.shape[2:], padding)]
    return lax.pad(total, zero, [(0, 0, 0)] * 2 + cut).astype(g.dtype)


# ---- tap by tap ------------------------------------------------------------------------------------------------------


class _Taps:
    """The taps of a pool's windows over its padded input: what each tap reads, and how to add to what it reads."""

    def __init__(self, spatial: Any, window: Any, strides: Any, padding: Any, dilation: Any, ceil_mode: bool):
        self.window, self.strides, self.dilation = window, strides, dilation
        self.spatial = spatial
        self.out = _outputs(spatial, window, strides, padding, dilation, ceil_mode)
        self.pads = _pads(spatial, self.out, window, strides, padding, dilation)
        self.count = math.prod(window)
        self.reach = [(o - 1) * s + 1 for o, s in zip(self.out, strides)]

    def each(self, step: Callable[[Any, Any, Any], Any], carry: Any) -> Any:
        """``carry = step(number, start, carry)`` for every tap in row-major order."""
        taps = itertools.product(*map(range, self.window))
        offsets = [tuple(k * d for k, d in zip(tap, self.dilation)) for tap in taps]
        if self.count <= UNROLLED:
            for number, start in enumerate(offsets):
                carry = step(number, start, carry)
            return carry
        table = jnp.asarray(np.array(offsets, np.int32))
        start_of = lambda i: tuple(table[i, axis] for axis in range(len(self.window)))
        return lax.fori_loop(0, self.count, lambda i, sofar: step(i, start_of(i), sofar), carry)

    def _block(self, wide: Any, start: Any) -> Any:
        return lax.dynamic_slice(wide, (0, 0, *start), (*wide.shape[:2], *self.reach))

    def read(self, wide: Any, start: Any) -> Any:
        """What the tap at ``start`` reads in every window: shape ``(N, C, *out)``."""
        if isinstance(start[0], int):
            stops = tuple(a + r for a, r in zip(start, self.reach))
            return lax.slice(wide, (0, 0, *start), (*wide.shape[:2], *stops), (1, 1, *self.strides))
        block = self._block(wide, start)
        return lax.slice(block, (0,) * block.ndim, block.shape, (1, 1, *self.strides))

    def add(self, wide: Any, start: Any, part: Any) -> Any:
        """``wide`` with ``part`` added where the tap at ``start`` reads."""
        apart = [(0, 0, s - 1) for s in self.strides]
        zero = jnp.zeros((), part.dtype)
        if isinstance(start[0], int):
            ends = [(a, n - a - r, inner) for a, n, r, (_, _, inner) in zip(start, wide.shape[2:], self.reach, apart)]
            return wide + lax.pad(part, zero, [(0, 0, 0)] * 2 + ends)
        block = self._block(wide, start) + lax.pad(part, zero, [(0, 0, 0)] * 2 + apart)
        return lax.dynamic_update_slice(wide, block, (0, 0, *start))

    def winners(self, x: Any) -> Any:
        """Number of the first tap that holds each window's maximum."""
        wide = _padded(x, self.pads, _lowest(x.dtype))

        def step(number: Any, start: Any, carry: Any) -> Any:
            best, winner = carry
            here = self.read(wide, start)
            better = ~(here <= best) & (best == best)
            return jnp.where(better, here, best), jnp.where(better, jnp.int32(number), winner)

        first = self.read(wide, (0,) * len(self.window))
        return self.each(step, (first, jnp.zeros(first.shape, jnp.int32)))[1]


def _max_pool_grad(x: Any, g: Any, **attrs: Any) -> Any:
    taps, wide = _Taps(x.shape[2:], **attrs), _widen(g)
    winner = taps.winners(_widen(x))
    total = _padded(jnp.zeros(x.shape, wide.dtype), taps.pads, 0)
    zero = jnp.zeros((), wide.dtype)
    total = taps.each(lambda i, start, sofar: taps.add(sofar, start, jnp.where(winner == i, wide, zero)), total)
    inside = [(0, 0, 0)] * 2 + [(-low, -high, 0) for low, high in taps.pads]
    return lax.pad(total, zero, inside).astype(g.dtype)


def _max_pool_pick(x: Any, c: Any, **attrs: Any) -> Any:
    taps = _Taps(x.shape[2:], **attrs)
    winner, wide = taps.winners(_widen(x)), _padded(c, taps.pads, 0)
    picked = jnp.zeros(winner.shape, c.dtype)
    return taps.each(lambda i, start, sofar: jnp.where(winner == i, taps.read(wide, start), sofar), picked)


ROWS = {
    "max_pool": _max_pool, "max_pool_grad": _max_pool_grad, "max_pool_pick": _max_pool_pick,
    "avg_pool": _avg_pool, "avg_pool_grad": _avg_pool_grad,
}  # fmt: skip
