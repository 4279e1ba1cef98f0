"""The networks that torchvision has, written with PyTorch's functions: what ours are compared with.

Each oracle is a forward pass over a state dict with torchvision's names, written from its definitions; dropout is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as T


class Oracle:
    """Layers by path, as functions of tensors; ``training`` chooses the batch's statistics, which move the running ones."""

    def __init__(self, state: dict[str, Any], training: bool):
        self.state, self.training = state, training

    def conv(self, x, path, stride=1, padding=0, groups=1):
        return T.conv2d(x, self.state[f"{path}.weight"], self.state.get(f"{path}.bias"), stride, padding, 1, groups)

    def norm(self, x, path, eps=1e-5):
        weight, bias, mean, var = (self.state[f"{path}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
        return T.batch_norm(x, mean, var, weight, bias, self.training, 0.1, eps)

    def linear(self, x, path):
        return T.linear(x, self.state[f"{path}.weight"], self.state[f"{path}.bias"])

    def has(self, path):
        return any(name.startswith(path + ".") for name in self.state)


def alexnet(o: Oracle, x):
    for i, (stride, padding) in {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}.items():
        x = T.relu(o.conv(x, f"features.{i}", stride, padding))
        x = T.max_pool2d(x, 3, 2) if i in (0, 3, 10) else x
    x = T.relu(o.linear(T.adaptive_avg_pool2d(x, 6).flatten(1), "classifier.1"))
    return o.linear(T.relu(o.linear(x, "classifier.4")), "classifier.6")


def vgg(depths: tuple[int, ...], batch_norm: bool) -> Callable[[Oracle, Any], Any]:
    def forward(o: Oracle, x):
        i = 0
        for depth in depths:
            for _ in range(depth):
                x = o.conv(x, f"features.{i}", 1, 1)
                x, i = (T.relu(o.norm(x, f"features.{i + 1}")), i + 3) if batch_norm else (T.relu(x), i + 2)
            x, i = T.max_pool2d(x, 2), i + 1
        x = T.relu(o.linear(T.adaptive_avg_pool2d(x, 7).flatten(1), "classifier.0"))
        return o.linear(T.relu(o.linear(x, "classifier.3")), "classifier.6")

    return forward


def resnet(depths: tuple[int, ...], groups: int = 1) -> Callable[[Oracle, Any], Any]:
    def block(o: Oracle, x, path, stride):
        deep = o.has(f"{path}.conv3")
        y = T.relu(o.norm(o.conv(x, f"{path}.conv1", *((1, 0) if deep else (stride, 1))), f"{path}.bn1"))
        y = o.norm(o.conv(y, f"{path}.conv2", stride if deep else 1, 1, groups), f"{path}.bn2")
        if deep:
            y = o.norm(o.conv(T.relu(y), f"{path}.conv3"), f"{path}.bn3")
        down = f"{path}.downsample"
        skip = o.norm(o.conv(x, f"{down}.0", stride), f"{down}.1") if o.has(down) else x
        return T.relu(y + skip)

    def forward(o: Oracle, x):
        x = T.max_pool2d(T.relu(o.norm(o.conv(x, "conv1", 2, 3), "bn1")), 3, 2, 1)
        for s, depth in enumerate(depths, 1):
            for b in range(depth):
                x = block(o, x, f"layer{s}.{b}", 2 if s > 1 and b == 0 else 1)
        return o.linear(x.mean((2, 3)), "fc")

    return forward


def densenet(depths: tuple[int, ...]) -> Callable[[Oracle, Any], Any]:
    def forward(o: Oracle, x):
        x = T.max_pool2d(T.relu(o.norm(o.conv(x, "features.conv0", 2, 3), "features.norm0")), 3, 2, 1)
        for b, depth in enumerate(depths, 1):
            for n in range(1, depth + 1):
                p = f"features.denseblock{b}.denselayer{n}"
                y = o.conv(T.relu(o.norm(x, f"{p}.norm1")), f"{p}.conv1")
                x = torch.cat([x, o.conv(T.relu(o.norm(y, f"{p}.norm2")), f"{p}.conv2", 1, 1)], 1)
            if b < len(depths):
                p = f"features.transition{b}"
                x = T.avg_pool2d(o.conv(T.relu(o.norm(x, f"{p}.norm")), f"{p}.conv"), 2)
        return o.linear(T.relu(o.norm(x, "features.norm5")).mean((2, 3)), "classifier")

    return forward


def squeezenet(plan: tuple[Any, ...]) -> Callable[[Oracle, Any], Any]:
    """``plan``: what stands at features.2, 3, ...: "P" for pooling, "F" for a fire."""

    def forward(o: Oracle, x):
        x = T.relu(o.conv(x, "features.0", 2))
        for i, kind in enumerate(plan, 2):
            if kind == "P":
                x = T.max_pool2d(x, 3, 2, ceil_mode=True)
            else:
                s = T.relu(o.conv(x, f"features.{i}.squeeze"))
                one, three = o.conv(s, f"features.{i}.expand1x1"), o.conv(s, f"features.{i}.expand3x3", 1, 1)
                x = torch.cat([T.relu(one), T.relu(three)], 1)
        return T.relu(o.conv(x, "classifier.1")).mean((2, 3))

    return forward


def googlenet(o: Oracle, x):
    unit = lambda x, p, *window: T.relu(o.norm(o.conv(x, f"{p}.conv", *window), f"{p}.bn", 1e-3))
    pool = lambda x, k: T.max_pool2d(x, k, 2, ceil_mode=True)

    def inception(x, name):
        p = f"inception{name}"
        three = unit(unit(x, f"{p}.branch2.0"), f"{p}.branch2.1", 1, 1)
        five = unit(unit(x, f"{p}.branch3.0"), f"{p}.branch3.1", 1, 1)
        pooled = unit(T.max_pool2d(x, 3, 1, 1, ceil_mode=True), f"{p}.branch4.1")
        return torch.cat([unit(x, f"{p}.branch1"), three, five, pooled], 1)

    def head(x, p):
        x = unit(T.adaptive_avg_pool2d(x, 4), f"{p}.conv").flatten(1)
        return o.linear(T.relu(o.linear(x, f"{p}.fc1")), f"{p}.fc2")

    x = pool(unit(x, "conv1", 2, 3), 3)
    x = pool(unit(unit(x, "conv2"), "conv3", 1, 1), 3)
    heads = []
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        x = inception(x, name)
        x = pool(x, 3) if name == "3b" else pool(x, 2) if name == "4e" else x
        if o.training and name in ("4a", "4d"):
            heads.append(head(x, f"aux{len(heads) + 1}"))
    scores = o.linear(x.mean((2, 3)), "fc")
    return (scores, *reversed(heads)) if o.training else scores


V10, V11 = "PFFFPFFFFPF", "PFFPFFPFFFF"
ORACLES: dict[str, tuple[Callable[[Oracle, Any], Any], dict[str, Any]]] = {
    "alexnet": (alexnet, {"hidden": 32}),
    "vgg11": (vgg((1, 1, 2, 2, 2), False), {"hidden": 32}),
    "vgg11_bn": (vgg((1, 1, 2, 2, 2), True), {"hidden": 32}),
    "vgg16_bn": (vgg((2, 2, 3, 3, 3), True), {"hidden": 32}),
    "resnet18": (resnet((2, 2, 2, 2)), {}),
    "resnet50": (resnet((3, 4, 6, 3)), {}),
    "wide_resnet50_2": (resnet((3, 4, 6, 3)), {}),
    "resnext50_32x4d": (resnet((3, 4, 6, 3), 32), {}),
    "densenet121": (densenet((6, 12, 24, 16)), {}),
    "squeezenet1_0": (squeezenet(V10), {}),
    "squeezenet1_1": (squeezenet(V11), {}),
    "googlenet": (googlenet, {"aux_logits": True}),
}
