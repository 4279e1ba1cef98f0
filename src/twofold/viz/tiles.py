"""Grids of small images: the filters of a first layer, and what a layer makes of one image."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.figures import new_figure, save
from twofold.base.shapes import show
from twofold.nn import Module
from twofold.tensor import Tensor, no_grad


def filters(weight: Any, path: str | os.PathLike | None = None, title: str = "") -> np.ndarray:
    """The filters ``(out, in, h, w)`` of a first convolution as one picture, float32 ``(H, W, 3)`` in 0..1.

    Three input channels are shown as colours, any other number by its mean, in grey. Each filter is stretched to its own
    range. With ``path`` it is also written as PNG.
    """
    w = weight.numpy() if isinstance(weight, Tensor) else np.asarray(weight)
    if w.ndim != 4:
        raise ShapeError(f"filters: weight has shape {show(w.shape)}; expected (out, in, height, width)")
    images = w.transpose(0, 2, 3, 1) if w.shape[1] == 3 else np.repeat(w.mean(1)[..., None], 3, -1)
    return _finished(images, path, title)


def activations(
    model: Module, layer: str, image: Any, path: str | os.PathLike | None = None, *, most: int | None = None
) -> np.ndarray:
    """The maps of the module named ``layer`` for one image ``(C, H, W)``, as one grey picture ``(H, W, 3)`` in 0..1.

    The model is run as in inference, and left as it was. Each map is stretched to its own range. ``most``: show at most so
    many, from the first. ArgumentError for a name that is no module's.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ArgumentError(
            f"activations: the model has no module {layer!r}; it has {', '.join(filter(None, modules))}"
        )
    found: list[Tensor] = []
    hook = modules[layer].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        with model.evaluating(), no_grad():
            model((image if isinstance(image, Tensor) else Tensor(image))[None])
    finally:
        hook.remove()
    if not found:
        raise ArgumentError(f"activations: the model does not call its module {layer!r}")
    maps = found[0].numpy()[0]
    if maps.ndim != 3:
        raise ShapeError(f"activations: layer {layer!r} gives {show(maps.shape)} for one image; expected (C, H, W)")
    title = f"{layer}: {maps.shape[0]} maps of {show(maps.shape[1:])}"
    return _finished(np.repeat(maps[:most, :, :, None], 3, -1), path, title)


def _finished(images: np.ndarray, path: str | os.PathLike | None, title: str) -> np.ndarray:
    picture = grid(images)
    if path is not None:
        figure = new_figure(7, 7 * picture.shape[0] / picture.shape[1] + 0.4)
        axes = figure.subplots()
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title)
        save(figure, path)
    return picture


def grid(images: np.ndarray) -> np.ndarray:
    """Images ``(n, h, w, 3)``, each stretched to 0..1, in a near-square grid with white lines between."""
    n, h, w, _ = images.shape
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    images = (images - low) / np.maximum(high - low, 1e-12)
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    out = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1, 3), np.float32)
    for k, image in enumerate(images):
        top, left = (k // columns) * (h + 1) + 1, (k % columns) * (w + 1) + 1
        out[top : top + h, left : left + w] = image
    return out
