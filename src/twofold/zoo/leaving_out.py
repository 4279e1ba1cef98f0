"""What networks that leave parts out in training share: one rule for the parameters of a part that was left out.

In a static program a branch that is not taken has zero gradients, and the optimiser goes on with momentum and weight
decay. Eagerly nothing at all would reach those parameters, and the optimiser would pass over them: another rule.
"""

from __future__ import annotations

from typing import Any

import twofold as tw
from twofold import nn
from twofold.static.trace import is_symbolic


@tw.custom_vjp
def _anchored(scores: Any, *parameters: Any) -> Any:
    return scores * 1.0


_anchored.defvjp(
    lambda scores, *parameters: (scores * 1.0, parameters),
    lambda parameters, g: (g, *map(tw.zeros_like, parameters)),
)


def with_all_gradients(scores: Any, model: nn.Module) -> Any:
    """``scores``, from which a gradient of zero flows to every parameter of ``model``, besides those that flow anyway."""
    return scores if is_symbolic(scores) else _anchored(scores, *model.parameters())
