"""The fast copy of a frozen network: the same numbers, fewer layers, another type."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tlrecipe.models import fast
from tlrecipe.models.fast import best_precision, fast_copy, native_bf16

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
    network = sequence(nn.Conv2d(3, 4, 3))
    assert best_precision(network, sample(), "fp32")[0] == "fp32"
    assert best_precision(network, sample(), "bf16")[0] == "bf16"


@pytest.mark.parametrize(
    ("native", "seconds", "expected"),
    [
        (False, [1.0, 0.1], "fp32"),
        (True, [1.0, 0.5], "bf16"),
        (True, [1.0, 0.9], "fp32"),
        (True, [1.0, 9.0], "fp32"),
    ],
    ids=["emulated", "faster", "hardly-faster", "slower"],
)
def test_bfloat16_is_chosen_where_it_is_native_and_faster(
    monkeypatch: pytest.MonkeyPatch, native: bool, seconds: list[float], expected: str
) -> None:
    times = iter(seconds)
    monkeypatch.setattr(fast, "native_bf16", lambda device: native)
    monkeypatch.setattr(fast, "seconds", lambda *args: next(times))
    precision, why = best_precision(sequence(nn.Conv2d(3, 4, 3)), sample(), "auto")
    assert precision == expected
    assert why


def test_native_bfloat16_is_what_the_processor_says() -> None:
    flags = torch.cpu.get_capabilities()
    assert native_bf16("cpu") == any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
