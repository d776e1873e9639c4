"""Bytes that come and go, counted on networks small enough to count by hand."""

from __future__ import annotations

from itertools import pairwise

import timm
import torch
from torch import Tensor, nn

from tlrecipe.models.memory import LiveBytes, forward_bytes, step_bytes, weight_bytes


def chain(*widths: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))).to("meta")


def batch(count: int, width: int) -> Tensor:
    return torch.empty(count, width, device="meta")


def test_a_forward_pass_holds_one_layer_s_input_and_output_at_a_time() -> None:
    assert forward_bytes(chain(10, 100), [batch(5, 10)]) == 5 * 100 * 4
    assert forward_bytes(chain(10, 100, 20, 30), [batch(5, 10)]) == 5 * (100 + 20) * 4


def test_views_share_the_bytes_of_what_they_look_at() -> None:
    with LiveBytes() as live:
        base = torch.empty(4, 6, device="meta")
        view = base.t()[1:]
        del base
        assert live.now == 4 * 6 * 4
        del view
    assert (live.now, live.peak) == (0, 4 * 6 * 4)


def test_a_training_step_holds_what_its_backward_pass_needs() -> None:
    sigmoids = nn.Sequential(*(nn.Sigmoid() for _ in range(7)))
    network, images = nn.Sequential(chain(50, 50), sigmoids, chain(50, 3)), batch(400, 50)
    one = images.nbytes
    # Each sigmoid keeps its output; in a forward pass alone the last two are enough.
    assert 7 * one <= step_bytes(network, [images]) <= 10 * one
    assert 2 * one <= forward_bytes(network, [images]) <= 3 * one
    assert step_bytes(nn.Sequential(sigmoids, chain(50, 3)), [images]) < 3 * one


def test_gradients_count_and_are_dropped() -> None:
    wide = chain(10, 10_000, 2)
    assert step_bytes(wide, [batch(1, 10)]) >= weight_bytes(wide)
    assert all(parameter.grad is None for parameter in wide.parameters())


def test_what_is_frozen_keeps_nothing() -> None:
    network = timm.create_model("test_efficientnet", num_classes=3).to("meta").eval()
    images = torch.empty(8, 3, 32, 32, device="meta")
    everything = step_bytes(network, [images])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    assert step_bytes(network, [images]) < 0.5 * everything


def test_the_meta_device_tells_what_the_processor_does() -> None:
    network = timm.create_model("test_resnet", num_classes=3).train()
    images = torch.rand(4, 3, 32, 32)
    real = step_bytes(network, [images]), forward_bytes(network, [images])
    network.to("meta")
    images = images.to("meta")
    assert (step_bytes(network, [images]), forward_bytes(network, [images])) == real


def test_tied_weights_count_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3))
    network[1].weight = network[0].weight
    assert weight_bytes(network) == 9 * 4 + 4 * 3 * 4 + 8
