"""float16 on several devices: one device's overflow skips the step on all of them, and the state stays one."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.nn import functional as F

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((8, 1, 6, 6)).astype(np.float32)
LABELS = np.arange(8) % 3


def train(devices, shard_state=False):
    """Whether each of five steps was made, the loss scale, and the parameters after them."""
    with tw.device("xla:cpu"):
        tw.random.seed(1)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        opt = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scale = tw.optim.LossScale(initial=2.0**12)

        @tw.compile(precision="fp16", devices=devices, shard_state=shard_state)
        def step(x, y):
            opt.zero_grad()
            scale.scale(F.cross_entropy(model(x), y)).backward()
            done = scale.step(opt)
            opt.zero_grad()
            return done

        broken = IMAGES.copy()
        broken[-1] *= 5e4  # in the last device's part of the batch
        done = [step(x, LABELS).item() for x in (IMAGES, broken, IMAGES, broken, IMAGES)]
        return done, scale.factor.item(), [p.numpy() for p in model.parameters()]


@pytest.mark.parametrize("shard_state", [False, True], ids=["replicated", "sharded"])
def test_an_overflow_on_one_device_skips_the_step_on_all(shard_state):
    done, factor, expected = train(None)
    assert done == [True, False, True, False, True] and factor == 2.0**10
    there, same, found = train("all", shard_state)
    assert there == done and same == factor
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())
