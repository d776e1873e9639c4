"""The table of optimizers: a row and a class in the grammar each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import AdamSpec, AdamWSpec, OptimizerSpec, RMSpropSpec, SGDSpec
from tlrecipe.planning.plan import PhasePlan

Groups = list[dict[str, Any]]

# Fused steps where torch has them for CPU and CUDA, else foreach: one kernel for many parameters.
OPTIMIZERS: Mapping[type, Callable[[Groups, Any], torch.optim.Optimizer]] = {
    SGDSpec: lambda groups, spec: torch.optim.SGD(
        groups, lr=0.0, momentum=spec.momentum, nesterov=spec.nesterov, fused=True
    ),
    AdamSpec: lambda groups, spec: torch.optim.Adam(
        groups, lr=0.0, betas=spec.betas, eps=spec.eps, fused=True
    ),
    AdamWSpec: lambda groups, spec: torch.optim.AdamW(
        groups, lr=0.0, betas=spec.betas, eps=spec.eps, fused=True
    ),
    RMSpropSpec: lambda groups, spec: torch.optim.RMSprop(
        groups, lr=0.0, alpha=spec.alpha, momentum=spec.momentum, eps=spec.eps, foreach=True
    ),
}


def build(model: nn.Module, phase: PhasePlan) -> torch.optim.Optimizer:
    """A fresh optimizer over the phase's trainable parameters, in its named groups.

    Rates are zero until :func:`set_rates`.
    """
    parameters = dict(model.named_parameters())
    groups: Groups = [
        {
            "name": group.name,
            "param_names": list(group.params),
            "params": [parameters[name] for name in group.params],
            "weight_decay": group.weight_decay,
        }
        for group in phase.groups
    ]
    # param_names is torch's own key from 2.6 on only where it comes with the parameters; ours is kept apart.
    for group in groups:
        group["names"] = group.pop("param_names")
    return OPTIMIZERS[type(phase.optimizer)](groups, phase.optimizer)


def set_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, ...]) -> None:
    """Write one rate per group, in the plan's order."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter>/<entry>`` tensors; torch's own is by position only."""
    state: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for entry, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    state[f"{name}/{entry}"] = torch.as_tensor(value)
    return state


def load_state_by_name(
    optimizer: torch.optim.Optimizer, spec: OptimizerSpec, state: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`state_by_name` gave, checked by name, shape and type.

    Raises:
        TlrecipeError: TLR602 where an entry is missing, left over or of another shape or type.
    """
    expected: set[str] = set()
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            entries = {
                key.removeprefix(f"{name}/"): value
                for key, value in state.items()
                if key.startswith(f"{name}/")
            }
            if not entries and state:
                raise _bad_state(f"has no state for `{name}`")
            for entry, value in entries.items():
                scalar = entry == "step"
                if not scalar and (value.shape != parameter.shape or value.dtype != parameter.dtype):
                    raise _bad_state(
                        f"holds `{name}/{entry}` as {tuple(value.shape)} {value.dtype}, but the parameter"
                        f" is {tuple(parameter.shape)} {parameter.dtype}"
                    )
                optimizer.state[parameter][entry] = (
                    value.clone()
                    if scalar
                    else torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
                )
                expected.add(f"{name}/{entry}")
    left = sorted(set(state) - expected)
    if left:
        raise _bad_state(f"holds state for `{left[0]}`, which phase does not train")
    kinds = {key.rpartition("/")[2] for key in state}
    for group in optimizer.param_groups:
        for name in group["names"]:
            missing = sorted(kind for kind in kinds if f"{name}/{kind}" not in state)
            if missing:
                raise _bad_state(f"lacks `{name}/{missing[0]}` of {spec.name}")


def _bad_state(what: str) -> TlrecipeError:
    return TlrecipeError.of("TLR602", f"the optimizer state of the checkpoint {what}")
