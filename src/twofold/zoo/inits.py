"""Initial values that the papers (or the published code) prescribe, as tables of rules.

A scheme is a list of rows; the first row that fits a layer says how its weight is filled and what its bias is. Layers
that no row fits keep their own default (uniform in +-1/sqrt(fan_in), as PyTorch).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from twofold import nn
from twofold.base.errors import ArgumentError
from twofold.nn import init


class Row(NamedTuple):
    """For layers of a type, where ``where`` matches the path: what fills the weight, and the bias (None: default)."""

    layer: Any
    weight: Callable[[Any], Any]
    bias: float | None = 0.0
    where: str = ""


def normal(std: float) -> Callable[[Any], Any]:
    return functools.partial(init.normal_, std=std)


def keep(weight: Any) -> Any:
    """The framework's default for the weight, as the published code leaves it."""
    return init.kaiming_uniform_(weight, a=5**0.5)


he_fan_in = functools.partial(init.kaiming_normal_, mode="fan_in", nonlinearity="relu")
he_fan_out = functools.partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
BOTH = (nn.Conv2d, nn.Linear)

SCHEMES: dict[str, tuple[Row, ...]] = {
    "default": (),
    # LeCun et al. 1998, appendix A: uniform in +-2.4 / fan-in
    "lenet5_1998": (Row(BOTH, init.lecun_uniform_),),
    # Krizhevsky et al. 2012, section 5: N(0, 0.01); biases 1 in conv2, conv4, conv5 and the hidden fc layers
    "alexnet_2012": (Row(BOTH, normal(0.01), 1.0, r"\b(conv[245]|fc[67])$"), Row(BOTH, normal(0.01))),
    "gaussian_0.01": (Row(BOTH, normal(0.01)),),
    # The authors' Caffe files for CIFAR-10 and ImageNet
    "nin_cifar10": (Row(nn.Conv2d, normal(0.05)),),
    "nin_imagenet": (Row(nn.Conv2d, normal(0.01), 0.0, r"\b(conv1|conv3|cccp8)$"), Row(nn.Conv2d, normal(0.05))),
    # torchvision's VGG
    "vgg": (Row(nn.Conv2d, he_fan_out), Row(nn.Linear, normal(0.01))),
    # torchvision's GoogLeNet, and Caffe's replica of the paper (whose classifiers begin with a bias of 0)
    "truncated_normal": (Row(BOTH, functools.partial(init.trunc_normal_, std=0.01), None),),
    "googlenet_2014": (Row(BOTH, init.caffe_xavier_, 0.0, r"\bfc2?$"), Row(BOTH, init.caffe_xavier_, 0.2)),
    # He et al. 2015 (arXiv 1502.01852), by inputs as the ResNet paper cites it, and by outputs as most code does
    "he_fan_in": (Row(nn.Conv2d, he_fan_in), Row(nn.Linear, keep, 0.0)),
    "he_fan_out": (Row(nn.Conv2d, he_fan_out), Row(nn.Linear, keep, 0.0)),
    "he_torchvision": (Row(nn.Conv2d, he_fan_out),),
    # The authors' Caffe files, and torchvision's, whose signals with bypasses would grow from Fire to Fire
    "squeezenet": (Row(nn.Conv2d, normal(0.01), 0.0, r"^classifier\b"), Row(nn.Conv2d, init.caffe_xavier_)),
    "squeezenet_torchvision": (
        Row(nn.Conv2d, normal(0.01), 0.0, r"^classifier\b"),
        Row(nn.Conv2d, functools.partial(init.kaiming_uniform_, mode="fan_in", nonlinearity="relu")),
    ),
    "xavier": (Row(BOTH, init.xavier_uniform_),),
    # He's, and small first scores; for the "quick" recipes of networks without batch normalisation
    "quick": (Row(nn.Linear, normal(0.01), 0.0, r"(\bfc8|\bfc2?|^classifier\.6)$"), Row(BOTH, he_fan_in)),
    # The same where a ReLU follows the scores: they begin above zero, or classes are lost to it in the first steps
    "quick_nin_cifar10": (Row(nn.Conv2d, normal(0.01), 1.0, r"^cccp6$"), Row(BOTH, he_fan_in)),
    "quick_nin_imagenet": (Row(nn.Conv2d, normal(0.01), 1.0, r"^cccp8$"), Row(BOTH, he_fan_in)),
    "quick_squeezenet": (Row(nn.Conv2d, normal(0.01), 1.0, r"^classifier\b"), Row(BOTH, he_fan_in)),
}  # fmt: skip


def row_for(scheme: str, path: str, layer: Any) -> Row | None:
    """The row of a scheme for the layer at ``path``; None where the layer keeps its default."""
    return next((r for r in SCHEMES[scheme] if isinstance(layer, r.layer) and re.search(r.where, path)), None)


def initialise(model: nn.Module, scheme: str) -> nn.Module:
    """Fill the weights of ``model`` by a scheme; returns it. ArgumentError names the schemes there are.

    >>> from twofold import nn, zoo
    >>> layer = zoo.initialise(nn.Conv2d(3, 8, 3), "he_fan_out")
    >>> float(layer.bias.numpy().max())
    0.0
    """
    if scheme not in SCHEMES:
        raise ArgumentError(f"initial values {scheme!r} are unknown; expected one of {', '.join(map(repr, SCHEMES))}")
    layer: Any
    for path, layer in model.named_modules():
        row = row_for(scheme, path, layer)
        if row is None:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
            continue
        row.weight(layer.weight)
        if layer.bias is not None and row.bias is not None:
            init.constant_(layer.bias, row.bias)
        elif layer.bias is not None:
            bound = init.fans(layer.weight)[0] ** -0.5
            init.uniform_(layer.bias, -bound, bound)
    return model
