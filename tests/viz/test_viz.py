"""Pictures: what is on them, not only that they are there."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import twofold as tw
from twofold import viz
from twofold.viz.bubbles import plotted
from twofold.viz.labels import gap, overlap, place
from twofold.viz.tiles import grid


def test_bubbles_show_every_network_with_a_published_error(tmp_path):
    shown = viz.bubbles(tmp_path / "zoo.png")
    assert {"alexnet", "vgg16", "resnet50", "squeezenet1_0"} <= set(shown)
    assert shown == [e.name for e in plotted([tw.zoo.info(n) for n in tw.zoo.names()])]
    with Image.open(tmp_path / "zoo.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 900 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # coloured bubbles, not blank


def test_a_grid_holds_each_image_at_its_place_stretched_to_its_range():
    images = np.arange(3 * 2 * 2 * 3, dtype=np.float64).reshape(3, 2, 2, 3)
    out = grid(images)
    assert out.shape == (7, 7, 3) and out.dtype == np.float32
    np.testing.assert_allclose(out[1:3, 4:6], (images[1] - 12) / 11, rtol=1e-6)
    assert (out[0] == 1).all() and (out[4:6, 4:6] == 1).all()  # the frame, and the place of no image


def test_filters_of_colours_and_of_many_channels(tmp_path):
    w = np.random.default_rng(0).normal(size=(5, 3, 4, 4))
    picture = viz.filters(tw.tensor(w), tmp_path / "f.png", "first layer")
    one = w[0].transpose(1, 2, 0)
    np.testing.assert_allclose(picture[1:5, 1:5], (one - one.min()) / (one.max() - one.min()), rtol=1e-5)
    assert (tmp_path / "f.png").stat().st_size > 500
    grey = viz.filters(w[:, :2])
    assert (grey[..., 0] == grey[..., 1]).all()
    with pytest.raises(tw.ShapeError, match="expected \\(out, in, height, width\\)"):
        viz.filters(w[0])


def test_activations_are_the_layer_s_maps_and_leave_the_model_as_it_was():
    model = tw.nn.Sequential(tw.nn.Conv2d(1, 4, 3), tw.nn.ReLU())
    x = tw.tensor(np.random.default_rng(0).normal(size=(1, 6, 6)).astype(np.float32))
    picture = viz.activations(model, "1", x)
    maps = model(x.reshape((1, 1, 6, 6))).numpy()[0]
    np.testing.assert_allclose(picture, grid(np.repeat(maps[..., None], 3, -1)), rtol=1e-6)
    two = viz.activations(model, "1", x, most=2)
    np.testing.assert_allclose(two, grid(np.repeat(maps[:2, :, :, None], 3, -1)), rtol=1e-6)
    with pytest.raises(tw.ArgumentError, match="no module 'conv1'; it has 0, 1"):
        viz.activations(model, "conv1", x)


def test_activations_are_those_of_inference_and_move_no_statistics():
    model = tw.nn.Sequential(tw.nn.Conv2d(1, 2, 3), tw.nn.BatchNorm2d(2), tw.nn.Dropout(0.5))
    model[1].running_mean.assign([1.0, -1.0])
    model[2].eval()
    before = {n: v.numpy().copy() for n, v in model.state_dict(keep_vars=True).items()}
    x = tw.tensor(np.random.default_rng(0).normal(size=(1, 6, 6)).astype(np.float32))
    picture = viz.activations(model, "1", x)
    assert [m.training for m in model.modules()] == [True, True, True, False]
    for name, v in model.state_dict(keep_vars=True).items():
        np.testing.assert_array_equal(v.numpy(), before[name], err_msg=name)
    maps = model.eval()[:2](x[None]).numpy()[0]
    np.testing.assert_allclose(picture, grid(np.repeat(maps[..., None], 3, -1)), rtol=1e-5)
    assert "forward" not in vars(model[1])


def test_activations_of_a_layer_that_is_not_called():
    model = tw.nn.Sequential(tw.nn.ReLU())
    model[0].spare = tw.nn.ReLU()
    with pytest.raises(tw.ArgumentError, match="does not call its module '0.spare'"):
        viz.activations(model, "0.spare", tw.zeros((1, 2, 2)))


def test_names_are_placed_beside_their_bubbles_over_nothing_else():
    """A crowd: forty bubbles, many of them on each other, and a legend."""
    rng = np.random.default_rng(0)
    circles = [(x, y, r) for x, y, r in zip(rng.uniform(60, 740, 40), rng.normal(300, 80, 40), rng.uniform(2, 16, 40))]
    sizes = [(w, 9.0) for w in rng.uniform(20, 90, 40)]
    bounds, legend = (0.0, 0.0, 800.0, 600.0), (700.0, 0.0, 800.0, 120.0)
    boxes = place(circles, sizes, bounds, [legend])
    for i, box in enumerate(boxes):
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx(sizes[i])
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 800 and box[3] <= 600
        assert not any(overlap(box, other) for other in [legend, *boxes[:i]])
        assert all(gap(box, circle) >= 0 for circle in circles)
        assert gap(box, circles[i]) < 80


def test_overlaps_and_gaps_of_boxes():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) and not overlap((0, 0, 2, 2), (2, 0, 3, 2))
    assert (
        gap((0, 0, 2, 2), (5, 1, 1)) == 2 and gap((0, 0, 2, 2), (5, 6, 1)) == 4 and gap((0, 0, 2, 2), (1, 1, 1)) == -1
    )
