"""``Module``: a network, or a part of one, with its parameters, buffers and sub-modules found by their attributes."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from twofold.base.dtypes import BY_NAME, DType
from twofold.base.errors import ArgumentError
from twofold.base.shapes import product
from twofold.ir import Value, context, scope
from twofold.ir.assumed import changed, fixed
from twofold.nn.state import LoadReport, load
from twofold.tensor.tensor import Tensor, concrete
from twofold.tensor.variable import Variable

Self = TypeVar("Self", bound="Module")
_INTERNAL = frozenset({"_training", "_paths", "_named", "_hooks", "_pre_hooks", "_transient"})
_handles = itertools.count()


class Parameter(Variable):
    """A variable that training changes: gradients are kept for it, and optimizers are given it."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, *, name: str = "", dtype: Any = None, device: Any = None):
        super().__init__(data, dtype, requires_grad=requires_grad, name=name, device=device)


class Hook:
    """Takes a hook off again: by ``remove()``, or as a context manager."""

    def __init__(self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]):
        self._hooks, self._key = hooks, next(_handles)
        hooks[self._key] = hook
        changed()

    def remove(self) -> None:
        """The hook is not called any more."""
        self._hooks.pop(self._key, None)
        changed()

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


class _Structure:
    """Counts the changes of any module's parts, so that names are told anew after one."""

    changes = 1


class _Running(threading.local):
    """The modules whose forward is running in this thread, outermost first."""

    def __init__(self) -> None:
        self.stack: list[Module] = []


_running = _Running()


class Module:
    """Base of all layers and networks. Write ``__init__`` (make the parts) and ``forward`` (use them).

    Modules and variables that stand in attributes, also inside lists, tuples and dicts, belong to it under the path of
    attribute names and keys (``features.3.weight``): a ``Parameter`` is trained, any other ``Variable`` is a buffer.

    >>> import twofold as tw
    >>> class Net(tw.nn.Module):
    ...     def __init__(self):
    ...         self.layers = [tw.nn.Linear(4, 3), tw.nn.Linear(3, 2)]
    ...     def forward(self, x):
    ...         for layer in self.layers:
    ...             x = layer(x).tanh()
    ...         return x
    >>> Net()(tw.ones((5, 4))).shape
    (5, 2)
    >>> list(Net().state_dict())
    ['layers.0.weight', 'layers.0.bias', 'layers.1.weight', 'layers.1.bias']
    """

    _training: bool
    _named: int
    _paths: dict[Module, str]
    _hooks: dict[int, Callable[..., Any]]
    _pre_hooks: dict[int, Callable[..., Any]]
    _transient: set[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        vars(self).update(_training=True, _paths={}, _named=0, _hooks={}, _pre_hooks={}, _transient=set())
        return self

    def __init__(self) -> None: ...

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every module defines it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(); define what it computes")

    # -- calling -------------------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stack = _running.stack
        if context.builders:
            context.builders[-1].watch(self, type(self).__name__)
        path = stack[-1]._path_to(self) if stack else self._name_variables()
        stack.append(self)
        try:
            if not path:
                return self._call(args, kwargs)
            with scope(path):
                return self._call(args, kwargs)
        finally:
            stack.pop()

    def _call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        for hook in tuple(self._pre_hooks.values()) if self._pre_hooks else ():
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        output = self.forward(*args, **kwargs)
        for hook in tuple(self._hooks.values()) if self._hooks else ():
            changed = hook(self, args, output)
            output = output if changed is None else changed
        return output

    def _path_to(self, child: Module) -> str:
        """Where ``child`` stands below this module; its class name if it is no part of it. Empty for itself."""
        path = self._paths.get(child)
        if path is None:
            self._paths = {module: name for name, module in self.named_modules()}
            path = self._paths.setdefault(child, type(child).__name__)
        return path

    def _name_variables(self) -> str:
        """Tell each variable its path, by which graphs and files call it. The outermost module's own is empty."""
        if self._named != _Structure.changes:
            for name, variable in self._walk_variables("", set()):
                if not variable.name or name.endswith(f".{variable.name}"):
                    variable.name = name
            self._named = _Structure.changes
        return ""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name not in _INTERNAL:
            changed()
        if isinstance(value, (Module, Variable, list, tuple, dict)) and name not in _INTERNAL:
            vars(self)["_paths"] = {}
            _Structure.changes += 1

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        vars(self)["_paths"] = {}
        _Structure.changes += 1
        changed()

    def assumed(self) -> dict[str, Any]:
        """What traces of this module take for granted: its settings, parts and hooks. (Its mode they ask for; a tensor or
        array that is no variable is a constant of theirs.)"""
        settings = {n: v for n, v in vars(self).items() if n not in _INTERNAL and not _is_data(v)}
        hooks = {"its hooks": [*self._pre_hooks.values(), *self._hooks.values()]}
        return {name: fixed(value) for name, value in {**settings, **hooks}.items()}

    def register_forward_hook(self, hook: Callable[[Module, tuple, Any], Any]) -> Hook:
        """Call ``hook(module, args, output)`` after each forward; what it returns, if not None, is the output."""
        return Hook(self._hooks, hook)

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple], Any]) -> Hook:
        """Call ``hook(module, args)`` before each forward; what it returns, if not None, are the arguments."""
        return Hook(self._pre_hooks, hook)

    # -- parts ---------------------------------------------------------------------------------------------------------
    def _attributes(self, kind: type) -> Iterator[tuple[str, Any]]:
        """Names and values of one kind among the attributes, also inside lists, tuples and dicts."""
        for name, value in vars(self).items():
            if name not in _INTERNAL:
                yield from _inside(name, value, kind)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below, each once."""
        seen = set()
        for name, module in self._attributes(Module):
            if module not in seen:
                seen.add(module)
                yield name, module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below, each once, with their paths; parents first."""
        seen: set[Module] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if module not in seen:
                seen.add(module)
                yield path, module
                below = [(_join(path, name), child) for name, child in module._attributes(Module)]
                stack.extend(reversed(below))

    def _walk_variables(self, prefix: str, above: set[Module]) -> Iterator[tuple[str, Variable]]:
        """Every variable under every path that leads to it: own parameters, own buffers, then children."""
        own = list(self._attributes(Variable))
        yield from ((_join(prefix, n), v) for n, v in own if isinstance(v, Parameter))
        yield from ((_join(prefix, n), v) for n, v in own if not isinstance(v, Parameter) and n not in self._transient)
        for name, child in self._attributes(Module):
            if child not in above:
                yield from child._walk_variables(_join(prefix, name), above | {self})

    def _named_variables(self, prefix: str, kind: Callable[[Variable], bool]) -> Iterator[tuple[str, Variable]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, variable in module._attributes(Variable):
                if kind(variable) and id(variable) not in seen:
                    seen.add(id(variable))
                    yield _join(path, name), variable

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Parameters with their paths, each once (shared ones under the first)."""
        return self._named_variables(prefix, lambda v: isinstance(v, Parameter))  # type: ignore[return-value]

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Variable]]:
        """Variables that are no parameters, with their paths, each once."""
        return self._named_variables(prefix, lambda v: not isinstance(v, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        return (p for _, p in self.named_parameters())

    def buffers(self) -> Iterator[Variable]:
        """All buffers, each once."""
        return (b for _, b in self.named_buffers())

    def modules(self) -> Iterator[Module]:
        """This module and all below, each once."""
        return (m for _, m in self.named_modules())

    def children(self) -> Iterator[Module]:
        """The modules directly below, each once."""
        return (m for _, m in self.named_children())

    def get_submodule(self, path: str) -> Module:
        """The module at a path such as ``features.3``; ArgumentError names the paths there are."""
        found = dict(self.named_modules())
        if path not in found:
            near = [p for p in found if p.split(".")[0] == path.split(".")[0]] or list(found)
            raise ArgumentError(f"{type(self).__name__} has no part {path!r}; it has {', '.join(map(repr, near[:20]))}")
        return found[path]

    def register_buffer(self, name: str, data: Any, persistent: bool = True) -> None:
        """Make the attribute ``name`` a buffer holding ``data``; not ``persistent``: left out of ``state_dict``."""
        (self._transient.discard if persistent else self._transient.add)(name)
        setattr(self, name, data if data is None or isinstance(data, Variable) else Variable(data))

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """The same as setting the attribute."""
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module) -> None:
        """The same as setting the attribute; for names that are no identifiers, such as ``"0"``."""
        setattr(self, name, module)

    def num_parameters(self, trainable: bool = False) -> int:
        """How many numbers the parameters hold; only those that require gradients if ``trainable``."""
        return sum(int(product(p.shape)) for p in self.parameters() if p.requires_grad or not trainable)

    # -- modes ---------------------------------------------------------------------------------------------------------
    @property
    def training(self) -> bool:
        """Whether dropout drops and batch normalisation uses the batch. A trace remembers that it looked."""
        if context.builders:
            context.builders[0].guards.append((self, "training", self._training))
        return self._training

    @training.setter
    def training(self, mode: bool) -> None:
        self._training = bool(mode)

    def train(self: Self, mode: bool = True) -> Self:
        """Set ``training`` here and below."""
        for module in self.modules():
            module._training = bool(mode)
        return self

    def eval(self: Self) -> Self:
        """Leave training mode: ``train(False)``."""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In the block this module and those below are in inference mode; after it each has its own mode again."""
        modes = [(module, module._training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module._training = mode

    def requires_grad_(self: Self, wanted: bool = True) -> Self:
        """Ask for gradients at all parameters, or (False) freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad_(wanted)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def apply(self: Self, function: Callable[[Module], Any]) -> Self:
        """Call ``function`` on every module below, then on this one."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    def to(self: Self, *where: Any, dtype: Any = None, device: Any = None) -> Self:
        """Move all variables to a device and/or cast the floating ones to a dtype, in place; gradients are dropped."""
        for variable in itertools.chain(self.parameters(), self.buffers()):
            wanted = [w for w in where if not _is_dtype(w) or variable.dtype.is_floating]
            moved = (
                Tensor(variable._own)
                .detach()
                .to(*wanted, dtype=dtype if variable.dtype.is_floating else None, device=device)
            )
            variable.grad = None
            variable.move_(moved.device)
            variable.set_array(moved.value)
        return self

    def cpu(self: Self) -> Self:
        """Move all variables to the CPU."""
        return self.to(device="cpu")

    def cuda(self: Self, index: int = 0) -> Self:
        """Move all variables to a GPU."""
        return self.to(device=f"gpu:{index}")

    # -- state ---------------------------------------------------------------------------------------------------------
    def state_dict(self, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        """Parameters and persistent buffers by path, as copies (the variables themselves if ``keep_vars``).

        The names are those of PyTorch for a network of the same attributes; shared variables stand under each path.
        """
        found = self._walk_variables(prefix.rstrip("."), set())
        return {name: v if keep_vars else Tensor(concrete(v.numpy(), where=v.device)) for name, v in found}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Set every variable from arrays or tensors by path. WeightsError reports all that does not fit, then nothing
        was changed; without ``strict`` names may be missing or unexpected, but shapes must fit."""
        return load(type(self).__name__, self.state_dict(keep_vars=True), state, strict)

    # -- text ----------------------------------------------------------------------------------------------------------
    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses: a layer's settings."""
        return ""

    def __repr__(self) -> str:
        lines = [self.extra_repr()] if self.extra_repr() else []
        children = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self._attributes(Module)]
        if not children:
            return f"{type(self).__name__}({', '.join(lines)})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines + children) + "\n)"


def check_sizes(layer: Any, least: int = 1, **sizes: Any) -> None:
    """ArgumentError unless each of a layer's ``sizes`` is a whole number, or several, of at least ``least``."""
    for name, given in sizes.items():
        for size in given if isinstance(given, (tuple, list)) else (given,):
            if not hasattr(size, "__index__") or isinstance(size, bool) or size < least:
                raise ArgumentError(f"{type(layer).__name__}: {name}={given!r}; expected whole numbers from {least}")


def _is_data(value: Any) -> bool:
    """Numbers that are no variable."""
    return isinstance(value, (np.ndarray, Value)) or (isinstance(value, Tensor) and not isinstance(value, Variable))


def _inside(name: str, value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    if isinstance(value, kind):
        yield name, value
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            yield from _inside(f"{name}.{i}", item, kind)
    elif type(value) is dict:
        for key, item in value.items():
            yield from _inside(f"{name}.{key}", item, kind)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _is_dtype(argument: Any) -> bool:
    return isinstance(argument, (DType, type)) or argument in BY_NAME
