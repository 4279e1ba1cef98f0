"""Running a graph: shapes are bound, the graph is specialised, optimised and compiled once per set of shapes, and the
state variables take their new values after each call. Everything static (compiled functions, sessions, loaded files)
runs through here.
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twofold.backends import Device, Layout, Program
from twofold.backends.interface import written_state
from twofold.base import flags, garbage
from twofold.base.dims import substitute
from twofold.base.errors import DtypeError, ShapeError
from twofold.base.shapes import show
from twofold.ir import Graph, Spec
from twofold.ir.values import bind_symbols
from twofold.passes import optimise, specialise
from twofold.static.verification import check_against_reference
from twofold.tensor.eager import Array, default_device, laid_out, lies
from twofold.tensor.tensor import Tensor

_versions = itertools.count(1)


class Compiled:
    """A program, the graph it was made of, and which of the variables it reads only."""

    def __init__(self, program: Program, graph: Graph, device: Device):
        self.program, self.graph, self.device = program, graph, device
        self.specs = [v.spec for v in graph.outputs]
        self.verify = bool(flags.get("TWOFOLD_VERIFY"))
        self.constant = [i for i, state in enumerate(graph.state) if not state.written]
        first = len(graph.outputs)
        self.written = [(i, first + i) for i, state in enumerate(graph.state) if state.written]  # variable, result
        self._seen = _Seen((), device)

    def buffers(self, arrays: Sequence[Array]) -> list[Any]:
        """What the program takes for its inputs, state included."""
        program, device, layouts = self.program, self.device, self.program.layouts
        return [
            a.buffer if a.device is device and i not in layouts else _buffer(i, a, device, program)
            for i, a in enumerate(arrays)
        ]

    def version(self, state: Sequence[Array]) -> int:
        """A number that changes when a constant variable has been given another value. A value never changes: it is
        enough that the leaf is the same."""
        constant, seen = [state[i] for i in self.constant] if self.written else state, self._seen
        if seen.ids != [*map(id, constant)]:
            seen = self._seen = _Seen(constant, self.device)
        return seen.version

    def again(self, arguments: Sequence[Array], state: Sequence[Array]) -> list[Any] | None:
        """The results, if the program can take the state for what it was in the last call."""
        if self.written:
            return None
        version = self.version(state)
        if not self._seen.here:
            return None
        buffers = [a.buffer for a in arguments if a.device is self.device]
        return self.program.again(buffers, version) if len(buffers) == len(arguments) else None


class _Seen:
    """Leaves by their ids, which hold as long as none of them is gone: held strongly, no program could overwrite their buffers.
    ``here``: whether all are on the program's device."""

    def __init__(self, leaves: Sequence[Array], device: Device):
        self.version = next(_versions)
        self.ids: list[int | None] = [*map(id, leaves)]
        self.here = all(leaf.device is device for leaf in leaves)
        gone = functools.partial(self.ids.append, None)
        self._refs = [weakref.ref(leaf, lambda _: gone()) for leaf in leaves]


class GraphRunner:
    """A graph with symbolic or fixed sizes, as something to call.

    ``variables`` hold the state, in the graph's order; they are updated by each call. ``verify`` runs the reference
    backend beside the program and raises VerificationError at the first node that differs.
    """

    def __init__(self, graph: Graph, variables: Sequence[Any], device: Device | None = None, *, verify: bool = False):
        self.graph = graph
        self.variables = list(variables)
        self.device = device
        self.verify = verify
        self.programs: dict[Any, Compiled] = {}
        models = [v for v in self.variables if v.ndim and not getattr(v, "advances", False)]  # a generator goes along
        self._anchor = models[0] if models else None  # where this variable lives, the program runs

    def __call__(self, arguments: Sequence[Array]) -> list[Array]:
        """Outputs for these inputs; the state variables are updated."""
        return self.run(self.compiled(arguments), arguments)

    def prepare(self, specs: Sequence[Spec]) -> Program:
        """The program for arguments like these. It is compiled, not run."""
        return self._compiled(specs, self.device or self._device_of(())).program

    def compiled(self, arguments: Sequence[Array]) -> Compiled:
        """The program for these inputs."""
        return self._compiled([a.spec for a in arguments], self.device or self._device_of(arguments))

    def runs_on(self, device: Device, arguments: Sequence[Array]) -> bool:
        """Whether that is where these inputs would be taken to."""
        return (self.device or self._device_of(arguments)) is device

    def _compiled(self, specs: Sequence[Spec], device: Device) -> Compiled:
        """The program for arguments like these, compiled at the first time."""
        key: list[Any] = [device.name]
        for spec in specs:
            key += spec.shape, spec.dtype
        compiled = self.programs.get(tuple(key))
        if compiled is None:
            with garbage.put_off():
                compiled = self.programs[tuple(key)] = self._compile(specs, device)
        return compiled

    def run(self, compiled: Compiled, arguments: Sequence[Array]) -> list[Array]:
        """Outputs of a program for these inputs; the state variables are updated."""
        device, state = compiled.device, [v._own for v in self.variables]
        results = compiled.again(arguments, state)
        if results is None:
            results = self._whole(compiled, arguments, state)
        return [Array(spec, buffer, device) for spec, buffer in zip(compiled.specs, results)]

    def _whole(self, compiled: Compiled, arguments: Sequence[Array], state: list[Array]) -> list[Any]:
        program, device, first = compiled.program, compiled.device, len(arguments)
        layouts = program.layouts
        for i, layout in layouts.items():
            self._lay_out(i - first, state, layout, device)
        buffers = compiled.buffers([*arguments, *state])
        for i in program.donated:
            copy = layouts[i].copy if i in layouts else device.backend.copy
            buffers[i] = _exclusive(buffers[i], state[i - first], copy)
        if compiled.verify or self.verify:
            results = check_against_reference(compiled.graph, program, buffers, device)
        else:
            results = program(buffers, compiled.version(state))
        for i, at in compiled.written:
            self.variables[i].set_buffer(results[at], device, layout=layouts.get(first + i))
        return results

    def _lay_out(self, i: int, state: list[Array], layout: Layout, device: Device) -> None:
        """Have a variable's numbers lie as the program takes them. It gets a new leaf before the next one's turn, so that only
        one is there twice; whoever else looks at the old leaf keeps that."""
        if state[i].device is device and not lies(state[i], layout):
            self.variables[i].set_buffer(laid_out(state[i], layout), device, layout=layout)
            state[i] = self.variables[i]._own

    def _device_of(self, arguments: Sequence[Array]) -> Device:
        if self._anchor is not None:
            return self._anchor._own.device
        return next((array.device for array in arguments if array.ndim), None) or default_device()

    def _compile(self, specs: Sequence[Spec], device: Device) -> Compiled:
        check_arguments(self.graph, specs)
        sizes = bind_symbols([v.spec for v in self.graph.inputs], [s.shape for s in specs])  # type: ignore[misc]
        graph = specialise(self.graph, sizes) if sizes else self.graph
        if self.verify or flags.get("TWOFOLD_VERIFY"):  # every value of the graph is looked at
            graph = optimise(graph)
            program = device.backend.compile(graph, device, donated=written_state(graph))
        else:
            program, graph = device.backend.remembered(graph, optimise, device)
        return Compiled(program, graph, device)

    def report(self) -> str:
        """The reports of the programs compiled so far."""
        return "\n\n".join(
            f"{c.device} {', '.join(str(v.spec) for v in c.graph.inputs)}:\n{c.program.report()}"
            for c in self.programs.values()
        )


def check_arguments(graph: Graph, specs: Sequence[Spec]) -> None:
    """Raise ShapeError or DtypeError where a value does not fit its input; sizes of one symbol must agree."""
    if len(specs) != len(graph.inputs):
        raise ShapeError(f"{graph.name}: got {len(specs)} inputs, expected {len(graph.inputs)}")
    sizes: dict[str, int] = {}
    for value, spec in zip(graph.inputs, specs):
        name = value.name or "input"
        if spec.dtype is not value.dtype:
            raise DtypeError(
                f"{graph.name}: input {name!r} has dtype {spec.dtype.name}, expected {value.dtype.name}; cast it with .astype"
            )
        if spec.ndim != value.ndim:
            raise ShapeError(f"{graph.name}: input {name!r} has shape {show(spec.shape)}, expected {show(value.shape)}")
        sizes = {**bind_symbols([value.spec], [spec.shape]), **sizes}  # type: ignore[list-item]
        if tuple(substitute(d, sizes) for d in value.shape) != spec.shape:
            known = f" where {', '.join(f'{k} = {v}' for k, v in sizes.items())}" if sizes else ""
            raise ShapeError(
                f"{graph.name}: input {name!r} has shape {show(spec.shape)}, expected {show(value.shape)}{known}"
            )


def _buffer(index: int, array: Array, device: Device, program: Program) -> Any:
    layout = program.layouts.get(index)
    if array.device == device:
        return array.buffer if layout is None else laid_out(array, layout)
    placed = program.place(index, array.numpy())
    buffer = device.backend.put(array.numpy(), device) if placed is None else placed
    return buffer if layout is None else layout.pack(buffer)


def _exclusive(buffer: Any, leaf: Array, copy: Callable[[Any], Any]) -> Any:
    """A buffer that a program may overwrite: itself, or a copy if somebody else looks at it: a view, a tensor, or the
    record of an eager computation, which holds the leaf."""
    shared = sys.getrefcount(buffer) > _ALONE or sys.getrefcount(leaf) > _ALONE
    return copy(buffer) if shared or not _owns(buffer) else buffer


# references to a state buffer held by nobody but its variable, as seen inside `_exclusive`: the Array's slot, the list of
# buffers, the parameter, and getrefcount's own argument; to the leaf: the variable, the list of state, and the same two
_ALONE = 4


def _owns(buffer: Any) -> bool:
    """Whether an array may be written and has its memory for itself, if only by way of an array that nobody else knows
    (reshaped ones have such a base; NumPy hangs every view of a view on the same one)."""
    if not isinstance(buffer, np.ndarray):
        return True
    if buffer.base is None or not buffer.flags.writeable:
        return bool(buffer.flags.writeable)
    return isinstance(buffer.base, np.ndarray) and buffer.base.flags.owndata and _base_holders(buffer) <= _ALONE_BASE


def _base_holders(view: np.ndarray) -> int:
    """References to the array whose memory a view shows, those of this look among them."""
    base = view.base
    return sys.getrefcount(base)


_ALONE_BASE = _base_holders(np.empty(4).reshape(2, 2))


def as_array(x: Any, spec: Spec | None = None) -> Array:
    """A concrete array of a tensor or of anything NumPy reads; Python numbers take the dtype of ``spec``."""
    from twofold.tensor.tensor import concrete

    if isinstance(x, Tensor):
        return x._array("argument of a compiled program")
    weak = spec is not None and not hasattr(x, "dtype")
    return concrete(x, spec.dtype if weak and spec is not None else None)
