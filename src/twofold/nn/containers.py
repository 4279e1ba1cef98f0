"""Modules made of modules: in sequence, as a list, as a dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from twofold.nn.module import Module


class _Indexed(Module):
    """Modules numbered ``0``, ``1``, ...: they are attributes of these names, as in PyTorch's state dicts."""

    def __init__(self, modules: Iterable[Module] = ()):
        self._keys: list[str] = []
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Any:
        """Add a module at the end."""
        self._keys.append(str(len(self._keys)))
        setattr(self, self._keys[-1], module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add several modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, key) for key in self._keys)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)._of(list(self)[index])
        return getattr(self, self._keys[index])

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._keys[index], module)

    @classmethod
    def _of(cls, modules: list[Module]) -> Any:
        return cls(modules)


class Sequential(_Indexed):
    """Modules applied one after another. Takes modules, or one dict from names to modules.

    >>> import twofold as tw
    >>> net = tw.nn.Sequential(tw.nn.Linear(4, 8), tw.nn.ReLU(), tw.nn.Linear(8, 2))
    >>> net(tw.ones((3, 4))).shape
    (3, 2)
    """

    def __init__(self, *modules: Module | Mapping[str, Module]):
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            super().__init__()
            for name, module in modules[0].items():
                self._keys.append(name)
                setattr(self, name, module)
        else:
            super().__init__(modules)  # type: ignore[arg-type]

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x

    @classmethod
    def _of(cls, modules: list[Module]) -> Any:
        return cls(*modules)


class ModuleList(_Indexed):
    """A list of modules for a ``forward`` written elsewhere. (A plain list as an attribute serves as well.)"""


class ModuleDict(Module):
    """Modules by name, for a ``forward`` written elsewhere. (A plain dict as an attribute serves as well.)"""

    def __init__(self, modules: Mapping[str, Module] | None = None):
        self._keys: list[str] = []
        for name, module in (modules or {}).items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        if name not in self._keys:
            self._keys.append(name)
        setattr(self, name, module)

    def __getitem__(self, name: str) -> Any:
        if name not in self._keys:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def keys(self) -> list[str]:
        """The names, in order."""
        return list(self._keys)

    def values(self) -> list[Any]:
        """The modules, in order."""
        return [self[name] for name in self._keys]

    def items(self) -> list[tuple[str, Any]]:
        """Names and modules, in order."""
        return [(name, self[name]) for name in self._keys]
