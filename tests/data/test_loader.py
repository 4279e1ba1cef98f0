"""DataLoader: order, resumption, threads, shards, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from twofold.base.errors import ArgumentError, DataError, FormatError, ShapeError
from twofold.data import ArrayDataset, DataLoader, Dataset, digits
from twofold.data import transforms as T

AUGMENT = T.Compose([T.RandomCrop(8, padding=2), T.RandomHorizontalFlip(), T.ColorJitter(0.4, 0.4)])


def numbered(count: int) -> ArrayDataset:
    """Images whose only pixel is their index."""
    return ArrayDataset(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), np.arange(count))


class OneByOne(Dataset):
    """The same samples as an ArrayDataset, without its whole-batch way."""

    def __init__(self, inner: ArrayDataset):
        self.inner, self.classes = inner, inner.classes

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


def seen(loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def flat(lists: list[list]) -> list:
    return [item for part in lists for item in part]


def make(count=10, batch_size=3, **options) -> DataLoader:
    return DataLoader(numbered(count), batch_size, numpy=True, **options)


@pytest.mark.parametrize(
    "count, batch, drop, sizes", [(10, 3, False, [3, 3, 3, 1]), (10, 3, True, [3, 3, 3]), (2, 5, True, [])]
)
def test_batches_and_length(count, batch, drop, sizes):
    loader = make(count, batch, drop_last=drop)
    assert list(map(len, seen(loader))) == sizes and len(loader) == len(sizes)


def test_an_empty_dataset_gives_nothing():
    assert seen(make(0)) == []


def test_shuffling_is_a_new_seeded_permutation_each_epoch():
    loader, twin, other = (
        make(100, shuffle=True, seed=1),
        make(100, shuffle=True, seed=1),
        make(100, shuffle=True, seed=2),
    )
    epochs = [flat(seen(loader)) for _ in range(3)]
    assert all(sorted(e) == list(range(100)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(100))
    assert epochs[0] == flat(seen(twin)) and epochs[0] != flat(seen(other))
    twin.set_epoch(2)
    assert epochs[2] == flat(seen(twin))


def test_images_and_labels_stay_together():
    for images, labels in make(50, 7, shuffle=True):
        assert (images.reshape(-1) == labels).all() and labels.dtype == np.int64


def test_uint8_becomes_float_between_0_and_1():
    data = ArrayDataset(np.full((2, 3, 4, 4), 255, np.uint8), [0, 1])
    ((images, _),) = DataLoader(data, 2, numpy=True)
    assert images.dtype == np.float32 and (images == 1).all()


@pytest.mark.parametrize("workers, prefetch", [(0, None), (1, 0), (3, None), (4, 1)])
@pytest.mark.parametrize("wrap", [lambda d: d, OneByOne], ids=["array", "one by one"])
def test_threads_batches_and_kind_of_dataset_change_nothing(workers, prefetch, wrap):
    data = digits("test")
    threads = {"num_workers": workers, "prefetch": prefetch}
    loader = DataLoader(wrap(data), 50, True, seed=3, transform=AUGMENT, numpy=True, **threads)
    loader.set_epoch(4)
    images = np.concatenate([x for x, _ in loader])
    reference = DataLoader(data, 359, True, seed=3, transform=AUGMENT, numpy=True)
    reference.set_epoch(4)
    ((expected, _),) = reference
    np.testing.assert_array_equal(images, expected)


def test_augmentation_changes_with_epoch_and_seed():
    def first(seed, epoch):
        loader = DataLoader(digits("test"), 359, seed=seed, transform=AUGMENT, numpy=True)
        loader.set_epoch(epoch)
        return next(iter(loader))[0]

    base = first(0, 0)
    assert (base == first(0, 0)).all()
    for other in (first(0, 1), first(1, 0)):
        different = (base != other).any(axis=(1, 2, 3))
        assert different.mean() > 0.9


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_resuming_in_mid_epoch_continues_with_the_next_batch(workers, stop):
    options = {"shuffle": True, "seed": 5, "num_workers": workers}
    straight = make(**options)
    expected = [seen(straight) for _ in range(3)]

    loader = make(**options)
    assert seen(loader) == expected[0]
    running = iter(loader)
    for _ in range(stop):
        next(running)
    state = json.loads(json.dumps(loader.state_dict()))  # survives a JSON file
    assert (state["epoch"], state["batch"]) == (1, stop)
    running.close()

    fresh = make(**options)
    fresh.load_state_dict(state)
    fresh.set_epoch(1)  # what a training loop does at the head of each epoch: the place is kept
    assert fresh.state_dict() == state
    assert seen(fresh) == expected[1][stop:]
    assert fresh.epoch == 2 and seen(fresh) == expected[2]


def test_breaking_off_and_starting_again_begins_the_epoch_anew():
    loader = make(shuffle=True)
    first = next(iter(loader))[1].tolist()
    assert seen(loader)[0] == first


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch_size": 4}, "batch_size=4, this loader has 3"),
        ({"seed": 9}, "seed=9"),
        ({"samples": 11}, "samples=11"),
        ({"shard": [0, 2]}, r"shard=\[0, 2\]"),
        ({"batch": 99}, "batch 99"),
        ({"epoch": "one"}, "epoch 'one'"),
    ],
)
def test_a_state_of_another_loader_is_refused(change, words):
    loader = make()
    with pytest.raises(DataError, match=words):
        loader.load_state_dict({**loader.state_dict(), **change})


def test_a_state_that_lacks_something_is_refused():
    with pytest.raises(DataError, match="lacks batch, batch_size"):
        make().load_state_dict({"epoch": 1})


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("count, world", [(12, 3), (13, 4), (2, 3)])
def test_shards_together_are_the_whole(count, world, drop):
    loaders = [make(count, 2, shuffle=True, drop_last=drop, shard=(rank, world)) for rank in range(world)]
    parts = [seen(loader) for loader in loaders]
    assert len({len(p) for p in parts}) == 1 == len({len(loader) for loader in loaders})
    everything = flat(flat(parts))
    if drop:
        assert len(set(everything)) == len(everything)
    else:
        assert set(everything) == set(range(count)) and len(everything) < count + world


def test_shards_step_through_the_batches_of_one_large_loader():
    whole = seen(make(12, 4, shuffle=True))
    halves = [seen(make(12, 2, shuffle=True, shard=(rank, 2))) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert batch == halves[0][step] + halves[1][step]


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_a_place_is_kept_when_the_hosts_become_more_or_fewer(before, after):
    whole = seen(make(24, 4, shuffle=True))
    first = make(24, 4 // before, shuffle=True, shard=(0, before))
    for _ in zip(range(2), first):
        state = first.state_dict()
    parts = [make(24, 4 // after, shuffle=True, shard=(rank, after)) for rank in range(after)]
    for part in parts:
        part.load_state_dict(state)
    assert [flat(step) for step in zip(*map(seen, parts))] == whole[state["batch"] :]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"transform": 3}, "3 is not a transform"),
        ({"transform": T.ToFloat}, "not a transform"),
    ],
)
def test_senseless_settings_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        make(**options)
    with pytest.raises(ArgumentError, match="epoch -1"):
        make().set_epoch(-1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrap", [lambda d: d, OneByOne], ids=["array", "one by one"])
def test_an_error_in_the_transform_names_the_sample(workers, wrap):
    def fail_on_seven(image):
        if image.item() == 7:
            raise ZeroDivisionError("seven")
        return image

    loader = DataLoader(wrap(numbered(10)), 3, transform=fail_on_seven, num_workers=workers, numpy=True)
    running = iter(loader)
    assert next(running)[1].tolist() == [0, 1, 2] and next(running)[1].tolist() == [3, 4, 5]
    with pytest.raises(DataError, match="sample 7: ZeroDivisionError: seven"):
        next(running)


def test_an_error_of_the_dataset_keeps_its_class():
    class Damaged(OneByOne):
        def __getitem__(self, index):
            raise FormatError("cat.jpg: cannot be read") if index == 4 else StopIteration

    with pytest.raises(FormatError, match=r"sample 0: cat\.jpg"):
        next(iter(DataLoader(Damaged(numbered(5)).subset([4]), 1, numpy=True)))
    with pytest.raises(DataError, match="sample 0: StopIteration"):
        seen(DataLoader(Damaged(numbered(5)), 1, num_workers=1, numpy=True))


def test_images_of_several_sizes_need_a_transform():
    class Sizes(OneByOne):
        def __getitem__(self, index):
            return np.zeros((3, 8 + index, 8), np.uint8), index

    with pytest.raises(ShapeError, match=r"\(3, 8, 8\), \(3, 9, 8\).*add Resize"):
        seen(DataLoader(Sizes(numbered(2)), 2, numpy=True))
    assert len(seen(DataLoader(Sizes(numbered(2)), 2, transform=T.Resize((4, 4)), numpy=True))) == 1


def test_threads_end_when_the_loop_is_left():
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("twofold-data")]

    for _ in DataLoader(numbered(1000), 1, num_workers=4, numpy=True):
        assert threads()
        break
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_no_more_is_prepared_ahead_than_asked_for():
    started = []
    loader = DataLoader(
        numbered(100), 1, transform=lambda x: started.append(1) or x, num_workers=2, prefetch=3, numpy=True
    )
    running = iter(loader)
    next(running)
    time.sleep(0.1)
    assert len(started) <= 1 + 3
    running.close()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_loop_with_threads():
    code = """
import time, numpy as np
from twofold.data import ArrayDataset, DataLoader
data = ArrayDataset(np.zeros((10000, 1, 1, 1), np.float32), np.zeros(10000, int))
slow = lambda image: time.sleep(0.05) or image
for i, _ in enumerate(DataLoader(data, 2, transform=slow, num_workers=2, numpy=True)):
    if i == 0:
        print("running", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


def test_tensors_come_out():
    tensor = pytest.importorskip("twofold.tensor")
    if not hasattr(tensor, "asarray"):
        pytest.skip("the tensor layer is not there yet")
    images, labels = next(iter(DataLoader(digits("test"), 16)))
    assert isinstance(images, tensor.Tensor) and tuple(images.shape) == (16, 1, 8, 8)
    assert images.dtype == "float32" and labels.dtype == "int64"
    assert (labels.numpy() == digits("test").labels[:16]).all()
