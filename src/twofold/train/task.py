"""From names to a training: a network of the zoo, a data set, a recipe -> model, loaders, optimizer, schedule.

What decides the numbers is kept as plain ``Settings`` in every checkpoint, so that ``evaluate`` and ``predict`` rebuild
the same network and the same preparation of images from the checkpoint alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from twofold import data, nn, optim, zoo
from twofold.base.errors import ArgumentError, DataError, FormatError
from twofold.data import transforms as T
from twofold.zoo.inits import initialise
from twofold.zoo.recipes import Recipe, Schedule, Step
from twofold.zoo.registry import CIFAR10


@dataclass
class Settings:
    """What was asked for. ``input_shape`` is that of the images the network gets; ``classes`` are the labels' names."""

    network: str = "lenet5"
    data: str = "digits"
    recipe: str = "quick"
    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.05
    seed: int = 0
    input_shape: tuple[int, int, int] = (1, 28, 28)
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    options: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any], path: Any = "checkpoint") -> Settings:
        """Settings out of a file; FormatError unless every field has its kind."""
        known = {f.name: f for f in fields(cls)}
        default = cls()
        out: dict[str, Any] = {}
        for name, value in record.items():
            if name not in known:
                raise FormatError(f"{path}: its settings have an unknown field {name!r}")
            wanted = type(getattr(default, name))
            out[name] = tuple(value) if wanted is tuple and isinstance(value, list) else value
            if not isinstance(out[name], wanted) and not (wanted is float and isinstance(value, int)):
                raise FormatError(f"{path}: its setting {name!r} is {value!r}; expected {wanted.__name__}")
        return cls(**out)


def settings_for(network: str, name: str, dataset: Any, recipe: str = "quick", **given: Any) -> Settings:
    """The settings of a training: the recipe's numbers unless ``given`` says otherwise (None means not given)."""
    entry, about, chosen = zoo.info(network), data.info(name), recipe_of(network, recipe)
    channels, own = entry.input_shape[0], entry.input_shape[1:]
    size = _size_for(entry, chosen, _usual_size(dataset, own) if about.shape is None else about.shape[1:])
    mean, std = (tuple(np.resize(v, channels).tolist()) if len(v) in (1, channels) else (float(np.mean(v)),) * channels
                 for v in (about.mean, about.std))  # fmt: skip
    values = {k: v for k, v in given.items() if v is not None}
    base = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "lr": chosen.lr}
    return Settings(
        network=entry.name, data=name, recipe=recipe, input_shape=(channels, *size), classes=tuple(dataset.classes),
        mean=mean, std=std, **{**base, **values},
    )  # fmt: skip


LOOKED_AT = 15  # images of a folder, to find out how large they are


def _usual_size(dataset: Any, most: tuple[int, int]) -> tuple[int, int]:
    """The size to which images of many sizes are brought: ``most``, or where they are smaller, the median of their
    shorter sides."""
    some = range(0, len(dataset), -(-len(dataset) // LOOKED_AT))
    side = sorted(min(np.shape(dataset[i][0])[1:]) for i in some)[len(some) // 2]
    return min(side, most[0]), min(side, most[1])


def _size_for(entry: zoo.Entry, recipe: Recipe, size: tuple[int, int]) -> tuple[int, int]:
    """The height and width of the images that the network gets, where those of a data set are of ``size``.

    It is the data set's own where the network takes it, else the network's, or, for a network that has a form for small
    images, the data set's own and at least CIFAR's. A procedure that cuts images to a size was published for the network's.
    """
    own = entry.input_shape[1:]
    if _cuts_images(recipe) or entry.name.startswith("lenet5"):
        return own
    if min(size) >= entry.domain.smallest:
        return size
    _, height, width = CIFAR10.input_shape
    return own if entry.domain.smallest_adapted is None else (max(size[0], height), max(size[1], width))


def recipe_of(network: str, name: str) -> Recipe:
    """A recipe of a network; ArgumentError lists those it has."""
    recipes = zoo.info(network).recipes
    if name not in recipes:
        raise ArgumentError(f"{network} has no recipe {name!r}; expected one of {', '.join(recipes) or '(none)'}")
    return recipes[name]


def build_model(settings: Settings) -> nn.Module:
    """The network for these settings, its weights drawn once, as its recipe says."""
    entry = zoo.info(settings.network)
    fitting = entry.options_for(settings.input_shape)
    with nn.init.skipped():
        model = entry(len(settings.classes), **{**fitting, **settings.options})
    return initialise(model, recipe_of(settings.network, settings.recipe).init)


# ---- images ----------------------------------------------------------------------------------------------------------
AT_ONCE = 2**30  # bytes of images that are brought to the network's size before training; more are, batch by batch


def prepare(dataset: Any, settings: Settings) -> Any:
    """The data set with images of the network's channels and, where they then fit ``AT_ONCE``, of its size.

    Images that are read from files one by one get their size later. DataError unless the classes are the settings'.
    """
    _check_classes(dataset, settings)
    if isinstance(dataset, data.ImageFolder):
        return dataset.in_mode("L" if settings.input_shape[0] == 1 else "RGB")
    if not isinstance(dataset, data.ArrayDataset):
        return dataset
    images, recipe = dataset.images, recipe_of(settings.network, settings.recipe)
    if images.shape[1] != settings.input_shape[0]:
        images = _recoloured(images, settings.input_shape[0])
    other = images.shape[1:] != settings.input_shape and not _cuts_images(recipe)
    if other and 4 * len(images) * math.prod(settings.input_shape) <= AT_ONCE:
        images = T.Resize(settings.input_shape[1:])(T.ToFloat()(images)).astype(np.float32)
    return data.ArrayDataset(images, dataset.labels, dataset.classes, source=dataset.source)


def _check_classes(dataset: Any, settings: Settings) -> None:
    """Labels are numbers: a class more or less, and every one after it would be another."""
    found = tuple(dataset.classes)
    if found != settings.classes:
        place = getattr(dataset, "root", "") or getattr(dataset, "source", "")
        place = f"the data in {place}" if place else "this data"
        lacking, more = set(settings.classes) - set(found), set(found) - set(settings.classes)
        raise DataError(
            f"{settings.network} is trained on {len(settings.classes)} classes, and {place} has {len(found)}; "
            f"lacking: {_some(lacking)}; not in training: {_some(more)}; expected the same classes in the same order; "
            "give each split the same class folders, or train on the classes of this data"
        )


def _some(names: set[str], most: int = 5) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown + ["…"] * (len(names) > most)) or "none"


def _cuts_images(recipe: Recipe) -> bool:
    """Whether training or evaluation cuts images to the network's size, so that they are to come as they are."""
    return _cuts(recipe.augmentation + recipe.evaluation)


def _cuts(steps: Sequence[Step]) -> bool:
    """Whether a recipe's transforms bring images of any size to the network's."""
    return any(name in ("Resize", "RandomResizedCrop", "RandomScaledCrop") for name, _ in steps)


def _recoloured(images: np.ndarray, channels: int) -> np.ndarray:
    if images.shape[-3] == 1:
        return np.repeat(images, channels, axis=-3)
    if channels == 1:  # ITU-R BT.601 luma
        grey = np.tensordot(np.array([0.299, 0.587, 0.114]), np.moveaxis(images, -3, 0), 1)[..., None, :, :]
        return np.asarray(np.rint(grey) if images.dtype.kind in "iu" else grey).astype(images.dtype)
    raise ArgumentError(f"images have {images.shape[-3]} channels; the network takes {channels}")


def transform_of(steps: Sequence[Step], settings: Settings) -> T.Transform:
    """The transform that a recipe's steps mean for these settings."""
    places = {"mean": settings.mean, "std": settings.std, "input": settings.input_shape[1:]}
    made = []
    for name, options in steps:
        if name == "PCALighting" and settings.input_shape[0] != 3:
            continue
        made.append(
            getattr(T, name)(**{k: places[v] if isinstance(v, str) and v in places else v for k, v in options.items()})
        )
    return T.Compose(made)


def _sized(steps: Sequence[Step], settings: Settings) -> T.Transform:
    """The same for images of any size."""
    resize = [] if _cuts(steps) else [T.Resize(settings.input_shape[1:])]
    return T.Compose([*resize, transform_of(steps, settings)])


def evaluation_transform(settings: Settings) -> T.Transform:
    """What images go through outside training, sizes included."""
    return _sized(recipe_of(settings.network, settings.recipe).evaluation, settings)


def loader(
    dataset: Any, settings: Settings, *, training: bool, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> data.DataLoader:
    """Batches of a prepared data set; with ``shard=(rank, processes)``, a process's share of each batch.

    In training what is left at the end of an epoch and makes no whole batch waits for another epoch: batch norm of a few
    images, in the worst case of one, is of no use, and would take another program.
    """
    if settings.batch_size % shard[1]:
        raise ArgumentError(
            f"a batch of {settings.batch_size} images does not divide over {shard[1]} processes; give a --batch-size that does"
        )
    recipe = recipe_of(settings.network, settings.recipe)
    steps = recipe.augmentation if training else recipe.evaluation
    fits = isinstance(dataset, data.ArrayDataset) and dataset.images.shape[1:] == settings.input_shape
    chain = transform_of(steps, settings) if fits else _sized(steps, settings)
    whole = training and len(dataset) >= settings.batch_size
    return data.DataLoader(
        dataset, settings.batch_size // shard[1], shuffle=training, seed=settings.seed, drop_last=whole, transform=chain,
        num_workers=workers, shard=shard,
    )  # fmt: skip


def read_input(path: Any, settings: Settings, *, invert: bool = False) -> np.ndarray:
    """An image file as one prepared input ``(1, C, H, W)``; ``invert`` for dark ink on light paper."""
    channels = settings.input_shape[0]
    image = T.ToFloat()(data.read_image(path, mode="L" if channels == 1 else "RGB"))
    image = 1.0 - image if invert else image
    return np.ascontiguousarray(evaluation_transform(settings)(image[None]), np.float32)


# ---- optimizer and schedule ------------------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, settings: Settings) -> optim.Optimizer:
    """The recipe's optimizer, with the settings' learning rate."""
    recipe = recipe_of(settings.network, settings.recipe)
    groups: list[Any] = [{"params": list(model.parameters()), "weight_decay": recipe.weight_decay}]
    if recipe.decay == "weights":
        weights = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [g for g in groups if g["params"]]
    match recipe.optimizer:
        case "sgd":
            return optim.SGD(groups, settings.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, **recipe.options)
        case "rmsprop":
            return optim.RMSprop(groups, settings.lr, momentum=recipe.momentum, **recipe.options)
        case "adam":
            return optim.Adam(groups, settings.lr, **recipe.options)
    raise ArgumentError(f"recipe of {settings.network}: optimizer {recipe.optimizer!r} is unknown")


def build_schedule(optimizer: optim.Optimizer, settings: Settings, steps: int) -> Any:
    """The recipe's schedule; it goes by training steps (``steps`` an epoch), except "plateau", which goes by epochs."""
    schedule = recipe_of(settings.network, settings.recipe).schedule
    if schedule.kind == "plateau":
        least = 0.0 if schedule.drops is None else settings.lr * schedule.gamma**schedule.drops
        return optim.ReduceLROnPlateau(optimizer, factor=schedule.gamma, patience=schedule.patience, min_lr=least)
    factor = rate_factor(schedule, settings.lr, settings.epochs)
    return optim.LambdaLR(optimizer, lambda t: factor(t / max(steps, 1)))


def rate_factor(schedule: Schedule, lr: float, epochs: int) -> Callable[[float], float]:
    """What the learning rate is multiplied by, as a function of the epochs gone (a fraction within an epoch)."""

    def factor(epoch: float) -> float:
        if epoch < schedule.warmup:
            return min(schedule.warmup_lr, lr) / lr if lr else 0.0
        match schedule.kind:
            case "multistep":
                return schedule.gamma ** sum(epoch >= m for m in schedule.milestones)
            case "step":
                return schedule.gamma ** int(epoch / schedule.every)
            case "poly":
                return max(0.0, 1.0 - epoch / epochs) ** schedule.power
            case "table":
                now = [rate for start, rate in schedule.rates if epoch >= start]
                return (now[-1] if now else lr) / schedule.rates[0][1]
        return 1.0

    return factor
