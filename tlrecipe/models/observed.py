"""What running a network shows of it, and whether a changed network still computes the same.

Watching tensors instead of code works for any control flow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

# Changes reorder float32 additions; what differs by more is not the same computation.
_TOLERANCE = 1e-3
# In bfloat16 each layer rounds to eight bits, and another order of additions to others of them.
_BF16_TOLERANCE = 5e-2


def copied(network: nn.Module) -> nn.Module:
    """A copy for inference: eval mode, no gradients, channels-last."""
    return copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def run(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """All outputs of one pass without gradients."""
    with torch.no_grad():
        outputs = network(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def same(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether two networks agree up to what another order of additions may change."""
    for got, want in zip(outputs, expected, strict=True):
        tolerance = _BF16_TOLERANCE if want.dtype == torch.bfloat16 else _TOLERANCE
        if not torch.allclose(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max() + 1e-6)):
            return False
    return True


def put(network: nn.Module, name: str, module: nn.Module) -> Callable[[], None]:
    """Put a module at a dotted name in place of the one that is there; gives what takes it back."""
    owner_name, _, own_name = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    before = owner.get_submodule(own_name)
    setattr(owner, own_name, module)
    return lambda: setattr(owner, own_name, before)


def keep_if_same(network: nn.Module, inputs: Sequence[Tensor], changes: Iterable[Callable[[], None]]) -> bool:
    """Make changes to a network, and take them all back if one fails or if it then computes something else.

    ``changes`` makes one with each item, which takes that one back.
    """
    expected = run(network, *inputs)
    made: list[Callable[[], None]] = []
    # A kernel that refuses an argument raises RuntimeError.
    with suppress(RuntimeError):
        made.extend(changes)
        if same(run(network, *inputs), expected):
            return True
    for back in reversed(made):
        back()
    return False


def follows(
    network: nn.Module, inputs: Sequence[Tensor], *kinds: type[nn.Module]
) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions whose output goes straight into a module of one of ``kinds``, both called once.

    The network is run once for it. Whether the convolution's output is used elsewhere too is left to a
    comparison of outputs.
    """
    produced: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def after_conv(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] = calls.get(module, 0) + 1
        # The tensor is kept so that no later one can get its id; its version tells of changes in place.
        produced[id(output)] = (module, output, output._version)

    def before_other(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        conv, output, version = produced.get(id(args[0]) if args else 0, (None, None, 0))
        if conv is not None and output is not None and output._version == version:
            pairs.append((conv, module))

    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, kinds):
            handles.append(module.register_forward_pre_hook(before_other))
    run(network, *inputs)
    for handle in handles:
        handle.remove()
    return [
        (conv, other) for conv, other in pairs if calls[conv] == calls[other] == 1 and other is not network
    ]
