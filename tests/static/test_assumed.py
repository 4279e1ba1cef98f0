"""A program is made anew when something that its trace took for granted has changed: what Python would do now counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.static.compile import MOST_TRACES

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


class Scaled(nn.Module):
    """A setting, a function, a list of settings and a part that can all be replaced."""

    def __init__(self) -> None:
        self.factor, self.act, self.shifts = 2.0, nn.functional.tanh, [0.5, 0.25]

    def forward(self, x: Any) -> Any:
        return self.act(x * self.factor) + sum(self.shifts)


def trained(compiled: bool, change: Any) -> tuple[np.ndarray, Any]:
    """Two steps, a change, two more: all numbers, and the step."""
    tw.random.seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), Scaled(), nn.Linear(4, 2))
    optimizer = tw.optim.Adam([{"params": model[0].parameters()}, {"params": [*model[2].parameters(), *model[4].parameters()]}], lr=0.1)

    def step() -> Any:
        loss = (model(tw.tensor(X)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = tw.compile(step) if compiled else step
    for _ in range(2):
        run()
    change(model, optimizer)
    for _ in range(2):
        run()
    return np.concatenate([v.numpy().ravel() for v in model.state_dict(keep_vars=True).values()]), run


def _no_bias(model: Any, _: Any) -> None:
    model[4].bias = None


CHANGES = {
    "a frozen layer": (lambda m, o: m[0].requires_grad_(False), r"weight: requires_grad was True, is False"),
    "a frozen weight": (lambda m, o: setattr(m[4].weight, "requires_grad", False), r"4\.weight: requires_grad"),
    "a setting of batch norm": (lambda m, o: setattr(m[2], "momentum", 0.5), r"BatchNorm1d: momentum was 0.1, is 0.5"),
    "a share of dropout": (lambda m, o: setattr(m[1], "p", 0.1), r"Dropout: p was 0.5, is 0.1"),
    "a number": (lambda m, o: setattr(m[3], "factor", 0.5), r"Scaled: factor was 2.0, is 0.5"),
    "a function": (lambda m, o: setattr(m[3], "act", nn.functional.relu), r"Scaled: act"),
    "a list": (lambda m, o: setattr(m[3], "shifts", [0.5]), r"Scaled: shifts was \[0.5, 0.25\], is \[0.5\]"),
    "a layer": (lambda m, o: m.__setitem__(1, nn.Identity()), r"Sequential: 1 was a Dropout, is a Identity"),
    "one layer more": (lambda m, o: m.append(nn.Tanh()), r"Sequential: _keys"),
    "a parameter less": (_no_bias, r"Linear: bias was a Parameter, is None"),
    "a hook": (lambda m, o: m[0].register_forward_hook(lambda module, x, y: y * 2), r"Linear: its hooks"),
    "betas": (lambda m, o: o.param_groups[1].__setitem__("betas", (0.5, 0.5)), r"param_groups\[1\]: betas was \[0.9, 0.999\]"),
    "weight decay": (lambda m, o: o.param_groups[0].__setitem__("weight_decay", 0.1), r"Adam.param_groups\[0\]: weight_decay"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_compiled_goes_on_as_eager_does(name):
    change, reason = CHANGES[name]
    eager, _ = trained(False, change)
    got, step = trained(True, change)
    np.testing.assert_allclose(got, eager, rtol=1e-4, atol=1e-5)
    (text,) = step.retraces
    import re

    assert re.search(reason, text), text


def test_what_changes_nothing_traces_nothing():
    def harmless(model: Any, optimizer: Any) -> None:
        model[1].p = 0.5  # as it was
        model[3].note = "new"
        optimizer.lr = 0.05
        model[4].weight.assign(model[4].weight * 0.5)
        tw.optim.StepLR(optimizer, 1)
        nn.Linear(2, 2).bias = None  # of another network

    got, step = trained(True, harmless)
    assert step.retraces == []
    np.testing.assert_allclose(got, trained(False, harmless)[0], rtol=1e-4, atol=1e-5)


def test_a_program_of_before_serves_again():
    model = nn.Sequential(nn.Linear(3, 2))
    run = tw.compile(lambda x: model(x))
    x = tw.tensor(X)
    for factor in (1.0, 3.0, 1.0, 3.0):
        hook = model[0].register_forward_hook(TRIPLE if factor == 3.0 else AS_IT_IS)
        np.testing.assert_allclose(run(x).numpy(), factor * (X @ model[0].weight.numpy().T + model[0].bias.numpy()), rtol=1e-5)
        hook.remove()
    assert len(run.retraces) == 1


AS_IT_IS, TRIPLE = (lambda module, x, y: None), (lambda module, x, y: y * 3)


def test_a_module_may_keep_what_it_saw():
    """Tensors that a forward leaves in attributes, eagerly and traced, are no reason for a new trace."""

    class Keeps(nn.Module):
        def forward(self, x: Any) -> Any:
            self.last = x * 2
            return self.last

    model = Keeps()
    run = tw.compile(model)
    for _ in range(3):
        model(tw.tensor(X))
        np.testing.assert_array_equal(run(tw.tensor(X)).numpy(), X * 2)
    assert run.retraces == []


def test_programs_of_settings_long_gone_are_let_go():
    model = Scaled()
    run = tw.compile(model)
    for factor in range(3 * MOST_TRACES):
        model.factor = float(factor)
        np.testing.assert_allclose(run(tw.tensor(X)).numpy(), np.tanh(X * factor) + 0.75, rtol=1e-5)
    assert [len(known) for known in run._entries.values()] == [MOST_TRACES]


class Counts(tw.nn.Module):
    """Notes in its forward how often it was called, and with what."""

    def __init__(self):
        self.calls, self.last, self.shapes = 0, None, []

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x.shape
        self.shapes.append(x.shape)
        return x * 2.0


def test_what_a_forward_notes_about_itself_traces_nothing_again():
    compiled = tw.compile(Counts())
    for _ in range(4):
        for size in (2, 3):  # the last batch of an epoch is smaller
            np.testing.assert_array_equal(compiled(tw.ones((size,))).numpy(), np.full(size, 2.0, np.float32))
    assert len(compiled.retraces) == 1


def test_a_model_of_another_dtype():
    model = nn.Linear(3, 2)
    run = tw.compile(lambda x: model(x))
    assert run(tw.tensor(X)).dtype == tw.float32
    model.to(dtype=tw.float64)
    got = run(tw.tensor(X.astype(np.float64)))
    np.testing.assert_allclose(got.numpy(), X.astype(np.float64) @ model.weight.numpy().T + model.bias.numpy(), rtol=1e-12)
    assert run(tw.tensor(X)).dtype == tw.float64


def test_a_captured_tensor_that_no_longer_requires_gradients_is_noticed():
    w = tw.tensor([2.0, 3.0], requires_grad=True)
    weighted = tw.compile(lambda x: (x * w).sum())
    weighted(tw.tensor([1.0, 4.0])).backward()
    assert w.grad.numpy().tolist() == [1.0, 4.0]
    w.requires_grad_(False)
    assert not weighted(tw.tensor([1.0, 4.0])).requires_grad


class Dated(nn.Module):
    """Notes the number of the epoch; from ``late`` on (if given) it does otherwise."""

    def __init__(self, late: int | None = None):
        self.layer, self.epoch, self.late = nn.Linear(3, 2), 0, late

    def forward(self, x: Any) -> Any:
        y = self.layer(x)
        return y if self.late is None or self.epoch < self.late else 3 * y


@pytest.mark.parametrize(("late", "retraces", "programs"), [(None, 1, 1), (3, 5, 2)])
def test_the_number_of_the_epoch(late, retraces, programs):
    """A setting that nobody reads leads to one more trace, one that decides later to a trace each time; neither makes a
    program of the same graph again."""
    model = Dated(late)
    run = tw.compile(model)
    plain = X @ model.layer.weight.numpy().T + model.layer.bias.numpy()
    for epoch in range(6):
        model.epoch = epoch
        factor = 1 if late is None or epoch < late else 3
        for _ in range(2):
            np.testing.assert_allclose(run(tw.tensor(X)).numpy(), factor * plain, rtol=1e-5)
    assert len(run.retraces) == retraces and all("Dated: epoch was" in text for text in run.retraces)
    assert [len(known) for known in run._entries.values()] == [programs]
    assert "epoch" not in vars(Dated)


def test_a_program_is_not_shared_between_functions_of_one_name():
    """A text says of a custom gradient its name alone: such graphs are never taken for the same."""

    class Factor(nn.Module):
        def __init__(self) -> None:
            self.slope = 2.0

        def forward(self, x: Any) -> Any:
            slope, sloping = self.slope, tw.custom_vjp(lambda x: x + 1.0)
            sloping.defvjp(lambda x: (x + 1.0, {}), lambda kept, g: (g * slope,))
            return sloping(x)

    model = Factor()
    run = tw.compile(lambda x: model(x).sum())
    for slope in (2.0, 5.0):
        model.slope = slope
        x = tw.tensor(X, requires_grad=True)
        run(x).backward()
        np.testing.assert_array_equal(x.grad.numpy(), np.full_like(X, slope))


@pytest.mark.parametrize("first", [False, True])
def test_a_part_that_no_longer_learns_is_another_program(first):
    """Both traces print alike: what was computed inside ``no_grad`` is no part of a graph's text."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.frozen = nn.Linear(3, 4), nn.Linear(4, 2), first

        def forward(self, x):
            if self.frozen:
                with tw.no_grad():
                    h = self.a(x)
            else:
                h = self.a(x)
            return self.b(h)

    model = Half()
    f = tw.compile(model)
    for frozen in (first, not first, first):
        model.frozen = frozen
        model.a.weight.grad = model.b.weight.grad = None
        f(tw.ones((2, 3))).sum().backward()
        assert (model.a.weight.grad is None) == frozen and model.b.weight.grad is not None


def test_arguments_that_are_equal_and_not_the_same():
    f = tw.compile(tw.nn.functional.leaky_relu)
    x = tw.tensor(np.full(4, -1, np.float32))
    assert [np.signbit(f(x, slope).numpy()).all() for slope in (0.0, -0.0, 0.0)] == [True, False, True]
