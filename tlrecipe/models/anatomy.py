"""What a network is made of: the facts that patterns, freezing and caching rest on.

Everything is read off the modules themselves, so that it holds for any architecture; a library's own
knowledge (heads, layer groups) comes in as arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from tlrecipe.models.adapters import is_adapter
from tlrecipe.planning.facts import ModuleFact, ParamFact

# Stages and layers of networks whose library groups no parameters: all of torchvision, some of timm.
# A parameter belongs to the key that its name starts with; a name without a key (a class token, a final
# norm) belongs to the key before it, or to the stem.
_STAGE = re.compile(
    r"layer\d+|stage\d+|trunk_output\.block\d+|encoder\.layers\.\w+"
    r"|(?:\w*stages|transformers|blocks|layers)\.\d+"
    r"|features\.\w+|classifier\.\d+|inception\d\w|(?:Conv2d|Mixed)_\w+"
)
_LAYER = re.compile(
    r"(?:layer\d+|stage\d+|trunk_output\.block\d+)\.[\w-]+|encoder\.layers\.\w+"
    r"|(?:\w*stages|transformers|blocks|layers)\.\d+(?:\.(?:blocks|layers)\.\d+|\.\d+(?!\.(?:weight|bias)$))?"
    r"|features\.denseblock\d+\.\w+|features\.\w+(?:\.\d+(?!\.(?:weight|bias)$))?"
    r"|classifier\.\d+|inception\d\w|(?:Conv2d|Mixed)_\w+"
)
_STEM = ""

# Where libraries keep the probability of randomness that they apply with a function instead of a module.
_RATES = ("drop_rate", "drop_prob", "dropout", "prob")


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer of any sort, affine stand-ins for one included.

    Beyond PyTorch's own classes the name decides, but only for modules that hold no other weights:
    ``ConvNormAct`` and ``NormMlpClassifierHead`` contain a norm layer, they are none.
    """
    if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | FrozenBatchNorm2d):
        return True
    named = "Norm" in type(module).__name__ or type(module).__name__ in ("Affine", "GRN")
    owned = len(list(module.parameters(recurse=False))) + len(list(module.buffers(recurse=False)))
    return named and owned > 0 and not any(list(child.parameters()) for child in module.children())


def draw_rate(module: nn.Module) -> float:
    """The probability with which ``module`` itself, not a part of it, draws in train mode."""
    if isinstance(module, _DropoutNd | StochasticDepth):
        return float(module.p)
    if isinstance(module, nn.RReLU):
        return float(module.lower < module.upper)
    for attribute in _RATES:
        rate = getattr(module, attribute, None)
        if isinstance(rate, float) and rate > 0:
            return rate
    return 0.0


def _is_random(module: nn.Module) -> bool:
    rate = draw_rate(module)
    # A container often remembers the rate that it gave to a dropout inside: that one draws, not it.
    parts = (part for part in module.modules() if part is not module)
    return rate > 0 and not any(draw_rate(part) == rate for part in parts)


def module_facts(model: nn.Module) -> tuple[ModuleFact, ...]:
    """One fact per module, in the order and under the names of ``model.named_modules()``."""
    facts = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        own_buffers = tuple(prefix + key for key, _ in module.named_buffers(recurse=False))
        norm = is_norm(module)
        facts.append(
            ModuleFact(
                name=name,
                kind=type(module).__name__,
                norm=norm,
                statistics=norm and any(key.rsplit(".", 1)[-1].startswith("running_") for key in own_buffers),
                random=_is_random(module),
                buffers=own_buffers,
            )
        )
    return tuple(facts)


def param_facts(
    model: nn.Module, heads: Iterable[str], stages: Mapping[str, int], depths: Mapping[str, int]
) -> tuple[ParamFact, ...]:
    """One fact per parameter, in the order of ``named_parameters()``; tied ones once, with their aliases.

    ``stages`` and ``depths`` number every backbone parameter by its first name; gaps are closed, and the
    modules named in ``heads`` get the number after the last. An adapter has the numbers of its layer.
    """
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    inside = tuple(f"{head}." for head in heads)
    modules = dict(model.named_modules(remove_duplicate=False))
    numbered = {names[0]: names[0] for names in names_of.values() if not names[0].startswith(inside)}
    for name in numbered:
        if is_adapter(modules[name.rpartition(".")[0]], name):
            numbered[name] = f"{name.rpartition('.')[0]}.weight"
    stage_of, depth_of = (
        _consecutive({name: part[by] for name, by in numbered.items()}) for part in (stages, depths)
    )
    facts = []
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        head = name.startswith(inside)
        facts.append(
            ParamFact(
                name=name,
                shape=tuple(parameter.shape),
                module=owner,
                norm=is_norm(modules[owner]),
                bias=leaf.endswith("bias") and parameter.ndim <= 1,
                head=head,
                adapter=is_adapter(modules[owner], name),
                stage=_after(stage_of) if head else stage_of[name],
                depth=_after(depth_of) if head else depth_of[name],
                aliases=tuple(names_of[id(parameter)][1:]),
            )
        )
    return tuple(facts)


def stages_by_name(model: nn.Module, heads: Iterable[str]) -> dict[str, int]:
    """Coarse stages of the backbone from parameter names alone, the stem first."""
    return _numbered(model, heads, _STAGE)


def depths_by_name(model: nn.Module, heads: Iterable[str]) -> dict[str, int]:
    """Layers of the backbone from parameter names alone: one per block, and a norm layer that stands
    alone with the layer before it."""
    return _numbered(model, heads, _LAYER)


def _numbered(model: nn.Module, heads: Iterable[str], pattern: re.Pattern[str]) -> dict[str, int]:
    modules = dict(model.named_modules())
    inside = tuple(f"{head}." for head in heads)
    key = _STEM
    members: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        if name.startswith(inside):
            continue
        if found := pattern.match(name):
            key = found.group()
        members.setdefault(key, []).append(name)
    number = -1
    numbers: dict[str, int] = {}
    for names in members.values():
        if number < 0 or not all(is_norm(modules[name.rpartition(".")[0]]) for name in names):
            number += 1
        numbers |= dict.fromkeys(names, number)
    return numbers


def _consecutive(numbers: Mapping[str, int]) -> dict[str, int]:
    ranks = {number: rank for rank, number in enumerate(sorted(set(numbers.values())))}
    return {name: ranks[number] for name, number in numbers.items()}


def _after(numbers: Mapping[str, int]) -> int:
    return max(numbers.values(), default=-1) + 1
