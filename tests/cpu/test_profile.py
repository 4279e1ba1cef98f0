"""Recordings of real steps: every call on every thread, in order, with what it touches."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.backends.cpu import profile
from twofold.backends.cpu.calibrate import Rates
from twofold.nn import functional as F

RATES = Rates(fma=100.0, read=10.0, write=10.0, threads=2)


@pytest.fixture(scope="module")
def recording():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_NUM_THREADS", "2")
        tw.random.seed(0)
        with tw.device("cpu"):
            model = tw.zoo.create("lenet5")
            optimizer = tw.optim.SGD(model.parameters(), lr=0.1)

            @tw.compile
            def step(x, y):
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                return loss

            arguments = tw.ones((16, 1, 28, 28)), tw.tensor(np.arange(16) % 10)
            step(*arguments)
            before = [p.numpy().copy() for p in model.parameters()]
            found = profile.of(step, arguments, rounds=2)
            assert all(np.array_equal(a, p.numpy()) for a, p in zip(before, model.parameters())), "a recording trains"
            return found


def test_times_are_in_order_on_every_thread(recording):
    assert recording.threads == 2 and len(recording.spans) > 10
    ends = np.zeros(2)
    for span in recording.spans:
        assert span.times.shape == (2, 3)
        arrived, started, ended = span.times.T
        assert (arrived >= ends).all() and (started >= arrived).all() and (ended >= started).all()
        ends = ended
    assert 0 < ends.max() <= recording.seconds


def test_nobody_passes_a_barrier_before_all_have_arrived(recording):
    waits = [s for s in recording.spans if s.waited.any()]
    assert waits
    for span in waits:
        assert span.times[:, 1].min() >= span.times[:, 0].max()


def test_kernels_name_their_ops_and_layers(recording):
    convolutions = [s for s in recording.spans if "conv2" in s.layers and s.flops]
    assert convolutions and all("conv" in s.ops for s in convolutions)
    assert sum(s.flops for s in recording.spans) > 2 * 16 * 3 * 240_000  # the two convolutions alone, three passes of most
    first = convolutions[0]
    assert first.read > 16 * 6 * 14 * 14 * 4 and first.written > 0


def test_rows_add_up_and_waiting_is_told(recording):
    rows = recording.rows()
    assert sum(r.calls for r in rows) == len(recording.spans)
    assert sum(r.seconds for r in rows) <= 2.5 * recording.seconds
    assert [r.seconds for r in rows] == sorted((r.seconds for r in rows), reverse=True)
    text = profile.table(recording, RATES)
    assert "waiting" in text.splitlines()[0] and "ms a step on 2 threads" in text.splitlines()[-1]
    assert rows[0].share(RATES) == RATES.least_seconds(rows[0].flops, rows[0].read, rows[0].written) / rows[0].seconds


def test_the_trace_has_a_row_for_each_thread(recording):
    events = profile.chrome_trace(recording, "lenet5")["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"thread 0", "thread 1"}
    kernels = [e for e in events if e.get("cat") == "kernel"]
    assert len(kernels) == 2 * len(recording.spans) and {e["tid"] for e in kernels} == {0, 1}
    assert any(e["args"]["gflops"] > 0 and "conv1" in e["args"]["layers"] for e in kernels)
    assert any(e.get("cat") == "barrier" for e in events)


def test_parts_in_python_are_spans_too():
    with tw.device("cpu"):
        f = tw.compile(lambda x: tw.sort(x * 2.0) + 1.0)
        x = tw.tensor(np.random.default_rng(0).standard_normal(100).astype(np.float32))
        f(x)
        spans = profile.of(f, (x,), rounds=1).spans
    assert any("in Python" in s.note for s in spans) and len(spans) >= 3
    ordered = [s.times[0, 1] for s in spans]
    assert ordered == sorted(ordered)
