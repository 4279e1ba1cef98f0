"""Networks of the zoo in mixed precision: every product of a training step in 16 bits, every gradient in float32."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.train.evaluate import criterion_of

NAMES = [
    "lenet5_1998", "nin_cifar10", "googlenet", "resnet18", "preact_resnet20_cifar", "squeezenet_complex_bypass",
    "densenet40_k12", "resnext50_32x4d", "resnet110_stochastic_depth",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_products_are_in_16_bits_and_gradients_in_float32(name):
    model = tw.zoo.create(name, num_classes=10)
    loss_of = criterion_of(model)

    def step(images, labels):
        loss = loss_of(model(images), labels)
        model.zero_grad()
        loss.backward()
        return loss

    shape = (2, *tw.zoo.info(name).input_shape)
    traced = tw.compile(step, precision="bf16").trace(np.zeros(shape, np.float32), np.zeros(2, np.int64))
    products = [n.outputs[0].dtype for n in traced.graph.nodes if n.op.kind in ("conv", "matmul")]
    assert products and set(products) == {tw.bfloat16}
    assert {v.dtype for v in traced.graph.outputs} == {tw.float32}
    assert len(traced.gradients) == len(list(model.parameters()))
