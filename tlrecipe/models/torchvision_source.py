"""Backbones of torchvision: its 80 image classifiers.

The head is the last linear or convolutional layer, the only one whose shape follows the number of
classes. Layers of a ``classifier`` in front of it (AlexNet, VGG, MobileNetV3, MaxViT) are backbone. The
auxiliary heads of GoogLeNet and Inception serve training from scratch on ImageNet and are left out.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from tlrecipe.models.anatomy import depths_by_name, stages_by_name
from tlrecipe.models.architecture import (
    HEAD_DROPOUT,
    as_preprocessing,
    no_dropout,
    no_weights,
    unknown_name,
)
from tlrecipe.models.weights import StateDict, WeightsFile, check_fit, from_url, unfit
from tlrecipe.planning.facts import Preprocessing

# `transform_input` is what the published weights of both imply: it takes the usual normalisation of
# ImageNet to the one that they were trained with.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True, "transform_input": True},
    "inception_v3": {"aux_logits": False, "init_weights": True, "transform_input": True},
}
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Published DenseNet files have names that PyTorch no longer allows: `norm.1` for `norm1`.
_OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def names() -> list[str]:
    """All image classifiers of torchvision."""
    return list(models.list_models(module=models))


def resolve(name: str, weights: str, args: Mapping[str, Any]) -> TorchvisionArchitecture:
    """The architecture ``name`` with ``weights``: ``"none"``, ``"path"``, ``"pretrained"`` or a tag.

    ``args`` are further arguments of its constructor, which are not checked here.

    Raises TLR112 for an unknown name and TLR501 for an unknown tag.
    """
    known = names()
    if name not in known:
        raise unknown_name(name, known, _elsewhere(name))
    choices = models.get_model_weights(name)
    tag = "DEFAULT" if weights in ("none", "path", "pretrained") else weights
    if tag not in choices.__members__:
        raise no_weights(name, tag, list(choices.__members__))
    return TorchvisionArchitecture(name, choices[tag], weights, args)


def _elsewhere(name: str) -> str | None:
    from tlrecipe.models import timm_source

    return f'timm has `{name}`: set source = "timm"' if name in timm_source.names() else None


@dataclass(frozen=True)
class TorchvisionArchitecture:
    """An :class:`tlrecipe.models.architecture.Architecture` of torchvision."""

    name: str
    weights: WeightsEnum
    settings: str
    args: Mapping[str, Any]

    @property
    def library(self) -> str:
        return "torchvision"

    @cached_property
    def preprocessing(self) -> Preprocessing:
        preset = self.weights.transforms()
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        return as_preprocessing(crop, crop / resize, preset.interpolation.value, preset.mean, preset.std)

    @property
    def license(self) -> str:
        return str(self.weights.meta.get("license", "BSD-3-Clause"))

    @property
    def reserved(self) -> Mapping[str, str]:
        # That of these two is for their blocks; all others have theirs in front of the head.
        return {} if self.name.startswith(("vit_", "swin_")) else {"dropout": HEAD_DROPOUT}

    def with_args(self, args: Mapping[str, Any]) -> TorchvisionArchitecture:
        return replace(self, args=args)

    def library_size(self, size: int | None) -> int | None:
        return size

    @property
    def sized(self) -> bool:
        return bool(self._size_arguments(None))

    def _size_arguments(self, size: int | None) -> dict[str, Any]:
        size = size or self.preprocessing.size
        if self.name.startswith("vit_"):
            return {"image_size": size}
        return {"input_size": (size, size)} if self.name.startswith("maxvit_") else {}

    def _network(self, classes: int, size: int | None) -> nn.Module:
        arguments = _ARGUMENTS.get(self.name, {}) | self._size_arguments(size) | dict(self.args)
        network: nn.Module = models.get_model(self.name, weights=None, num_classes=classes, **arguments)
        return network

    def construct(self, classes: int, dropout: float, size: int | None) -> nn.Module:
        network = self._network(classes, size)
        place = _dropout_before(network, *self.heads(network))
        if place is not None:
            place.p = dropout
        elif dropout > 0:
            raise no_dropout(self.name)
        return network

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        return (layers[-1],)

    def layers(self, model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
        heads = self.heads(model)
        return stages_by_name(model, heads), depths_by_name(model, heads)

    def published(self) -> WeightsFile:
        return from_url(self.weights.url, f"torchvision {self.name} {self.weights.name}")

    def loaded(self, state: StateDict, classes: int, dropout: float, size: int | None) -> nn.Module:
        network = self.construct(classes, dropout, size)
        auxiliary = _AUXILIARY.get(self.name, ())
        state = {
            _OLD_DENSENET_NAME.sub(r"\1\2", name) if self.name.startswith("densenet") else name: tensor
            for name, tensor in state.items()
            if not name.startswith(auxiliary)
        }
        if isinstance(network, models.VisionTransformer) and "encoder.pos_embedding" in state:
            try:
                state = interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(state))
            except (ValueError, RuntimeError) as error:
                raise unfit(self.name, f"position embeddings cannot be resized: {error}") from None
        (head,) = self.heads(network)
        check_fit(network, state, (head,), self.name)
        # The network's own dictionary carries the versions of its modules, which files may lack.
        complete = network.state_dict()
        complete.update({name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")})
        network.load_state_dict(complete)
        return network

    def hub_config(self, model: nn.Module, classes: int, size: int | None) -> dict[str, Any]:
        (head,) = self.heads(model)
        layer = model.get_submodule(head)
        own = self.preprocessing
        pixels = size or own.size
        return {
            "architecture": self.name,
            "num_classes": classes,
            "num_features": layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels,
            "pretrained_cfg": {
                "tag": self.weights.name,
                "input_size": [3, pixels, pixels],
                "fixed_input_size": self.sized,
                "interpolation": own.interpolation,
                "crop_pct": own.crop_pct,
                "mean": list(own.mean),
                "std": list(own.std),
                "num_classes": classes,
                "classifier": head,
                "license": self.license,
            },
        }


def _dropout_before(network: nn.Module, head: str) -> nn.Dropout | None:
    """The dropout between ``head`` and the last weights before it."""
    last: nn.Dropout | None = None
    for name, module in network.named_modules():
        if name == head:
            break
        if isinstance(module, nn.Dropout):
            last = module
        elif any(True for _ in module.parameters(recurse=False)):
            last = None
    return last
