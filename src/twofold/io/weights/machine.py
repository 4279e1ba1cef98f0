"""A pickle interpreter that can only build plain data.

A pickle is a program for a stack machine. This one knows a short list of instructions (``HANDLERS``), resolves names in
a fixed table (``names``), calls only our own checked functions, and never imports. It works in one loop without
recursion; the objects it makes are counted against the length of the input, so a small file stays small in memory.
The instructions' encoding is read by the standard library's ``pickletools`` (which decodes, and executes nothing).
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

from twofold.base.errors import FormatError, UnsafeFileError
from twofold.io.weights import names
from twofold.io.weights.refs import Name, StorageRef

MAX_PICKLE = 32 << 20  # bytes; a description of 100,000 tensors takes 11 MB
MAX_MARKS = 128  # open "(" at once, hence the nesting of tuples and batches being built
SPARE_OBJECTS = 16_384  # on top of one object for each 4 bytes of pickle (PyTorch: each 6)

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
PYTHON2_STRINGS = ("BINSTRING", "SHORT_BINSTRING")
_INSTRUCTIONS = {op.code: op for op in pickletools.opcodes}
_HOLE = object()  # a memo slot never written


class Machine:
    """The state of one run: the value stack, the marks, the memo, and the storages seen (``storages``, by key)."""

    def __init__(self, length: int):
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.storages: dict[str, StorageRef] = {}
        self._budget = SPARE_OBJECTS + length // 4

    def spend(self, count: int) -> None:
        """Count ``count`` objects made; UnsafeFileError when the pickle makes more than its length allows."""
        self._budget -= count
        if self._budget < 0:
            raise UnsafeFileError("the pickle builds far more objects than a weight file of its length needs")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def make(self, value: Any) -> None:
        """Push a new object that takes memory of its own."""
        self.spend(1)
        self.stack.append(value)

    def top(self, kind: type, what: str) -> Any:
        """The value on top, which must be of ``kind``."""
        if not isinstance(self.stack[-1], kind):
            raise FormatError(f"{what} is applied to a {type(self.stack[-1]).__name__}; expected {kind.__name__}")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.marks) == MAX_MARKS:
            raise UnsafeFileError(f"the pickle nests deeper than {MAX_MARKS} levels")
        self.marks.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """The values above the last mark, taken off together with the mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def take(self, count: int) -> tuple:
        """The ``count`` topmost values, taken off."""
        if len(self.stack) < count:
            raise IndexError
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        return taken

    def put(self, index: int) -> None:
        """Memoize the top. Picklers number the memo in order (from 0, or from 1: Python 2), and so must the file."""
        while len(self.memo) < index <= len(self.memo) + 1:
            self.memo.append(_HOLE)
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        elif index < len(self.memo):
            self.memo[index] = self.stack[-1]
        else:
            raise FormatError(f"memo entry {index} is written after {len(self.memo)}; picklers number them in order")

    def get(self, index: int) -> None:
        if index >= len(self.memo) or self.memo[index] is _HOLE:
            raise FormatError(f"memo entry {index} is read but was never written")
        self.stack.append(self.memo[index])

    def fill(self, flat: list[Any] | tuple) -> None:
        """Store key, value, key, value, ... in the dict on top."""
        target = self.top(dict, "SETITEMS")
        if len(flat) % 2:
            raise FormatError("a dict is filled with a key that has no value")
        for key, value in zip(flat[::2], flat[1::2]):
            if type(key) not in (str, int, float, bool, type(None)):
                raise FormatError(f"a dict key is a {type(key).__name__}; expected a string or a number")
            target[key] = value

    def extend(self, values: list[Any] | tuple) -> None:
        self.top(list, "APPENDS").extend(values)

    def reduce(self) -> None:
        """Call the function below the top with the tuple on top: only rows of the table that have ``build``."""
        function, arguments = self.take(2)
        if not isinstance(function, Name) or type(arguments) is not tuple:
            raise UnsafeFileError("the pickle calls something that is not one of the tensor-building functions")
        self.spend(1 + sum(len(a) // 8 for a in arguments if isinstance(a, (tuple, list))))  # shapes are copied
        if function is names.ORDERED_DICT:
            return self.ordered_dict(arguments)
        if function.build is None:
            raise UnsafeFileError(f"the pickle calls {function.path}, which weight files only mention")
        try:
            self.push(function.build(*arguments))
        except TypeError:
            raise FormatError(f"{function.path} is called with {len(arguments)} arguments; it takes others") from None

    def ordered_dict(self, arguments: tuple) -> None:
        """``OrderedDict()``, or the form of Python 2: ``OrderedDict([[key, value], ...])``."""
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(pairs, list):
            raise FormatError("OrderedDict is called with something other than one list of pairs")
        self.spend(len(pairs))
        self.push({})
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise FormatError("OrderedDict is built from something that is not a pair")
            self.fill(pair)

    def build(self) -> None:
        """Set attributes: accepted on a dict alone (an OrderedDict's ``_metadata``), and left behind."""
        state = self.take(1)[0]
        self.top(dict, "BUILD")
        if not isinstance(state, dict):
            raise UnsafeFileError(f"the pickle sets an object's state to a {type(state).__name__}")

    def persistent(self) -> None:
        storage = names.persistent(self.take(1)[0])
        known = self.storages.setdefault(storage.key, storage)
        if (known.dtype, known.whole) != (storage.dtype, storage.whole):
            raise FormatError(f"storage {storage.key[:40]!r} is described twice, as {known[:3]} and as {storage[:3]}")
        self.make(storage)

    def collect(self, kind: Callable[[list[Any]], Any]) -> None:
        self.make(kind(self.items()))

    def dictionary(self) -> None:
        flat = self.items()
        self.make({})
        self.fill(flat)


HANDLERS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda m, version: None,
    "FRAME": lambda m, length: None,
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.items(),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.make(m.take(1)),
    "TUPLE2": lambda m, _: m.make(m.take(2)),
    "TUPLE3": lambda m, _: m.make(m.take(3)),
    "TUPLE": lambda m, _: m.collect(tuple),
    "EMPTY_LIST": lambda m, _: m.make([]),
    "LIST": lambda m, _: m.collect(list),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.items()),
    "EMPTY_DICT": lambda m, _: m.make({}),
    "DICT": lambda m, _: m.dictionary(),
    "SETITEM": lambda m, _: m.fill(m.take(2)),
    "SETITEMS": lambda m, _: m.fill(m.items()),
    "BINPUT": lambda m, index: m.put(index),
    "LONG_BINPUT": lambda m, index: m.put(index),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": lambda m, index: m.get(index),
    "LONG_BINGET": lambda m, index: m.get(index),
    "GLOBAL": lambda m, path: m.push(names.lookup(*path.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.push(names.lookup(*m.take(2))),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(),
}
HANDLERS |= {name: lambda m, _, value=value: m.push(value) for name, value in CONSTANTS.items()}  # type: ignore[misc]
HANDLERS |= {name: lambda m, value: m.push(value) for name in LITERALS}
HANDLERS |= {name: lambda m, text: m.make(text) for name in STRINGS}
HANDLERS |= {name: lambda m, text: m.make(text.encode("latin-1").decode("utf-8")) for name in PYTHON2_STRINGS}


def run(data: bytes, start: int = 0) -> tuple[Any, dict[str, StorageRef], int]:
    """Interpret the pickle at ``start``: its value, the storages it names, and the position after it.

    Raises UnsafeFileError for anything outside the lists above, FormatError for anything malformed.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = Machine(len(data) - start)
    while True:
        place = stream.tell()
        try:
            name, argument = _decode(stream)
            if name == "STOP":
                return machine.take(1)[0], machine.storages, stream.tell()
            HANDLERS[name](machine, argument)
        except UnsafeFileError as error:
            raise UnsafeFileError(f"pickle, byte {place}: {error}") from None
        except IndexError:
            raise FormatError(f"pickle, byte {place}: the stack is empty; the file is corrupt") from None
        except (ValueError, OverflowError) as error:  # FormatError, and what decoding raises
            raise FormatError(f"pickle, byte {place}: {error}") from None


def _decode(stream: io.BytesIO) -> tuple[str, Any]:
    """The next instruction's name and argument; refused by name before its argument is decoded."""
    code = stream.read(1)
    if not code:
        raise FormatError("the pickle ends before its STOP; the file is truncated")
    instruction = _INSTRUCTIONS.get(code.decode("latin-1"))
    if instruction is None:
        raise FormatError(f"{code!r} is no pickle instruction; the file is corrupt")
    name, argument = instruction.name, instruction.arg
    if name not in HANDLERS and name != "STOP":
        detail = ""
        if name == "INST":
            detail = f" (of {pickletools.read_stringnl_noescape_pair(stream)[:200]})"
        raise UnsafeFileError(
            f"instruction {name}{detail} is refused: it makes Python objects that no weight file needs; "
            "in PyTorch save only the weights: torch.save(model.state_dict(), path)"
        )
    return name, argument.reader(stream) if argument is not None else None
