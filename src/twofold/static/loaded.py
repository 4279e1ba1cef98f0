"""Programs that came from a file: a graph and the numbers of its state, without the code that built it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twofold.backends import device
from twofold.base.errors import GraphError
from twofold.base.tree import Structure, unflatten
from twofold.ir import Graph
from twofold.static.runner import GraphRunner, as_array
from twofold.tensor.tensor import Tensor
from twofold.tensor.variable import Variable


class LoadedFunction:
    """A callable graph. State (parameters, moments, random key) lives in ``variables`` and is carried from call to call.

    Call it with arrays by position or by input name; it returns tensors: one, a tuple, or the nest that was saved.
    """

    def __init__(
        self, graph: Graph, state: Mapping[str, np.ndarray] | None = None, *, outputs: Structure | None = None,
        devices: Any = None, verify: bool = False,
    ):  # fmt: skip
        numbers = state or {}
        missing = [s.name for s in graph.state if s.name not in numbers]
        if missing:
            raise GraphError(f"{graph.name}: no numbers for state {', '.join(missing)}")
        where = None if devices is None else device(devices)
        self.graph = graph
        self.outputs = outputs
        self.variables = {
            s.name: Variable(numbers[s.name], s.input.dtype, name=s.name, device=where) for s in graph.state
        }
        for s in graph.state:
            s.variable = self.variables[s.name]
        self._runner = GraphRunner(graph, list(self.variables.values()), where, verify=verify)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return [v.name or f"input{i}" for i, v in enumerate(self.graph.inputs)]

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the state's present numbers."""
        return {name: np.array(v.numpy()) for name, v in self.variables.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._ordered(args, kwargs)
        arrays = [as_array(x, v.spec) for x, v in zip(arguments, self.graph.inputs, strict=True)]
        results = [Tensor(a) for a in self._runner(arrays)]
        if self.outputs is not None:
            return unflatten(self.outputs, results)
        return results[0] if len(results) == 1 else tuple(results)

    def _ordered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        names = self.input_names
        unknown = [k for k in kwargs if k not in names]
        given = dict(zip(names, args)) | dict(kwargs)
        if unknown or len(args) > len(names) or len(given) != len(names) or len(args) + len(kwargs) != len(given):
            got = [*(f"#{i}" for i in range(len(args))), *kwargs]
            raise GraphError(f"{self.graph.name}: expected inputs {', '.join(names)}; got {', '.join(got) or 'none'}")
        return [given[n] for n in names]

    def report(self) -> str:
        """What was compiled."""
        return self._runner.report()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{n}: {v.spec}" for n, v in zip(self.input_names, self.graph.inputs))
        return f"<LoadedFunction {self.graph.name}({inputs})>"
