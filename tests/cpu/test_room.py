"""Memory: what is planned is what is taken, and too little is an error that says what fits."""

import subprocess
import sys

import numpy as np
import pytest

import twofold as tw
from twofold.backends.cpu import room
from twofold.base.errors import OutOfMemoryError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("needed", "batch", "fixed", "free", "message"),
    [
        (
            3 * GIB,
            32,
            GIB,
            2 * GIB,
            r"needs 3.00 GiB of working memory, 2.00 GiB are available: .*a batch of about 16 fits",
        ),
        (3 * GIB, 2, GIB, GIB + 5, "not even a batch of 1 fits"),
        (100 << 20, 0, 0, 50 << 20, "needs 100 MiB .* 50 MiB are available: use a smaller batch"),
    ],
)
def test_too_little_is_an_error_with_what_fits(needed, batch, fixed, free, message, monkeypatch):
    monkeypatch.setattr(room, "available", lambda: free)
    with pytest.raises(OutOfMemoryError, match=message):
        room.require("step", needed, batch, fixed)


@pytest.mark.parametrize(("needed", "free"), [(GIB, GIB), (room.SMALL, 0), (GIB, None)])
def test_enough_and_unknown_pass(needed, free, monkeypatch):
    monkeypatch.setattr(room, "available", lambda: free)
    room.require("step", needed)


@pytest.mark.parametrize(
    ("unified", "limit", "used", "files"),
    [
        (True, "memory.max", "memory.current", "inactive_file"),
        (False, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_the_narrowest_of_nested_control_groups_counts(unified, limit, used, files, tmp_path, monkeypatch):
    """What it holds of files that can be read again is free."""
    (tmp_path / "inner").mkdir()
    for folder, most, taken in ((tmp_path, 9 << 40, 1 << 20), (tmp_path / "inner", 300 << 20, 250 << 20)):
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{files} {40 << 20}\n")
    monkeypatch.setattr(room, "control_groups", lambda _: [(tmp_path, unified), (tmp_path / "inner", unified)])
    monkeypatch.setattr(room, "_machine", lambda: 1 << 50)
    assert room.available() == (300 - 250 + 40) << 20


def test_what_is_available_is_less_than_the_machine_has():
    free = room.available()
    assert free is None or 0 < free < 1 << 50


def test_a_program_that_does_not_fit_is_refused_before_it_takes_anything(monkeypatch):
    monkeypatch.setattr(room, "available", lambda: 1 << 20)
    monkeypatch.setattr(room, "SMALL", 0)
    f = tw.compile(
        lambda x: tw.nn.functional.conv2d(tw.nn.functional.relu(tw.exp(x).sum(axis=1, keepdims=True) + x), w)
    )
    w = tw.tensor(np.ones((8, 8, 3, 3), np.float32))
    x = tw.tensor(np.ones((16, 8, 256, 256), np.float32))
    with pytest.raises(OutOfMemoryError, match="planned for a batch of 16, a batch of about [0-9]+ fits"):
        f(x)
    monkeypatch.setattr(room, "available", lambda: 8 << 30)
    assert f(x).shape == (16, 8, 254, 254)  # nothing was broken


def test_results_are_asked_for_as_well(monkeypatch):
    """They are made, but not yet written, when a program begins: nothing counts them."""
    monkeypatch.setattr(room, "available", lambda: 50 << 20)
    f = tw.compile(lambda x: x + x[:1])
    x = tw.tensor(np.ones((16, 1 << 20), np.float32))
    with pytest.raises(OutOfMemoryError, match="needs 64 MiB .*planned for a batch of 16, a batch of about 12 fits"):
        f(x)


CODE = """
import resource, sys
import numpy as np, twofold as tw
from twofold.cli.bench import step_of
run, arguments = step_of("resnet18", 64, True)
run.memory(*arguments)
used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), used + (600 << 20)))
try:
    run(*arguments)
except tw.OutOfMemoryError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_limit_on_address_space_is_seen(monkeypatch):
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert "refused: training on the CPU needs" in done.stdout and "batch of 64" in done.stdout, done.stderr[-2000:]


PEAK = """
import sys
import numpy as np, twofold as tw
from twofold.cli.bench import step_of
def held(name): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(name)) << 10
step_of("lenet5", 1, True)
run, one = step_of(sys.argv[1], 1, sys.argv[3] == "train")
run(*one); run(*one)  # the state and most of the code are there
before = held("VmRSS")
rng = np.random.default_rng(0)
many = [tw.tensor(np.concatenate([a.numpy()] * int(sys.argv[2]))) for a in one]
planned = run.memory(*many)
run(*many); run(*many)
print((held("VmHWM") - before + planned.state) / planned.peak, planned)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("network", "batch", "kind"), [("resnet18", 8, "train"), ("squeezenet1_1", 16, "infer")])
def test_the_planned_peak_is_what_is_taken(network, batch, kind):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, network, str(batch), kind], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ratio = float(done.stdout.split()[0])
    assert 0.9 <= ratio <= 1.1, done.stdout
