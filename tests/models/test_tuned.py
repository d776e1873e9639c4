"""Tuned steps against the network's own: the same outputs and gradients, in float64 to many digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn

from tlrecipe.language.spec import LoraAdapter
from tlrecipe.models.adapters import attach
from tlrecipe.models.tuned import TunedSteps

SIZE = 64


class Stages(nn.Module):
    """A depthwise stage with a stride and a large kernel, batch norms with and without a convolution bias."""

    def __init__(self, kernel: int = 5, stride: int = 2, padding: int | str = 2):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.norm(self.depthwise(x)))
        return torch.as_tensor(self.head(x.mean((2, 3))))


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def built(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    network.eval().double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 2.0, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
    return network


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    logits = network(x)
    # No kink of the loss near: every image counts with its own weight.
    (logits * torch.arange(logits.numel()).view_as(logits).sin()).sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None} | {
        "logits": logits.detach()
    }


def assert_same_steps(network: nn.Module, folded: int, replaced: int, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    plain = gradients(network, x)
    tuned = TunedSteps(network, [x[:4]])
    assert (tuned.folded, tuned.replaced) == (folded, replaced)
    with tuned:
        got = gradients(network, x)
    assert got.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max()), msg=name
        )
    after = gradients(network, x)
    assert all(torch.equal(after[name], value) for name, value in plain.items()), "left no trace"


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(5, 1, 2), (5, 2, 2), (5, 2, 0), (7, 3, 1), (7, 1, "same"), (3, 2, 1), (3, 2, 0), (5, 1, 5)],
)
def test_gradients_are_those_of_the_layers(kernel: int, stride: int, padding: int | str) -> None:
    assert_same_steps(built(Stages(kernel, stride, padding)), folded=2, replaced=1)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4], ids=str)
def test_gradients_of_small_maps(kernel: int, stride: int, size: int) -> None:
    network = built(Stages(kernel, stride, kernel // 2))
    assert_same_steps(network, folded=2, replaced=1, x=images()[..., :size, : size + 1])


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (4, 1), (8, 2), (8, 1), (9, 1)])
def test_bfloat16_gradients_of_large_kernels(size: int, stride: int) -> None:
    assert_as_exact(built(Stages(5, stride, 2)), images()[..., :size, :size], replaced=1)


def assert_as_exact(network: nn.Module, x: Tensor, replaced: int) -> None:
    """By autocast, gradients are as near to float64's as those of the layers are."""
    exact = gradients(network, x)
    network.float()
    x = x.float().contiguous(memory_format=torch.channels_last)

    def errors() -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(network, x)
        assert {value.dtype for name, value in found.items() if name != "logits"} == {torch.float32}
        return {n: float((found[n] - exact[n]).norm() / (exact[n].norm() + 1e-9)) for n in exact}

    plain = errors()
    tuned = TunedSteps(network, [x[:4]])
    assert tuned.replaced == replaced
    with tuned:
        own = errors()
    # The fold rounds the weights a second time; a gradient that is nearly zero is nothing but rounding.
    for name in exact:
        assert own[name] <= 2 * plain[name] + 0.02, (name, own[name], plain[name])
    assert sum(own.values()) < 0.05 * len(own)


@pytest.mark.parametrize(
    ("name", "folded", "replaced"),
    [("tf_efficientnet_lite0", 49, 48), ("resnet18", 20, 0), ("test_convnext", 0, 9), ("test_vit", 0, 0)],
)
def test_networks_of_the_library(name: str, folded: int, replaced: int) -> None:
    size = {"img_size": SIZE} if "vit" in name else {}
    assert_same_steps(built(timm.create_model(name, num_classes=4, **size)), folded, replaced)


def test_adapters_are_folded_with_their_layer() -> None:
    network = built(timm.create_model("test_efficientnet", num_classes=4)).requires_grad_(False)
    plain = TunedSteps(network, [images(4)])
    assert plain.folded > 0
    layers = [name for name, module in network.named_modules() if name.endswith(("conv_pw", "conv_exp"))]
    attach(network, layers, LoraAdapter(name="lora", match=("blocks",)), seed=0)
    for name, parameter in network.double().named_parameters():
        if name.endswith("lora_up"):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    assert_same_steps(network, plain.folded, plain.replaced)


def test_a_norm_that_trains_its_statistics_is_left_alone() -> None:
    network = built(Stages())
    assert isinstance(network, Stages)
    network.norm.train()
    twin = copy.deepcopy(network)
    tuned = TunedSteps(network, [images(4)])
    assert (tuned.folded, tuned.replaced) == (1, 1)
    assert network.norm.training
    with tuned:
        network(images())
    twin(images())
    assert network.norm.running_mean is not None and twin.norm.running_mean is not None
    torch.testing.assert_close(network.norm.running_mean, twin.norm.running_mean)


class ReadTwice(Stages):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.as_tensor(self.head((self.stem_norm(x) + x).mean((2, 3))))


def test_an_output_that_something_else_reads_is_not_folded() -> None:
    network = built(ReadTwice())
    tuned = TunedSteps(network, [images(4)])
    assert tuned.folded == 0


def test_frozen_parameters_get_no_gradient() -> None:
    network = built(Stages())
    assert isinstance(network, Stages)
    network.norm.requires_grad_(False)
    network.depthwise.requires_grad_(False)
    tuned = TunedSteps(network, [images(4)])
    # Its gradient of the images is still one of the slow ones.
    assert tuned.replaced == 1
    with tuned:
        found = gradients(network, images())
    assert found.keys() == {"stem.weight", "stem.bias", "stem_norm.weight", "stem_norm.bias"} | {
        "head.weight",
        "head.bias",
        "logits",
    }


class Pointwise(nn.Module):
    """Convolutions of 1 x 1 with and without a bias, activations in place after them, a depthwise stride."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.expand_norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.project = nn.Conv2d(16, 8, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.expand_norm(self.expand(x)))
        x = self.act(self.project(self.act(self.depthwise(x))))
        return torch.as_tensor(self.head(x.mean((2, 3))))


def test_bfloat16_gradients_are_as_exact_as_those_of_the_layers() -> None:
    assert_as_exact(built(Pointwise()), images(), replaced=3)


def test_what_follows_a_product_of_matrices_works_in_place_without_a_copy() -> None:
    network = Pointwise().to(memory_format=torch.channels_last)
    x = images(4).float().to(memory_format=torch.channels_last).requires_grad_()
    with TunedSteps(network.eval(), [x.detach()]), torch.autocast("cpu", torch.bfloat16):
        output = network.expand(x)
        assert type(output.grad_fn).__name__ == "_PointwiseBackward"
    assert not output._is_view()
    assert output.is_contiguous(memory_format=torch.channels_last)
