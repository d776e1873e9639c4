"""A frozen network made fast: batch norm folded into convolutions, channels-last, the widest fast type."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Folding reorders float32 additions; what differs by more is not a conv followed by its batch norm.
_FOLD_TOLERANCE = 1e-3


def fast_copy(network: nn.Module, sample: Tensor, precision: Precision = "fp32") -> nn.Module:
    """A copy of ``network`` for inference only: eval mode, folded, channels-last, in ``precision``.

    ``sample`` is a float32 batch (N, 3, S, S) that the network takes; it is run to find which batch norm
    follows which convolution, and to prove the folded copy. Where the proof fails, the copy is not folded.
    The copy takes and the caller gives tensors of its own dtype.
    """
    frozen = _copy(network)
    expected = _run(frozen, sample)
    folded = _copy(network)
    pairs = _conv_bn_pairs(folded, sample)
    for conv, norm, replace in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            *_statistics(norm),
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.weight.requires_grad_(False)
        conv.bias.requires_grad_(False)
        replace()
    if pairs and _same(_run(folded, sample), expected):
        frozen = folded
    return frozen.to(sample.device, DTYPES[precision]).to(memory_format=torch.channels_last)


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def _copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _run(network: nn.Module, sample: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs = network(sample)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _same(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(
        torch.allclose(got, want, rtol=_FOLD_TOLERANCE, atol=_FOLD_TOLERANCE * float(want.abs().max() + 1e-6))
        for got, want in zip(outputs, expected, strict=True)
    )


def _conv_bn_pairs(
    network: nn.Module, sample: Tensor
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, Callable[[], None]]]:
    """Convolutions whose output goes straight into a batch norm, seen by running the network once.

    Watching tensors instead of code works for any control flow; whether the convolution's output is
    used elsewhere too is left to the proof.
    """
    produced: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] = calls.get(module, 0) + 1
        # The tensor is kept so that no later one can get its id; its version tells of changes in place.
        produced[id(output)] = (module, output, output._version)

    def before_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        calls[module] = calls.get(module, 0) + 1
        conv, output, version = produced.get(id(args[0]) if args else 0, (None, None, 0))
        if conv is not None and output is not None and output._version == version:
            pairs.append((conv, module))

    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    _run(network, sample)
    for handle in handles:
        handle.remove()
    places = _places(network)
    return [
        (conv, norm, places[norm])
        for conv, norm in pairs
        if calls[conv] == calls[norm] == 1 and norm in places
    ]


def _places(network: nn.Module) -> dict[nn.Module, Callable[[], None]]:
    """For each batch norm, what puts its activation (if it has one) in its place."""
    places: dict[nn.Module, Callable[[], None]] = {}
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                # timm's BatchNormAct2d applies dropout and an activation after the norm.
                rest = nn.Sequential(*child.children()) if any(child.children()) else nn.Identity()
                places[child] = _replacer(parent, name, rest)
    return places


def _replacer(parent: nn.Module, name: str, replacement: nn.Module) -> Callable[[], None]:
    return lambda: setattr(parent, name, replacement)


# --------------------------------------------------------------------------- precision


@cache
def native_bf16(device: str) -> bool:
    """Whether the processor computes bfloat16 itself. Elsewhere it is emulated, 40 to 500 times slower."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    with suppress(AttributeError, RuntimeError):
        capabilities = torch.cpu.get_capabilities()  # type: ignore[attr-defined, unused-ignore]
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def best_precision(network: nn.Module, sample: Tensor, wanted: str) -> tuple[Precision, str]:
    """The precision for a frozen network, and why.

    ``wanted`` is a recipe's ``compute.precision``. ``"auto"`` takes bfloat16 where it is native *and* at
    least a quarter faster on this network, so that noise does not change the answer between two runs.
    """
    if wanted != "auto":
        return ("bf16" if wanted == "bf16" else "fp32"), "as the recipe says"
    if not native_bf16(sample.device.type):
        return "fp32", "this processor does not compute bfloat16 natively"
    slow = seconds(fast_copy(network, sample, "fp32"), sample)
    fast = seconds(fast_copy(network, sample, "bf16"), sample.to(torch.bfloat16))
    ratio = slow / fast
    return ("bf16" if ratio >= 1.25 else "fp32"), f"bfloat16 is {ratio:.1f} times as fast here"


def seconds(network: nn.Module, *inputs: Tensor, repeats: int = 2) -> float:
    """Seconds of one forward pass without gradients: the best of ``repeats``, after one to warm up."""
    best = float("inf")
    with torch.inference_mode():
        for attempt in range(repeats + 1):
            synchronize(inputs[0].device)
            start = time.perf_counter()
            network(*inputs)
            synchronize(inputs[0].device)
            if attempt:
                best = min(best, time.perf_counter() - start)
    return best


def synchronize(device: torch.device) -> None:
    """Wait for queued work, where a device queues."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
