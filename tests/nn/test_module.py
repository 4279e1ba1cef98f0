"""The conventions of modules: what is found, under which names, modes, hooks, state, paths in errors and graphs."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError, DeviceError, ShapeError, WeightsError


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return nn.functional.relu(self.bn(self.conv(x)) + x)


class Net(nn.Module):
    """Every way of holding parts: attributes, a Sequential, a list, a tuple, a dict, a nested one."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Block(4))
        self.list = [nn.Linear(4, 3), nn.Linear(3, 3)]
        self.pair = (nn.Linear(3, 3), "not a module")
        self.heads = {"a": nn.Linear(3, 2), "b": [nn.Linear(3, 5)]}
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.seen = tw.Variable(np.zeros((), np.int64))
        self.plain = tw.ones((3,))

    def forward(self, x, head="a"):
        x = self.features(x).mean(axis=(2, 3))
        for layer in self.list:
            x = layer(x)
        x = self.pair[0](x) * self.scale
        return self.heads["a"](x) if head == "a" else self.heads["b"][0](x)


NAMES = [
    "scale", "seen", "features.0.weight", "features.0.bias", "features.2.conv.weight", "features.2.bn.weight",
    "features.2.bn.bias", "features.2.bn.running_mean", "features.2.bn.running_var",
    "features.2.bn.num_batches_tracked",
    "list.0.weight", "list.0.bias", "list.1.weight", "list.1.bias", "pair.0.weight", "pair.0.bias",
    "heads.a.weight", "heads.a.bias", "heads.b.0.weight", "heads.b.0.bias",
]  # fmt: skip
BUFFERS = [n for n in NAMES if n.split(".")[-1] in ("seen", "running_mean", "running_var", "num_batches_tracked")]


@pytest.fixture
def net():
    tw.random.seed(0)
    return Net()


X = np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype(np.float32)


def test_names(net):
    assert list(net.state_dict()) == NAMES
    assert [n for n, _ in net.named_parameters()] == [n for n in NAMES if n not in BUFFERS]
    assert [n for n, _ in net.named_buffers()] == BUFFERS
    modules = [n for n, _ in net.named_modules()]
    assert modules[:6] == ["", "features", "features.0", "features.1", "features.2", "features.2.conv"]
    assert [n for n, _ in net.named_children()] == ["features", "list.0", "list.1", "pair.0", "heads.a", "heads.b.0"]
    assert net.get_submodule("features.2.bn").num_features == 4
    with pytest.raises(ArgumentError, match=r"no part 'features\.9'.*'features\.2'"):
        net.get_submodule("features.9")


def test_counts(net):
    assert net.num_parameters() == sum(int(np.prod(p.shape)) for p in net.parameters())
    net.features.requires_grad_(False)
    assert net.num_parameters(trainable=True) == 3 + 15 + 12 + 12 + 8 + 20


def test_super_init_may_be_forgotten():
    class Short(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x)

    assert list(Short().state_dict()) == ["fc.weight", "fc.bias"] and Short()(tw.ones((1, 2))).shape == (1, 2)


def test_shared_parts_count_once_but_are_saved_under_each_name():
    class Tied(nn.Module):
        def __init__(self):
            self.one = nn.Linear(2, 2, bias=False)
            self.two = self.one
            self.three = nn.Linear(2, 2, bias=False)
            self.three.weight = self.one.weight

    tied = Tied()
    assert [n for n, _ in tied.named_parameters()] == ["one.weight"]
    assert list(tied.state_dict()) == ["one.weight", "two.weight", "three.weight"]


def test_modes(net):
    assert net.training and net.features[2].bn.training
    net.eval()
    assert not any(m.training for m in net.modules())
    np.testing.assert_array_equal(net(tw.tensor(X)).numpy(), net(tw.tensor(X)).numpy())
    assert net.features[2].bn.num_batches_tracked.item() == 0
    net.train()
    net(tw.tensor(X))
    assert net.features[2].bn.num_batches_tracked.item() == 1


def test_hooks(net):
    seen = []
    with net.features[0].register_forward_hook(lambda m, args, out: seen.append((args[0].shape, out.shape))):
        net(tw.tensor(X))
    net(tw.tensor(X))
    assert seen == [((2, 1, 6, 6), (2, 4, 4, 4))]
    net.eval()
    before = net(tw.tensor(X)).numpy()
    pre = net.register_forward_pre_hook(lambda m, args: args[0] * 0.0)
    post = net.register_forward_hook(lambda m, args, out: out + 1.0)
    zero = net(tw.tensor(X)).numpy()
    pre.remove()
    post.remove()
    np.testing.assert_array_equal(net(tw.tensor(X)).numpy(), before)
    np.testing.assert_allclose(zero, net(tw.zeros((2, 1, 6, 6))).numpy() + 1)


def test_state_is_a_copy_and_goes_round(net):
    state = net.state_dict()
    other = Net()
    report = other.load_state_dict(state)
    assert report == ([], [])
    np.testing.assert_array_equal(net.eval()(tw.tensor(X)).numpy(), other.eval()(tw.tensor(X)).numpy())
    other.scale.assign(other.scale * 2)
    assert state["scale"].tolist() == [1, 1, 1] and net.scale.tolist() == [1, 1, 1]
    assert net.state_dict(keep_vars=True)["scale"] is net.scale


def test_state_that_does_not_fit_changes_nothing(net):
    state = {n: v.numpy() * 0 for n, v in net.state_dict().items()}
    state["scale"] = np.zeros(4, np.float32)
    state["other"] = state.pop("seen")
    before = net.features[0].weight.numpy().copy()
    with pytest.raises(WeightsError) as caught:
        net.load_state_dict(state)
    for words in ("1 missing: seen", "1 unexpected: other", "scale: shape (4,), expected (3,)"):
        assert words in str(caught.value)
    np.testing.assert_array_equal(net.features[0].weight.numpy(), before)
    del state["scale"]
    assert net.load_state_dict(state, strict=False) == (["scale", "seen"], ["other"])
    assert not net.features[0].weight.numpy().any()


def test_errors_and_graphs_carry_the_path(net):
    with pytest.raises(ShapeError, match=r"^features\.0: conv2d: x has 3 channels"):
        net(tw.zeros((2, 3, 6, 6)))
    graph = tw.compile(net).graph(tw.tensor(X))
    scopes = {node.op.name: node.scope for node in graph.nodes if node.op.name in ("conv", "matmul")}
    assert scopes == {"conv": "features.2.conv", "matmul": "heads.a"}
    assert "features.2.bn.running_var" in {s.name for s in graph.state}


def test_a_part_called_alone_is_its_own_root():
    net = Net()
    with pytest.raises(ShapeError, match=r"^conv: conv2d"):
        net.features[2](tw.zeros((2, 3, 6, 6)))
    net(tw.tensor(X))
    assert net.features[2].conv.weight.name == "features.2.conv.weight"


def test_parts_added_later_are_named_too(net):
    net(tw.tensor(X))
    net.features[2].extra = nn.Linear(2, 2)
    net(tw.tensor(X))
    assert net.features[2].extra.weight.name == "features.2.extra.weight"


def test_moving_to_another_device(net):
    expected = net.eval()(tw.tensor(X)).numpy()
    net.to("reference")
    assert {str(v.device) for v in net.state_dict().values()} == {"reference"} and net.scale.requires_grad
    np.testing.assert_allclose(net(tw.tensor(X, device="reference")).numpy(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DeviceError, match=r"^features\.0: conv: operands live on cpu and reference"):
        net(tw.tensor(X, device="cpu"))


def test_a_compiled_module_is_traced_again_when_the_mode_changes(net):
    compiled = tw.compile(net)
    x = tw.tensor(X)
    trained = compiled(x).numpy()
    compiled.eval()
    evaluated = compiled(x).numpy()
    assert len(compiled.retraces) == 1 and "training was True, is False" in compiled.retraces[0]
    np.testing.assert_allclose(evaluated, net(x).numpy(), rtol=1e-5, atol=1e-6)
    assert abs(trained - evaluated).max() > 1e-3


def test_casting(net):
    net.to(tw.float64)
    assert {str(v.dtype) for n, v in net.state_dict().items()} == {"twofold.float64", "twofold.int64"}
    assert net.eval()(tw.tensor(X.astype(np.float64))).dtype == "float64"


def test_deep_copies_are_independent(net):
    twin = copy.deepcopy(net)
    twin.scale.assign(twin.scale * 3)
    assert net.scale.tolist() == [1, 1, 1]
    twin.scale.assign(twin.scale / 3)
    np.testing.assert_array_equal(net.eval()(tw.tensor(X)).numpy(), twin.eval()(tw.tensor(X)).numpy())


def test_apply_and_zero_grad(net):
    order = []
    net.apply(lambda m: order.append(type(m).__name__))
    assert order[-1] == "Net" and order.index("Conv2d") < order.index("Block")
    net(tw.tensor(X)).sum().backward()
    assert net.scale.grad is not None
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_buffers_may_be_left_out_of_the_state():
    module = nn.Module()
    module.register_buffer("kept", np.ones(2))
    module.register_buffer("passing", np.ones(2), persistent=False)
    assert list(module.state_dict()) == ["kept"] and len(list(module.buffers())) == 2


def test_containers():
    layers = [nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)]
    row = nn.Sequential(*layers)
    assert len(row) == 3 and row[0] is layers[0] and row[-1] is layers[2] and list(row[1:]) == layers[1:]
    named = nn.Sequential({"first": layers[0], "second": layers[2]})
    assert list(named.state_dict()) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    modules = nn.ModuleList(layers).append(nn.Linear(2, 1))
    assert len(modules) == 4 and "3.weight" in modules.state_dict()
    table = nn.ModuleDict({"x": layers[0]})
    table["y"] = layers[2]
    assert list(table) == ["x", "y"] and "x" in table and list(table.state_dict())[2] == "y.weight"


def test_repr_reads_like_pytorchs():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.2))
    )
    assert repr(net) == (
        "Sequential(\n"
        "  (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)\n"
        "  (1): Sequential(\n    (0): ReLU()\n    (1): Dropout(p=0.2)\n  )\n)"
    )


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module has no forward\(\)"):
        nn.Module()(1)


def test_a_state_dict_may_hold_the_models_own_variables():
    pair = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = (layer.weight.numpy().copy() for layer in pair)
    own = pair.state_dict(keep_vars=True)
    pair.load_state_dict({"0.weight": own["1.weight"], "1.weight": own["0.weight"]})  # swapped
    np.testing.assert_array_equal(pair[0].weight.numpy(), second)
    np.testing.assert_array_equal(pair[1].weight.numpy(), first)
