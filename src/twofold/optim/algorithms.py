"""The optimizers. Each ``update`` is the algorithm, with PyTorch's conventions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from twofold.base.errors import ArgumentError
from twofold.ir import Value
from twofold.ops.elementwise import equal, expm1, relu, sqrt, where
from twofold.optim.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as PyTorch has it: ``v = m v + g;  w -= lr v``.

    ``weight_decay`` adds ``wd * w`` to the gradient. ``nesterov`` steps along ``g + m v``. (Caffe and the papers of its
    time have the learning rate inside the momentum, ``v = m v + lr g``: the same while the rate does not change.)

    >>> import twofold as tw
    >>> w = tw.nn.Parameter([1.0])
    >>> opt = tw.optim.SGD([w], lr=0.1)
    >>> (w * w).sum().backward(); opt.step()
    >>> round(w.item(), 6)
    0.8
    """

    traceable = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False,
    ):  # fmt: skip
        super().__init__(
            params, lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def check(self, settings: Mapping[str, Any]) -> None:
        super().check(settings)
        if settings["nesterov"] and (settings["momentum"] <= 0 or settings["dampening"] != 0):
            raise ArgumentError("SGD: nesterov needs a momentum above 0 and no dampening")

    def slots(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        if not settings["momentum"]:
            return ()
        return ("momentum", "started") if settings["dampening"] else ("momentum",)

    def update(
        self, p: Value, g: Value, lr: Value, state: dict[str, Value], step: Value | None, s: Mapping[str, Any]
    ) -> Value:
        if s["weight_decay"]:
            g = g + p * s["weight_decay"]
        if s["momentum"]:
            velocity = state["momentum"] * s["momentum"] + g * (1 - s["dampening"])
            if s["dampening"]:  # the first gradient is taken whole
                velocity = where(equal(state["started"], 0.0), g, velocity)
                state["started"] = state["started"] * 0.0 + 1.0
            state["momentum"] = velocity
            g = g + velocity * s["momentum"] if s["nesterov"] else velocity
        return p - g * lr


class Adam(Optimizer):
    """Adam (Kingma and Ba 2014, arXiv 1412.6980). ``weight_decay`` is added to the gradient, as an L2 penalty.

    The step count of the bias correction is shared by a group's parameters.
    """

    traceable = True
    counts_steps = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):  # fmt: skip
        pair = tuple(betas) if isinstance(betas, (list, tuple)) else betas
        super().__init__(params, lr, betas=pair, eps=eps, weight_decay=weight_decay)

    def check(self, settings: Mapping[str, Any]) -> None:
        super().check(settings)
        betas = settings["betas"]
        if not isinstance(betas, (list, tuple)) or len(betas) != 2 or not all(_is_share(b) for b in betas):
            raise ArgumentError(f"{type(self).__name__}: betas={betas}; expected two numbers in [0, 1)")

    def slots(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return ("mean", "square")

    def decay(self, p: Value, g: Value, lr: Value, weight_decay: float) -> tuple[Value, Value]:
        """Parameter and gradient after weight decay."""
        return p, g + p * weight_decay

    def update(
        self, p: Value, g: Value, lr: Value, state: dict[str, Value], step: Value | None, s: Mapping[str, Any]
    ) -> Value:
        beta1, beta2 = s["betas"]
        if s["weight_decay"]:
            p, g = self.decay(p, g, lr, s["weight_decay"])
        mean = state["mean"] = state["mean"] * beta1 + g * (1 - beta1)
        square = state["square"] = state["square"] * beta2 + g * g * (1 - beta2)
        assert step is not None
        size, root = lr / _correction(beta1, step), sqrt(_correction(beta2, step))
        return p - mean * size / (sqrt(square) / root + s["eps"])


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1


def _correction(beta: float, step: Value) -> Value:
    """``1 - beta**step``, without the cancellation that float32 would suffer at small steps."""
    return -expm1(step * math.log(max(beta, 1e-30)))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101): ``w *= 1 - lr * wd``."""

    traceable = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)

    def decay(self, p: Value, g: Value, lr: Value, weight_decay: float) -> tuple[Value, Value]:
        return p * (1.0 - lr * weight_decay), g


class RMSprop(Optimizer):
    """Gradients divided by a running root mean square (Tieleman and Hinton 2012). ``centered`` uses the variance."""

    traceable = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False,
    ):  # fmt: skip
        super().__init__(
            params, lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def slots(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        optional = {"mean": settings["centered"], "momentum": settings["momentum"]}
        return ("square", *(name for name, wanted in optional.items() if wanted))

    def update(
        self, p: Value, g: Value, lr: Value, state: dict[str, Value], step: Value | None, s: Mapping[str, Any]
    ) -> Value:
        alpha = s["alpha"]
        if s["weight_decay"]:
            g = g + p * s["weight_decay"]
        square = state["square"] = state["square"] * alpha + g * g * (1 - alpha)
        if s["centered"]:
            mean = state["mean"] = state["mean"] * alpha + g * (1 - alpha)
            square = relu(square - mean * mean)  # rounding leaves less than 0 where the gradient does not change
        g = g / (sqrt(square) + s["eps"])
        if s["momentum"]:
            g = state["momentum"] = state["momentum"] * s["momentum"] + g
        return p - g * lr


__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]
