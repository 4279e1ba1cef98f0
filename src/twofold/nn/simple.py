"""Layers without parameters that call one function with their settings: activations, poolings, dropout, losses.

A row gives the function and the settings with their defaults; the settings are the attributes and the arguments of the
constructor. ``inplace`` is taken for the sake of PyTorch's signatures: values never change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twofold.base.errors import ArgumentError
from twofold.nn import functional as F
from twofold.nn.module import Module

REQUIRED = object()


class _Function(Module):
    """A function as a module; see above."""

    function: Callable[..., Any]
    settings: dict[str, Any] = {}
    takes_training = False

    def __init__(self, *args: Any, inplace: bool = False, **kwargs: Any):
        name = type(self).__name__
        if len(args) > len(self.settings):
            raise ArgumentError(
                f"{name}: {len(args)} arguments; expected at most {len(self.settings)}: {', '.join(self.settings)}"
            )
        given = {**dict(zip(self.settings, args)), **kwargs}
        unknown = [k for k in given if k not in self.settings]
        missing = [k for k, default in self.settings.items() if default is REQUIRED and k not in given]
        if unknown or missing:
            what = f"unknown argument {unknown[0]!r}" if unknown else f"argument {missing[0]!r} is missing"
            raise ArgumentError(f"{name}: {what}; expected {', '.join(self.settings) or 'none'}")
        for key, default in self.settings.items():
            setattr(self, key, given.get(key, default))

    def forward(self, *inputs: Any) -> Any:
        settings = {key: getattr(self, key) for key in self.settings}
        if self.takes_training:
            settings["training"] = self.training
        return type(self).function(*inputs, **settings)

    def extra_repr(self) -> str:
        changed = {
            k: getattr(self, k)
            for k, default in self.settings.items()
            if default is REQUIRED or getattr(self, k) != default
        }
        return ", ".join(f"{k}={v!r}" for k, v in changed.items())


def _layer(name: str, function: Callable[..., Any], training: bool = False, /, **settings: Any) -> Any:
    what = (function.__doc__ or "").strip()
    body = {
        "function": staticmethod(function), "settings": settings, "takes_training": training, "__module__": __name__,
        "__doc__": f"{what}\n\nSettings: {', '.join(settings) or 'none'}.",
    }  # fmt: skip
    return type(name, (_Function,), body)


# activations
ReLU, ReLU6 = _layer("ReLU", F.relu), _layer("ReLU6", F.relu6)
Tanh, Sigmoid = _layer("Tanh", F.tanh), _layer("Sigmoid", F.sigmoid)
GELU = _layer("GELU", F.gelu, approximate="none")
SiLU, Mish = _layer("SiLU", F.silu), _layer("Mish", F.mish)
LeakyReLU = _layer("LeakyReLU", F.leaky_relu, negative_slope=0.01)
ELU, SELU = _layer("ELU", F.elu, alpha=1.0), _layer("SELU", F.selu)
Softplus, Softsign = _layer("Softplus", F.softplus, beta=1.0), _layer("Softsign", F.softsign)
LogSigmoid = _layer("LogSigmoid", F.logsigmoid)
Hardtanh = _layer("Hardtanh", F.hardtanh, min_val=-1.0, max_val=1.0)
Hardsigmoid, Hardswish = _layer("Hardsigmoid", F.hardsigmoid), _layer("Hardswish", F.hardswish)


Softmax, LogSoftmax = _layer("Softmax", F.softmax, dim=-1), _layer("LogSoftmax", F.log_softmax, dim=-1)

# poolings
_MAX = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
_AVG = {"kernel_size": REQUIRED, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
MaxPool1d, MaxPool2d = _layer("MaxPool1d", F.max_pool1d, **_MAX), _layer("MaxPool2d", F.max_pool2d, **_MAX)
AvgPool1d, AvgPool2d = _layer("AvgPool1d", F.avg_pool1d, **_AVG), _layer("AvgPool2d", F.avg_pool2d, **_AVG)
AdaptiveAvgPool1d = _layer("AdaptiveAvgPool1d", F.adaptive_avg_pool1d, output_size=REQUIRED)
AdaptiveAvgPool2d = _layer("AdaptiveAvgPool2d", F.adaptive_avg_pool2d, output_size=REQUIRED)
AdaptiveMaxPool1d = _layer("AdaptiveMaxPool1d", F.adaptive_max_pool1d, output_size=REQUIRED)
AdaptiveMaxPool2d = _layer("AdaptiveMaxPool2d", F.adaptive_max_pool2d, output_size=REQUIRED)

# dropout
Dropout, Dropout2d = _layer("Dropout", F.dropout, True, p=0.5), _layer("Dropout2d", F.dropout2d, True, p=0.5)

# losses: called with (predictions, targets)
CrossEntropyLoss = _layer("CrossEntropyLoss", F.cross_entropy, reduction="mean", label_smoothing=0.0)
NLLLoss = _layer("NLLLoss", F.nll_loss, reduction="mean")
BCEWithLogitsLoss = _layer("BCEWithLogitsLoss", F.binary_cross_entropy_with_logits, reduction="mean")
MSELoss, L1Loss = _layer("MSELoss", F.mse_loss, reduction="mean"), _layer("L1Loss", F.l1_loss, reduction="mean")
HuberLoss = _layer("HuberLoss", F.huber_loss, reduction="mean", delta=1.0)
SmoothL1Loss = _layer("SmoothL1Loss", F.smooth_l1_loss, reduction="mean", beta=1.0)
