"""What makes some networks special: blocks and paths left out, maps computed twice, identities, and the registry's care."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo
from twofold.nn import functional as F
from twofold.zoo.densenet import DenseNet
from twofold.zoo.fractalnet import FractalBlock, FractalNet
from twofold.zoo.stochastic_depth import StochasticBlock, StochasticDepthResNet


def noise(*shape: int, seed: int = 0) -> tw.Tensor:
    return tw.tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def step_of(model: nn.Module, optimizer) -> object:
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def trained(make, compiled: bool, steps: int = 4) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and final state of a few steps, from the same seed."""
    tw.random.seed(5)
    model = make()
    optimizer = tw.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = step_of(model, optimizer)
    step = tw.compile(step) if compiled else step
    losses = [float(step(noise(4, 3, 8, 8, seed=i), tw.tensor([0, 1, 2, 3]))) for i in range(steps)]
    return losses, {name: value.numpy() for name, value in model.state_dict().items()}


# ---- stochastic depth --------------------------------------------------------------------------------------------------


def test_survival_falls_linearly():
    with nn.init.skipped():
        model = zoo.create("resnet110_stochastic_depth")
    survival = [m.survival for m in model.modules() if isinstance(m, StochasticBlock)]
    assert len(survival) == 54
    assert survival[0] == pytest.approx(53.5 / 54) and survival[-1] == pytest.approx(0.5)
    assert sum(survival) == pytest.approx(40.25)


def test_a_dropped_block_is_not_run():
    block = StochasticBlock(16, 16, shortcut="A-average").train()
    block.survival = 0.0
    x = noise(2, 16, 4, 4)
    calls = []
    block.conv1.register_forward_hook(lambda *_: calls.append(1))
    np.testing.assert_array_equal(block(x).numpy(), np.maximum(x.numpy(), 0))
    assert calls == []
    assert int(block.bn1.num_batches_tracked.numpy()) == 0
    block.survival = 1.0
    block(x)
    assert calls == [1] and int(block.bn1.num_batches_tracked.numpy()) == 1


def test_the_static_graph_branches():
    """Both branches are in the graph under one cond; the convolutions are in one of them, and nowhere else."""
    block = StochasticBlock(16, 16, shortcut="A-average").train()
    block.survival = 0.5
    graph = tw.compile(block).graph(noise(2, 16, 4, 4))
    (cond,) = [node for node in graph.nodes if node.op.name == "cond"]
    count = lambda nodes: sum(node.op.name == "conv" for node in nodes)
    assert (count(cond.attrs["true"].nodes), count(cond.attrs["false"].nodes), count(graph.nodes)) == (2, 0, 0)


def test_expectation_at_test_time():
    """For a linear chain after the branch the mean over gates is the test rule: p * branch + skip."""
    block = StochasticBlock(16, 16, shortcut="A-average").eval()
    block.survival = 0.25
    x = noise(2, 16, 4, 4)
    expected = np.maximum(0.25 * block.branch(x).numpy() + x.numpy(), 0)
    np.testing.assert_allclose(block(x).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StochasticDepthResNet(num_classes=4, depth=20, last_survival=0.3),
        lambda: FractalNet(num_classes=4, channels=(8, 16), columns=3, dropouts=(0.0, 0.2)),
    ],
    ids=["stochastic depth", "drop-path"],
)
def test_training_is_the_same_eager_and_compiled(make):
    """The same seed drops the same blocks, dropout and batch statistics included."""
    (eager, eager_state), (compiled, compiled_state) = trained(make, False), trained(make, True)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)
    for name, value in eager_state.items():
        np.testing.assert_allclose(compiled_state[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_parameters_of_dropped_blocks_have_zero_gradients():
    tw.random.seed(2)
    model = StochasticDepthResNet(num_classes=4, depth=20, last_survival=0.0, decay="uniform")
    F.cross_entropy(model(noise(2, 3, 8, 8)), tw.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.grad.numpy().any() for p in model.layer2.parameters())
    assert model.conv1.weight.grad.numpy().any()


# ---- FractalNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_columns_meet_where_the_rule_says(columns):
    block = FractalBlock(3, 8, columns, 0.0, nn.MaxPool2d(2), True)
    units = sum(1 for _ in block.named_children()) - 1  # the pooling aside
    assert units == 2**columns - 1
    inputs = [len(block.ending(row)) for row in range(1, block.rows + 1)]
    assert inputs == {1: [1], 2: [1, 2], 3: [1, 2, 1, 3], 4: [1, 2, 1, 3, 1, 2, 1, 4]}[columns]


def alive(block: FractalBlock, keep) -> dict:
    return {(r, c): tw.tensor(keep(r, c)) for r in range(1, block.rows + 1) for c in block.ending(r)}


@pytest.mark.parametrize("pool_first", [True, False])
@pytest.mark.parametrize("column", [1, 2, 3])
def test_one_column_is_a_plain_network(column, pool_first):
    block = FractalBlock(3, 8, 3, 0.0, nn.MaxPool2d(2), pool_first).eval()
    x = noise(2, 3, 8, 8)
    expected = x
    for row in range(1, block.rows + 1):
        if column in block.ending(row):
            expected = getattr(block, f"conv{column}_{row}")(expected)
    ran = []
    for name, unit in block.named_children():
        unit.register_forward_hook(lambda *_, name=name: ran.append(name))
    got = block(x, alive(block, lambda _, c: c == column))
    np.testing.assert_allclose(got.numpy(), F.max_pool2d(expected, 2).numpy(), rtol=1e-5, atol=1e-6)
    assert sum(name.startswith("conv") for name in ran) == 2 ** (column - 1)


def test_with_all_paths_alive_a_join_is_the_mean():
    block = FractalBlock(3, 8, 3, 0.0, nn.MaxPool2d(2), True).eval()
    x = noise(2, 3, 8, 8)
    np.testing.assert_allclose(block(x, alive(block, lambda *_: True)).numpy(), block(x).numpy(), rtol=1e-5, atol=1e-6)


def test_local_drop_path_keeps_one():
    from twofold.zoo.fractalnet import DropPath

    tw.random.seed(1)
    draws = np.stack([DropPath(3, local=0.9)._local(3).numpy() for _ in range(200)])
    assert draws.any(axis=1).all()
    assert 0.3 < draws[draws.sum(axis=1) == 1].argmax(axis=1).mean() / 2 < 0.7  # the saved one is no favourite
    draws = np.stack([DropPath(3)._local(3).numpy() for _ in range(300)])
    assert abs(draws.mean() - 0.85) < 0.05


# ---- DenseNet, ResNet, AlexNet -----------------------------------------------------------------------------------------


def test_a_dense_block_begins_with_its_input():
    block = zoo.create("densenet_bc_100_12").features.denseblock1.eval()
    x = noise(1, 24, 4, 4)
    y = block(x).numpy()
    assert y.shape == (1, 216, 4, 4)
    np.testing.assert_array_equal(y[:, :24], x.numpy())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_memory_efficient_densenet_trains_alike(compiled):
    make = lambda again: (
        lambda: DenseNet(4, depths=(3, 3), growth=4, first=8, stem="cifar", memory_efficient=again, theta=0.5)
    )
    (plain, plain_state), (again, again_state) = trained(make(False), compiled), trained(make(True), compiled)
    np.testing.assert_allclose(again, plain, rtol=1e-4)
    for name, value in plain_state.items():
        np.testing.assert_allclose(again_state[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_dense_nets_drop_after_every_convolution_but_the_first():
    """As the authors' code: after both of a layer's, and after a transition's."""
    model = DenseNet(4, depths=(2, 3, 2), growth=4, first=8, stem="cifar", dropout=0.2)
    ran = []
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Dropout):
            assert not isinstance(part, nn.Dropout) or part.p == 0.2
            part.register_forward_hook(lambda part, *_: ran.append(type(part).__name__))
    model(noise(1, 3, 8, 8))
    assert ran == ["Conv2d", *(["Conv2d", "Dropout"] * (7 * 2 + 2))]


def test_nin_pools_as_its_authors_files():
    """cuda-convnet's NIN/cifar-10_def has "pool=max" twice; the Caffe model of 2014 has the average second."""
    model = zoo.create("nin_cifar10").eval()
    x = noise(1, 192, 16, 16)
    np.testing.assert_array_equal(model.pool2(x).numpy(), F.max_pool2d(x, 3, 2, ceil_mode=True).numpy())
    average = zoo.create("nin_cifar10", pool2="avg").eval()
    np.testing.assert_array_equal(average.pool2(x).numpy(), F.avg_pool2d(x, 3, 2, ceil_mode=True).numpy())
    with pytest.raises(tw.ArgumentError, match="pool2='mean'; expected one of 'max', 'avg'"):
        zoo.create("nin_cifar10", pool2="mean")


def test_with_zero_branches_a_stage_is_its_shortcuts():
    model = zoo.create("resnet18", zero_init_residual=True, small_input=True).eval()
    x = noise(1, 64, 8, 8)
    np.testing.assert_array_equal(model.layer1(x).numpy(), np.maximum(x.numpy(), 0))


def test_padded_shortcut():
    from twofold.zoo.shortcuts import PaddedShortcut

    x = noise(1, 2, 4, 4)
    y = PaddedShortcut(2, 5, 2)(x).numpy()
    np.testing.assert_array_equal(y[:, :2], x.numpy()[:, :, ::2, ::2])
    assert y.shape == (1, 5, 2, 2) and not y[:, 2:].any()
    mean = PaddedShortcut(2, 5, 2, average=True)(x).numpy()[:, :2]
    np.testing.assert_allclose(mean, x.numpy().reshape(1, 2, 2, 2, 2, 2).mean(axis=(3, 5)), rtol=1e-5, atol=1e-6)


def test_alexnets_normalisation_has_the_papers_constants():
    from twofold.zoo.alexnet import paper_norm

    assert paper_norm()(tw.ones((1, 5, 1, 1))).numpy()[0, 2, 0, 0] == pytest.approx(1 / (2 + 5e-4) ** 0.75, rel=1e-5)


# ---- LeNet-5 of 1998 ---------------------------------------------------------------------------------------------------


def test_lenet_1998_by_hand():
    """C3's first map against a direct sum over the maps it reads; S2; distances; the criterion."""
    from twofold.zoo.lenet5 import C3_TABLE, squash

    assert squash(tw.tensor([1.0, -1.0])).numpy() == pytest.approx([0.9999973, -0.9999973], abs=1e-6)
    model = zoo.create("lenet5_1998").eval()
    maps = noise(1, 6, 5, 5)
    got, w = model.c3(maps).numpy()[0, :, 0, 0], [p.weight.numpy() for p in model.c3.parts]
    kernels = [k for part in w for k in part]
    biases = np.concatenate([p.bias.numpy() for p in model.c3.parts])
    expected = [np.sum(kernels[i] * maps.numpy()[0, list(row)]) + biases[i] for i, row in enumerate(C3_TABLE)]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    total = maps[:, :, :4, :4].numpy().reshape(1, 6, 2, 2, 2, 2).sum(axis=(3, 5))
    s2 = total * model.s2.weight.numpy().reshape(1, 6, 1, 1) + model.s2.bias.numpy().reshape(1, 6, 1, 1)
    np.testing.assert_allclose(model.s2(maps[:, :, :4, :4]).numpy(), s2, rtol=1e-4, atol=1e-5)
    x, y = noise(2, 1, 28, 28), np.array([3, 8])
    d = model.distances(x).numpy().astype(np.float64)
    np.testing.assert_allclose(model(x).numpy(), -d, rtol=1e-6)
    criterion = np.mean(d[[0, 1], y] + np.log(np.exp(-0.1) + np.exp(-d).sum(axis=1)))
    assert model.loss(model(x), tw.tensor(y)).item() == pytest.approx(criterion, rel=1e-5)
    codes = model.codes.numpy()
    assert codes.shape == (10, 84) and set(np.unique(codes)) == {-1.0, 1.0} and len(np.unique(codes, axis=0)) == 10


def test_small_digits_stand_in_the_middle():
    model, x = zoo.create("lenet5").eval(), noise(1, 1, 28, 28)
    wide = tw.tensor(np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2))))
    np.testing.assert_array_equal(model(x).numpy(), model(wide).numpy())
    with pytest.raises(tw.ShapeError, match="at most 32x32"):
        model(noise(1, 1, 33, 32))


# ---- GoogLeNet ---------------------------------------------------------------------------------------------------------


def test_googlenets_outputs_and_loss():
    model = zoo.create("googlenet_2014", num_classes=5, small_input=True)
    x, y = noise(2, 3, 16, 16), tw.tensor([0, 1])
    outputs = model.train()(x)
    assert isinstance(outputs, zoo.GoogLeNetOutputs) and [o.shape for o in outputs] == [(2, 5)] * 3
    main, two, one = (F.cross_entropy(o, y).item() for o in outputs)
    assert model.loss(outputs, y).item() == pytest.approx(main + 0.3 * (one + two), rel=1e-5)
    assert model.eval()(x).shape == (2, 5)


# ---- the registry ------------------------------------------------------------------------------------------------------


def test_every_entry_is_complete():
    from twofold.data import transforms
    from twofold.zoo.inits import SCHEMES

    for name in zoo.names():
        entry = zoo.info(name)
        assert getattr(zoo, name) is entry
        assert {"paper", "quick"} <= set(entry.recipes)
        assert entry.paper.title and 1998 <= entry.year <= 2016 and entry.params > 0 and entry.macs > 0
        assert entry.init in SCHEMES
        for recipe in entry.recipes.values():
            assert recipe.init in SCHEMES and recipe.lr > 0 and recipe.epochs > 0
            assert all(hasattr(transforms, step) for step, _ in (*recipe.augmentation, *recipe.evaluation))


def test_quick_recipes_begin_with_the_networks_own_values_or_with_small_scores():
    """Where batch normalisation is missing they begin with He's values, and the layers of the scores with smaller ones."""
    from twofold.zoo.inits import BOTH, SCHEMES, row_for
    from twofold.zoo.recipes import QUICK_UNNORMALISED

    unnormalised = 0
    for entry in map(zoo.info, zoo.names()):
        quick = entry.recipes["quick"]
        if quick.but(init="quick", loss="cross_entropy") != QUICK_UNNORMALISED:
            assert quick.init == entry.init, entry.name
            continue
        with nn.init.skipped():
            layers = {path: layer for path, layer in entry(7).named_modules() if isinstance(layer, BOTH)}
        rest = SCHEMES[quick.init][-1]
        special = {path for path, layer in layers.items() if row_for(quick.init, path, layer) is not rest}
        assert quick.init.startswith("quick") and (rest.layer, rest.where) == (BOTH, "")
        assert special == {path for path, layer in layers.items() if layer.weight.shape[0] == 7} != set(), entry.name
        unnormalised += 1
    assert unnormalised > 10


def test_mistakes_are_told():
    with pytest.raises(tw.ArgumentError, match="did you mean resnet18"):
        zoo.create("resnet17")
    with pytest.raises(tw.ArgumentError, match="unknown option 'depht'; expected one of in_channels"):
        zoo.create("resnet18", depht=3)
    with pytest.raises(tw.ArgumentError, match="num_classes=0"):
        zoo.create("resnet18", num_classes=0)
    with pytest.raises(tw.ArgumentError, match="at least 4x4"):
        zoo.info("densenet40_k12").options_for((3, 3, 3))


def test_initial_values_have_the_prescribed_spread():
    tw.random.seed(0)
    model = zoo.create("alexnet_2012", hidden=64)
    assert model.features.conv4.weight.numpy().std() == pytest.approx(0.01, rel=0.01)
    assert model.features.conv4.bias.numpy().min() == 1 and model.features.conv3.bias.numpy().max() == 0
    google = zoo.create("googlenet_2014", num_classes=3)
    assert google.aux1.fc1.bias.numpy().min() == google.conv1.conv.bias.numpy().max() == np.float32(0.2)
    assert not google.aux1.fc2.bias.numpy().any() and not google.fc.bias.numpy().any()
    resnet = zoo.create("resnet18")
    assert resnet.layer4[1].conv2.weight.numpy().std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
