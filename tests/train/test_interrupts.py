"""A training that is interrupted at any line, by Ctrl-C, SIGTERM or an error, goes on with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twofold as tw
from twofold import nn
from twofold.base import signals
from twofold.base.errors import DataError
from twofold.train import Reporter, Trainer, read_checkpoint

EPOCHS = 2
SOURCE = Path(tw.__file__).parent
WATCHED = [str(SOURCE / name) for name in ("train/", "data/loader.py", "data/prefetch.py", "static/", "optim/", "base/signals")]
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((36, 1, 4, 4)).astype(np.float32)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 0).astype(np.int64)
QUIET = Reporter(0, quiet=True)
ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


def trainer(output: Any, compiled: bool = True, workers: int = 0, **options: Any) -> Trainer:
    """Four steps an epoch, with everything that a checkpoint holds: statistics, moments, draws, a schedule, a loss scale."""
    tw.random.seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(32, 2)
    )
    data = tw.data.ArrayDataset(IMAGES, LABELS, ("a", "b"))
    train = tw.data.DataLoader(data, 9, shuffle=True, seed=3, num_workers=workers)
    val = tw.data.DataLoader(data, 18, shuffle=True, seed=4)
    opt = tw.optim.Adam(model.parameters(), lr=0.01)
    schedule = tw.optim.CosineAnnealingLR(opt, T_max=10)
    return Trainer(
        model, train, val, optimizer=opt, schedule=schedule, schedule_steps=True, output=output, compiled=compiled,
        checkpoint_every=1e9, **options,
    )  # fmt: skip


class At:
    """Does something at the ``line``-th line that is run of ``WATCHED``; in vain if there are not so many."""

    def __init__(self, line: float, what: Any):
        self.left, self.what = line, what

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        return self.watch if frame.f_code.co_filename.startswith(tuple(WATCHED)) else None

    def watch(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.what()
        return self.watch

    def run(self, t: Trainer) -> None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            t.run(EPOCHS, QUIET)
        finally:
            sys.settrace(before)


def outcome(t: Trainer) -> Any:
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in t.progress.history]
    return {n: v.numpy().tobytes() for n, v in t.variables().items()}, rows, t.progress.step, t.progress.best


@pytest.fixture(autouse=True)
def _sigterm_does_not_end_the_tests() -> Any:
    """Outside of ``run`` too."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    yield
    signal.signal(signal.SIGTERM, before)


_wanted: dict[bool, Any] = {}


def uninterrupted(folder: Path, compiled: bool) -> tuple[Any, int]:
    """What a whole training gives, and how many lines it takes."""
    if compiled not in _wanted:
        trainer(folder / "first", compiled).run(EPOCHS, QUIET)  # compiles
        count, t = At(0, None), trainer(folder / "whole", compiled)
        count.run(t)
        _wanted[compiled] = outcome(t), int(-count.left)
    return _wanted[compiled]


@pytest.mark.parametrize("compiled", [True, False])
def test_an_interruption_anywhere_changes_no_bit(compiled, tmp_path_factory):
    wanted, lines = uninterrupted(tmp_path_factory.mktemp("whole"), compiled)
    places = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(list(ENDS)), st.booleans()), min_size=1, max_size=3)
    examples = int(os.environ.get("TWOFOLD_TEST_INTERRUPTIONS", 5 if compiled else 6))

    @settings(max_examples=examples, deadline=None, database=None)
    @given(places=places, workers=st.sampled_from([0, 0, 2]))
    def check(places: Any, workers: int) -> None:
        folder = tmp_path_factory.mktemp("parts")
        t = trainer(folder, compiled, workers)
        for where, number, anew in places:
            interrupted = At(1 + int(where * lines), lambda number=number: signal.raise_signal(number))
            try:
                interrupted.run(t)
            except tuple(ENDS.values()):
                if anew:
                    t = trainer(folder, compiled, workers)
                    if (folder / "last.safetensors").exists():  # else it had not begun
                        tw.random.seed(99)  # the checkpoint brings its own
                        t.resume()
        t.run(EPOCHS, QUIET)
        assert outcome(t) == wanted

    check()


@settings(max_examples=6, deadline=None, database=None)
@given(where=st.floats(0, 1))
def test_an_error_within_an_eager_step_undoes_it(where, tmp_path_factory):
    """The very trainer goes on, wherever it failed: in a step, in the loader, in validation."""
    wanted, lines = uninterrupted(tmp_path_factory.mktemp("whole"), False)

    def fail() -> None:
        raise MemoryError("of the test")

    t = trainer(None, False)
    at = At(1 + int(where * (lines - 400)), fail)
    try:
        at.run(t)
    except (MemoryError, DataError) as error:  # the loader names the samples that it happened with
        assert "of the test" in str(error)
    else:
        assert at.left > 0  # it was never its turn: once everything is compiled a run has fewer lines
        assert outcome(t) == wanted
        return
    if t.whole:
        t.run(EPOCHS, QUIET)
        assert outcome(t) == wanted
    else:  # while an epoch was being closed
        with pytest.raises(tw.ArgumentError, match="broken off half done"):
            t.run(EPOCHS, QUIET)


def test_a_compiled_step_that_fails_is_not_kept(tmp_path):
    t = trainer(tmp_path)
    t.run(1, QUIET)
    kept = outcome(t)[0]
    t.train.dataset.labels[:] = 7
    with pytest.raises(tw.IndexRangeError):
        t.run(2, QUIET)
    with pytest.raises(tw.ArgumentError, match=r"resume\(\) from the last checkpoint"):
        t.run(2, QUIET)
    t.train.dataset.labels[:] = LABELS
    t.resume()
    assert outcome(t)[0] == kept


def test_who_presses_ctrl_c_twice_does_not_wait_for_the_step(tmp_path):
    t = trainer(tmp_path)
    t.run(1, QUIET)
    step = t.progress.step
    plain, reached = t.step, []

    class Impatient:
        prepare = plain.prepare

        def __call__(self, *batch: Any) -> Any:
            result = plain(*batch)
            signal.raise_signal(signal.SIGINT)
            reached.append("after one")
            signal.raise_signal(signal.SIGINT)
            reached.append("after two")
            return result

    t.step = Impatient()
    with pytest.raises(KeyboardInterrupt):
        t.run(2, QUIET)
    assert reached == ["after one"] and not t.whole
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step == step


def test_handlers_are_put_back_and_other_peoples_are_kept():
    before = {number: signal.getsignal(number) for number in ENDS}
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with signals.sigterm_exits(), signals.held():
            signal.raise_signal(signal.SIGTERM)
            assert not seen
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt), signals.held():
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in ENDS} == before


def test_a_job_is_abandoned_where_sigterm_ends_one_process_alone(tmp_path, monkeypatch):
    """At the end of Python it would wait for the others' good-bye, and they for its next step."""
    codes = []
    monkeypatch.setattr(tw.distributed, "abandon", codes.append)
    t = trainer(tmp_path, compiled=False)
    count = t._count

    def told(*arguments: Any) -> None:
        count(*arguments)
        signal.raise_signal(signal.SIGTERM)

    t._count = told
    with pytest.raises(SystemExit):
        t.run(EPOCHS, QUIET)
    assert codes == [128 + signal.SIGTERM]
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step == 1


def test_half_written_checkpoints_of_a_killed_training_are_deleted(tmp_path):
    for name in (".last.safetensors.ab12.part", ".best.safetensors.cd34.part", ".other.safetensors.ef56.part"):
        (tmp_path / name).write_bytes(b"half")
    trainer(tmp_path).run(1, QUIET)
    assert [p.name for p in tmp_path.glob(".*.part")] == [".other.safetensors.ef56.part"]


def test_a_second_training_into_a_running_ones_folder_is_refused(tmp_path):
    """It would delete the checkpoint that the first one is writing; when the first one has ended, the folder is free."""
    first, second = trainer(tmp_path), trainer(tmp_path)
    plain = first._count

    def meanwhile(*counted):
        (tmp_path / ".last.safetensors.ab12.part").write_bytes(b"half")
        with pytest.raises(tw.ArgumentError, match="another training writes to .*give another output folder"):
            second.run(1, QUIET)
        assert (tmp_path / ".last.safetensors.ab12.part").exists()
        plain(*counted)

    first._count = meanwhile
    first.run(1, QUIET)
    trainer(tmp_path).run(1, QUIET)
    assert not list(tmp_path.glob(".*.part"))


def test_checkpoints_need_a_loader_that_knows_its_place(tmp_path):
    t = trainer(None)
    batches = list(t.train)
    with pytest.raises(tw.ArgumentError, match=r"a list cannot say its place; expected a DataLoader"):
        Trainer(t.model, batches, optimizer=t.optimizer, output=tmp_path)
    Trainer(t.model, batches, optimizer=t.optimizer).run(1, QUIET)


SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    import test_interrupts as t
    run = t.trainer({output!r}, workers=2)
    if {resume}:
        run.resume()
    plain = run._count
    def tell(*a):
        import time
        print("step", flush=True)
        plain(*a)
        time.sleep(0.2)
    run._count = tell
    run.run(t.EPOCHS, t.QUIET)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_process_that_is_told_to_end_leaves_its_last_step(number, code, tmp_path):
    def spawn(resume: bool) -> Any:
        text = textwrap.dedent(SCRIPT.format(folder=os.path.dirname(__file__), output=str(tmp_path), resume=resume))
        return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    process = spawn(False)
    for _ in range(3):
        assert process.stdout.readline() == "step\n", process.stderr.read()
    process.send_signal(number)
    assert (process.communicate(timeout=60), process.returncode)[1] == code
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step == 3
    process = spawn(True)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    t = trainer(tmp_path)
    t.resume()
    assert outcome(t) == uninterrupted(tmp_path, True)[0]
