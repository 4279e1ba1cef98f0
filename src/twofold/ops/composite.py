"""``composite``: marks a function written with several ops that an eager backend may run, and differentiate, as one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from twofold.ir.builder import context, eager_composite


def composite(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of values and plain arguments, with one value as result; it reads nothing but its arguments.

    While a graph is recorded the function runs as it is, so that the graph holds its ops.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not context.builders:
            for whole in eager_composite:
                result = whole(function, args, kwargs)
                if result is not None:
                    return result
        return function(*args, **kwargs)

    return run
