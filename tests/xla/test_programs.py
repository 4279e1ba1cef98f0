"""Programs, devices and memory on XLA's CPU device."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold.backends import device
from twofold.base.errors import DeviceError, IndexRangeError, TwofoldError

XLA = "xla:cpu"


def output_of(program: str, **options: Any) -> str:
    """What a Python program prints in a process of its own."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


def three_way(place: Any) -> list[Any]:
    """y = (x @ w).tanh().sum() and its gradient: eager, compiled, and as a graph with placeholders."""
    numbers = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    weight = np.linspace(0.5, -1, 6, dtype=np.float32).reshape(3, 2)

    def loss(x: Any, w: Any) -> Any:
        return (x @ w).tanh().sum()

    x = place(tw.tensor(numbers, requires_grad=True))
    w = place(tw.tensor(weight))
    slope = tw.grad(loss)
    compiled = tw.compile(slope)(x, w)
    with tw.Graph() as g:
        px, pw = tw.placeholder((None, 3), tw.float32, "x"), tw.placeholder((3, 2), tw.float32, "w")
        (gradient,) = tw.gradients(loss(px, pw), [px])
    fetched = tw.Session(g, devices=str(x.device)).run(gradient, {"x": numbers, "w": weight})
    return [slope(x, w).numpy(), compiled.numpy(), fetched]


def test_one_program_three_ways() -> None:
    expected = three_way(lambda t: t)[0]
    with tw.device(XLA):
        inside = three_way(lambda t: t)
    for got in [*inside, *three_way(lambda t: t.to(XLA))]:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_graph_runs_where_it_was_built_wherever_its_session_is() -> None:
    """The textbook's program: c = sum(x * y + z), placeholders under ``with device``, the session outside of it."""
    with tw.Graph() as inner, tw.device(XLA):
        x, y, z = (tw.placeholder((3, 4), tw.float32, name) for name in "xyz")
        c = (x * y + z).sum()
        gradients = tw.gradients(c, [x, y, z])
    with tw.device(XLA), tw.Graph() as outer:
        total = tw.placeholder((None,), tw.float32, "v").sum()
    numbers = {name: np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32) for i, name in enumerate("xyz")}
    session = tw.Session(inner)
    found, gx, gy, gz = session.run([c, *gradients], feed_dict=numbers)
    np.testing.assert_allclose(found, (numbers["x"] * numbers["y"] + numbers["z"]).sum(), rtol=1e-5)
    for got, want in ((gx, numbers["y"]), (gy, numbers["x"]), (gz, np.ones((3, 4)))):
        np.testing.assert_array_equal(got, want)
    other = tw.Session(outer)
    assert other.run(total, {"v": [1.0, 2.0]}) == 3.0
    for s in (session, other):
        assert {key[0] for runner, _ in s._runners.values() for key in runner.programs} == {XLA}
    with tw.device("reference"), pytest.raises(DeviceError, match="built on xla:cpu, and now inside .*reference"), inner:
        pass
    elsewhere = tw.Session(inner, devices="reference")
    np.testing.assert_allclose(elsewhere.run(c, numbers), found, rtol=1e-5)


def test_a_gradient_goes_back_to_where_its_tensor_is() -> None:
    x = tw.tensor(np.arange(3.0, dtype=np.float32), requires_grad=True, device="reference")
    (x.to(XLA) ** 2 * 2.0).sum().backward()
    assert x.grad is not None and x.grad.device == "reference" and x.grad.tolist() == [0.0, 4.0, 8.0]
    (slope,) = tw.gradients((x.to(XLA) ** 3).sum(), [x])
    (second,) = tw.gradients(slope.sum(), [x])
    assert second.device == "reference" and second.tolist() == [0.0, 6.0, 12.0]


def test_with_device_places_new_arrays_and_results() -> None:
    with tw.device(XLA):
        x = tw.ones((2, 2))
        y = tw.compile(lambda a: a + 1.0)(x)
    assert x.device == XLA and y.device == XLA and (x * 2.0).device == XLA
    assert x.cpu().device != XLA


@pytest.mark.parametrize("name", ["gpu", "cuda:1", "tpu", "xla:cpu:99", "xla", "gpu:all"])
def test_a_device_that_is_not_here_says_what_was_found_and_what_to_do(name: str) -> None:
    if name in [d.name for d in device(XLA).backend.devices()]:
        pytest.skip("it is here")
    with pytest.raises(DeviceError, match=r"is not here; the xla backend found: .*xla:cpu.*; ") as caught:
        tw.tensor([1.0]).to(name)
    advice = {"gpu": "pip install twofold", "cuda": "pip install twofold", "tpu": "jax", "xla": "xla:cpu"}
    assert advice[name.split(":")[0]] in str(caught.value)


def test_cuda_without_a_gpu_is_an_error_and_no_fall_back() -> None:
    with pytest.raises(DeviceError, match="nvidia-smi"):
        tw.tensor([1.0]).cuda()


def test_without_jax_the_error_names_the_extra_and_the_rest_works() -> None:
    program = """
import sys
sys.modules["jax"] = None
import twofold as tw
print(float(tw.tensor([1.0]).sum()))
try:
    tw.tensor([1.0]).to("gpu")
except tw.MissingDependencyError as error:
    print("pip install twofold[xla]" in str(error))
"""
    assert output_of(program) == "1.0\nTrue\n"


def test_importing_twofold_and_its_xla_backend_does_not_load_jax() -> None:
    program = "import sys, twofold, twofold.backends.xla; print('jax' in sys.modules)"
    assert output_of(program) == "False\n"


def test_gpu_memory_is_not_preallocated_unless_the_user_says_so() -> None:
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    program = f"import os; from twofold.backends import device; device('xla:cpu'); print(os.environ['{name}'])"
    for given, expected in ((None, "false"), ("true", "true")):
        environment = {k: v for k, v in os.environ.items() if k != name} | ({} if given is None else {name: given})
        assert output_of(program, env=environment).strip() == expected


def test_float64_is_kept_and_the_users_jax_settings_are_not_touched() -> None:
    import jax.numpy as jnp

    x = tw.tensor(np.array([1.0, 1e-12]), device=XLA)
    assert x.dtype is tw.float64 and abs(float((x * 3.0).sum()) - 3.0 - 3e-12) < 1e-15
    assert jnp.arange(3.0).dtype == jnp.float32


def test_state_is_updated_in_place() -> None:
    weight = tw.Variable(np.zeros(1024, np.float32), name="w", device=XLA)

    @tw.compile
    def step(x: Any) -> Any:
        weight.assign(weight + x)
        return weight.sum()

    step(tw.ones((1024,), device=XLA))
    place = weight._own.buffer.unsafe_buffer_pointer()
    gc.collect()
    assert float(step(tw.ones((1024,), device=XLA))) == 2048.0
    assert weight._own.buffer.unsafe_buffer_pointer() == place
    assert "1 of 1 state buffers updated in place" in step.report()


def test_somebody_elses_view_of_the_state_outlives_the_update() -> None:
    weight = tw.Variable(np.zeros(8, np.float32), device=XLA)
    step = tw.compile(lambda: weight.assign(weight + 1.0))
    before, array = weight.detach(), weight.numpy()
    step()
    assert before.tolist() == [0.0] * 8 and array.tolist() == [0.0] * 8 and weight.tolist() == [1.0] * 8


def test_the_callers_memory_is_copied() -> None:
    numbers = np.zeros(1024, np.float32)
    x = tw.tensor(numbers, device=XLA)
    numbers[:] = 7.0
    assert float(x.sum()) == 0.0


def test_variables_stay_where_the_program_ran() -> None:
    weight = tw.Variable(np.ones(3, np.float32))
    step = tw.compile(lambda x: weight.assign(weight * x), devices=XLA)
    step(np.full(3, 2.0, np.float32))
    step(np.full(3, 2.0, np.float32))
    assert weight.device == XLA and weight.tolist() == [4.0] * 3
    weight.move_("reference")
    assert weight.device == "reference" and weight.tolist() == [4.0] * 3


TABLE = np.arange(12.0, dtype=np.float32).reshape(4, 3)
BAD_INDEX = {
    "take": lambda x, i: tw.take(x, i, axis=0),
    "take_along_axis": lambda x, i: tw.take_along_axis(x, tw.broadcast_to(tw.reshape(i, (2, 1)), (2, 3)), axis=0),
    "in a branch": lambda x, i: tw.cond(x.sum() > 0.0, lambda: tw.take(x, i, axis=0), lambda: x[:2]),
    "in a loop": lambda x, i: tw.while_loop(lambda s: s.sum() < 1e3, lambda s: s + tw.take(x, i, axis=0), x[:2]),
}


@pytest.mark.parametrize("name", BAD_INDEX)
def test_an_index_out_of_range_is_an_error_eager_and_compiled(name: str) -> None:
    f = BAD_INDEX[name]
    x, bad, good = (tw.tensor(a, device=XLA) for a in (TABLE, np.array([1, 4]), np.array([1, -1])))
    expected = f(tw.tensor(TABLE, device="reference"), tw.tensor(np.array([1, -1]), device="reference"))
    compiled = tw.compile(f)
    for call in (f, compiled):
        with pytest.raises(IndexRangeError, match="index 4 is out of range for axis 0 of size 4; expected -4 <= index"):
            _numbers(call(x, bad))
        np.testing.assert_allclose(_numbers(call(x, good)), _numbers(expected), rtol=1e-6)


def _numbers(result: Any) -> np.ndarray:
    return (result[0] if isinstance(result, (tuple, list)) else result).numpy()


def test_random_bits_are_the_same_eager_compiled_and_on_the_reference() -> None:
    draw = lambda where: tw.random.uniform((5, 7), device=where)
    tw.random.seed(3)
    expected = [draw("reference").numpy() for _ in range(2)]
    tw.random.seed(3)
    assert all((draw(XLA).numpy() == e).all() for e in expected)
    tw.random.seed(3)
    compiled = tw.compile(lambda: tw.random.uniform((5, 7)), devices=XLA)
    assert all((compiled().numpy() == e).all() for e in expected)
    tw.random.generator().move_("cpu")


def test_dlpack_shares_memory_with_jax_and_numpy() -> None:
    import jax

    x = tw.tensor(np.arange(6.0, dtype=np.float32), device=XLA)
    assert np.from_dlpack(x).tolist() == list(range(6))
    assert jax.dlpack.from_dlpack(x).tolist() == list(range(6))
    assert tw.from_dlpack(x).tolist() == list(range(6))


def test_running_out_of_memory_says_what_to_do() -> None:
    from twofold.backends.xla.runtime import translated

    error = translated(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"), "step")
    assert isinstance(error, tw.OutOfMemoryError) and "smaller batch" in str(error)
    assert type(translated(RuntimeError("INTERNAL: other"), "step")) is TwofoldError
