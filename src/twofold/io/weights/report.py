"""What fits between a weight file and a model, entry by entry, and how to print it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from twofold.base import dtypes
from twofold.io.weights.renames import MAY_BE_ABSENT, candidates

SHOWN = 12  # rows printed of each group; the report itself holds them all


Wanted = tuple[Sequence[int], Any]  # shape, dtype


class Row(NamedTuple):
    """One entry: its name in the model and in the file (either may be ""), and both sides as (shape, dtype) text."""

    name: str
    source: str
    expected: str
    found: str


class MatchReport:
    """The outcome of ``match``. Each group is a list of ``Row``; ``str(report)`` is a table of all but the matched.

    * ``matched``: same name (after ``renamed``) and shape; those whose dtype is converted are also in ``converted``
    * ``missing``: the model has it, the file has not; ``absent``: the same, where this is normal (batch counters)
    * ``unexpected``: the file has it, the model has not; ``ignored``: the same, where the caller asked for it
    * ``reshaped``: both have it with different shapes (a classifier of another ``num_classes``)
    * ``retyped``: the kinds of dtype differ (integers for floats), which is never converted
    """

    GROUPS = {
        "missing": "in the model, not in the file",
        "unexpected": "in the file, not in the model",
        "reshaped": "shapes differ",
        "retyped": "kinds of dtype differ",
        "absent": "not in the file, which is normal; the model keeps its own",
        "ignored": "left out as asked",
        "converted": "dtype converted",
    }
    PROBLEMS = ("missing", "unexpected", "reshaped", "retyped")

    def __init__(self) -> None:
        self.matched: list[Row] = []
        self.missing: list[Row] = []
        self.unexpected: list[Row] = []
        self.reshaped: list[Row] = []
        self.retyped: list[Row] = []
        self.absent: list[Row] = []
        self.ignored: list[Row] = []
        self.converted: list[Row] = []
        self.renamed: dict[str, int] = {}
        self.notes: list[str] = []

    @property
    def ok(self) -> bool:
        """Nothing missing, unexpected, reshaped or retyped."""
        return not any(getattr(self, group) for group in self.PROBLEMS)

    def add(self, group: str, row: Row) -> None:
        getattr(self, group).append(row)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, g))} {g}" for g in ("matched", *self.GROUPS) if getattr(self, g))
        lines = [f"weights: {counts or 'no entries'}"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  renamed {count} for {why}" for why, count in self.renamed.items()]
        for group, meaning in self.GROUPS.items():
            if getattr(self, group):
                lines += [f"{group} ({meaning}):", *_table(getattr(self, group))]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<MatchReport ok={self.ok}: {str(self).splitlines()[0].removeprefix('weights: ')}>"


def _table(rows: Sequence[Row]) -> Iterable[str]:
    width = max(len(row.name or row.source) for row in rows[:SHOWN])
    for row in rows[:SHOWN]:
        sides = [side for side in (row.expected and f"model {row.expected}", row.found and f"file {row.found}") if side]
        yield f"  {row.name or row.source:<{width}}  {'   '.join(sides)}"
    if len(rows) > SHOWN:
        yield f"  ... and {len(rows) - SHOWN} more"


def match(
    expected: Mapping[str, Wanted], found: Mapping[str, np.ndarray], *, ignore: Sequence[str] = ()
) -> MatchReport:
    """Compare what a model expects, name -> (shape, dtype), with what a file holds.

    Names are matched as they are, then through the table ``renames``. ``ignore`` holds patterns ("aux1.*") of entries
    of either side to leave out. Nothing is loaded; nothing is raised.

    >>> print(match({"fc.weight": ((10, 4), "float32")}, {"fc.weight": np.zeros((1000, 4), np.float32)}))
    weights: 1 reshaped
    reshaped (shapes differ):
      fc.weight  model (10, 4) float32   file (1000, 4) float32
    """
    report = MatchReport()
    sources = _sources(expected, found, report)
    for name, (shape, dtype) in expected.items():
        wanted = f"{tuple(shape)} {dtypes.as_dtype(dtype).name}"
        if name in sources:
            array = found[sources[name]]
            row = Row(name, sources[name], wanted, f"{array.shape} {array.dtype.name}")
            _classify(report, row, (tuple(shape), dtype), array, ignore)
        else:
            group = "absent" if name.rpartition(".")[2] in MAY_BE_ABSENT else "missing"
            report.add("ignored" if _listed(name, ignore) else group, Row(name, "", wanted, ""))
    taken = set(sources.values())
    for name in found:
        if name not in taken:
            row = Row("", name, "", f"{found[name].shape} {found[name].dtype.name}")
            report.add("ignored" if _listed(name, ignore) else "unexpected", row)
    return report


def _sources(expected: Mapping[str, Any], found: Mapping[str, Any], report: MatchReport) -> dict[str, str]:
    """The file's name of each model entry; exact names first, so that a rename never takes an entry's place."""
    sources = {name: name for name in expected if name in found}
    for name in found:
        if name in sources:
            continue
        for candidate, why in candidates(name)[1:]:
            if candidate in expected and candidate not in sources:
                sources[candidate] = name
                for reason in why:
                    report.renamed[reason] = report.renamed.get(reason, 0) + 1
                break
    return sources


def _classify(
    report: MatchReport, row: Row, wanted: tuple[tuple, Any], array: np.ndarray, ignore: Sequence[str]
) -> None:
    target, have = dtypes.as_dtype(wanted[1]), dtypes.as_dtype(array.dtype)
    if _listed(row.name, ignore) or _listed(row.source, ignore):
        report.add("ignored", row)
    elif wanted[0] != array.shape:
        report.add("reshaped", row)
    elif target is not have and (target.is_floating != have.is_floating or "b" in (target.kind, have.kind)):
        report.add("retyped", row)
    else:
        report.add("matched", row)
        if target is not have:
            report.add("converted", row)


def _listed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
