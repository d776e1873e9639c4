"""The table of optimizers: a row and a class in the grammar each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def state_by_name(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[str]]:
    """The optimizer's state as ``<parameter>/<entry>`` tensors; torch's own is by position only.

    Also gives the parameters that have none: no gradient has reached them yet.
    """
    state: dict[str, Tensor] = {}
    without: list[str] = []
    for name, parameter in _named(optimizer):
        entries = {k: v for k, v in optimizer.state.get(parameter, {}).items() if v is not None}
        state.update({f"{name}/{entry}": torch.as_tensor(value) for entry, value in entries.items()})
        if not entries:
            without.append(name)
    return state, sorted(without)


def load_state_by_name(
    optimizer: torch.optim.Optimizer, spec: OptimizerSpec, state: Mapping[str, Tensor], without: object
) -> None:
    """Put back what :func:`state_by_name` gave, checked by name, shape and type.

    Raises:
        TlrecipeError: TLR602 where an entry is missing, left over or of another shape or type.
    """
    kinds = _kinds(spec)
    names = sorted(name for name, _ in _named(optimizer))
    if not isinstance(without, list) or without != [name for name in names if name in without]:
        raise _bad_state("says of parameters that this phase does not train that they have none")
    if not kinds and without != names:
        raise _bad_state(f"has some, but {spec.name} keeps none")
    expected = {f"{name}/{kind}" for name in names if name not in without for kind in kinds}
    if odd := sorted(state.keys() ^ expected):
        raise _bad_state(
            f"{'lacks' if odd[0] in expected else 'holds'} `{odd[0]}` ({len(odd)} are not as expected)"
        )
    for name, parameter in _named(optimizer):
        if name in without:
            continue
        for kind, scalar in kinds.items():
            value = state[f"{name}/{kind}"]
            wanted = scalar if scalar is not None else parameter
            if value.shape != wanted.shape or value.dtype != wanted.dtype:
                raise _bad_state(
                    f"holds `{name}/{kind}` as {tuple(value.shape)} {value.dtype}, expected"
                    f" {tuple(wanted.shape)} {wanted.dtype}"
                )
            optimizer.state[parameter][kind] = (
                torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
                if scalar is None
                else value.clone()
            )


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _kinds(spec: OptimizerSpec) -> dict[str, Tensor | None]:
    """The entries that an optimizer keeps of a parameter, found by a step of a small one.

    None where an entry is like the parameter; else a tensor of its shape and type.
    """
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.zeros(2, 3)
    optimizer = OPTIMIZERS[type(spec)]([{"params": [parameter], "weight_decay": 0.0}], spec)
    optimizer.step()
    entries = {k: torch.as_tensor(v) for k, v in optimizer.state[parameter].items() if v is not None}
    return {kind: None if value.shape == parameter.shape else value for kind, value in entries.items()}


def _bad_state(what: str) -> TlrecipeError:
    return TlrecipeError.of("TLR602", f"the optimizer state of the checkpoint {what}")
