"""Bytes that come and go, counted on networks small enough to count by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from tlrecipe.models.memory import (
    LiveBytes,
    control_group_bytes,
    forward_bytes,
    on_meta,
    out_of_memory,
    step_bytes,
    weight_bytes,
)


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


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "500\n", "a/b/memory.max": "900\n"}, 500),
        ("0::/a/b\n", {"a/memory.max": "max\n", "a/b/memory.max": "900\n"}, 900),
        ("0::/host/only\n", {"memory.max": "700\n"}, 700),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("3:cpu:/x\n2:memory:/a\n", {"memory/a/memory.limit_in_bytes": "300\n"}, 300),
        ("3:cpu:/x\n", {"memory/a/memory.limit_in_bytes": "300\n"}, None),
        (None, {}, None),
    ],
    ids=["outer", "inner", "container", "none", "version-1", "no-memory-group", "no-groups"],
)
def test_the_smallest_limit_of_the_control_groups_counts(
    membership: str | None, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    assert control_group_bytes(tmp_path / "cgroup", tmp_path / "fs") == expected


def test_a_limit_of_addresses_counts_beside_what_is_mapped_only() -> None:
    code = (
        "import resource\n"
        "from tlrecipe.models.memory import limit_bytes, resident_bytes\n"
        "free = limit_bytes()[0]\n"
        "resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))\n"
        "if free > 64 << 30: raise SystemExit(0)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "size, why = limit_bytes()\n"
        "assert resident_bytes() < size <= 8 << 30, size\n"
        "assert size == free or 'RLIMIT_AS' in why, why\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_says_that_memory_has_run_out(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_weights_come_back_from_the_meta_device_as_they_were() -> None:
    layer = nn.BatchNorm1d(3)
    network, other = nn.Sequential(nn.Linear(2, 3), layer), nn.Sequential(layer)
    network[0].weight.requires_grad_(False)
    before = dict([*network.named_parameters(), *network.named_buffers()])
    with pytest.raises(ZeroDivisionError), on_meta(network, other):
        assert all(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
        assert other[0].weight is network[1].weight
        assert [p.requires_grad for p in network.parameters()] == [False, True, True, True]
        raise ZeroDivisionError
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        assert tensor is before[name]
