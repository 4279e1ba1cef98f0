"""Training in mixed precision: it learns as float32 does, skipped steps are no divergence, and resuming changes no bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.cli.app import run
from twofold.train import Reporter, Trainer, read_checkpoint

QUIET = Reporter(0, quiet=True)
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((96, 1, 6, 6)).astype(np.float32)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 0).astype(np.int64) + (IMAGES[:, 0, 0, 0] > 0)


def trainer(precision="fp16", output=None, images=IMAGES, initial=None, **options):
    tw.random.seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    data = tw.data.ArrayDataset(images, LABELS, classes=("a", "b", "c"))
    train = tw.data.DataLoader(data, 16, shuffle=True, seed=3)
    opt = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    made = Trainer(model, train, optimizer=opt, output=output, precision=precision, **options)
    if initial is not None:
        made.loss_scale.factor.assign(initial)
    return made


def numbers(t):
    return {name: v.numpy().copy() for name, v in t.variables().items()}


def lenet(precision, device="cpu", epochs=7):
    """The history of LeNet-5 on the digits."""
    with tw.device(device):
        tw.random.seed(0)
        model = tw.zoo.create("lenet5", num_classes=10)
        opt = tw.optim.Adam(model.parameters(), lr=3e-3)
        schedule = tw.optim.CosineAnnealingLR(opt, T_max=epochs)
        train = tw.data.DataLoader(tw.data.digits("train"), batch_size=32, shuffle=True, seed=0)
        val = tw.data.DataLoader(tw.data.digits("test"), batch_size=360)
        options = {"optimizer": opt, "schedule": schedule, "precision": precision, "reporter": QUIET}
        history = tw.train.fit(model, train, val, epochs=epochs, **options)
        assert {p.dtype for p in model.parameters()} == {tw.float32}
    return history


@pytest.fixture(scope="module")
def float32():
    return lenet("fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lenet5_learns_the_digits_as_in_float32(precision, float32):
    wanted, found = (rows[-1]["val_accuracy"] for rows in (float32, lenet(precision)))
    assert wanted > 0.93 and found > wanted - 0.02


def test_xla_learns_as_the_cpu_does():
    pytest.importorskip("jax")
    rows = []
    for device in ("cpu", "xla:cpu"):
        with tw.device(device):
            rows.append(trainer(initial=2.0**22).run(3, QUIET)[-1])
    here, there = rows
    assert there["loss"] == pytest.approx(here["loss"], rel=0.02)
    assert there["skipped_steps"] == here["skipped_steps"] > 0


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_a_step_that_overflows_is_skipped_and_told(compiled):
    t = trainer(initial=2.0**22, compiled=compiled)
    before = numbers(t)
    t.run(1, QUIET)
    (row,) = t.progress.history
    assert 0 < row["skipped_steps"] < 6 and row["loss_scale"] == 2.0 ** (22 - row["skipped_steps"])
    assert np.isfinite(row["loss"])
    after = numbers(t)
    assert any((before[n] != after[n]).any() for n in before if n.endswith("weight"))
    assert all(np.isfinite(v).all() for v in after.values())


def test_the_line_of_an_epoch_tells_the_scale(capsys):
    trainer(initial=2.0**22).run(1, Reporter(1))
    assert "loss scale " in (line := capsys.readouterr().err) and "steps skipped)" in line


def test_one_bad_batch_is_skipped_and_leaves_no_trace():
    """Not in the parameters, nor in the moments, nor in the statistics of batch norm, nor in the epoch's loss."""
    images = IMAGES.copy()
    t = trainer(images=images, initial=4.0)
    t.run(1, QUIET)
    kept = numbers(t)
    images[:16] = np.nan
    loss, _, lost, _ = t.step(images[:16], LABELS[:16])
    assert np.isnan(loss.item()) and not lost.item()
    now = numbers(t)
    assert now["loss_scale.factor"] == 2.0 and now["loss_scale.skipped"] == kept["loss_scale.skipped"] + 1
    for name in kept:
        if not name.startswith("loss_scale"):
            np.testing.assert_array_equal(now[name], kept[name], err_msg=name)
    sums = {"loss": 1.0, "correct": 1, "images": 1, "steps": 0}
    t._batch(tw.tensor(images[:16]), tw.tensor(LABELS[:16]), sums, {})
    assert sums == {"loss": 1.0, "correct": 1, "images": 1, "steps": 1}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_loss_scale_a_bad_batch_leaves_no_trace_either(precision):
    images = IMAGES.copy()
    t = trainer(precision, images=images)
    t.run(1, QUIET)
    kept = numbers(t)
    images[0] = np.nan
    with pytest.raises(tw.NonFiniteError, match="the images themselves"):
        t.run(2, QUIET)
    now = {n: v for n, v in numbers(t).items() if "running" in n}
    assert now and all(np.isfinite(v).all() for v in now.values()) and kept["model.1.running_mean"].any()


def test_divergence_is_told_when_no_scale_helps():
    t = trainer(images=IMAGES * np.float32(np.nan), initial=4.0)
    with pytest.raises(tw.NonFiniteError, match=r"loss is nan at epoch 1, step 3 .*the images themselves.*bf16"):
        t.run(1, QUIET)


def test_an_overflow_of_float16_is_found_in_the_layer_where_it_happens():
    """In float32 that layer's output is finite."""
    t = trainer(initial=1.0)
    t.model[0].weight.assign(t.model[0].weight * 1e6)
    with pytest.raises(tw.NonFiniteError, match=r"step 1 .*layer '0' \(Conv2d\)"):
        t.run(1, QUIET)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path, precision):
    start = {"initial": 2.0**22} if precision == "fp16" else {}
    whole = trainer(precision, tmp_path / "whole", **start)
    whole.run(2, QUIET)
    trainer(precision, tmp_path / "parts", **start).run(1, QUIET)
    second = trainer(precision, tmp_path / "parts")
    second.resume()
    second.run(2, QUIET)
    a, b = numbers(whole), numbers(second)
    assert a.keys() == b.keys() and ("loss_scale.factor" in a) == (precision == "fp16")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    trainer("fp16", tmp_path).run(1, QUIET)
    with pytest.raises(tw.FormatError, match=r"loss_scale\.factor.*precision"):
        trainer("fp32", tmp_path).resume()


def test_float32_is_what_it_was():
    a, b = trainer("fp32"), trainer("fp32", compiled=False)
    assert a.loss_scale is None and not any("loss_scale" in n for n in a.variables())
    for t in (a, b):
        t.run(1, QUIET)
        assert not {"loss_scale", "skipped_steps"} & set(t.progress.history[0])


def test_the_command_line_takes_a_precision(tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["train", "--epochs", "2", "--output", str(folder), "--json"]
    assert run([*options, "--precision", "bf16"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["val_accuracy"] > 0.5 and "in bf16" in err  # the exported file equals the float32 network
    assert read_checkpoint(folder / "last.safetensors")[1].settings["precision"] == "bf16"
    assert run([*options, "--resume"]) == 1
    assert "precision 'bf16', this asks for 'fp32'" in capsys.readouterr().err
    assert run([*options, "--precision", "half-ish"]) == 2
    assert "expected one of 'fp32', 'bf16', 'fp16'" in " ".join(capsys.readouterr().err.replace("│", "").split())
