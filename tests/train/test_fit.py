"""The training loop: it learns, compiled equals eager, and an interruption changes no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.train import Reporter, Trainer, evaluate, fit, read_checkpoint, save_checkpoint
from twofold.train.checkpoint import Progress

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((96, 1, 6, 6)).astype(np.float32)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 0).astype(np.int64) + (IMAGES[:, 0, 0, 0] > 0)
QUIET = Reporter(0, quiet=True)


def loaders(batch=16):
    data = tw.data.ArrayDataset(IMAGES, LABELS, classes=("a", "b", "c"))
    return tw.data.DataLoader(data, batch, shuffle=True, seed=3), tw.data.DataLoader(data, 32)


def trainer(output=None, lr=0.1, **options):
    tw.random.seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 3)
    )
    train, val = loaders()
    opt = tw.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = tw.optim.CosineAnnealingLR(opt, T_max=10)
    return Trainer(model, train, val, optimizer=opt, schedule=schedule, output=output, **options)


def numbers(t):
    return {name: v.numpy().copy() for name, v in t.variables().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_loss_falls_and_the_history_tells():
    t = trainer()
    history = t.run(5, QUIET)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"] and [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert {"val_loss", "val_accuracy", "images_per_second", "lr"} <= set(history[0])


def test_eager_training_gives_the_same_numbers_as_compiled():
    a, b = trainer(), trainer(compiled=False)
    tw.random.seed(1)
    a.run(2, QUIET)
    tw.random.seed(1)
    b.run(2, QUIET)
    for (name, x), y in zip(numbers(a).items(), numbers(b).values()):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run(4, QUIET)
    first = trainer(tmp_path / "parts")
    first.run(2, QUIET)
    second = trainer(tmp_path / "parts")
    tw.random.seed(99)  # the checkpoint brings its own
    second.resume()
    second.run(4, QUIET)
    assert_same(numbers(whole), numbers(second))
    drop = lambda rows: [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
    assert drop(whole.progress.history) == drop(second.progress.history)


def test_a_checkpoint_in_mid_epoch_resumes_with_the_same_bits(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run(2, QUIET)
    first = trainer(tmp_path / "parts")
    first.run(1, QUIET)
    images = iter(first.train)
    sums = first.progress.running = {"loss": 0.0, "correct": 0, "images": 0, "steps": 0, "seconds": 0.0}
    first.model.train()
    for _ in range(3):
        first._batch(*next(images), sums, first._place())
    first.save()
    second = trainer(tmp_path / "parts")
    second.resume()
    second.run(2, QUIET)
    assert_same(numbers(whole), numbers(second))
    assert whole.progress.history[1]["loss"] == second.progress.history[1]["loss"]


SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    import test_fit as t
    run = t.trainer({output!r}, checkpoint_every=0.0)
    if {resume}:
        run.resume()
    step = run._batch
    def slow(*a):
        import time
        time.sleep(0.05)
        return step(*a)
    run._batch = slow
    run.run(3, t.QUIET)
"""


def _spawn(output, resume):
    code = textwrap.dedent(SCRIPT.format(folder=os.path.dirname(__file__), output=str(output), resume=resume))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_kill_9_in_mid_epoch_loses_nothing(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run(3, QUIET)
    output = tmp_path / "killed"
    process = _spawn(output, resume=False)
    last = output / "last.safetensors"
    deadline = time.monotonic() + 120
    while not (last.exists() and read_checkpoint(last)[1].step >= 4):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    step = read_checkpoint(last)[1].step
    assert 0 < step < 18
    process = _spawn(output, resume=True)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors.decode()
    arrays, progress = read_checkpoint(last)
    assert progress.step == 18
    assert_same({n: np.asarray(v) for n, v in numbers(whole).items()}, arrays)


def test_ctrl_c_keeps_a_checkpoint(tmp_path):
    t = trainer(tmp_path)
    plain = t._batch
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return plain(*args)

    t._batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        t.run(3, QUIET)
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step == 8


def test_a_loss_that_is_not_a_number_names_the_layer_and_spoils_nothing(tmp_path):
    t = trainer(tmp_path)
    t.run(1, QUIET)
    before = {n: v for n, v in numbers(t).items() if n.startswith(("model.5", "optimizer.m"))}
    t.model[5].weight.assign(t.model[5].weight * 1e38)
    t.model[5].bias.assign(t.model[5].bias * 0 + 3e38)
    with pytest.raises(
        tw.NonFiniteError, match=r"epoch 2, step 7 .*first value that is not finite is in layer '5' \(Linear\)"
    ):
        t.run(2, QUIET)
    after = numbers(t)
    for name in before:
        if name.startswith("optimizer"):
            np.testing.assert_array_equal(before[name], after[name])
    assert np.isfinite(after["model.0.weight"]).all()


def test_images_that_are_not_numbers_are_named():
    t = trainer()
    t.train.dataset.images = IMAGES * np.float32(np.nan)
    with pytest.raises(tw.NonFiniteError, match="the images themselves"):
        t.run(1, QUIET)


def test_fit_is_the_short_way(tmp_path):
    t = trainer()
    history = fit(t.model, *loaders(), epochs=1, optimizer=t.optimizer, output=tmp_path, reporter=QUIET)
    assert len(history) == 1 and (tmp_path / "best.safetensors").exists()
    again = trainer()
    more = fit(
        again.model, *loaders(), epochs=2, optimizer=again.optimizer, output=tmp_path, resume=True, reporter=QUIET
    )
    assert [row["epoch"] for row in more] == [1, 2]


def test_evaluate_counts_right_and_puts_the_mode_back():
    t = trainer()
    t.model.train()
    score = evaluate(t.model, t.val)
    t.model.eval()
    with tw.no_grad():
        logits = t.model(tw.tensor(IMAGES)).numpy()
    assert score.accuracy == (logits.argmax(1) == LABELS).mean() and score.top5 == 1.0 and score.samples == 96
    t.model.train()
    t.model[1].eval()  # frozen
    evaluate(t.model, t.val)
    assert t.model.training and not t.model[1].training


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"epoch": -1}', '{"epoch": "x"}', '{"unknown": 1}', '{"history": {}}', "[" * 100_000,
     '{"best": "x"}', '{"schedule": []}', '{"history": [1]}', '{"history": [{"epoch": 1}]}', '{"running": {"loss": "x"}}',
     '{"running": {"loss": null}}', f'{{"epoch": {10**30}}}'],
)  # fmt: skip
def test_a_checkpoint_with_a_bad_record_is_an_error(tmp_path, text):
    from twofold.io.weights import write_safetensors

    path = tmp_path / "c.safetensors"
    write_safetensors(path, {"a": np.zeros(1, np.float32)}, {"format": "twofold-checkpoint-1", "progress": text})
    with pytest.raises(tw.FormatError, match="record of progress"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "part, key, value",
    [("loader", "shard", 3), ("loader", "shard", [0]), ("loader", "batch_size", None), ("loader", "batch", 99),
     ("loader", "epoch", "x"), ("schedule", "t", "x"), ("schedule", "t", -1), ("schedule", "base_lrs", []),
     ("schedule", "base_lrs", 1), ("schedule", "base_lrs", ["x"]), ("schedule", "base_lrs", [float("nan")])],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(tmp_path, part, key, value):
    t = trainer(tmp_path)
    t.run(1, QUIET)
    getattr(t.progress, part)[key] = value
    save_checkpoint(tmp_path / "bad.safetensors", t.variables(), t.progress)
    with pytest.raises((tw.DataError, tw.WeightsError), match=rf"state (has|does not fit).*{key}"):
        trainer().resume(tmp_path / "bad.safetensors")


def test_damaged_checkpoints_are_errors(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"w": np.arange(50, dtype=np.float32)}, Progress(epoch=1, settings={"network": "x"}))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(content) + 1)] if rng.random() < 0.3 else damaged)
        try:
            arrays, progress = read_checkpoint(path)
            assert isinstance(progress.epoch, int) and all(isinstance(a, np.ndarray) for a in arrays.values())
            json.dumps(progress.settings)
        except tw.FormatError:
            pass


def test_a_checkpoint_of_another_network_is_refused_whole(tmp_path):
    t = trainer(tmp_path)
    t.run(1, QUIET)
    other = trainer(tmp_path)
    other.model[5] = nn.Linear(144, 4)
    before = numbers(other)
    with pytest.raises(tw.FormatError, match=r"model\.5\.(weight|bias) has shape"):
        other.resume()
    assert_same(before, numbers(other))


def test_a_model_that_says_the_same_of_every_class_is_right_by_chance():
    """Equal scores (a network of dead ReLUs) and NaN are no predictions of every class."""
    from twofold.train.evaluate import ranks

    labels = tw.tensor(np.arange(4))
    rows = [([0, 0, 0, 0], [0, 1, 2, 3]), ([3, 1, 2, 2], [0, 3, 1, 2]), ([np.nan, 1, 2, 3], [4, 3, 2, 1])]
    for scores, expected in rows:
        logits = tw.tensor(np.tile(np.float32(scores), (4, 1)))
        assert ranks(logits, labels).numpy().tolist() == expected
        if not np.isnan(scores).any():
            assert (ranks(logits, labels) == 0).numpy().argmax() == logits.numpy()[0].argmax()


@pytest.mark.parametrize("classes", [3, 6])
def test_scores_that_are_no_numbers_are_not_among_the_first_five(classes):
    class Constant(nn.Module):
        def __init__(self, scores):
            self.scores = tw.tensor(np.float32(scores))

        def forward(self, images):
            return images[:, :1, 0, 0] * 0 + self.scores

    def top5(scores):
        labels = np.arange(12) % classes
        return evaluate(Constant(scores), [(tw.tensor(IMAGES[:12]), tw.tensor(labels))]).top5

    assert top5([np.nan] * classes) == 0
    assert top5([0.0] * classes) == min(5, classes) / classes
    assert top5([*[0.0] * (classes - 1), np.nan]) == min(4, classes - 1) / classes


def test_compiling_counts_apart_for_training_and_for_validation(monkeypatch):
    """A clock that goes on when a program is prepared, and then alone."""
    clock, told, t = [0.0], [], trainer()
    monkeypatch.setattr(sys.modules[Trainer.__module__], "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=lambda: 0.0))

    def slowed(program, seconds):
        prepare, first = program.prepare, [seconds]

        def slow(*arguments):
            clock[0] += first.pop() if first else 0.0
            prepare(*arguments)

        monkeypatch.setattr(program, "prepare", slow)

    slowed(t.step, 100.0)
    slowed(t.scoring, 10.0)
    reporter = Reporter(2, quiet=True)
    monkeypatch.setattr(reporter, "finished", lambda row, duration, left, preparing: told.append((duration, left, preparing)))
    t.run(2, reporter)
    assert told == [(110.0, 0.0, 110.0), (0.0, 0.0, 0.0)]
