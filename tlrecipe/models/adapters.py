"""Adapters: small matrices that train beside layers that stand still (LoRA, https://arxiv.org/abs/2106.09685).

A layer with an adapter is the layer itself, under its name and with its own weight and bias, as an instance
of a subclass that has two more parameters: ``lora_down`` takes its inputs to ``rank`` channels, ``lora_up``
takes those to its outputs. A convolution goes down by a convolution of its own kernel, stride and padding,
and up by one of 1 x 1, so that both are one convolution of its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tlrecipe.language.diagnostics import Diagnostic, Path, TlrecipeError, nearest
from tlrecipe.language.spec import LoraAdapter
from tlrecipe.planning.facts import AdapterMatch, ParamTable
from tlrecipe.planning.patterns import Matcher
from tlrecipe.planning.randomness import key

PLACE: Path = ("backbone", "adapter", "match")
"""Where a recipe says which layers get an adapter."""

DOWN, UP = "lora_down", "lora_up"
"""What the parameters of an adapter are called in their layer."""


class LoraLinear(nn.Linear):
    """A linear layer with an adapter."""

    lora_down: nn.Parameter
    """(rank, inputs)"""
    lora_up: nn.Parameter
    """(outputs, rank)"""
    scale: float
    dropout: float

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(F.dropout(input, self.dropout, self.training), self.lora_down)
        return super().forward(input) + self.scale * F.linear(low, self.lora_up)


class LoraConv2d(nn.Conv2d):
    """A convolution with an adapter."""

    lora_down: nn.Parameter
    """(rank, inputs, height, width): the layer's own kernel"""
    lora_up: nn.Parameter
    """(outputs, rank, 1, 1)"""
    scale: float
    dropout: float

    def forward(self, input: Tensor) -> Tensor:
        low = self._conv_forward(F.dropout(input, self.dropout, self.training), self.lora_down, None)
        return super().forward(input) + self.scale * F.conv2d(low, self.lora_up)


Adapted = LoraLinear | LoraConv2d

# Subclasses that a library makes may do more with their weight than multiply, and are no bases.
_PLAIN: Mapping[type[nn.Module], type[Adapted]] = {nn.Linear: LoraLinear, nn.Conv2d: LoraConv2d}


def is_adapter(owner: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of the module ``owner`` is part of an adapter."""
    return isinstance(owner, Adapted) and name.rpartition(".")[2] in (DOWN, UP)


# --------------------------------------------------------------------------- which layers


def matches(
    network: nn.Module, table: ParamTable, adapter: LoraAdapter, size: int
) -> tuple[AdapterMatch, ...]:
    """What each pattern of ``adapter`` means: a pattern matches the layers whose weight it matches.

    ``network`` has no adapters yet and is on the meta device; ``table`` are its parameters, and ``size`` are
    the pixels of the images that it takes. It is run, and left in train mode.

    Raises:
        TlrecipeError: TLR104 for each pattern that matches no parameter. TLR115 for each that matches no
            layer that takes an adapter, or one whose adapter the network would pass by; and where the network
            cannot be run without values, so that this is not known.
    """
    matcher = Matcher(table)
    layers = dict(_layers(network, table))
    bypassed = _bypassed(network, _multiplying(network, table), size, table.architecture)
    takers = [name for name, why in layers.items() if why is None]
    found: list[AdapterMatch] = []
    problems: list[Diagnostic] = []
    for position, pattern in enumerate(adapter.match):
        path = (*PLACE, position)
        matched = matcher(pattern)
        mine = [name for name in layers if f"{name}.weight" in matched]
        taken = tuple(name for name in mine if layers[name] is None)
        left_out = tuple(why for name in mine if (why := layers[name]) is not None)
        if not matched:
            problems.append(matcher.nothing(pattern, path))
        elif passed := [name for name in mine if name in bypassed]:
            problems.append(_passed_by(pattern, path, passed, [n for n in taken if n not in bypassed]))
        elif not taken:
            what = ", ".join(dict.fromkeys(left_out)) or "there is no matrix of weights"
            near = nearest(pattern, takers) or takers[:1]
            cure = f"linear layers take one, and convolutions that are not grouped{_such_as(near)}"
            message = f"`{pattern}` matches no layer that takes an adapter: {what}"
            problems.append(Diagnostic("TLR115", message, path, cure))
        else:
            found.append(AdapterMatch(pattern, taken, left_out))
    if problems:
        raise TlrecipeError(problems)
    return tuple(found)


def _passed_by(pattern: str, path: Path, passed: Sequence[str], others: Sequence[str]) -> Diagnostic:
    more = f" (and {len(passed) - 1} more)" if len(passed) > 1 else ""
    return Diagnostic(
        "TLR115",
        f"`{pattern}` matches `{passed[0]}`{more}, whose weight the network reads without running the layer:"
        " it would pass the adapter by",
        path,
        f"match other layers{_such_as(others[:1])}",
    )


def _such_as(names: Sequence[str]) -> str:
    return f", such as `{names[0]}`" if names else ""


def _layers(network: nn.Module, table: ParamTable) -> Iterator[tuple[str, str | None]]:
    """Every layer with a matrix of weights, and what it is if it takes no adapter, else None."""
    for param in table:
        if param.name != f"{param.module}.weight" or len(param.shape) < 2:
            continue
        module = network.get_submodule(param.module)
        kind = type(module).__name__
        if param.head:
            yield param.module, "the new head"
        elif param.aliases:
            yield param.module, f"tied {kind}"
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            yield param.module, f"grouped {kind}"
        else:
            yield param.module, None if type(module) in _PLAIN else kind


def _multiplying(network: nn.Module, table: ParamTable) -> list[str]:
    """The layers of the backbone that multiply with their weight, those that a library made of them too."""
    names = dict.fromkeys(param.module for param in table if not param.head)
    return [name for name in names if isinstance(network.get_submodule(name), tuple(_PLAIN))]


def _bypassed(network: nn.Module, layers: Iterable[str], size: int, title: str) -> frozenset[str]:
    """Those of ``layers`` that do not run, or whose weight something else reads as well, in either mode.

    The network's own code is run on the meta device, and each call of torch is seen with its arguments.
    """
    watch = _Watch({name: network.get_submodule(name) for name in layers})
    images = torch.empty(2, 3, size, size, device="meta")
    try:
        with watch, torch.no_grad():
            for training in (False, True):
                network.train(training)(images)
    except Exception as error:  # a library's network fails with whatever its arithmetic happens to raise
        raise TlrecipeError.of(
            "TLR115",
            f"`{title}` cannot be run without values, so it is not known which of its layers an adapter would"
            f" reach ({type(error).__name__})",
            path=PLACE[:-1],
            help="remove `adapter`, or choose another architecture",
        ) from error
    finally:
        watch.remove()
    return frozenset(watch.read | (watch.layers.keys() - watch.ran))


class _Watch(TorchFunctionMode):
    """Sees which layers run, and which of their weights are used while they do not."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        super().__init__()
        self.layers = layers
        self.ran: set[str] = set()
        self.read: set[str] = set()
        self._running: str | None = None
        self._owners = {id(layer.weight): name for name, layer in layers.items()}
        self._handles = [
            handle
            for name, layer in layers.items()
            for handle in (
                layer.register_forward_pre_hook(lambda *_, name=name: self._enter(name)),
                layer.register_forward_hook(lambda *_: self._leave(), always_call=True),
            )
        ]

    def _enter(self, name: str) -> None:
        self._running = name
        self.ran.add(name)

    def _leave(self) -> None:
        self._running = None

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        used = {self._owners[id(value)] for value in tree_leaves((args, kwargs)) if id(value) in self._owners}
        # To ask a weight for its shape or type is not to read it.
        if used and any(isinstance(value, Tensor) for value in tree_leaves(output)):
            self.read |= used - {self._running}
        return output


# --------------------------------------------------------------------------- adapters come and go


def attach(network: nn.Module, layers: Iterable[str], adapter: LoraAdapter, seed: int) -> None:
    """Give each of ``layers`` an adapter, in place. The network computes what it did: ``lora_up`` is zero.

    ``lora_down`` is drawn as by the method's authors, from ``seed`` and the name of its layer alone.
    """
    for name in layers:
        layer: Any = network.get_submodule(name)
        layer.__class__ = _PLAIN[type(layer)]
        outputs, *inner = layer.weight.shape
        down = torch.empty(adapter.rank, *inner)
        stream = torch.Generator().manual_seed(key(seed, "adapter", name) >> 1)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=stream)
        up = torch.zeros(outputs, adapter.rank, *[1] * (len(inner) - 1))
        layer.lora_down = nn.Parameter(down.to(layer.weight.device))
        layer.lora_up = nn.Parameter(up.to(layer.weight.device))
        layer.scale = adapter.alpha / adapter.rank
        layer.dropout = adapter.dropout


def merge(network: nn.Module) -> None:
    """Put the adapters of a network for inference into its weights, in place; its layers are plain again."""
    for module in network.modules():
        if isinstance(module, Adapted):
            layer: Any = module
            layer.weight = nn.Parameter(_merged(module), requires_grad=False)
            del layer.lora_down, layer.lora_up
            layer.__class__ = next(plain for plain, adapted in _PLAIN.items() if adapted is type(layer))


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that the network has without adapters, for the same outputs up to rounding."""
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, Adapted):
            state[f"{name}.weight"] = _merged(module)
            del state[f"{name}.{DOWN}"], state[f"{name}.{UP}"]
    return state


@torch.no_grad()
def _merged(layer: Adapted) -> Tensor:
    product = layer.lora_up.flatten(1) @ layer.lora_down.flatten(1)
    return layer.weight + layer.scale * product.view_as(layer.weight)
