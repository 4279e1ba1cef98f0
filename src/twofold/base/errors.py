"""Every error twofold raises on purpose.

Each message says what came, what was expected, and what to do. The classes also derive from the built-in
exception a reader would expect, so that ``except ValueError`` keeps working.
"""

from __future__ import annotations


class TwofoldError(Exception):
    """Base of all errors raised on purpose by twofold."""


class ShapeError(TwofoldError, ValueError):
    """Shapes or axes do not fit."""


class DtypeError(TwofoldError, TypeError):
    """A dtype is not allowed, or two dtypes do not promote."""


class ArgumentError(TwofoldError, ValueError):
    """An argument has a value that makes no sense here (a batch size of zero, an unknown mode)."""


class DeviceError(TwofoldError, RuntimeError):
    """A device is unknown, absent, or two operands live on different ones."""


class IndexRangeError(TwofoldError, IndexError):
    """An index or a label lies outside its range."""


class GradientError(TwofoldError, RuntimeError):
    """A gradient was asked for where there is none, or the graph was freed."""


class GraphError(TwofoldError, RuntimeError):
    """A graph is malformed, or was used where it cannot be."""


class TraceError(TwofoldError, RuntimeError):
    """A traced program asked for a value that is known only when it runs."""


class NonFiniteError(TwofoldError, ArithmeticError):
    """A loss or an activation became NaN or infinite."""


class FormatError(TwofoldError, ValueError):
    """A file is not what its name or header says: truncated, corrupt, or of another format."""


class UnsafeFileError(FormatError):
    """A file asks for something that is refused: code, a path outside the folder, an absurd size."""


class WeightsError(TwofoldError, ValueError):
    """A weight file is sound but does not fit the model; the message is the whole report."""


class UnsupportedOpError(TwofoldError, NotImplementedError):
    """An operator (of a file or of a backend) has no translation."""


class MissingDependencyError(TwofoldError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class DataError(TwofoldError, RuntimeError):
    """A data set cannot be found, fetched or verified."""


class OutOfMemoryError(TwofoldError, MemoryError):
    """An allocation cannot be met."""


class VerificationError(TwofoldError, AssertionError):
    """Two runs that must agree did not."""
