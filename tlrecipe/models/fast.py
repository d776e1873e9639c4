"""A frozen network made fast: fewer layers, in the kernels and the type that the processor runs best."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tlrecipe.models import onednn
from tlrecipe.models.adapters import merge
from tlrecipe.models.observed import copied, follows, keep_if_same, put

Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Images of a proof; fewer would take other kernels.
_PROOF = 4
# Seconds per image below which another type has nothing to win, and timings of it are mostly noise.
_FAST_ENOUGH = 2e-4

CLEARLY_FASTER = 1.25
"""How many times as fast another type has to be: so much that noise gives the same answer in the next run."""


def fast_copy(network: nn.Module, sample: Tensor, precision: Precision = "fp32") -> nn.Module:
    """A copy of ``network`` for inference only: eval mode, channels-last, in ``precision``, with adapters and
    batch norms in the weights of their layers; on a CPU, convolutions and what follows them in one kernel.

    ``sample`` is a float32 batch (N, 3, S, S) that the network takes; it is run to find what follows what,
    and to prove each change. Where a proof fails, that change is left out. The copy takes images of
    this size, in its own type.
    """
    return _in_type(_simplified(network, sample), sample, precision)


def _simplified(network: nn.Module, sample: Tensor) -> nn.Module:
    fast = copied(network)
    merge(fast)
    pairs = [
        (conv, norm)
        for conv, norm in follows(fast, [sample], nn.BatchNorm2d)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    ]
    if pairs:
        keep_if_same(fast, [sample], (_fold(fast, conv, norm) for conv, norm in pairs))
    if sample.device.type == "cpu":
        onednn.straighten(fast, sample)
    return fast


def _in_type(fast: nn.Module, sample: Tensor, precision: Precision) -> nn.Module:
    fast = fast.to(sample.device, DTYPES[precision]).to(memory_format=torch.channels_last)
    if sample.device.type == "cpu":
        onednn.pack(fast, sample.to(DTYPES[precision]))
    return fast


def after_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does beside normalising: timm's BatchNormAct2d applies dropout and an activation."""
    return nn.Sequential(*norm.children()) if any(norm.children()) else nn.Identity()


def _fold(network: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Callable[[], None]:
    """Put a batch norm into the weights of the convolution before it; gives what takes it back."""
    before = conv.weight, conv.bias
    name = next(name for name, module in network.named_modules() if module is norm)
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight.requires_grad_(False)
    conv.bias.requires_grad_(False)
    norm_back = put(network, name, after_norm(norm))

    def undo() -> None:
        conv.weight, conv.bias = before
        norm_back()

    return undo


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


def settled(wanted: str, device: torch.device) -> tuple[Precision, str] | None:
    """The precision of a frozen network and why, where nothing has to be measured for it.

    ``wanted`` is a recipe's ``compute.precision``.
    """
    if wanted != "auto":
        return ("bf16" if wanted == "bf16" else "fp32"), "as the recipe says"
    if not native_bf16(device.type):
        return "fp32", "this processor does not compute bfloat16 natively"
    return None


def fastest_copy(network: nn.Module, sample: Tensor) -> tuple[nn.Module, Precision, str]:
    """The :func:`fast_copy` in the fastest type, that type, and why.

    That is bfloat16 if it is clearly faster for ``sample``, float32 (N, 3, S, S).
    """
    few = sample[:_PROOF]
    simplified = _simplified(network, few)
    exact = _in_type(copy.deepcopy(simplified), few, "fp32")
    slow = seconds(exact, sample)
    if slow < _FAST_ENOUGH * len(sample):
        return exact, "fp32", "fast enough"
    rounded = _in_type(simplified, few, "bf16")
    ratio = slow / seconds(rounded, sample.to(torch.bfloat16))
    why = f"bfloat16 is {ratio:.1f} times as fast here"
    return (rounded, "bf16", why) if ratio >= CLEARLY_FASTER else (exact, "fp32", why)


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


def node_seconds(network: fx.GraphModule, images: Tensor) -> dict[str, float]:
    """Seconds that each node of a traced network takes for ``images``, without gradients, once warm."""
    stopwatch = _Stopwatch(network)
    with torch.inference_mode():
        for _ in range(2):
            stopwatch.run(images)
    return stopwatch.seconds


class _Stopwatch(fx.Interpreter):
    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.seconds: dict[str, float] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Some modules replace items of the list that they get; the interpreter's lists cannot change.
        plain = tuple(list(item) if isinstance(item, list) else item for item in args)
        return super().call_module(target, plain, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(node)
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor):
                synchronize(value.device)
        self.seconds[node.name] = time.perf_counter() - start
        return result


def synchronize(device: torch.device) -> None:
    """Wait for queued work, where a device queues."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
