"""Random steps that keep state, as training does: several variables of one shape, given new values from each other, from
gradients and by optimizers, in random order, with old values read after new ones are there.

A step is a function of its seed alone. Its graph is a family of ``fuzz_check``; ``check_steps`` runs it a few times as users
do, compiled, and against the same function as it stands and the reference: there, one array may lie behind two variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import twofold as tw
from twofold.ir import Graph, interpret
from twofold.nn import functional as F

SIZES = (1, 2, 3, 5, 8, 16, 17, 24, 33, 40, 64, 130)
OPTIMIZERS: list[Callable[[Any], Any]] = [
    lambda p: tw.optim.SGD(p, lr=0.1),
    lambda p: tw.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: tw.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda p: tw.optim.Adam(p, lr=0.1, eps=0.1),  # a small epsilon makes as much of a rounding as of a gradient
    lambda p: tw.optim.AdamW(p, lr=0.1, eps=0.1, weight_decay=0.01),
    lambda p: tw.optim.RMSprop(p, lr=0.1, eps=0.1, momentum=0.9),
]
STEPS = 3


class StateMaker:
    """A step, as a list of actions on variables and on values made so far, all of one shape."""

    def __init__(self, seed: int, dtype: str = "float32", nodes: int = 8, device: str = "cpu"):
        self.rng, self.dtype, self.device = np.random.default_rng(seed), dtype, device
        with tw.device(device):
            self.start()
            choices, count = self.choices(), int(self.rng.integers(2, nodes + 1))
            self.actions = [choices[int(self.rng.integers(len(choices)))]() for _ in range(count)]
            self.given = [tw.tensor(self.array(shape)) for shape in self.inputs()]

    def start(self) -> None:
        rank = int(self.rng.choice((1, 2, 2, 2, 4)))
        sizes = {1: SIZES, 2: SIZES, 4: (1, 2, 3, 8, 16, 18)}[rank]
        self.shape = tuple(int(self.rng.choice(sizes)) for _ in range(rank))
        if rank == 2 and self.rng.random() < 0.5:
            self.shape = (self.shape[0],) * 2
        if rank == 4:
            self.shape = (*self.shape[:2], *(int(self.rng.choice((1, 3))),) * 2)
        self.rows = int(self.rng.choice((1, 2, 5, 8)))
        self.vars = [self.variable(self.shape, f"v{i}") for i in range(int(self.rng.integers(2, 5)))]
        axis = int(self.rng.integers(rank))
        self.column = self.variable((*self.shape[:axis], 1, *self.shape[axis + 1 :]), "column")
        self.axis, self.number = axis, self.variable((), "number")
        self.count, self.optimizers = tw.Variable(np.array(3, np.int64), name="count"), list[Any]()
        self.rounds = False  # whether a last bit may become one of bfloat16

    def inputs(self) -> list[tuple[int, ...]]:
        """Shapes of what a step takes: something like the variables, and what makes gradients of them."""
        rows, shape = self.rows, self.shape
        if len(shape) == 2:
            return [shape, (rows, shape[0]), (rows, shape[1])]
        return [shape, (rows, *shape) if len(shape) == 1 else (rows, shape[1], 5, 6)]

    def array(self, shape: Sequence[int]) -> np.ndarray:
        return self.rng.uniform(-1, 1, shape).astype(np.float32)

    def variable(self, shape: Sequence[int], name: str) -> tw.Variable:
        return tw.Variable(self.array(shape), name=name, requires_grad=True)

    # ---- running --------------------------------------------------------------------------------------------------
    def step(self, *given: Any) -> list[Any]:
        """Do all actions; ``self.values`` are what may be read, old values of variables among them."""
        self.values: list[Any] = [given[0] * 0.5]
        self.more = given[1:]
        for act in self.actions:
            made = act()
            if made is not None:
                self.values.append(made)
        return [self.values[-1].sum(), self.values[len(self.values) // 2] * 1.0]

    def finished(self) -> Graph:
        """The step's graph."""
        with tw.device(self.device):
            return tw.compile(self.step, devices=self.device).graph(*self.given)

    @property
    def state(self) -> list[tw.Variable]:
        own = [*self.vars, self.column, self.number, self.count]
        return [*own, *(v for o in self.optimizers for v in o.variables() if all(v is not w for w in own))]

    # ---- choices, made now for every time the step is run -----------------------------------------------------------
    def pick(self) -> tw.Variable:
        return self.vars[int(self.rng.integers(len(self.vars)))]

    def value(self) -> Callable[[], Any]:
        """A variable as it will be then, or a value made before."""
        variable, back, use = self.pick(), int(self.rng.integers(1, 4)), self.rng.random() < 0.6
        return lambda: variable * 1.0 if use else self.values[-min(back, len(self.values))]

    def near(self, x: Any) -> Any:
        """``x`` of a size that stays within bounds over the steps."""
        return tw.clip(x, -2.0, 2.0)

    def choices(self) -> list[Callable[[], Callable[[], Any]]]:
        both = [
            self.keep, self.keep, self.swap, self.copy, self.difference, self.difference, self.momentum, self.momentum,
            self.columns, self.columns, self.formula, self.formula, self.roll, self.statistics, self.halves, self.counted,
            self.gradient, self.gradient, self.optimizer, self.optimizer, self.chosen, self.running, self.roll,
        ]  # fmt: skip
        square = len(self.shape) == 2 and self.shape[0] == self.shape[1]
        return both + [self.product, self.product, self.product, self.turned, self.turned] * square

    # ---- actions --------------------------------------------------------------------------------------------------
    def keep(self) -> Callable[[], Any]:
        """The value of now, for later."""
        variable = self.pick()
        return lambda: variable + 0.25

    def copy(self) -> Callable[[], Any]:
        a, b = self.pick(), self.pick()
        return lambda: a.assign(b)

    def swap(self) -> Callable[[], Any]:
        a, b, scale = self.pick(), self.pick(), float(self.rng.choice((1.0, 0.5)))

        def act() -> None:
            x, y = a * 1.0, b * scale
            a.assign(y)
            b.assign(x)

        return act

    def difference(self) -> Callable[[], Any]:
        """What is new, and by how much it differs from what was new last time; in either order."""
        prev, diff, x, first = self.pick(), self.pick(), self.value(), self.rng.random() < 0.5

        def act() -> Any:
            g = tw.tanh(x() + self.values[0])
            d = g - prev
            for variable, new in ((prev, g), (diff, d))[:: 1 if first else -1]:
                variable.assign(new)
            return d

        return act

    def momentum(self) -> Callable[[], Any]:
        m, v, x = self.pick(), self.pick(), self.value()

        def act() -> None:
            m.assign(m * 0.9 + x() * 0.1)
            v.assign(self.near(v - m * 0.1))

        return act

    def formula(self) -> Callable[[], Any]:
        v, x, y, kept = self.pick(), self.value(), self.value(), self.rng.random() < 0.5
        kinds = [lambda: x() * y(), lambda: tw.maximum(x(), v), lambda: v + y() * 0.5, lambda: tw.tanh(x()) - v]
        formula = kinds[int(self.rng.integers(len(kinds)))]

        def act() -> Any:
            new = formula()
            v.assign(self.near(new))
            return new if kept else None

        return act

    def columns(self) -> Callable[[], Any]:
        """A column from a variable, a variable from the column; in either order."""
        v, x, first = self.pick(), self.value(), self.rng.random() < 0.5

        def act() -> None:
            mean = tw.mean(x(), axis=self.axis, keepdims=True)
            new = self.near(v - self.column)
            if first:
                self.column.assign(mean)
            v.assign(new)
            if not first:
                self.column.assign(mean * 0.5 + self.column)

        return act

    def statistics(self) -> Callable[[], Any]:
        v = self.pick()

        def act() -> None:
            v.assign(v / (1.0 + tw.sqrt(tw.mean(tw.square(v)))))
            self.number.assign(self.number * 0.5 + tw.mean(v))

        return act

    def roll(self) -> Callable[[], Any]:
        """A variable's rows in another order: each is read elsewhere than where it is written."""
        a, b, flips = self.pick(), self.pick(), self.rng.random() < 0.5
        turn = lambda x: tw.flip(x, axis=self.axis) if flips else tw.roll(x, 1, axis=self.axis)

        def act() -> None:
            a.assign(turn(b) * 1.0)

        return act

    def running(self) -> Callable[[], Any]:
        v = self.pick()

        def act() -> None:
            v.assign(self.near(tw.cumulative_sum(v, axis=self.axis) * 0.25))

        return act

    def halves(self) -> Callable[[], Any]:
        """Through 16 bits."""
        v, x, self.rounds = self.pick(), self.value(), True

        def act() -> None:
            v.assign(tw.astype(tw.astype(x(), tw.bfloat16), tw.float32) * 0.5)

        return act

    def counted(self) -> Callable[[], Any]:
        v = self.pick()

        def act() -> None:
            self.count.assign(self.count + 1)
            v.assign(v * (1.0 / tw.astype(tw.abs(self.count) + 1, tw.float32)))

        return act

    def chosen(self) -> Callable[[], Any]:
        a, b, x = self.pick(), self.pick(), self.value()

        def act() -> None:
            new = tw.where(x() > 0.25, a, b * 0.5)
            b.assign(new)

        return act

    def product(self) -> Callable[[], Any]:
        """Often of what it updates; nobody else may read it."""
        a, b, left, kept = self.pick(), self.value(), self.rng.random() < 0.5, self.rng.random() < 0.3
        v, scale = a if self.rng.random() < 0.5 else self.pick(), 1.0 / self.shape[0]

        def act() -> Any:
            made = (v @ b() if left else b() @ v) * scale
            a.assign(self.near(a - made))
            return made if kept else None

        return act

    def turned(self) -> Callable[[], Any]:
        a, b = self.pick(), self.pick()
        return lambda: a.assign(tw.permute_dims(b, (1, 0)) * 0.5 + a)

    def loss(self, v: Any) -> Any:
        if len(self.shape) == 4:
            return tw.mean(tw.square(F.relu(F.conv2d(self.more[0], v, padding=self.shape[2] // 2))))
        if len(self.shape) == 2:
            return tw.mean(tw.square(tw.tanh(self.more[0] @ v) - self.more[1]))
        return tw.mean(tw.square(tw.tanh(self.more[0] * v) - 0.5))

    def gradient(self) -> Callable[[], Any]:
        """A step of one's own along a gradient, beside a mean of it."""
        v, m, again = self.pick(), self.pick(), self.rng.random() < 0.5

        def act() -> Any:
            (g,) = tw.gradients([self.loss(v)], [v])
            new = self.near(v - g * 0.5)
            m.assign(m * 0.5 + g)
            v.assign(new)
            return g * 1.0 if again else None

        return act

    def optimizer(self) -> Callable[[], Any]:
        v, make = self.pick(), OPTIMIZERS[int(self.rng.integers(len(OPTIMIZERS)))]
        optimizer = make([v])
        self.optimizers.append(optimizer)

        def act() -> None:
            optimizer.zero_grad()
            self.loss(v).backward()
            optimizer.step()
            optimizer.zero_grad()

        return act


class IndexingMaker(StateMaker):
    """Steps that also read and write rows at indices: some given, the last of which may be out of range, some found out."""

    def __init__(self, seed: int, **options: Any):
        super().__init__(seed, **options)
        with tw.device(self.device):
            rows = self.rng.integers(0, self.shape[self.axis], self.shape[self.axis])
            self.good, bad = [*self.given, tw.tensor(rows)], rows.copy()
            bad[int(self.rng.integers(len(rows)))] = self.shape[self.axis] * (1 if self.rng.random() < 0.5 else -2)
            self.bad = [*self.given, tw.tensor(bad)]

    def choices(self) -> list[Callable[[], Callable[[], Any]]]:
        return [*super().choices(), *[self.taken, self.taken, self.found_out, self.added, self.replaced] * 3]

    def taken(self) -> Callable[[], Any]:
        v, x = self.pick(), self.value()
        return lambda: v.assign(tw.take(x(), self.more[-1], axis=self.axis) * 0.5 + v)

    def found_out(self) -> Callable[[], Any]:
        """Indices made of state and of the given ones."""
        v, x, size = self.pick(), self.value(), self.shape[self.axis]

        def act() -> Any:
            at = tw.where(self.more[-1] < size, self.more[-1], size + tw.astype(tw.abs(tw.sum(v)), tw.int64))
            return tw.take(x(), at, axis=self.axis)

        return act

    def added(self) -> Callable[[], Any]:
        v, x, size = self.pick(), self.value(), self.shape[self.axis]
        return lambda: v.assign(self.near(tw.scatter_add(x(), self.more[-1], axis=self.axis, size=size)))

    def replaced(self) -> Callable[[], Any]:
        v, x = self.pick(), self.value()
        flat = lambda y: tw.reshape(y, (self.shape[0], -1))
        rows = lambda: tw.reshape(self.more[-1][:1] * 0 + (self.shape[0] - 1), (1, 1))

        def act() -> None:
            v.assign(tw.reshape(tw.scatter_nd(flat(v * 0.5), rows(), flat(x())[:1]), self.shape))

        return act


def check_after_errors(seed: int) -> None:
    """Raise AssertionError if a compiled step that ends in an error has changed state, or later ones differ for it from those of
    the reference without such errors."""
    maker, wanted = IndexingMaker(seed), IndexingMaker(seed, device="reference")
    step, results = tw.compile(maker.step), []
    for _ in range(STEPS):
        results += [r.numpy() for r in step(*maker.good)]
        before = [v.numpy().copy() for v in maker.state]
        try:
            step(*maker.bad)
        except tw.IndexRangeError:
            for v, old in zip(maker.state, before):
                np.testing.assert_array_equal(v.numpy(), old, err_msg=f"state {seed}: {v.name} after an error")
            continue
        interpret(step.graph(*maker.bad), _arrays(step, maker.bad))  # has no error either: nothing needs what is read there
        break
    with tw.device("reference"):
        for k, a in enumerate(results):
            if k % 2 == 0:
                expected = [r.numpy() for r in wanted.step(*wanted.good)]
            b = expected[k % 2]
            allowed = (2**-8 if maker.rounds else 1e-4) * max(1.0, float(np.abs(b).max(initial=0.0)))
            np.testing.assert_allclose(a, b, rtol=0, atol=allowed, err_msg=f"state {seed}, {k}: after errors")


def _arrays(step: Any, given: Sequence[Any]) -> list[np.ndarray]:
    return [t.numpy().copy() for t in [*given, *step.trace(*given).variables]]


def check_steps(seed: int) -> None:
    """Raise AssertionError if the compiled step leaves other results or state than the function as it stands, or the
    reference, does."""
    (_, found), *others = [_run(seed, *how) for how in (("cpu", True), ("cpu", False), ("reference", False))]
    for (rounds, results), name in zip(others, ("as it stands", "the reference")):
        for k, (a, b) in enumerate(zip(found, results, strict=True)):
            allowed = (2**-8 if rounds else 1e-4) * max(1.0, float(np.abs(b).max(initial=0.0)))
            np.testing.assert_allclose(a, b, rtol=0, atol=allowed, err_msg=f"state {seed}, {k}: against {name}")


def _run(seed: int, device: str, compiled: bool) -> tuple[bool, list[np.ndarray]]:
    with tw.device(device):
        maker = StateMaker(seed, device=device)
        step = tw.compile(maker.step, devices=device) if compiled else maker.step
        results = [r.numpy() for _ in range(STEPS) for r in step(*maker.given)]
        return maker.rounds, [*results, *(v.numpy() for v in maker.state)]
