"""A frozen network made fast: batch norm folded into convolutions, channels-last, the widest fast type."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
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
    fast = copied(network)
    pairs = follows(fast, sample)
    if pairs:
        expected = run(fast, sample)
        undo = [_fold(fast, conv, norm) for conv, norm in pairs]
        if not same(run(fast, sample), expected):
            for back in undo:
                back()
    return fast.to(sample.device, DTYPES[precision]).to(memory_format=torch.channels_last)


def copied(network: nn.Module) -> nn.Module:
    """A copy for inference: eval mode, no gradients, channels-last."""
    return copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def run(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """All outputs of one pass without gradients."""
    with torch.no_grad():
        outputs = network(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether two networks agree up to what folding may change."""
    return all(
        torch.allclose(got, want, rtol=_FOLD_TOLERANCE, atol=_FOLD_TOLERANCE * float(want.abs().max() + 1e-6))
        for got, want in zip(outputs, expected, strict=True)
    )


def after_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """What a batch norm does beside normalising: timm's BatchNormAct2d applies dropout and an activation."""
    return nn.Sequential(*norm.children()) if any(norm.children()) else nn.Identity()


def _fold(network: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Callable[[], None]:
    """Put a batch norm into the weights of the convolution before it; gives what takes it back."""
    before = conv.weight, conv.bias
    parent, name = next(
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if child is norm
    )
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight.requires_grad_(False)
    conv.bias.requires_grad_(False)
    setattr(parent, name, after_norm(norm))

    def undo() -> None:
        conv.weight, conv.bias = before
        setattr(parent, name, norm)

    return undo


def follows(network: nn.Module, *inputs: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose output goes straight into a batch norm, seen by running the network once.

    Watching tensors instead of code works for any control flow; whether the convolution's output is
    used elsewhere too is left to a comparison of outputs.
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
    run(network, *inputs)
    for handle in handles:
        handle.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1 and norm is not network]


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
