"""The fast copy of a frozen network: the same numbers, fewer layers, another type."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from tlrecipe.models import fast
from tlrecipe.models.fast import DTYPES, fast_copy, fastest_copy, native_bf16, settled
from tlrecipe.models.onednn import PackedConvolution

SIZE = 32


def built(network: nn.Module) -> nn.Module:
    """With statistics that are not the initial ones, which folding would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 2.0, generator=generator)
                    module.bias.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


def sample(count: int = 4) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Shared(nn.Module):
    """One convolution or one batch norm, called twice."""

    def __init__(self, which: str):
        super().__init__()
        self.which = which
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        if self.which == "conv":
            return self.other(self.first(x))  # type: ignore[no-any-return]
        return self.norm(self.second(x))  # type: ignore[no-any-return]


class ReadTwice(nn.Module):
    """The convolution's output goes into the batch norm and round it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + x  # type: ignore[no-any-return]


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def packed(network: nn.Module) -> list[str]:
    """The activations of the packed convolutions, in their order."""
    return [m._activation[0] for m in network.modules() if isinstance(m, PackedConvolution)]


# Network and how many batch norms are left.
NETWORKS: dict[str, tuple[nn.Module, int]] = {
    "batch-norm": (sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 0),
    "no-affine": (sequence(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), 0),
    "depthwise": (sequence(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 0),
    "two-in-a-row": (sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), 1),
    "norm-first": (sequence(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 1),
    "activation-between": (sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
    "activation-between-in-place": (
        sequence(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
        ),
        1,
    ),
    "conv-called-twice": (Shared("conv"), 2),
    "norm-called-twice": (Shared("norm"), 2),
    "conv-read-twice": (ReadTwice(), 1),
    "norm-of-the-batch": (sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 1),
    "timm-resnet": (timm.create_model("test_resnet", num_classes=3), 0),
    "timm-norm-with-activation": (timm.create_model("test_efficientnet", num_classes=3), 0),
    "timm-no-batch-norm": (timm.create_model("test_vit", num_classes=3, img_size=SIZE), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_copy_gives_the_same_numbers_with_fewer_norms(name: str) -> None:
    network, left = NETWORKS[name]
    built(network)
    copy = fast_copy(network, sample())
    with torch.no_grad():
        expected = network(sample())
        torch.testing.assert_close(
            copy(sample()), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )
    assert norms(copy) == left


def test_the_original_is_left_alone() -> None:
    network = built(sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copy = fast_copy(network, sample())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in copy.modules() if isinstance(module, nn.Dropout))
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_a_copy_whose_fold_is_wrong_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: Tensor, *rest: Any) -> tuple[nn.Parameter, nn.Parameter]:
        return nn.Parameter(weight * 2), nn.Parameter(torch.zeros(len(weight)))

    monkeypatch.setattr(fast, "fuse_conv_bn_weights", wrong)
    network = built(sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    copy = fast_copy(network, sample())
    assert norms(copy) == 1
    with torch.no_grad():
        torch.testing.assert_close(copy(sample()), network(sample()))


def test_a_bfloat16_copy_is_bfloat16_and_channels_last() -> None:
    network = built(sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    copy = fast_copy(network, sample(), "bf16")
    assert {value.dtype for value in copy.state_dict().values()} == {torch.bfloat16}
    with torch.no_grad():
        output = copy(sample().to(torch.bfloat16, memory_format=torch.channels_last))
        expected = network(sample())
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    # Three roundings to eight bits: weights, images, output.
    assert float((output.float() - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_a_recipe_s_precision_is_taken_as_written() -> None:
    for wanted in ("fp32", "bf16"):
        found = settled(wanted, torch.device("cpu"))
        assert found is not None
        assert found[0] == wanted


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_asked_for_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(fast, "native_bf16", lambda device: native)
    found = settled("auto", torch.device("cpu"))
    assert found is None if native else found is not None and found[0] == "fp32"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([1.0, 0.5], "bf16"), ([1.0, 0.9], "fp32"), ([1.0, 9.0], "fp32"), ([1e-5, 1e-6], "fp32")],
    ids=["faster", "hardly-faster", "slower", "fast-enough"],
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], expected: str
) -> None:
    times = iter(seconds)
    monkeypatch.setattr(fast, "seconds", lambda *args: next(times))
    network = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    copy, precision, why = fastest_copy(network, sample())
    assert precision == expected
    assert why
    with torch.no_grad():
        output = copy(sample().to(DTYPES[expected]))
        torch.testing.assert_close(output.float(), network(sample()), rtol=3e-2, atol=3e-2)


def test_native_bfloat16_is_what_the_processor_says() -> None:
    flags = torch.cpu.get_capabilities()
    assert native_bf16("cpu") == any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


# --------------------------------------------------------------------------- convolutions of a CPU


class SharedActivation(nn.Module):
    """One activation module after two convolutions, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.act(self.first(x))))  # type: ignore[no-any-return]


class ActivatedAndRead(nn.Module):
    """What a convolution gives goes into an activation and round it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.act(x) + x  # type: ignore[no-any-return]


class Doubling(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class ScaledConv(nn.Conv2d):
    """Computes its weight from its parameters in each pass."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.conv2d(input, self.weight / self.weight.norm(), self.bias, self.stride, self.padding)


class Noticing(nn.Conv2d):
    """Does something with its output."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).exp()


# Network, and the activations of the packed convolutions that it becomes.
CONVOLUTIONS: dict[str, tuple[nn.Module, list[str] | None]] = {
    "alone": (sequence(nn.Conv2d(3, 4, 3, 2, 1, bias=False)), ["none"]),
    "relu": (sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), ["relu"]),
    "relu6": (sequence(nn.Conv2d(3, 8, 3), nn.ReLU6()), ["hardtanh"]),
    "hardtanh": (sequence(nn.Conv2d(3, 8, 3), nn.Hardtanh(-0.1, 0.2)), ["hardtanh"]),
    "leaky": (sequence(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.3)), ["leaky_relu"]),
    "silu": (sequence(nn.Conv2d(3, 8, 3), nn.SiLU()), ["swish"]),
    "hardswish": (sequence(nn.Conv2d(3, 8, 3), nn.Hardswish()), ["hardswish"]),
    "gelu": (sequence(nn.Conv2d(3, 8, 3), nn.GELU()), ["gelu"]),
    "gelu-tanh": (sequence(nn.Conv2d(3, 8, 3), nn.GELU(approximate="tanh")), ["gelu"]),
    "another-activation": (sequence(nn.Conv2d(3, 8, 3), nn.Softplus()), ["none"]),
    "a-subclass-that-does-more": (sequence(nn.Conv2d(3, 8, 3), Doubling()), ["none"]),
    "depthwise-dilated": (sequence(nn.Conv2d(3, 6, 3, dilation=2, groups=3), nn.ReLU()), ["relu"]),
    "shared-activation": (SharedActivation(), ["none", "none"]),
    "uneven-padding": (sequence(Conv2dSame(3, 4, 3, stride=2), nn.ReLU()), ["relu"]),
    "uneven-padding-5": (sequence(Conv2dSame(3, 6, 5, stride=2, groups=3), nn.ReLU()), ["relu"]),
    "even-padding-of-the-same": (sequence(Conv2dSame(3, 4, 3), nn.ReLU()), ["relu"]),
    "uneven-padding-dilated": (sequence(Conv2dSame(3, 4, (4, 2), dilation=3)), []),
    "reflected-padding": (sequence(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), []),
    "padding-by-name": (sequence(nn.Conv2d(3, 4, 3, padding="same")), []),
    "weights-computed-each-time": (sequence(ScaledConv(3, 4, 3, padding=1)), ["none"]),
    "a-layer-that-does-more": (sequence(Noticing(3, 4, 3)), []),
    "timm": (timm.create_model("test_efficientnet", num_classes=3), None),
}


@pytest.mark.parametrize("size", [32, 33], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_packed_with_what_follows(name: str, size: int) -> None:
    network, activations = CONVOLUTIONS[name]
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    images = images.to(memory_format=torch.channels_last)
    copy = fast_copy(built(network), images)
    if activations is not None:
        assert packed(copy) == activations
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(copy(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        half = copy(images[:2])
    torch.testing.assert_close(half, expected[:2], rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_an_output_that_something_else_reads_keeps_its_activation_apart() -> None:
    copy = fast_copy(ActivatedAndRead().eval(), sample())
    assert packed(copy) == []


@pytest.mark.parametrize("fault", ["missing", "wrong", "refuses"])
def test_an_operator_that_is_not_what_it_was_is_not_used(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    network = sequence(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()

    class Operators:
        @staticmethod
        def _convolution_pointwise(images: Tensor, *args: Any) -> Tensor:
            if fault == "refuses":
                raise RuntimeError("unknown attribute")
            return images.new_zeros(len(images), 4, SIZE - 2, SIZE - 2)

    if fault == "missing":
        del Operators._convolution_pointwise
    monkeypatch.setattr(torch.ops, "mkldnn", Operators)
    copy = fast_copy(network, sample())
    assert packed(copy) == []
    with torch.no_grad():
        torch.testing.assert_close(copy(sample()), network(sample()))
