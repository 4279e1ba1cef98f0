"""Summaries: counts worked out by hand and from the literature, without running the network."""

from __future__ import annotations

import json

import pytest

import twofold as tw
from twofold import nn


class Residual(nn.Module):
    """A functional product and parameters beside children: rows of their own."""

    def __init__(self):
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.weight = nn.Parameter([[0.0] * 128] * 3)

    def forward(self, x):
        x = self.up(nn.functional.relu(self.bn(self.conv(x)) + x))
        return nn.functional.linear(x.reshape((x.shape[0], -1)), self.weight)


def test_counts_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(), Residual())
    found = tw.summary(net, (1, 9, 9))
    rows = {row.name: (row.output, row.parameters, row.multiply_adds, row.activation_bytes) for row in found.rows}
    assert rows == {
        "0": ((1, 4, 7, 7), 40, 4 * 49 * 9, 4 * 4 * 49),
        "1": ((1, 4, 4, 4), 0, 0, 4 * 64),
        "2": ((1, 4, 4, 4), 0, 0, 0),
        "3.conv": ((1, 4, 4, 4), 72, 64 * 18, 4 * 64),
        "3.bn": ((1, 4, 4, 4), 8, 0, 0),
        "3.up": ((1, 2, 8, 8), 34, 64 * 8, 4 * 128),
        "3": ((1, 3), 384, 3 * 128, 4 * 3),
    }
    assert found.parameters == net.num_parameters() == 538


@pytest.mark.parametrize(
    "name, parameters, multiply_adds, activations",
    [("vgg11", 132_863_336, 7_609_090_048, 9_116_136), ("lenet5", 61_706, 416_520, None)],
)
def test_published_counts(name, parameters, multiply_adds, activations):
    pytest.importorskip("twofold.zoo")
    with nn.init.skipped():
        model = tw.zoo.create(name)
    found = tw.summary(model, (1, 28, 28) if name == "lenet5" else (3, 224, 224))
    assert (found.parameters, found.multiply_adds) == (parameters, multiply_adds)
    assert activations is None or found.activation_bytes == 4 * activations


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    net[1].eval()
    before = {n: v.numpy().copy() for n, v in net.state_dict().items()}
    tw.summary(net, (4,))
    assert [m.training for m in net.modules()] == [True, True, False]
    assert all((net.state_dict()[n].numpy() == v).all() for n, v in before.items())
    assert not net._hooks


def test_batches_and_json():
    found = tw.summary(nn.Sequential(nn.Linear(4, 3)), (4,))
    assert json.loads(json.dumps(found.as_dict()))["rows"][0]["multiply_adds"] == 12
    assert tw.summary(nn.Sequential(nn.Flatten()), (5, 1, 2, 2)).rows[0].output == (5, 4)
