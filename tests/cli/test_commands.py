"""The command line, from end to end: train, resume, interrupt, evaluate, predict, export, run, and exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import twofold as tw
from twofold.cli.app import run
from twofold.cli.common import table
from twofold.train import read_checkpoint

pytest.importorskip("PIL")
from PIL import Image


def call(capsys, *arguments):
    code = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """LeNet-5 after two epochs on the digits."""
    folder = tmp_path_factory.mktemp("trained") / "lenet5-digits"
    assert run(["train", "--epochs", "2", "--output", str(folder)]) == 0
    return folder


def test_training_leaves_checkpoints_curves_and_a_checked_onnx_file(trained):
    assert {p.name for p in trained.iterdir()} >= {"last.safetensors", "best.safetensors", "lenet5.onnx", "curves.png"}
    with Image.open(trained / "curves.png") as picture:
        assert picture.size[0] > 400
    progress = read_checkpoint(trained / "last.safetensors")[1]
    assert progress.epoch == 2 and progress.settings["network"] == "lenet5"


def test_two_runs_have_the_same_bits_and_resuming_a_finished_run_does_nothing(tmp_path, capsys):
    whole, again = tmp_path / "whole", tmp_path / "again"
    for folder in (whole, again):
        assert call(capsys, "train", "--epochs", 3, "--output", folder)[0] == 0
    code, out, err = call(capsys, "train", "--epochs", 3, "--output", whole, "--resume", "--json")
    assert code == 0 and json.loads(out)["epochs"] == 3 and "epoch   3/3" not in err  # nothing was left to do
    a, b = (read_checkpoint(p / "last.safetensors")[0] for p in (whole, again))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_training_stops_after_some_steps_and_goes_on_with_the_same_bits(trained, tmp_path, capsys):
    """Within an epoch, at its end (44 steps), and when it is resumed; then as if it had never stopped."""
    for steps, epochs in ((20, 0), (44, 1), (50, 1)):
        resume = ["--resume"] * (steps > 20)
        code, out, _ = call(capsys, "train", "--epochs", 2, "--steps", steps, "--output", tmp_path, "--json", *resume)
        progress = read_checkpoint(tmp_path / "last.safetensors")[1]
        assert code == 0 and json.loads(out)["steps"] == steps
        assert (progress.step, progress.epoch, len(progress.history)) == (steps, epochs, epochs)
    assert not (tmp_path / "lenet5.onnx").exists()
    code, out, _ = call(capsys, "train", "--epochs", 2, "--steps", 1000, "--output", tmp_path, "--resume", "--json")
    assert code == 0 and json.loads(out)["epochs"] == 2 and (tmp_path / "lenet5.onnx").exists()
    a, b = (read_checkpoint(folder / "last.safetensors")[0] for folder in (tmp_path, trained))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_training_starts_from_a_file_of_weights(tmp_path, capsys):
    """Of ten classes, as the digits have, and of others: then the last layer is drawn."""
    import twofold as tw

    for classes in (10, 7):
        model, file = tw.zoo.create("lenet5", num_classes=classes), tmp_path / "weights.safetensors"
        tw.save_weights(model, file)
        options = ["--weights", file, "--steps", 1, "--lr", 0.0, "--output", tmp_path / str(classes)]
        code, _, err = call(capsys, "train", *options)
        found = read_checkpoint(tmp_path / str(classes) / "last.safetensors")[0]
        same = [n for n, v in model.state_dict().items() if np.array_equal(found[f"model.{n}"], v.numpy())]
        assert code == 0 and len(model.state_dict()) - len(same) == (0 if classes == 10 else 2), err
        assert f"{file}" in err
    code, _, err = call(capsys, "train", *options, "--resume")
    assert code == 1 and "--weights: a training that is resumed goes on with its own" in err


def test_eager_training_comes_to_the_weights_of_compiled_training(tmp_path, capsys, monkeypatch):
    """On the reference, where both add up in nearly the same order, and for twenty steps: in three epochs a last bit that
    differs (as some BLAS libraries leave it) grows to a thousandth."""
    monkeypatch.setenv("TWOFOLD_DEVICE", "reference")  # `--device` would hold for the tests after this one
    found = []
    for folder, extra in ((tmp_path / "compiled", ()), (tmp_path / "eager", ("--eager",))):
        code, _, err = call(capsys, "train", "--steps", 20, "--output", folder, *extra)
        assert code == 0 and "on reference" in err
        found.append(read_checkpoint(folder / "last.safetensors")[0])
    a, b = found
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_evaluate_gives_the_accuracy_that_training_reported(trained, capsys):
    code, out, _ = call(capsys, "evaluate", "-c", trained, "--json")
    best = max(row["val_accuracy"] for row in read_checkpoint(trained / "best.safetensors")[1].history)
    assert code == 0 and json.loads(out)["accuracy"] == best


def test_predict_says_what_the_model_says(trained, tmp_path, capsys):
    digits = tw.data.digits("test")
    paths = []
    for i in range(3):
        pixels = np.rint(np.asarray(digits[i][0])[0] * 255).astype(np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    code, out, _ = call(capsys, "predict", *paths, "-c", trained, "--json", "--top", 2)
    records = json.loads(out)
    assert code == 0 and [len(r["classes"]) for r in records] == [2, 2, 2]
    assert all(0 <= c["probability"] <= 1 for r in records for c in r["classes"])
    inverted = Image.fromarray(255 - np.asarray(Image.open(paths[0])))
    inverted.save(tmp_path / "dark.png")
    _, again, _ = call(capsys, "predict", tmp_path / "dark.png", "-c", trained, "--json", "--invert")
    assert json.loads(again)[0]["classes"][0]["name"] == records[0]["classes"][0]["name"]


def test_export_and_run(trained, tmp_path, capsys):
    file = tmp_path / "net.onnx"
    assert call(capsys, "export", file, "-c", trained)[0] == 0
    images = np.random.default_rng(0).standard_normal((5, 1, 28, 28)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    code, out, _ = call(capsys, "run", file, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz", "--json")
    assert code == 0 and json.loads(out)[0]["shape"] == [5, 10]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["output0"], expected, rtol=1e-4, atol=1e-5)
    assert call(capsys, "run", file, "--batch", 3)[0] == 0


def test_summary_counts_what_the_paper_counts(capsys):
    code, out, _ = call(capsys, "summary", "lenet5")
    assert code == 0 and "61,706" in out and "416,520" in out
    code, out, _ = call(capsys, "summary", "lenet5", "--json")
    record = json.loads(out)
    assert code == 0 and (record["parameters"], record["weights"], record["multiply_adds"]) == (61_706, 61_470, 416_520)
    assert record["rows"][0]["output"] == [1, 6, 28, 28]


def test_summary_gives_the_figures_of_the_lecture(capsys):
    """AlexNet's CONV1, VGG-16's parameters and memory for an image, inception's operations without and with bottlenecks."""
    conv1 = next(line for line in call(capsys, "summary", "alexnet_2012")[1].splitlines() if "features.conv1" in line)
    assert "(1, 96, 55, 55)" in conv1 and "34,944" in conv1 and "34,848" in conv1
    total = next(line for line in call(capsys, "summary", "vgg16")[1].splitlines() if line.startswith("total"))
    assert total.split()[2:] == ["138,357,544", "138,344,128", "15,470,264,320", "61.0", "MB"]
    operations = {}
    for bottlenecks in (False, True):
        out = call(capsys, "summary", "googlenet_2014", "--json", "--option", f"bottlenecks={bottlenecks}")[1]
        rows = json.loads(out)["rows"]
        operations[bottlenecks] = sum(r["multiply_adds"] for r in rows if r["name"].startswith("inception3a."))
    # on 28x28x192: 64 1x1, 128 3x3, 32 5x5, without and with 96, 16 and 32 1x1 before (after pooling)
    assert operations == {False: 28 * 28 * 192 * (64 + 9 * 128 + 25 * 32), True: 128_049_152}
    assert call(capsys, "summary", "lenet5", "--option", "activation=tanh")[0] == 0
    assert "unknown option 'depth'" in call(capsys, "summary", "lenet5", "--option", "depth=3")[2]
    assert "expected NAME=VALUE" in call(capsys, "summary", "lenet5", "--option", "depth")[2]
    assert "resnet18 for images of 3x8x8: small_input=True" in call(capsys, "summary", "resnet18", "--input", "3x8x8")[2]


def test_lists_and_the_doctor(capsys, tmp_path, monkeypatch):
    line = next(line for line in call(capsys, "zoo")[1].splitlines() if line.startswith("resnet50 "))
    assert line.split()[1:5] == ["2015", "25,557,032", "4,089.2", "M"] and line.endswith("He et al., arXiv 1512.03385")
    code, out, _ = call(capsys, "doctor", "--json")
    assert code == 0 and json.loads(out)["devices"]["cpu"] == "computes correctly"
    monkeypatch.setenv("TWOFOLD_HOME", str(tmp_path))  # else all data sets that are there would be read
    assert re.search(r"image-folder .* a folder of yours \(--data-dir\)", call(capsys, "data")[1])
    out = call(capsys, "data", "--data-dir", str(tmp_path))[1]
    assert f"image-folder: {tmp_path} has no subfolder train" in out and "--data-dir" not in out
    code, out, _ = call(capsys, "data", "digits", "--json")
    assert code == 0 and json.loads(out)[0]["train"] == 1438


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "resnet5"], 1, "the zoo has no network 'resnet5'; did you mean"),
        (["train", "--data", "imagenet"], 1, "data set 'imagenet' is unknown; expected one of"),
        (["train", "--recipe", "best"], 1, "lenet5 has no recipe 'best'; expected one of"),
        (["train", "--epochs", "0"], 2, "--epochs"),
        (["train", "--nonsense"], 2, "No such option"),
        (["evaluate", "-c", "nowhere"], 1, "no checkpoint at nowhere"),
        (["predict", "x.png", "-c", "nowhere"], 1, "no checkpoint at nowhere"),
        (["summary", "lenet5", "--input", "1x28"], 1, "expected channels x height x width"),
        (["run", "nothing.onnx"], 1, "nothing.onnx"),
        (["train", "--device", "gpu"], 1, "device 'gpu' is not here"),
        (["train", "--resume", "--output", "nowhere"], 1, "there is no checkpoint; train without --resume first"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, err = call(capsys, *arguments)
    assert (found, out) == (code, "") and message in err
    assert "Traceback" not in err


def test_resuming_with_other_settings_is_refused(trained, capsys):
    code, _, err = call(capsys, "train", "--output", trained, "--resume", "--batch-size", 7)
    assert code == 1 and "was trained with batch_size 32, this asks for 7" in err


def test_files_that_are_not_what_they_say(tmp_path, capsys):
    (tmp_path / "x.onnx").write_bytes(b"\x00\x01garbage" * 50)
    assert call(capsys, "run", tmp_path / "x.onnx")[0] == 1
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 64)
    assert call(capsys, "evaluate", "-c", tmp_path / "c.safetensors")[0] == 1


def test_an_operator_without_translation_is_exit_code_4(tmp_path, capsys):
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"], domain="nowhere")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "x.onnx")
    code, _, err = call(capsys, "run", tmp_path / "x.onnx")
    assert code == 4 and "Frobnicate" in err


@pytest.mark.slow
def test_ctrl_c_is_exit_code_130_and_keeps_a_checkpoint(tmp_path):
    command = [sys.executable, "-m", "twofold", "train", "--epochs", "200", "--output", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "epoch   1/" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130 and "--resume goes on" in rest
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step >= 45


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_keeps_the_old_checkpoint(trained, tmp_path):
    import resource

    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        f"from twofold.cli import main; main(['train', '--epochs', '1', '--output', {str(tmp_path)!r}])"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_columns_line_up():
    assert table([["a", "1,000"], ["long", "2"]], ["name", "n"]).splitlines() == [
        "name      n",
        "----  -----",
        "a     1,000",
        "long      2",
    ]


def test_bench_profiles_and_traces(tmp_path, capsys):
    trace = tmp_path / "trace.json"
    code, out, _ = call(capsys, "bench", "lenet5", "--batch", 2, "--train", "--steps", 2, "--profile", "--trace", trace)
    assert code == 0 and "training step: median" in out and "of roof" in out and "direct" in out
    events = json.loads(trace.read_text())["traceEvents"]
    timed = [e for e in events if e["ph"] == "X"]
    assert len(timed) > 10 and all(e["dur"] > 0 and e["ts"] >= 0 for e in timed)
    code, out, _ = call(capsys, "bench", "lenet5", "--steps", 1, "--profile", "--json")
    record = json.loads(out)
    assert record["kernels"] and record["rates"]["fma"] > 1 and record["images_per_second"] > 0


def test_summary_tells_the_memory_of_a_step(capsys):
    code, out, _ = call(capsys, "summary", "lenet5", "--memory", "--batch", 4, "--train", "--json")
    record = json.loads(out)
    assert code == 0 and record["arguments"] == 4 * (28 * 28 * 4 + 8)
    assert record["state"] >= 2 * 61706 * 4 and record["peak"] > record["state"] + record["temporaries"]
    kept = json.loads(call(capsys, "summary", "lenet5", "--memory", "--batch", 4, "--train", "--keep-gradients", "--json")[1])
    assert kept["results"] - record["results"] == 61706 * 4  # they are there after the step
    assert "peak" in call(capsys, "summary", "lenet5", "--memory")[1]


PLAIN_SCRIPT = """
import numpy as np, twofold as tw
from twofold.nn.functional import cross_entropy
model = tw.zoo.create(NETWORK)
optimizer = tw.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
@tw.compile
def step(x, y):
    loss = cross_entropy(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss
x, y = tw.tensor(np.zeros((BATCH, 3, 224, 224), np.float32)), tw.tensor(np.zeros(BATCH, np.int64))
for _ in range(3):
    step(x, y)
print(next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_summary_tells_the_memory_of_a_process(capsys):
    """AlexNet's parameters are most of what its step takes: nothing may be there twice."""
    told = json.loads(call(capsys, "summary", "alexnet", "--memory", "--batch", 4, "--train", "--keep-gradients", "--json")[1])
    script = PLAIN_SCRIPT.replace("NETWORK", repr("alexnet")).replace("BATCH", "4")
    for _ in range(2):  # the first one compiles
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    assert 0.9 <= int(done.stdout) / told["process"] <= 1.1, (done.stdout, told)
