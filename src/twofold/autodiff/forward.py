"""jvp: derivatives in a direction, by reverse mode twice.

The pull-back ``u -> u^T J`` is linear in ``u``; its own gradient in the direction ``t`` is ``J t``. So no op needs a
forward rule, at about three times the cost of the function (Griewank and Walther 2008, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.autodiff.gradients import gradients, zeros_like
from twofold.base.shapes import product
from twofold.ir import Value
from twofold.ops.convert import cast
from twofold.ops.creation import iota
from twofold.ops.elementwise import cos, identity
from twofold.ops.movement import reshape


def push_forward(ys: Sequence[Value], xs: Sequence[Value], tangents: Sequence[Value]) -> list[Value]:
    """Derivatives of ``ys`` when ``xs`` move along ``tangents``; ``ys`` must have been recorded from ``xs``."""
    probes = [_probe(y) if y.dtype.is_floating else None for y in ys]
    floating = [(y, u) for y, u in zip(ys, probes) if u is not None]
    gs = gradients([y for y, _ in floating], xs, [u for _, u in floating])
    paired = [(g, t) for g, t in zip(gs, tangents) if g is not None]
    if not paired:
        return [zeros_like(y) for y in ys]
    pushed = iter(gradients([g for g, _ in paired], [u for _, u in floating], [t for _, t in paired]))
    moved = [None if u is None else next(pushed) for u in probes]
    return [zeros_like(y) if d is None else d for y, d in zip(ys, moved)]


def _probe(y: Value) -> Value:
    """Where the linear pull-back is differentiated: anywhere but at 0, where rules that guard 0/0 are flat; and with no
    two elements alike, so that no difference of them is 0."""
    wave = cos(cast(iota(product(y.shape)), y.dtype) * 0.7) + 1.5
    out = reshape(identity(wave), y.shape)
    out.requires_grad = True
    return out
