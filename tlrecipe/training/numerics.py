"""Finding the first tensor that is not finite, so that NaN stops a run with its cause and reaches no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tlrecipe.language.diagnostics import TlrecipeError


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first floating-point tensor with a NaN or an infinite value, or None.

    One answer is fetched from the device for all tensors together.
    """
    floating = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
    if not floating:
        return None
    flags = torch.stack([torch.isfinite(tensor.detach()).all() for _, tensor in floating])
    sound = flags.tolist()
    return next((name for (name, _), finite in zip(floating, sound, strict=True) if not finite), None)


def rows_not_finite(values: Tensor) -> list[int]:
    """The rows of (N, …) that hold a NaN or an infinite value."""
    sound = torch.isfinite(values.detach()).flatten(1).all(1)
    return [int(row) for row in (~sound).nonzero().flatten().tolist()]


def refuse_not_finite(named: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raise TLR701 with the name of the first tensor that is not finite, and ``where`` it was found."""
    if (name := first_not_finite(named)) is not None:
        raise TlrecipeError.of(
            "TLR701",
            f"`{name}` is not finite {where}",
            help="lower `lr`, add a warm-up or `clip_norm`; what was saved before is untouched",
        )


def origin(network: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """The first module, in the order in which they run, whose output is not finite though what goes in is.

    Runs ``network`` once without gradients; statistics of norm layers in train mode move.
    """
    found: list[str] = []

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, given: tuple[object, ...], output: object) -> None:
            if not found and isinstance(output, Tensor) and first_not_finite([("", output)]) is not None:
                found.append(name)

        handle: torch.utils.hooks.RemovableHandle = modules[name].register_forward_hook(hook)
        return handle

    modules = {name: module for name, module in network.named_modules() if name}
    handles = [watch(name) for name in modules]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


class Kept:
    """A copy of tensors that a step changes before anybody can know whether it may: the statistics of norm
    layers, which a forward pass moves."""

    def __init__(self, tensors: Iterable[Tensor]):
        self._live = list(tensors)
        self._copies = [tensor.clone() for tensor in self._live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the values as they are now."""
        if self._live:
            torch._foreach_copy_(self._copies, self._live)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the tensors the values that were remembered."""
        for live, copy in zip(self._live, self._copies, strict=True):
            live.copy_(copy)
