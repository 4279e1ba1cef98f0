"""The table of networks: what is known of each, and how it is made.

A file of the zoo declares a ``Family`` (a module class, its paper, what its variants share) and one row a variant:

    resnet = Family(ResNet, PAPER, ...)
    resnet50 = resnet("resnet50", params=25_557_032, macs=4_089_184_256, block=Bottleneck, depths=(3, 4, 6, 3))

Each row is an ``Entry``: a record, and a function that makes the network.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twofold import nn
from twofold.base.errors import ArgumentError, WeightsError
from twofold.io.weights import MatchReport, load_weights
from twofold.zoo.inits import initialise
from twofold.zoo.recipes import Recipe

_TABLE: dict[str, Entry] = {}
log = logging.getLogger("twofold")


@dataclass(frozen=True)
class Paper:
    """Where a network was published; ``arxiv`` is the identifier, None for papers that are not there."""

    title: str
    authors: str
    year: int
    venue: str = ""
    arxiv: str | None = None

    @property
    def where(self) -> str:
        """Where it can be read."""
        return f"arXiv {self.arxiv}" if self.arxiv else self.venue

    @property
    def short(self) -> str:
        """Who, and where: ``He et al., arXiv 1512.03385``."""
        first, *others = self.authors.split(", ")
        return f"{self.authors if len(others) < 2 else f'{first} et al.'}, {self.where}"

    def __str__(self) -> str:
        return f"{self.authors}, {self.title!r}, {self.where}, {self.year}"


@dataclass(frozen=True)
class Error:
    """A published error in percent; ``on`` says of which data, and how it was measured."""

    top1: float | None = None
    top5: float | None = None
    on: str = "ImageNet val"

    def __str__(self) -> str:
        return f"{'/'.join('-' if e is None else f'{e:g}' for e in (self.top1, self.top5))} % ({self.on})"


@dataclass(frozen=True)
class Domain:
    """What a network was made for: the input ``(C, H, W)``, the classes, and the smallest images it takes.

    ``smallest`` is the least height and width for the network as published, ``smallest_adapted`` that for
    ``small_input=True`` (None: the network has no such option).
    """

    input_shape: tuple[int, int, int]
    classes: int
    smallest: int
    smallest_adapted: int | None = None


IMAGENET = Domain((3, 224, 224), 1000, 32, 8)
SMALL = 64  # below this side, networks made for 224 lose all resolution before their last stage
CIFAR10 = Domain((3, 32, 32), 10, 4)
MNIST = Domain((1, 28, 28), 10, 1)


@dataclass(frozen=True, eq=False)
class Entry:
    """One network: a record of what was published, and, called, the network itself.

    ``params`` counts trainable numbers at the published number of classes, ``macs`` the multiply-adds of
    convolutions and matrix products for one image of ``domain.input_shape``, in evaluation mode. ``about`` says
    what the variant changes: in words, or by its ``fixed`` arguments. ``recipes`` has "paper" and "quick".
    ``optional`` are patterns of entries that a published file may have or lack (auxiliary heads), ``published`` the
    options that a published file needs, by the name under which it was published. ``init`` is a scheme of ``zoo.inits``.
    ``fixed`` are the arguments that make the variant, ``defaults`` options that users may still set otherwise.

    >>> from twofold import zoo
    >>> zoo.info("resnet18").params
    11689512
    """

    name: str
    build: Callable[..., nn.Module]
    paper: Paper
    params: int
    macs: int
    domain: Domain
    error: Error | None = None
    about: str = ""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    init: str = "default"
    optional: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def year(self) -> int:
        return self.paper.year

    @property
    def arxiv(self) -> str | None:
        return self.paper.arxiv

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.domain.input_shape

    @property
    def classes(self) -> int:
        return self.domain.classes

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options of the network, with their defaults; ``num_classes`` aside."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in {"num_classes", *self.fixed}} | dict(
            self.defaults
        )

    def options_for(self, input_shape: tuple[int, int, int]) -> dict[str, Any]:
        """The options with which this network takes images ``(C, H, W)``; ArgumentError where none do."""
        channels, height, width = input_shape
        options: dict[str, Any] = {} if channels == self.input_shape[0] else {"in_channels": channels}
        side, adapted = min(height, width), self.domain.smallest_adapted
        if adapted is not None and adapted <= side < max(SMALL, self.domain.smallest):
            options["small_input"] = True
        elif side < self.domain.smallest:
            least = self.domain.smallest if adapted is None else adapted
            raise ArgumentError(
                f"{self.name}: images are {height}x{width}; expected at least {least}x{least}; enlarge them"
            )
        return options

    def __call__(
        self, num_classes: int | None = None, *, weights: str | Path | None = None, **options: Any
    ) -> nn.Module:
        """The network with fresh parameters, or with those of a file; see ``create``."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            given, known = ", ".join(map(repr, unknown)), ", ".join(self.options)
            raise ArgumentError(f"{self.name}: unknown option {given}; expected one of {known}")
        if num_classes is not None and num_classes < 1:
            raise ArgumentError(f"{self.name}: num_classes={num_classes}; expected at least 1")
        if weights is not None:
            options = {**self._needed_by(weights, options), **options}
        options = {**self.defaults, **self.fixed, **options}
        with nn.init.skipped():
            model = self.build(num_classes=self.classes if num_classes is None else num_classes, **options)
        initialise(model, self.init)
        if weights is not None:
            self._load(model, weights, num_classes)
        return model

    def _needed_by(self, path: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a published file needs, which nothing in it tells; logged, since they change the network."""
        name = next((name for name in self.published if Path(path).name.startswith(name)), "")
        options = {k: v for k, v in self.published.get(name, {}).items() if k not in given}
        for option, value in options.items():
            log.warning("%s was published for %s with %s=%r, which is set", name, self.name, option, value)
        return options

    def _load(self, model: nn.Module, path: str | Path, num_classes: int | None) -> MatchReport:
        """Load a file. Where the user has chosen another number of classes, the classifier keeps its fresh values."""
        ignore = [p for p in self.optional if not any(name.startswith(p.rstrip("*")) for name in model.state_dict())]
        before = dict(model.state_dict())
        report = load_weights(model, path, reshaped="error" if num_classes is None else "keep", ignore=ignore)
        if report.ignored:
            count, what = len(report.ignored), ", ".join(ignore)
            log.warning("%s: %s has no place for %s of its entries: %s", path, self.name, count, what)
        foreign = [row.name for row in report.reshaped if before[row.name].shape[:1] != (num_classes,)]
        if foreign:
            model.load_state_dict(before)
            raise WeightsError(
                f"{path} does not fit {self.name}: {', '.join(foreign[:5])} and perhaps others have another shape "
                "than the "
                f"file's, which num_classes={num_classes} does not explain: this is another network's file\n{report}"
            )
        return report

    def __repr__(self) -> str:
        return f"<zoo entry {self.name}: {self.params:,} parameters, {self.paper.year}>"


@dataclass(frozen=True)
class Family:
    """What the variants of one file share; called with a row, it registers an ``Entry``."""

    build: Callable[..., nn.Module]
    paper: Paper
    domain: Domain
    recipes: Mapping[str, Recipe]
    init: str = "default"
    optional: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(
        self, name: str, *, params: int, macs: int, error: Error | None = None, about: str = "",
        recipes: Mapping[str, Recipe] | None = None, defaults: Mapping[str, Any] | None = None, **fixed: Any,
    ) -> Entry:  # fmt: skip
        if name in _TABLE:
            raise ArgumentError(f"zoo: the name {name!r} is registered twice")
        chosen = {**self.recipes, **(recipes or {})}
        chosen = {k: r.but(init=self.init) if r.init == "default" else r for k, r in chosen.items()}
        about = about or ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in fixed.items())
        entry = Entry(
            name, self.build, self.paper, params, macs, self.domain, error, about, chosen,
            self.init, self.optional, self.published, defaults or {}, fixed,
        )  # fmt: skip
        object.__setattr__(entry, "__doc__", f"{name} ({entry.about}): {self.paper}. See ``zoo.create``.")
        _TABLE[name] = entry
        return entry

    def but(self, **changes: Any) -> Family:
        """The same family with some fields changed."""
        return replace(self, **changes)


def names() -> list[str]:
    """The names that ``create`` takes, in the order of publication.

    >>> from twofold import zoo
    >>> zoo.names()[0]
    'lenet5_1998'
    """
    return sorted(_TABLE, key=lambda name: (_TABLE[name].year, list(_TABLE).index(name)))


def info(name: str) -> Entry:
    """What is known of a network. ArgumentError for an unknown name, with names like it."""
    import difflib

    entry = _TABLE.get(name) or _TABLE.get(name.lower().replace("-", "_"))
    if entry is None:
        near = difflib.get_close_matches(name, _TABLE, n=5, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "tw.zoo.names() lists them"
        raise ArgumentError(f"the zoo has no network {name!r}; {hint}")
    return entry


def create(name: str, num_classes: int | None = None, weights: str | Path | None = None, **options: Any) -> nn.Module:
    """The network of that name, with fresh parameters, or with those of a ``.safetensors`` or ``.pth`` file.

    ``num_classes``: the published number by default. If it is given and differs from the file's, the classifier keeps
    its fresh values and everything else is loaded; the report of what was loaded is logged. ``options`` are the
    network's own (``info(name).options``): ``in_channels``, ``small_input``, ...

    >>> from twofold import zoo
    >>> zoo.create("lenet5").num_parameters()
    61706
    """
    return info(name)(num_classes, weights=weights, **options)
