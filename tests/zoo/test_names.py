"""State-dict names equal torchvision's, written out here from its definitions; weights load by them."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo
from twofold.io.weights import save_weights

BN = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def both(*paths: str) -> list[str]:
    return [f"{p}.{leaf}" for p in paths for leaf in ("weight", "bias")]


def norm(path: str) -> list[str]:
    return [f"{path}.{leaf}" for leaf in BN]


def vgg_names(convs: list[int], batch_norm: bool) -> list[str]:
    features = []
    for i in convs:
        features += both(f"features.{i}") + (norm(f"features.{i + 1}") if batch_norm else [])
    return features + both(*(f"classifier.{i}" for i in (0, 3, 6)))


def resnet_names(depths: tuple[int, ...], convs: int) -> list[str]:
    out = ["conv1.weight", *norm("bn1")]
    for stage, depth in enumerate(depths, 1):
        for b in range(depth):
            block = f"layer{stage}.{b}"
            for c in range(1, convs + 1):
                out += [f"{block}.conv{c}.weight", *norm(f"{block}.bn{c}")]
            if b == 0 and (stage > 1 or convs == 3):
                out += [f"{block}.downsample.0.weight", *norm(f"{block}.downsample.1")]
    return out + both("fc")


def densenet_names(depths: tuple[int, ...]) -> list[str]:
    out = ["features.conv0.weight", *norm("features.norm0")]
    for b, depth in enumerate(depths, 1):
        for n in range(1, depth + 1):
            layer = f"features.denseblock{b}.denselayer{n}"
            for c in (1, 2):
                out += [*norm(f"{layer}.norm{c}"), f"{layer}.conv{c}.weight"]
        if b < len(depths):
            out += [*norm(f"features.transition{b}.norm"), f"features.transition{b}.conv.weight"]
    return out + norm("features.norm5") + both("classifier")


def squeezenet_names(fires: tuple[int, ...]) -> list[str]:
    parts = ("squeeze", "expand1x1", "expand3x3")
    return both("features.0", *(f"features.{i}.{p}" for i in fires for p in parts), "classifier.1")


def googlenet_names(aux: bool) -> list[str]:
    unit = lambda path: [f"{path}.conv.weight", *norm(f"{path}.bn")]
    out = [n for c in ("conv1", "conv2", "conv3") for n in unit(c)]
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for branch in ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1"):
            out += unit(f"inception{name}.{branch}")
    for head in ("aux1", "aux2") if aux else ():
        out += unit(f"{head}.conv") + both(f"{head}.fc1", f"{head}.fc2")
    return out + both("fc")


VGG = {
    "vgg11": [0, 3, 6, 8, 11, 13, 16, 18],
    "vgg11_bn": [0, 4, 8, 11, 15, 18, 22, 25],
    "vgg13": [0, 2, 5, 7, 10, 12, 15, 17, 20, 22],
    "vgg13_bn": [0, 3, 7, 10, 14, 17, 21, 24, 28, 31],
    "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    "vgg16_bn": [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40],
    "vgg19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
    "vgg19_bn": [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49],
}
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2, 122),
    "resnet34": ((3, 4, 6, 3), 2, 218),
    "resnet50": ((3, 4, 6, 3), 3, 320),
    "resnet101": ((3, 4, 23, 3), 3, 626),
    "resnet152": ((3, 8, 36, 3), 3, 932),
    "wide_resnet50_2": ((3, 4, 6, 3), 3, 320),
    "resnext50_32x4d": ((3, 4, 6, 3), 3, 320),
    "resnext101_32x8d": ((3, 4, 23, 3), 3, 626),
    "resnext101_64x4d": ((3, 4, 23, 3), 3, 626),
}
NAMES = {
    "alexnet": both(*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6))),
    **{name: vgg_names(convs, name.endswith("_bn")) for name, convs in VGG.items()},
    **{name: resnet_names(depths, convs) for name, (depths, convs, _) in RESNETS.items()},
    "densenet121": densenet_names((6, 12, 24, 16)),
    "densenet161": densenet_names((6, 12, 36, 24)),
    "squeezenet1_0": squeezenet_names((3, 4, 5, 7, 8, 9, 10, 12)),
    "squeezenet1_1": squeezenet_names((3, 4, 6, 7, 9, 10, 11, 12)),
    "googlenet": googlenet_names(aux=False),
}
SHAPES = {
    "alexnet": {"features.0.weight": (64, 3, 11, 11), "classifier.1.weight": (4096, 9216)},
    "vgg16": {"classifier.0.weight": (4096, 25088)},
    "resnext50_32x4d": {
        "layer1.0.conv1.weight": (128, 64, 1, 1), "layer1.0.conv2.weight": (128, 4, 3, 3), "layer1.0.conv3.weight": (256, 128, 1, 1)
    },
    "googlenet": {"fc.weight": (1000, 1024), "inception3a.branch3.1.conv.weight": (32, 16, 3, 3)},
}  # fmt: skip


def bare(name: str, **options) -> nn.Module:
    with nn.init.skipped():
        return zoo.create(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_torchvisions(name):
    """The same names in the same order, by ``state_dict(keep_vars=True)``: nothing is copied."""
    state = bare(name).state_dict(keep_vars=True)
    assert list(state) == NAMES[name]
    if name in RESNETS:
        assert len(state) == RESNETS[name][2]
    for key, shape in SHAPES.get(name, {}).items():
        assert state[key].shape == shape


def test_googlenet_with_heads():
    model = bare("googlenet", aux_logits=True)
    state = model.state_dict(keep_vars=True)
    assert list(state) == googlenet_names(aux=True)
    assert (state["aux1.conv.conv.weight"].shape[1], state["aux2.conv.conv.weight"].shape[1]) == (512, 528)


def test_weights_by_name(tmp_path):
    """A file of ten classes: into ten, into the user's three (the classifier stays fresh), into another network."""
    tw.random.seed(3)
    source = zoo.create("squeezenet1_1", num_classes=10)
    path = tmp_path / "w.pth"
    save_weights(source, path)
    again = zoo.create("squeezenet1_1", num_classes=10, weights=path)
    for name, value in source.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value.numpy())
    other = zoo.create("squeezenet1_1", num_classes=3, weights=path).state_dict()
    assert other["classifier.1.weight"].shape == (3, 512, 1, 1)
    np.testing.assert_array_equal(
        other["features.3.squeeze.weight"].numpy(), source.state_dict()["features.3.squeeze.weight"].numpy()
    )
    with pytest.raises(tw.WeightsError, match="to zoo.create: the num_classes you want"):
        zoo.create("squeezenet1_1", weights=path)
    assert zoo.create("squeezenet1_1", 1000, weights=path).state_dict()["classifier.1.weight"].shape[0] == 1000
    with pytest.raises(tw.WeightsError, match="does not fit"):
        zoo.create("squeezenet1_0", num_classes=3, weights=path)


def test_another_networks_file_is_refused_even_with_other_classes(tmp_path):
    save_weights(zoo.create("wrn_16_8", num_classes=10), tmp_path / "w.safetensors")
    with pytest.raises(tw.WeightsError, match="another network"):
        zoo.create("wrn_16_8", 3, weights=tmp_path / "w.safetensors", in_channels=1)


def test_heads_of_a_googlenet_file_are_optional(tmp_path, caplog):
    """Told of, since nobody asked to leave them out."""
    save_weights(zoo.create("googlenet", aux_logits=True, num_classes=1000), tmp_path / "g.safetensors")
    model = zoo.create("googlenet", weights=tmp_path / "g.safetensors")
    assert not model.aux_logits and not model.transform_input
    assert "googlenet has no place for 20 of its entries: aux1.*, aux2.*" in caplog.text


def test_the_published_googlenet_file_is_known_by_its_name(tmp_path, caplog):
    """Its weights expect other images; in a state dict nothing tells (torchvision, too, goes by the name)."""
    source = zoo.create("googlenet", num_classes=1000)
    for name, expected in (("googlenet-1378be20.safetensors", True), ("mine.safetensors", False)):
        save_weights(source, tmp_path / name)
        assert zoo.create("googlenet", weights=tmp_path / name).transform_input is expected
        assert ("transform_input=True" in caplog.text) is expected
        caplog.clear()
    assert not zoo.create("googlenet", weights=tmp_path / "googlenet-1378be20.safetensors", transform_input=False).transform_input


def test_every_network_says_what_it_is():
    assert zoo.info("resnet50").about == "block=Bottleneck, depths=(3, 4, 6, 3)"
    assert zoo.info("wrn_28_10").about == "depth=28, width=10"
    for name in zoo.names():
        entry = zoo.info(name)
        assert entry.about and entry.about in entry.__doc__ and str(entry.paper) in entry.__doc__, name
