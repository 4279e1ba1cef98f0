"""``tw.compile``: a Python function, or a Module, as a static program.

The first call with new shapes traces the function, optimises the graph and compiles it; later calls run the program.
Variables it reads and assigns are the program's state. A new trace is made when something that the old one assumed has
changed, and says what.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from twofold.backends import Device, Program, device_group
from twofold.backends.interface import Memory
from twofold.base import flags, garbage
from twofold.base.tree import Structure, flatten, unflatten
from twofold.ir import Graph, Spec, context, precision_mode
from twofold.ir.assumed import changes, difference, exactly, reads
from twofold.ops.precision import Policy, policy_of
from twofold.passes import optimise
from twofold.static.differentiate import DifferentiableRunner
from twofold.static.runner import Compiled, GraphRunner, as_array
from twofold.static.trace import Traced, argument_names, is_array_like, spec_of, trace
from twofold.tensor.eager import Array
from twofold.tensor.tensor import Tensor

log = logging.getLogger("twofold")
MANY_RETRACES = 8
MOST_TRACES = 4  # of arguments alike: a program keeps its working memory, and settings may change at every call


@dataclass(frozen=True)
class Signature:
    """What a trace depends on: the arguments' nest, specs, fixed leaves, which ask for gradients; and modes around it."""

    structure: Structure
    specs: tuple[Spec, ...]
    fixed: tuple[tuple[int, Any], ...]
    tracked: tuple[bool, ...]
    grad_enabled: bool
    precision: Policy | None


@dataclass
class _Entry:
    traced: Traced
    runner: GraphRunner
    differentiable: DifferentiableRunner | None = None

    def report(self) -> str:
        with_gradients = self.differentiable.report() if self.differentiable else ""
        return "\n\n".join(filter(None, [self.runner.report(), with_gradients]))

    def take_for_granted(self, later: Traced) -> None:
        """What a later trace did that gave the same program."""
        self.traced = replace(
            self.traced, guards=later.guards, assumed=later.assumed, changes=later.changes, constants=later.constants
        )


class CompiledFunction:
    """What ``tw.compile`` returns: called like the function. ``graph(*args)`` gives its graph, ``report()`` what was
    compiled, ``retraces`` why it was traced again; ``in_precision()`` is a block with its precision."""

    def __init__(
        self, function: Callable[..., Any], *, devices: Any = None, shard_state: bool = False, verify: bool = False,
        precision: Any = None,
    ):  # fmt: skip
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.devices = devices
        self.shard_state = shard_state
        self.verify = verify
        self.in_precision = (
            contextlib.nullcontext if precision is None else functools.partial(precision_mode, policy_of(precision))
        )
        self.retraces: list[str] = []
        self._entries: dict[Signature, list[_Entry]] = {}
        self._quick: dict[Any, tuple[_Entry, Compiled | None]] = {}  # what arguments like these ran last, see `_quick_key`
        self._last: Signature | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if context.builders:  # inside another trace: part of that program
            with self.in_precision():
                return self.function(*args, **kwargs)
        key = None if kwargs else _quick_key(args)
        entry, compiled = self._quick.get(key, (None, None))
        if entry is None or _broken_guard(entry.traced):
            leaves, signature = self._signature(args, kwargs)
            entry = self._entry(signature, args, kwargs)
            arguments, compiled = [as_array(leaf) for leaf in leaves], None
        else:
            arguments = [a._own for a in args]
        traced, runner = entry.traced, entry.runner
        arguments += [leaf._grad.value for leaf in traced.gradient_inputs]
        for leaf in traced.replaced:  # their memory serves the new ones
            leaf._grad = None
        same = not traced.gradient_inputs  # which may be of any dtype
        if compiled is not None and same and runner.runs_on(compiled.device, arguments):
            results = runner.run(compiled, arguments)
            return Tensor(results[0]) if traced.is_one_tensor else self._deliver(traced, results)
        differentiable = context.grad_enabled and traced.any_differentiable
        compiled = None if differentiable else runner.compiled(arguments)
        if key is not None:
            self._quick[key] = entry, compiled
        results = runner.run(compiled, arguments) if compiled else self._differentiable(entry)(arguments)
        return self._deliver(traced, results)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)  # a decorated method

    def __getattr__(self, name: str) -> Any:
        if name == "function" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.function, name)  # a compiled Module still has parameters(), train(), ...

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The optimised graph for these arguments (arrays, or anything with ``shape`` and ``dtype``). It is not run."""
        return optimise(self.trace(*args, **kwargs).graph)

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """The trace for these arguments, as recorded."""
        _, signature = self._signature(args, kwargs)
        return self._entry(signature, args, kwargs).traced

    def memory(self, *args: Any, **kwargs: Any) -> Memory | None:
        """Bytes that a call with these arguments (arrays, or anything with ``shape`` and ``dtype``) would take, by what they
        are for; ``.peak`` is the most at once. The program is compiled, not run. None where the backend cannot tell.

        >>> import numpy as np
        >>> import twofold as tw
        >>> double = tw.compile(lambda x: x + x)
        >>> double.memory(np.zeros((4, 4), np.float32)).arguments
        64
        """
        return self._program(args, kwargs).memory

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Trace and compile for these arguments, if that is to be done yet, so that a call only runs the program."""
        entry, _ = (None, None) if kwargs else self._quick.get(_quick_key(args), (None, None))
        if entry is None or _broken_guard(entry.traced):  # else it has been called
            self._program(args, kwargs)

    def _program(self, args: tuple, kwargs: dict[str, Any]) -> Program:
        leaves, signature = self._signature(args, kwargs)
        entry = self._entry(signature, args, kwargs)
        gradients = [spec_of(leaf._grad) for leaf in entry.traced.gradient_inputs]
        return entry.runner.prepare([*map(spec_of, leaves), *gradients])

    def report(self) -> str:
        """What was compiled: one report for each trace and set of shapes."""
        reports = [entry.report() for entries in self._entries.values() for entry in entries]
        return "\n\n".join(filter(None, reports)) or "nothing was compiled yet: call it, or prepare() it"

    # -- finding a trace -----------------------------------------------------------------------------------------------
    def _signature(self, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Signature]:
        leaves, structure = flatten((args, kwargs))
        arrays = [leaf for leaf in leaves if is_array_like(leaf)]
        fixed = tuple((i, _hashable(leaf)) for i, leaf in enumerate(leaves) if not is_array_like(leaf))
        tracked = tuple(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in arrays)
        specs = tuple(map(spec_of, arrays))
        return arrays, Signature(structure, specs, fixed, tracked, context.grad_enabled, context.precision)

    def _entry(self, signature: Signature, args: tuple, kwargs: dict[str, Any]) -> _Entry:
        known = self._entries.setdefault(signature, [])
        broken = ""
        for entry in known:
            broken = _broken_guard(entry.traced)
            if not broken:
                return entry
        if self._last is not None:
            self._say_why(broken or self._changed(signature, args, kwargs))
        changed = [place for entry in known for place in entry.traced.changed_places()]
        with self.in_precision(), garbage.put_off(), reads(changed) as unread:
            traced = trace(self.function, args, kwargs, requires_grad=signature.tracked)
        self._last = signature
        for entry in known:
            if entry.traced.same_program(traced):
                traced.without(unread)  # nor did it matter
                entry.take_for_granted(traced)
                return entry
        known.append(_Entry(traced, GraphRunner(traced.graph, traced.variables, self._device(), verify=self.verify)))
        del known[:-MOST_TRACES]
        return known[-1]

    def _device(self) -> Device | None:
        if self.devices is None:
            return None
        return device_group(self.devices, shard_state=self.shard_state)

    def _changed(self, new: Signature, args: tuple, kwargs: dict[str, Any]) -> str:
        old = self._last
        assert old is not None
        if new.structure != old.structure:
            return "the arguments are nested differently, or there are more or fewer of them"
        leaves, structure = flatten((args, kwargs))
        names = argument_names(self.function, structure, range(len(leaves)))
        places = [i for i, leaf in enumerate(leaves) if is_array_like(leaf)]
        for place, a, b in zip(places, old.specs, new.specs):
            if a.dtype is not b.dtype:
                return f"argument {names[place]!r}: dtype {a.dtype.name} became {b.dtype.name}"
            if a.ndim != b.ndim:
                return f"argument {names[place]!r}: {a} became {b}"
            for axis, (m, n) in enumerate(zip(a.shape, b.shape)):
                if m != n:
                    return f"argument {names[place]!r}: dimension {axis} was {m}, is {n} ({a} became {b})"
        for (place, a), (_, b) in zip(old.fixed, new.fixed):
            if a != b:
                return f"argument {names[place]!r}: {a[1]!r} became {b[1]!r}; what is not an array is fixed in a trace"
        if new.tracked != old.tracked:
            return "an argument's requires_grad changed"
        if new.grad_enabled != old.grad_enabled:
            return "gradients were switched on or off"
        return "autocast around the call changed" if new.precision != old.precision else "the argument kinds changed"

    def _say_why(self, reason: str) -> None:
        name = getattr(self, "__name__", "function")
        self.retraces.append(reason)
        text = f"{name} is traced again ({len(self.retraces)}): {reason}"
        if flags.get("TWOFOLD_DEBUG") >= 1:
            print(f"twofold: {text}", file=sys.stderr)
        (log.warning if len(self.retraces) == MANY_RETRACES else log.info)(text)

    # -- running -------------------------------------------------------------------------------------------------------
    def _differentiable(self, entry: _Entry) -> DifferentiableRunner:
        if entry.differentiable is None:
            traced = entry.traced
            values = traced.graph.all_inputs
            wanted = [i for i, v in enumerate(values) if v.requires_grad]
            outputs = [i for i, flag in enumerate(traced.differentiable) if flag]
            entry.differentiable = DifferentiableRunner(
                traced.graph, traced.variables, wanted, outputs, self._device(), self.verify
            )
        return entry.differentiable

    @staticmethod
    def _deliver(traced: Traced, results: list[Array]) -> Any:
        values: list[Any] = [Tensor(r) for r in results]
        gradients = iter(values[traced.returned :])
        for leaf, present in traced.gradients:
            leaf.grad = next(gradients) if present else None
        values = values[: traced.returned]
        for place, constant in sorted(traced.constants.items()):
            values.insert(place, constant)
        return unflatten(traced.outputs, values)


def _quick_key(args: tuple) -> Any:
    """What a trace depends on among arguments that are all concrete tensors, in a form that is quick to make and to look
    up; None for others."""
    key: list[Any] = [context.grad_enabled, context.precision]
    for a in args:
        if type(a) is not Tensor or type(a._own) is not Array:
            return None
        value = a._own
        key += value.spec.shape, value.spec.dtype, value.requires_grad
    return tuple(key)


def _hashable(leaf: Any) -> Any:
    try:
        hash(leaf)
    except TypeError:
        return (type(leaf), id(leaf))
    return exactly(leaf)


def _broken_guard(traced: Traced) -> str:
    for thing, attribute, value in traced.guards:
        now = getattr(thing, attribute)
        if now is not value and (value is None or now is None or now != value):
            name = getattr(thing, "name", "") or type(thing).__name__
            if attribute == "_grad":
                return f"{name}.grad was None and now holds a gradient; call zero_grad() first, or keep accumulating"
            return f"{name}.{attribute} was {value!r}, is {now!r}"
    for leaf in traced.gradient_inputs:
        if leaf._grad is None:
            return f"{getattr(leaf, 'name', '') or 'a leaf'}.grad held a gradient and is None now"
    return "" if traced.changes == changes() else _changed_since(traced)


def _changed_since(traced: Traced) -> str:
    """What the trace took for granted and is otherwise now."""
    count = changes()
    for thing, name, before in traced.assumed:
        if found := difference(before, thing.assumed()):
            return f"{name}: {found}"
    traced.changes = count
    return ""


def compile(
    function: Callable[..., Any] | None = None, *, devices: Any = None, shard_state: bool = False, verify: bool = False,
    precision: Any = None,
) -> Any:  # fmt: skip
    """``function`` (or a Module) compiled to a static program for each set of argument shapes.

    ``devices``: where to run, by default where the variables live; a list, or ``"all"`` (all of the default device's
    kind), runs it data parallel: the first dimension of each argument, the batch, is split over them. ``shard_state``
    also splits the variables over the devices instead of keeping all on each. ``verify``: run the reference backend
    beside the program and name the first node that differs. ``precision``: that of ``tw.autocast`` for the function, by
    default the one around the call. Usable as a decorator, with or without arguments.

    >>> import twofold as tw
    >>> @tw.compile
    ... def double(x):
    ...     return x + x
    >>> double(tw.tensor([1.0, 2.0])).tolist()
    [2.0, 4.0]
    """
    if function is None:
        return functools.partial(
            compile, devices=devices, shard_state=shard_state, verify=verify, precision=precision
        )  # fmt: skip
    return CompiledFunction(
        function, devices=devices, shard_state=shard_state, verify=verify, precision=precision
    )  # fmt: skip
