"""Every network's parameters, multiply-adds and stages against the published arithmetic. Nothing is run: weights are not
even drawn, and shapes come from the traced graph."""

from __future__ import annotations

import pytest

import twofold as tw
from twofold import nn, zoo

NAMES = zoo.names()
SLOW = {"resnet1202_cifar", "preact_resnet1001_cifar"}  # thousands of layers: several seconds to trace


def bare(name: str, *args, **options) -> nn.Module:
    """A network whose weights are not drawn."""
    with nn.init.skipped():
        return zoo.create(name, *args, **options)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
def test_parameters_and_multiply_adds(name):
    entry = zoo.info(name)
    summary = tw.summary(bare(name), entry.input_shape)
    assert (summary.parameters, summary.multiply_adds) == (entry.params, entry.macs)
    assert summary.output_shape("") == (1, entry.classes)


# Options of a network, and its parameters (and multiply-adds) with them
VARIANTS = {
    "AlexNet without groups": ("alexnet_2012", {"groups": 1}, 62_378_344, 1_135_256_096),
    "GoogLeNet 2014 without heads": ("googlenet_2014", {"aux_logits": False}, 6_998_552, 1_582_671_872),
    "torchvision's GoogLeNet with heads": ("googlenet", {"aux_logits": True}, 13_004_888, 1_498_376_192),
    "ResNet-50 v1": ("resnet50", {"stride_first": True}, 25_557_032, 3_857_973_248),
    "ResNet-101 v1": ("resnet101", {"stride_first": True}, 44_549_160, 7_570_194_432),
    "ResNet-34 option A": ("resnet34", {"shortcut": "A"}, 21_623_848, 3_644_493_824),
    "ResNet-20 option B": ("resnet20_cifar", {"shortcut": "B"}, 272_474, None),
    "ResNet-56 option B": ("resnet56_cifar", {"shortcut": "B"}, 855_770, None),
    "ResNet-20, 100 classes": ("resnet20_cifar", {"num_classes": 100}, 275_572, None),
    "NiN, 100 classes": ("nin_cifar10", {"num_classes": 100}, 984_356, 223_592_448),
    "WRN-28-10, 100 classes": ("wrn_28_10", {"num_classes": 100}, 36_536_884, None),
    "pre-activation ResNet-164, 100 classes": ("preact_resnet164_cifar", {"num_classes": 100}, 1_726_388, None),
    "ResNeXt-29, 100 classes": ("resnext29_8x64d", {"num_classes": 100}, 34_518_948, None),
    "DenseNet-40, 100 classes": ("densenet40_k12", {"num_classes": 100}, 1_060_132, None),
    "DenseNet-BC-100, 100 classes": ("densenet_bc_100_12", {"num_classes": 100}, 800_032, 287_960_472),
    "FractalNet, 100 classes": ("fractalnet20_cifar", {"num_classes": 100}, 33_770_788, None),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_options(case):
    name, options, params, macs = VARIANTS[case]
    summary = tw.summary(bare(name, **options), zoo.info(name).input_shape)
    assert summary.parameters == params
    assert macs is None or summary.multiply_adds == macs


def test_families_beyond_the_table():
    """The classes make the papers' other networks, too."""
    from twofold.zoo.densenet import DenseNet
    from twofold.zoo.fractalnet import FractalNet
    from twofold.zoo.resnet import Bottleneck, ResNet
    from twofold.zoo.resnext import CifarResNeXt
    from twofold.zoo.wide_resnet import WideResNet

    ultra = {"channels": (16, 32, 64, 128, 128), "num_classes": 100}
    cases = [
        (ResNet, {"block": Bottleneck, "depths": (3, 4, 23, 3), "groups": 32, "base_width": 4}, 44_177_704),
        (ResNet, {"block": Bottleneck, "depths": (3, 4, 23, 3), "groups": 64, "base_width": 4}, 83_455_272),
        (CifarResNeXt, {"groups": 16}, 68_155_210),
        (WideResNet, {"depth": 28, "width": 2}, 1_467_610),
        (WideResNet, {"depth": 22, "width": 8}, 17_158_106),
        (DenseNet, {"depths": (6, 12, 64, 48)}, 33_337_704),
        (DenseNet, {"depths": (32, 32, 32), "growth": 12, "first": 16, "bottleneck": False, "theta": 1.0, "stem": "cifar",
                    "num_classes": 10}, 6_979_642),
        (FractalNet, {"columns": 1, **ultra}, 258_292),
        (FractalNet, {"columns": 4, **ultra}, 4_778_820),
        (FractalNet, {"columns": 4}, 76_106_634),
    ]  # fmt: skip
    with nn.init.skipped():
        for make, options, params in cases:
            assert make(**options).num_parameters() == params, (make, options)


# network -> parameters below a path
STAGES = {
    "resnet18": {"layer1": 147_968, "layer2": 525_568, "layer3": 2_099_712, "layer4": 8_393_728, "fc": 513_000},
    "resnet50": {"layer1": 215_808, "layer2": 1_219_584, "layer3": 7_098_368, "layer4": 14_964_736, "layer1.0": 75_008},
    "wide_resnet50_2": {"layer1": 634_368, "layer4": 41_971_712, "layer2.1": 854_016},
    "resnext50_32x4d": {"layer1": 205_824, "layer3": 7_022_592, "layer3.0": 1_390_592},
    "densenet121": {
        "features.denseblock1": 335_040,
        "features.transition2": 132_096,
        "features.denseblock4": 2_158_080,
    },
    "googlenet_2014": {"inception3a": 163_696, "inception5b": 1_444_080, "aux1": 3_188_840, "aux2": 3_190_888},
    "googlenet": {"inception3a": 155_872, "inception4e": 803_840, "conv1": 9_536},
    "squeezenet1_0": {"features.3": 11_920, "features.12": 197_184, "classifier": 513_000},
    "lenet5_1998": {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164},
    "wrn_28_10": {"layer1": 1_640_672, "layer2": 6_968_000, "layer3": 27_862_400},
    "fractalnet20_cifar": {"blocks.0": 153_536, "blocks.4": 16_522_240},
}


@pytest.mark.parametrize("name", STAGES)
def test_parameters_of_stages(name):
    model = bare(name)
    assert {p: model.get_submodule(p).num_parameters() for p in STAGES[name]} == STAGES[name]


# network -> (input, shapes that layers give)
SHAPES = {
    "alexnet": ((3, 224, 224), {"features.0": (64, 55, 55), "features.5": (192, 13, 13), "features.12": (256, 6, 6)}),
    "alexnet_2012": ((3, 227, 227), {"features.conv1": (96, 55, 55), "features.pool1": (96, 27, 27), "features.pool5": (256, 6, 6)}),
    "zfnet": ((3, 224, 224), {"features.conv1": (96, 110, 110), "features.pool1": (96, 55, 55), "features.conv2": (256, 26, 26),
                              "features.pool2": (256, 13, 13), "features.pool5": (256, 6, 6)}),
    "vgg16": ((3, 224, 224), {"features.4": (64, 112, 112), "features.30": (512, 7, 7)}),
    "nin_cifar10": ((3, 32, 32), {"pool1": (96, 16, 16), "pool2": (192, 8, 8), "cccp6": (10, 8, 8)}),
    "nin_imagenet": ((3, 224, 224), {"conv1": (96, 54, 54), "pool1": (96, 27, 27), "pool2": (256, 13, 13), "cccp8": (1000, 6, 6)}),
    "googlenet": ((3, 224, 224), {"conv1": (64, 112, 112), "maxpool2": (192, 28, 28), "inception3b": (480, 28, 28),
                                  "inception4e": (832, 14, 14), "inception5b": (1024, 7, 7)}),
    "resnet50": ((3, 224, 224), {"maxpool": (64, 56, 56), "layer1": (256, 56, 56), "layer2": (512, 28, 28),
                                 "layer3": (1024, 14, 14), "layer4": (2048, 7, 7)}),
    "resnet20_cifar": ((3, 32, 32), {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}),
    "squeezenet1_0": ((3, 224, 224), {"features.0": (96, 109, 109), "features.2": (96, 54, 54), "features.6": (256, 27, 27),
                                      "features.12": (512, 13, 13)}),
    "squeezenet1_1": ((3, 227, 227), {"features.0": (64, 113, 113), "features.2": (64, 56, 56), "features.12": (512, 14, 14)}),
    "densenet121": ((3, 224, 224), {"features.denseblock1": (256, 56, 56), "features.transition1": (128, 28, 28),
                                    "features.norm5": (1024, 7, 7)}),
    "fractalnet20_cifar": ((3, 32, 32), {"blocks.0": (64, 16, 16), "blocks.4": (512, 1, 1)}),
    "fractalnet34_imagenet": ((3, 224, 224), {"stem": (64, 56, 56), "blocks.0": (128, 28, 28), "blocks.3": (1024, 4, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_output_shapes_of_stages(name):
    shape, expected = SHAPES[name]
    summary = tw.summary(bare(name), shape)
    assert {path: summary.output_shape(path)[1:] for path in expected} == expected


def test_figures_of_the_lecture():
    """CS231n's numbers: AlexNet's CONV1, VGG-16's parameters and memory for an image, inception with and without 1x1."""
    alexnet, vgg = tw.summary(bare("alexnet_2012"), (3, 227, 227)), tw.summary(bare("vgg16"), (3, 224, 224))
    conv1 = next(r for r in alexnet.rows if r.name == "features.conv1")
    assert conv1.output == (1, 96, 55, 55)
    assert conv1.parameters - 96 == 34_848
    assert vgg.activation_bytes == 4 * 15_237_608
    assert next(r for r in vgg.rows if r.name == "classifier.0").multiply_adds == 102_760_448
    numbers = (256, 128, 64, 192, 64, 96, 64)
    naive = tw.summary(zoo.Inception(*numbers, bottlenecks=False), (256, 28, 28))
    narrow = tw.summary(zoo.Inception(*numbers), (256, 28, 28))
    assert (naive.multiply_adds, narrow.multiply_adds) == (854_196_224, 271_351_808)
    assert (zoo.Inception(*numbers, bottlenecks=False).out_channels, zoo.Inception(*numbers).out_channels) == (672, 480)


def test_lenet_1998_has_the_papers_connections():
    from twofold.zoo.lenet5 import C3_TABLE

    assert sum(map(len, C3_TABLE)) == 60
    assert len(set(C3_TABLE)) == 16
    links = 156 * 28 * 28 + 5 * 6 * 14 * 14 + 1_516 * 10 * 10 + 5 * 16 * 5 * 5 + 48_120 + 10_164 + 840
    assert links == 340_908


def test_summary_prints_and_leaves_modes_alone():
    model = bare("googlenet", aux_logits=True)
    model.fc._training = False
    summary = tw.summary(model, (3, 224, 224))
    assert model.training and not model.fc.training
    text = str(summary)
    assert "inception3a.branch1.conv" in text and "13,004,888" in text
    assert summary.as_dict()["parameters"] == 13_004_888
    with pytest.raises(tw.ArgumentError, match="no layer 'layer9'"):
        summary.output_shape("layer9")
    with pytest.raises(tw.ShapeError, match="conv1"):
        tw.summary(model, (1, 224, 224))
