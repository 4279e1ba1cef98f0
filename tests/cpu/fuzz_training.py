"""Random small training steps: convolutions, batch norm, residuals, pools, softmax cross-entropy, SGD with momentum in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_images import ImageMaker

import twofold as tw
from twofold.autodiff.gradients import gradients
from twofold.ir import Graph, Spec, Value, recording
from twofold.ops import elementwise, movement, reduction
from twofold.ops.loss import cross_entropy


class TrainingMaker(ImageMaker):
    """Parameters are state, given new values by the program itself."""

    def start(self) -> None:
        n, c, h, w = (int(self.rng.choice(s)) for s in ((1, 2, 4), (1, 3, 8, 16), (4, 6, 7, 8, 12), (4, 6, 7, 8, 12)))
        self.trained: list[tw.Variable] = []
        self.values.append(self.builder.input(Spec((n, c, h, w), self.dtype), "x"))

    def steps(self) -> list[Any]:
        return [
            *(step for step in super().steps() if step != self.lrn),
            self.pool,
            self.pool,
            self.convolve,
            self.norm,
            self.add,
        ]

    def parameter(self, shape: tuple[int, ...], name: str = "w") -> Value:
        variable = tw.Variable(self.rng.standard_normal(shape).astype(self.dtype.numpy), requires_grad=True)
        variable.name = f"{name}{len(self.trained)}"
        self.trained.append(variable)
        return self.builder.read(variable)

    def finished(self) -> Graph:
        """The loss and what it was made of; the update of every parameter and of its momentum."""
        with recording(self.builder):
            v, classes = self.image(), int(self.rng.choice((2, 5, 10)))
            rows = movement.flatten(v, 1) if self.rng.random() < 0.5 else reduction.mean(v, axis=(2, 3))
            size = int(rows.shape[1])
            logits = rows @ (self.parameter((size, classes), "dense") * (1.0 / float(np.sqrt(size))))
            labels = self.rng.integers(0, classes, int(v.shape[0]))
            loss = cross_entropy(logits, self.builder.constant(labels))
            self.update(loss)
        return self.builder.finish([loss, logits] if self.rng.random() < 0.5 else [loss])

    def update(self, loss: Value) -> None:
        decay, rate = float(self.rng.choice((0.0, 1e-2))), 0.1
        slopes = gradients([loss], [self.builder.read(p) for p in self.trained])
        for variable, slope in zip(self.trained, slopes):
            if slope is None:
                continue
            old = self.builder.read(variable)
            moment = tw.Variable(np.zeros(variable.shape, self.dtype.numpy))
            moment.name = f"{variable.name}.momentum"
            new = self.builder.read(moment) * 0.9 + (slope + old * decay if decay else slope)
            self.builder.write(moment, new)
            self.builder.write(
                variable, old - (elementwise.clip(new, -1.0, 1.0) if self.rng.random() < 0.1 else new) * rate
            )
