"""``twofold train ... --recipe paper`` on CIFAR-10's own file format: what runs is what the paper says.

He et al., arXiv 1512.03385, section 4.2: SGD, momentum 0.9, weight decay 1e-4, batches of 128, the rate 0.1 divided by 10
after 32,000 and 48,000 of 64,000 iterations; 4 pixels of padding, a random crop of 32x32, a random mirror image.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import twofold as tw
from twofold import data, zoo
from twofold.cli.app import run
from twofold.train import read_checkpoint
from twofold.train.task import build_model, build_optimizer, build_schedule, loader, prepare, settings_for

STEPS = 390.625  # of 128 images in an epoch of 50,000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CIFAR-10's six binary files, with 4 images in each: label, then the red, green, and blue planes."""
    path, rng = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin", np.random.default_rng(0)
    path.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows = rng.integers(0, 256, (4, 3073), np.uint8)
        rows[:, 0] = np.arange(4)
        (path / name).write_bytes(rows.tobytes())
    return path.parent


def paper(folder, name="resnet20_cifar"):
    train = data.cifar10(root=folder, download=False)
    return train, settings_for(name, "cifar10", train, "paper")


def test_train_resnet20_by_the_paper(folder, tmp_path, capsys):
    """Two steps of the command, a checkpoint, and an ONNX file that another process runs to the same scores."""
    arguments = ["train", "resnet20_cifar", "--recipe", "paper", "--data", "cifar10", "--data-dir", str(folder)]
    options = ["--epochs", "1", "--batch-size", "10", "--output", str(tmp_path), "--json"]
    assert run([*arguments, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["network"], result["data"], result["checked_images"]) == ("resnet20_cifar", "cifar10", 4)
    arrays, progress = read_checkpoint(tmp_path / "last.safetensors")
    assert progress.step == 2 and progress.settings["recipe"] == "paper" and progress.settings["lr"] == 0.1
    assert progress.settings["input_shape"] == [3, 32, 32] or progress.settings["input_shape"] == (3, 32, 32)
    assert all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f")


def test_the_optimizer_is_the_papers(folder):
    _, settings = paper(folder)
    assert (settings.lr, settings.batch_size, settings.epochs) == (0.1, 128, 164)
    optimizer = build_optimizer(build_model(settings), settings)
    assert isinstance(optimizer, tw.optim.SGD)
    groups = optimizer.param_groups
    assert {g["momentum"] for g in groups} == {0.9} and not any(g["nesterov"] for g in groups)
    assert [(g["weight_decay"], {p.ndim > 1 for p in g["params"]}) for g in groups] == [(1e-4, {True}), (0.0, {False})]


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("resnet20_cifar", {0: 0.1, 300: 0.1, 31_990: 0.1, 32_010: 0.01, 47_990: 0.01, 48_010: 0.001, 63_999: 0.001}),
        # "a slightly too large learning rate to start converging": 0.01 first, about 400 iterations
        ("resnet110_cifar", {0: 0.01, 380: 0.01, 400: 0.1, 31_990: 0.1, 32_010: 0.01, 48_010: 0.001}),
        # Huang et al., section 4: 500 epochs, divided by 10 after 250 and 375
        ("resnet110_stochastic_depth", {0: 0.1, 97_600: 0.1, 97_700: 0.01, 146_400: 0.01, 146_500: 0.001}),
        # the README beside the authors' files: 200 epochs, 30 at a tenth, 30 at a hundredth
        ("nin_cifar10", {0: 0.1, 78_100: 0.1, 78_150: 0.01, 89_800: 0.01, 89_850: 0.001, 101_500: 0.001}),
    ],
)
def test_the_rate_falls_when_the_paper_says(folder, name, rates):
    _, settings = paper(folder, name)
    optimizer = tw.optim.SGD([tw.Variable(np.zeros(1, np.float32), requires_grad=True)], settings.lr)
    schedule = build_schedule(optimizer, settings, STEPS)
    found = {step: settings.lr * schedule.factor(step) for step in rates}
    assert found == pytest.approx(rates)


def test_a_rate_is_divided_as_often_as_the_paper_says():
    """Krizhevsky et al., section 5: "three times prior to termination", when the validation error stopped improving."""
    train = data.ArrayDataset(np.zeros((2, 3, 32, 32), np.uint8), np.arange(2), ("a", "b"))
    settings = settings_for("alexnet_2012", "cifar10", train, "paper")
    optimizer = tw.optim.SGD([tw.Variable(np.zeros(1, np.float32), requires_grad=True)], settings.lr)
    schedule = build_schedule(optimizer, settings, STEPS)
    rates = []
    for _ in range(60):
        schedule.step(1.0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert sorted(set(rates), reverse=True) == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5])


def test_every_recipe_makes_an_optimizer_a_schedule_and_inputs():
    digits, done = data.load("digits", "train"), []
    few = data.ArrayDataset(digits.images[:2], digits.labels[:2], digits.classes)
    for name in zoo.names():
        for key, recipe in zoo.info(name).recipes.items():
            if recipe in done:
                continue
            done.append(recipe)
            settings = settings_for(name, "digits", few, key)
            optimizer = build_optimizer(tw.nn.Linear(2, 2), settings)
            build_schedule(optimizer, settings, 10)
            rate = min(recipe.schedule.warmup_lr, recipe.lr) if recipe.schedule.warmup else recipe.lr
            assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([rate] * len(optimizer.param_groups))
            for training in (True, False):
                batch, _ = next(iter(loader(prepare(few, settings), settings, training=training)))
                assert batch.shape == (min(2, settings.batch_size), *settings.input_shape), (name, key)
                assert np.isfinite(np.asarray(batch)).all()
    assert len(done) > 20


def test_the_augmentation_is_the_papers(folder):
    """Each image of a batch is the normalised image, padded by 4 zeros, at one of 81 shifts, mirrored or not."""
    train, settings = paper(folder)
    images, labels = next(iter(loader(prepare(train, settings), settings, training=True)))
    normalised = (train.images.astype(np.float64) / 255 - np.reshape(settings.mean, (3, 1, 1))) / np.reshape(settings.std, (3, 1, 1))
    black = (0 - np.reshape(settings.mean, (3, 1, 1))) / np.reshape(settings.std, (3, 1, 1))
    padded = np.broadcast_to(black, (3, 40, 40)).copy()
    found = set()
    for image, label in zip(np.asarray(images, np.float64), np.asarray(labels)):
        for source in normalised[train.labels == label]:
            padded[:, 4:36, 4:36] = source
            for y in range(9):
                for x in range(9):
                    crop = padded[:, y : y + 32, x : x + 32]
                    found |= {(y, x, m) for m, c in ((0, crop), (1, crop[:, :, ::-1])) if np.abs(c - image).max() < 1e-4}
    assert len(images) == 20 and len(found) > 12  # nearly every one has its own place
    assert {m for _, _, m in found} == {0, 1}


def test_evaluation_is_the_whole_image(folder):
    train, settings = paper(folder)
    images, _ = next(iter(loader(prepare(train, settings), settings, training=False)))
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (settings.mean, settings.std))
    np.testing.assert_allclose(np.asarray(images), (train.images / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_weights_are_drawn_once(folder):
    """What ``train`` starts from is what ``create`` gives for the same seed: He's initial values, one draw a layer."""
    _, settings = paper(folder)
    tw.random.seed(3)
    built = build_model(settings).state_dict()
    tw.random.seed(3)
    for name, value in zoo.create("resnet20_cifar").state_dict().items():
        np.testing.assert_array_equal(built[name].numpy(), value.numpy(), err_msg=name)
    weight = built["layer3.2.conv2.weight"].numpy()
    assert weight.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_a_hundred_layers_start_slowly_in_the_quick_recipe_too():
    for name in ("resnet110_cifar", "resnet1202_cifar", "resnet110_stochastic_depth"):
        schedule = zoo.info(name).recipes["quick"].schedule
        assert (schedule.warmup, schedule.warmup_lr) == (1.0, 0.01), name


@pytest.mark.parametrize(
    ("name", "data_set", "recipe", "size"),
    [
        ("resnet18", "digits", "quick", 32), ("squeezenet1_1", "fashion-mnist", "quick", 28), ("vgg11", "fashion-mnist", "quick", 32),
        ("alexnet", "cifar10", "quick", 32), ("resnet20_cifar", "fashion-mnist", "quick", 28), ("lenet5", "digits", "quick", 28),
        # the published procedures for ImageNet scale to 256 or more and crop 224: of a network for 32x32 only the middle would be seen
        ("resnet18", "cifar10", "paper", 224), ("squeezenet1_1", "digits", "paper", 224), ("resnet20_cifar", "cifar10", "paper", 32),
    ],
)  # fmt: skip
def test_small_images_stay_small_unless_the_recipe_cuts_its_own(name, data_set, recipe, size):
    """"quick" is for a laptop: no digit is enlarged to 224x224 where the network has a form for small images."""
    shape = data.info(data_set).shape
    few = data.ArrayDataset(np.zeros((2, *shape), np.uint8), np.arange(2), ("a", "b"))
    settings = settings_for(name, data_set, few, recipe)
    assert settings.input_shape[1:] == (size, size)
    for training in (True, False):
        images, _ = next(iter(loader(prepare(few, settings), settings, training=training)))
        assert images.shape[1:] == settings.input_shape


def test_what_would_not_fit_in_memory_is_enlarged_batch_by_batch(monkeypatch):
    digits = data.load("digits", "test")
    settings = settings_for("lenet5", "digits", digits)
    at_once = prepare(digits, settings)
    monkeypatch.setattr("twofold.train.task.AT_ONCE", at_once.images.nbytes - 1)
    later = prepare(digits, settings)
    assert at_once.images.shape[2:] == (28, 28) and later.images.shape[2:] == (8, 8)
    for ours, theirs in zip(*(loader(d, settings, training=False) for d in (later, at_once))):
        np.testing.assert_array_equal(ours[0].numpy(), theirs[0].numpy())


def test_photographs_of_any_size_fit_a_recipe_for_small_images(tmp_path):
    """ResNet's CIFAR procedure pads and crops 32x32: photographs are brought to 32x32 first, and to one shape."""
    from PIL import Image

    for i, size in enumerate([(50, 40), (64, 90), (33, 32)]):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), 60 * i, np.uint8)).save(tmp_path / f"{i % 2}" / f"{i}.png")
    photographs = data.ImageFolder(tmp_path)
    settings = settings_for("resnet20_cifar", "image-folder", photographs, "paper")
    for training in (True, False):
        images, _ = next(iter(loader(prepare(photographs, settings), settings, training=training)))
        assert images.shape == (3, 3, 32, 32)


def painted(folder, sizes, classes=("grey", "rust")):
    """An image folder of plain colours, one image for each of ``sizes`` (height, width), in turns of the classes."""
    image = pytest.importorskip("PIL.Image")
    for i, size in enumerate(sizes):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((*size, 3), (60 * i % 256, 90, 30), np.uint8)).save(place / f"{i}.png")
    return data.ImageFolder(folder)


def test_a_network_for_grey_images_gets_photographs_in_grey(tmp_path):
    photographs = painted(tmp_path, [(40, 40), (50, 60)])
    settings = settings_for("lenet5", "image-folder", photographs)
    images, _ = next(iter(loader(prepare(photographs, settings), settings, training=False)))
    assert images.shape == (2, 1, 28, 28)
    luma = np.array([0.299 * red + 0.587 * 90 + 0.114 * 30 for red in (0, 60)]) / 255
    expected = (luma - settings.mean[0]) / settings.std[0]
    np.testing.assert_allclose(images.numpy()[:, 0, 14, 14], expected, atol=0.5 / 255 / settings.std[0] + 1e-6)


@pytest.mark.parametrize(
    ("name", "sizes", "size"),
    [
        ("resnet18", [(300, 400), (240, 260)], 224), ("resnet18", [(100, 120), (96, 96)], 100), ("resnet18", [(8, 8), (8, 9)], 32),
        ("resnet20_cifar", [(300, 400)] * 3, 32), ("alexnet_2012", [(20, 20), (24, 30), (22, 22)], 32),
        ("alexnet_2012", [(64, 64)] * 3, 64), ("googlenet_2014", [(70, 70)] * 3, 70),
    ],
)  # fmt: skip
def test_images_of_a_folder_are_not_enlarged_without_need(tmp_path, name, sizes, size):
    photographs = painted(tmp_path, sizes)
    settings = settings_for(name, "image-folder", photographs)
    images, _ = next(iter(loader(prepare(photographs, settings), settings, training=True)))
    assert images.shape == (len(sizes), 3, size, size) and settings.input_shape == (3, size, size)


def test_data_of_other_classes_is_refused(tmp_path):
    """The same number of classes, sorted: without the check the test images' labels would mean other classes."""
    train, test = (painted(tmp_path / part, [(9, 9)] * 2, classes) for part, classes in (("a", ("cat", "dog")), ("b", ("dog", "elk"))))
    settings = settings_for("lenet5", "image-folder", train)
    prepare(train, settings)
    message = f"the data in {test.root} has 2; lacking: cat; not in training: elk; .*; give each split the same class folders"
    with pytest.raises(tw.DataError, match=message):
        prepare(test, settings)
    digits = data.load("digits", "test")
    with pytest.raises(tw.DataError, match="the data in twofold has 10; lacking: cat, dog; not in training: 0, 1, 2, 3, 4, …; expected"):
        prepare(digits, settings)


def test_imagenet_recipes_take_photographs_of_every_size(tmp_path):
    """Each published procedure, on photographs smaller and larger than it was made for."""
    photographs, seen = painted(tmp_path, [(60, 90), (300, 260), (700, 500)]), []
    for name in zoo.names():
        entry = zoo.info(name)
        chain = entry.recipes["paper"].augmentation
        if entry.input_shape[1] < 200 or chain in seen:
            continue
        seen.append(chain)
        settings = settings_for(name, "image-folder", photographs, "paper")
        for training in (True, False):
            images, _ = next(iter(loader(prepare(photographs, settings), settings, training=training)))
            assert images.shape == (3, *entry.input_shape), name
    assert len(seen) >= 8


def test_an_epoch_has_whole_batches_alone():
    digits = data.load("digits", "test").subset(range(33))
    settings = settings_for("lenet5", "digits", digits)  # 32 images a step
    assert [len(y) for _, y in loader(prepare(digits, settings), settings, training=True)] == [32]
    assert [len(y) for _, y in loader(prepare(digits, settings), settings, training=False)] == [32, 1]
    few = digits.subset(range(20))
    assert [len(y) for _, y in loader(prepare(few, settings), settings, training=True)] == [20]
