"""Every network that torchvision has, against torchvision's own definitions: optional, where torchvision is installed.

Names, shapes, counts; scores, gradients and statistics in float64 (a difference is one of definition, not of rounding);
files both ways. What holds without torchvision is in ``test_names.py`` (names) and ``test_golden.py`` (values).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo
from twofold.io.weights import save_weights

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

OURS = sorted(set(torchvision.models.list_models(module=torchvision.models)) & set(zoo.names()))
CLASSES = 7


def theirs_of(name: str, **options: Any) -> Any:
    """torchvision's module."""
    if name == "googlenet":
        options = {"init_weights": False, "aux_logits": False} | options
    return getattr(torchvision.models, name)(**options)


def bare(name: str, *args: Any, **options: Any) -> nn.Module:
    with nn.init.skipped():
        return zoo.create(name, *args, **options)


def without_dropout(parts: Iterable[Any]) -> None:
    for part in parts:
        if isinstance(part, nn.Dropout | torch.nn.Dropout):
            part.p = 0.0


def randomised(name: str, **options: Any) -> Any:
    """torchvision's module, float64, with weights that keep signals in size, and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    model = theirs_of(name, num_classes=CLASSES, **options)
    without_dropout(model.modules())
    for entry, value in model.state_dict().items():
        if entry.endswith("num_batches_tracked"):
            continue
        noise = torch.rand(value.shape, generator=generator) * 2 - 1
        if value.ndim > 1:
            value.copy_(noise * (6 / value[0].numel()) ** 0.5)
        else:
            value.copy_(1 + 0.5 * noise if entry.endswith(("weight", "running_var")) else 0.1 * noise)
    return model.double()


def twin(name: str, theirs: Any, **options: Any) -> nn.Module:
    """Our module with the values of torchvision's."""
    ours = bare(name, CLASSES, **options).to(dtype="float64")
    ours.load_state_dict({n: tw.tensor(v.numpy()) for n, v in theirs.state_dict().items()})
    without_dropout(ours.modules())
    return ours


def close(got: Any, expected: Any, what: str, floor: float = 0.0) -> None:
    """To 1e-8 of the largest number, float64 through two hundred layers; numbers below ``floor`` are rounding alone."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, what
    worst = np.abs(got - expected).max() / max(np.abs(expected).max(), 1e8 * floor, 1e-30)
    assert worst <= 1e-8, f"{what}: {worst:.1e} of the largest number"


def label(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *case[1]])


def test_networks_in_common():
    """The whole of AlexNet, VGG, GoogLeNet, ResNet and its kin, DenseNet, SqueezeNet."""
    families = ("alexnet", "vgg", "googlenet", "resnet", "wide_resnet", "resnext", "densenet", "squeezenet")
    theirs = torchvision.models.list_models(module=torchvision.models)
    assert [n for n in theirs if n.startswith(families) and n not in zoo.names()] == []
    assert len(OURS) == 26


@pytest.mark.parametrize("case", [(name, {}) for name in OURS] + [("googlenet", {"aux_logits": True})], ids=label)
def test_names_shapes_and_counts(case):
    name, options = case
    with torch.device("meta"):
        theirs = theirs_of(name, **options)
    ours = bare(name, **options)
    expected = [(n, tuple(v.shape)) for n, v in theirs.state_dict().items()]
    assert [(n, tuple(v.shape)) for n, v in ours.state_dict(keep_vars=True).items()] == expected
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert ours.num_parameters() == sum(p.numel() for p in theirs.parameters())
    if not options:
        assert ours.num_parameters() == zoo.info(name).params


CASES = [(name, {}) for name in OURS] + [
    ("googlenet", {"aux_logits": True}), ("googlenet", {"aux_logits": True, "transform_input": True}),
    ("resnet18", {"zero_init_residual": True}), ("densenet121", {"memory_efficient": True}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=label)
def test_scores_gradients_and_statistics(case):
    name, options = case
    theirs = randomised(name, **options)
    ours = twin(name, theirs, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 3, 64, 64))
    with torch.no_grad(), tw.no_grad():
        close(ours.eval()(tw.tensor(x)).numpy(), theirs.eval()(torch.tensor(x)).numpy(), "scores in evaluation")
    inputs = tw.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    pairs = ours.train()(inputs[0]), theirs.train()(inputs[1])
    pairs = list(zip(*pairs)) if isinstance(pairs[1], tuple) else [pairs]
    weights = [rng.normal(size=tuple(scores.shape)) for _, scores in pairs]
    sum((scores * tw.tensor(w)).sum() for (scores, _), w in zip(pairs, weights)).backward()
    sum((scores * torch.tensor(w)).sum() for (_, scores), w in zip(pairs, weights)).backward()
    for i, (got, expected) in enumerate(pairs):
        close(got.numpy(), expected.detach().numpy(), f"scores {i} in training")
    close(inputs[0].grad.numpy(), inputs[1].grad.numpy(), "the images' gradient")
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    # the gradient of a bias before batch normalisation is nothing but rounding
    floor = 1e-12 * max(g.abs().max().item() for g in gradients.values())
    for n, p in ours.named_parameters():
        close(p.grad.numpy(), gradients[n].numpy(), f"gradient of {n}", floor)
    if "memory_efficient" in options:  # torchvision's statistics move twice a step: again when maps are recomputed
        return
    buffers = dict(theirs.named_buffers())
    assert set(buffers) == {n for n, _ in ours.named_buffers()}
    for n, b in ours.named_buffers():
        close(b.numpy(), buffers[n].numpy(), n)


def test_golden_files_are_torchvisions():
    import make_golden

    for name in make_golden.NETWORKS:
        with np.load(make_golden.GOLDEN / f"{name}.npz") as golden:
            fresh = make_golden.record(name)
            assert set(golden) == set(fresh)
            for key, value in fresh.items():
                np.testing.assert_allclose(golden[key], value, rtol=1e-7, atol=1e-9, err_msg=f"{name}: {key}")


def torch_file(state: dict[str, Any], path: Path, kind: str) -> Path:
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


FILES = ["alexnet", "vgg11_bn", "googlenet", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "squeezenet1_0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_their_files_load_and_ours_load_into_theirs(name, tmp_path):
    options = {"aux_logits": True} if name == "googlenet" else {}
    theirs = theirs_of(name, num_classes=10, **options).eval()
    state = theirs.state_dict()
    for kind in ("zip", "legacy", "safetensors"):
        path = torch_file(state, tmp_path / ("w.safetensors" if kind == "safetensors" else f"{kind}.pth"), kind)
        ours = zoo.create(name, 10, weights=path, **options)
        for n, v in ours.state_dict().items():
            np.testing.assert_array_equal(v.numpy(), state[n].numpy(), err_msg=f"{kind}: {n}")
        path.unlink()
    path = torch_file(state, tmp_path / "ten.pth", "zip")
    three = zoo.create(name, 3, weights=path, **options)
    assert three.eval()(tw.zeros((1, 3, 64, 64))).shape == (1, 3)
    with pytest.raises(tw.WeightsError, match="reshaped='keep'"):
        zoo.create(name, weights=path, **options)
    path.unlink()
    fresh = zoo.create(name, 10, **options)
    values = {n: v.numpy() for n, v in fresh.state_dict().items()}
    save_weights(fresh, tmp_path / "o.pth")
    save_weights(fresh, tmp_path / "o.safetensors")
    from safetensors.torch import load_file

    for loaded in (torch.load(tmp_path / "o.pth", weights_only=True), load_file(tmp_path / "o.safetensors")):
        theirs.load_state_dict(loaded, strict=True)
        for n, v in theirs.state_dict().items():
            np.testing.assert_array_equal(v.numpy(), values[n], err_msg=n)
