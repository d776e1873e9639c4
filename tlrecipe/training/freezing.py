"""Making a network what a phase's plan says it is, and proving that it stayed so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.planning.plan import PhasePlan


def apply(model: nn.Module, phase: PhasePlan) -> None:
    """Set gradients and module modes to the phase's, whatever they were before.

    Gradients of parameters that stand still are dropped: a left-over one would still move them.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in phase.trainable)
        if name not in phase.trainable:
            parameter.grad = None
    apply_modes(model, phase)


def apply_modes(model: nn.Module, phase: PhasePlan) -> None:
    """Set train or eval mode of every module to the phase's: evaluation changes them all."""
    for name, module in model.named_modules():
        module.training = name in phase.train_modules


def check(model: nn.Module, phase: PhasePlan) -> None:
    """Compare the live network with the plan.

    Raises:
        TlrecipeError: TLR702 where a trainable set or a mode differs.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in phase.trainable):
            raise TlrecipeError.of(
                "TLR702",
                f"`{name}` is {'trainable' if parameter.requires_grad else 'frozen'},"
                f" which phase `{phase.name}` does not say",
            )
    for name, module in model.named_modules():
        if module.training != (name in phase.train_modules):
            raise TlrecipeError.of(
                "TLR702",
                f"module `{name}` is in {'train' if module.training else 'eval'} mode,"
                f" which phase `{phase.name}` does not say",
            )


def frozen_tensors(model: nn.Module, phase: PhasePlan) -> dict[str, Tensor]:
    """Everything that must not move in a phase: frozen parameters, and all buffers but the running
    statistics of norm layers in train mode."""
    still: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in phase.frozen}
    still |= {name: b for name, b in model.named_buffers() if name not in phase.moving_buffers}
    return still


def moving_tensors(model: nn.Module, phase: PhasePlan) -> dict[str, Tensor]:
    """Everything that a phase may change: trainable parameters and moving statistics."""
    moving: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in phase.trainable}
    moving |= {name: b for name, b in model.named_buffers() if name in phase.moving_buffers}
    return moving


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor, by name."""
    return {name: digest([(name, tensor)]) for name, tensor in tensors.items()}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """One SHA-256 of names, shapes, types and bytes, in the order given."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(values.view(torch.uint8).numpy().data)
    return total.hexdigest()


def combined(parts: dict[str, str]) -> str:
    """One digest of many, independent of their order."""
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(parts.items())).encode()).hexdigest()


def prove(before: dict[str, str], after: dict[str, str], phase: PhasePlan) -> None:
    """Raise if a frozen tensor is not the same bytes as before.

    Raises:
        TlrecipeError: TLR702 with the names of up to five tensors that moved.
    """
    moved = [name for name, value in before.items() if after.get(name) != value]
    if moved:
        listed = ", ".join(f"`{name}`" for name in moved[:5])
        raise TlrecipeError.of(
            "TLR702",
            f"{len(moved)} frozen tensors moved in phase `{phase.name}`: {listed}",
            help="this is a bug of tlrecipe or of the backbone; nothing was saved",
        )
