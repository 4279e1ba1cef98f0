"""How much there is to compile, which is most of the time before a network's first step: kernels that differ. Equal layers
share theirs; a fact of one layer (a name, an address) that gets into a kernel makes as many kernels as there are layers."""

import re

import pytest

import twofold as tw
from twofold.cli.bench import step_of


@pytest.mark.parametrize(("network", "batch", "train", "different"), [("resnet50", 1, False, 33), ("resnet18", 8, True, 179)])
def test_equal_layers_share_their_kernels(network, batch, train, different):
    """``different`` as counted with AVX-512; half as many more are allowed, for other machines and new ideas."""
    run, arguments = step_of(network, batch, train)
    run.prepare(*arguments)
    calls, kernels = map(int, re.search(r"(\d+) kernel calls \((\d+) different\)", run.report()).groups())
    assert 1.5 * different < calls, "the bound would not notice"
    assert kernels <= 1.5 * different, f"{network}: {kernels} different kernels for {calls} calls, {different} were needed"


def test_slices_share_a_kernel():
    """Where a slice begins is no part of the kernel."""
    step = tw.compile(lambda x: [tw.exp(x[at : at + 40]).sum() for at in (0, 40, 80)])
    step(tw.ones((120, 50)))
    calls, kernels = map(int, re.search(r"(\d+) kernel calls \((\d+) different\)", step.report()).groups())
    assert calls == 3 * kernels
