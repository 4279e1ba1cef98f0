"""What a backend is: it holds buffers on devices, runs single ops, and turns a graph into a callable program.

A device is named ``kind`` or ``kind:index`` (``cpu``, ``gpu:1``, ``xla:cpu``, ``reference``); a group of devices that
run one program together is named like a device (``gpu:0,1``, ``gpu:all``). Which backend serves a kind is one row of
``KINDS``; the backend's module is loaded when its first device is asked for.
"""

from __future__ import annotations

import functools
import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twofold.base import flags
from twofold.base.errors import DeviceError
from twofold.ir import Graph, Op, Spec

# device kind -> module under twofold.backends with a `BACKEND`
KINDS = {
    "cpu": "cpu",
    "reference": "reference",
    "gpu": "xla",
    "cuda": "xla",
    "tpu": "xla",
    "xla": "xla",
}
_ALIASES = {"cuda": "gpu"}


class _Placement(threading.local):
    """The devices of the ``with`` blocks this thread is in."""

    def __init__(self) -> None:
        self.stack: list[Device] = []


_placement = _Placement()


@dataclass(frozen=True, slots=True)
class Device:
    """One place where arrays live. Equal by name; compares equal to its name as a string too.

    As a context manager it is where new arrays go: ``with tw.device("gpu:0"):``.
    """

    name: str

    @property
    def kind(self) -> str:
        return self.name.split(":")[0]

    @property
    def backend(self) -> Backend:
        return _backend_of(self.name)

    def __enter__(self) -> Device:
        _placement.stack.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _placement.stack.pop()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"device({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return self.name == (other if isinstance(other, str) else getattr(other, "name", None))

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Memory:
    """Bytes that a program works with: its arguments; state (parameters, statistics, momenta); results that are no state;
    temporaries; what is kept between calls (packed weights); and temporaries while that is made.
    """

    arguments: int
    state: int
    results: int
    temporaries: int
    kept: int
    preparing: int

    @property
    def peak(self) -> int:
        """The most that is needed at once, in bytes."""
        return self.arguments + self.state + self.results + self.kept + max(self.temporaries, self.preparing)

    def __str__(self) -> str:
        parts = {**asdict(self), "peak": self.peak}
        return ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in parts.items())


class Layout(ABC):
    """An order of its own in which a program takes a state and leaves it, between calls that follow each other. Layouts that
    compare equal are the same order. What these return shares no memory with what they are given."""

    @abstractmethod
    def pack(self, buffer: Any) -> Any:
        """The numbers of an ordinary buffer, in this order."""

    @abstractmethod
    def unpack(self, buffer: Any) -> Any:
        """An ordinary buffer of numbers in this order."""

    @abstractmethod
    def copy(self, buffer: Any) -> Any:
        """An equal buffer of its own, in this order."""


class Program(ABC):
    """A compiled graph. Buffers in (the graph's ``all_inputs``), buffers out (its ``all_outputs``).

    ``donated`` are the positions of the inputs that the program overwrites and returns as outputs (state updated in
    place); the caller sees to it that nobody else looks at those buffers.

    A program may keep what it works out from state that it only reads (packed weights, say). ``version`` tells it when
    to do that again: calls with an equal number pass the same numbers for that state; None promises nothing.

    ``layouts`` are the orders in which it takes the inputs at some positions, written state, and leaves their new values.
    """

    donated: Sequence[int] = ()
    layouts: Mapping[int, Layout] = {}

    def place(self, index: int, array: np.ndarray) -> Any:
        """A buffer for input ``index`` from numbers on the host; None: the device's ``put`` will do."""
        return None

    @abstractmethod
    def __call__(self, buffers: Sequence[Any], version: int | None = None) -> list[Any]: ...

    def again(self, arguments: Sequence[Any], version: int) -> list[Any] | None:
        """The graph's outputs for these inputs and the state of the last call, which is only read; None if that call had
        another version, or if the program cannot tell. The caller holds the buffers of that state."""
        return None

    @property
    def memory(self) -> Memory | None:
        """What a call takes, known before the first; None where the backend cannot tell."""
        return None

    def report(self) -> str:
        """What was done to the graph and why, for a reader."""
        return "no report"


class Backend(ABC):
    """A family of devices and how programs run on them."""

    name: str

    @abstractmethod
    def devices(self) -> list[Device]:
        """The devices present."""

    def find(self, name: str) -> Device | None:
        """The device of a full name, if it is here. An index may be left out (the first); ``kind:all`` is the one."""
        names = (name.removesuffix(":all"), f"{name}:0")
        return next((d for d in self.devices() if d.name in names), None)

    def advice(self, name: str) -> str:
        """What to tell somebody who asked for a device that is not here."""
        return ""

    def everything_like(self, device: Device) -> Device:
        """All devices of the kind of ``device``, as a group."""
        return device

    def count(self, device: Device) -> int:
        """How many devices a name stands for: 1, but for a group."""
        return 1

    def group(self, devices: Sequence[Device], *, shard_state: bool = False) -> Device:
        """Several devices as one, on which a program runs data parallel."""
        names = ", ".join(map(str, devices))
        raise DeviceError(
            f"the {self.name} backend runs a program on one device, got {names}; groups need 'gpu', 'tpu' or 'xla:cpu'"
        )

    @abstractmethod
    def put(self, array: np.ndarray, device: Device) -> Any:
        """A buffer on ``device`` holding ``array`` (may alias it on a CPU)."""

    @abstractmethod
    def get(self, buffer: Any) -> np.ndarray:
        """The buffer's content as a NumPy array (may alias it on a CPU)."""

    def copy(self, buffer: Any) -> Any:
        """An equal buffer of its own."""
        return buffer.copy()

    def runs_graphs(self, op: Op, buffer: Any) -> bool:
        """Whether ``run_graph`` might take the gradients of this op, given one of an output's size; asked often, so quick."""
        return False

    def runs_composites(self, buffers: Sequence[Any]) -> bool:
        """Whether ``run_graph`` might take a function of several ops on these arrays; asked often, so quick."""
        return False

    def run_graph(self, graph: Graph, buffers: Sequence[Any], device: Device) -> Sequence[Any] | None:
        """The results of a small graph, run as one program (remembered by the graph); None if it had better run op by op."""
        return None

    @abstractmethod
    def run(
        self, op: Op, buffers: Sequence[Any], attrs: dict[str, Any], specs: Sequence[Spec], device: Device
    ) -> Sequence[Any]:
        """One op, eagerly; ``specs`` are those of the results."""

    @abstractmethod
    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        """A program for a graph whose shapes are all concrete. It may overwrite the inputs at the ``donated`` positions;
        those it does overwrite are its ``Program.donated``."""

    def remembered(self, graph: Graph, passes: Callable[[Graph], Graph], device: Device) -> tuple[Program, Graph]:
        """A program for a recorded graph, which may overwrite the state that is written, and keep it in ``layouts``: of
        ``passes(graph)``, unless one made before can be had without them. Also the graph that tells which state it writes."""
        graph = passes(graph)
        return self.compile(graph, device, donated=written_state(graph)), graph


def written_state(graph: Graph) -> list[int]:
    """The positions, among all inputs, of the state that a graph gives new values."""
    return [len(graph.inputs) + i for i, state in enumerate(graph.state) if state.written]


@functools.cache
def _backend_of(name: str) -> Backend:
    return _backend(KINDS[name.split(":")[0]])


@functools.cache
def _backend(module: str) -> Backend:
    return importlib.import_module(f"twofold.backends.{module}").BACKEND


@functools.cache
def device(name: str | Device) -> Device:
    """The device of a name (``"gpu"`` is ``"gpu:0"``), checked to be there. DeviceError says what was found."""
    if isinstance(name, Device):
        return name
    kind = name.split(":")[0]
    if kind not in KINDS:
        kinds = ", ".join(repr("xla:cpu" if k == "xla" else k) for k in KINDS)
        raise DeviceError(f"device {name!r} is unknown; expected one of {kinds} or kind:index")
    full_name = ":".join([_ALIASES.get(kind, kind), *name.split(":")[1:]])
    backend = Device(full_name).backend
    found = backend.find(full_name)
    if found is not None:
        return found
    names = ", ".join(d.name for d in backend.devices()) or "none"
    advice = backend.advice(full_name)
    hint = f"; {advice}" if advice else ""
    raise DeviceError(f"device {name!r} is not here; the {backend.name} backend found: {names}{hint}")


def device_group(devices: str | Device | Sequence[str | Device], *, shard_state: bool = False) -> Device:
    """One device, or a group: a name, a list of them, or ``"all"`` (every device of the default device's kind).

    ``shard_state`` splits the state (parameters, optimiser moments) over a group instead of repeating it.
    """
    if devices == "all":
        found = [default_device().backend.everything_like(default_device())]
    else:
        found = [device(d) for d in ([devices] if isinstance(devices, (str, Device)) else devices)]
    if not found:
        raise DeviceError("devices is empty; give at least one, or 'all'")
    if len(found) == 1 and not shard_state:
        return found[0]
    return found[0].backend.group(found, shard_state=shard_state)


def chosen_device() -> Device | None:
    """The device of the innermost ``with tw.device(...)``; None outside of such blocks."""
    return _placement.stack[-1] if _placement.stack else None


def default_device() -> Device:
    """Where new arrays go: the innermost ``with tw.device(...)``, else TWOFOLD_DEVICE, else the CPU."""
    return chosen_device() or device(flags.get("TWOFOLD_DEVICE"))
