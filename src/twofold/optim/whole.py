"""``Optimizer.step`` of an eager loop as one compiled program over all parameters, instead of several ops for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twofold.ir import context
from twofold.static.runner import GraphRunner
from twofold.static.trace import trace

if TYPE_CHECKING:
    from twofold.optim.optimizer import Optimizer

LEAST = 1 << 15  # elements of all parameters: below, a program's compilation is not worth it
PATIENCE = 2  # steps of a kind before one is compiled
MOST = 8  # kinds of steps of an optimizer


class WholeStep:
    """An optimizer's compiled steps: one for each set of parameters with gradients, and settings."""

    def __init__(self) -> None:
        self._seen: dict[Any, int] = {}
        self._known: dict[Any, tuple[GraphRunner, list[Any]]] = {}

    def run(self, optimizer: Optimizer) -> bool:
        """Take the step; False if it is better, or only possible, op by op."""
        if context.builders or context.assigned is not None:
            return False
        key = _kind(optimizer)
        if key is None:
            return False
        if key not in self._known:
            if len(self._known) >= MOST or not self._is_due(key):
                return False
            traced = trace(optimizer.step_by_ops, (), name="optimizer_step", keep_gradients=False)
            self._known[key] = GraphRunner(traced.graph, traced.variables), traced.gradient_inputs
        runner, leaves = self._known[key]
        runner([leaf._grad.value for leaf in leaves])
        return True

    def _is_due(self, key: Any) -> bool:
        if len(self._seen) > 64 * MOST:
            self._seen.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key] > PATIENCE


def _kind(optimizer: Optimizer) -> Any:
    """All that a trace of the step depends on; None if that cannot be looked up, or does not call for a program."""
    key: list[Any] = []
    size = 0
    for group in optimizer.param_groups:
        key += group.settings.items()
        for p in group.params:
            g = p._grad
            if g is None:
                key.append(None)
            elif g.device is not p.device or g.device.kind != "cpu":
                return None
            else:
                key.append(g.dtype)
                size += int(p.size)
    if size < LEAST:
        return None
    try:
        hash(found := tuple(key))
    except TypeError:
        return None
    return found
