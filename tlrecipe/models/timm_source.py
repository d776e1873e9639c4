"""Backbones of timm: every architecture of its registry that ends in a classifier."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakSet

import timm
import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, group_parameters
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_module_registration_hook

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.models.anatomy import depths_by_name, stages_by_name
from tlrecipe.models.architecture import (
    HEAD_DROPOUT,
    as_preprocessing,
    no_dropout,
    no_weights,
    unknown_name,
)
from tlrecipe.models.weights import (
    StateDict,
    WeightsFile,
    check_fit,
    from_hub,
    from_url,
    lite0_from_package,
    lite0_names,
    unfit,
)
from tlrecipe.planning.facts import CropMode, Preprocessing

_LITE0 = "tf_efficientnet_lite0"
_CROP_MODES: dict[str, CropMode] = {"squash": "squash", "border": "border"}


def names() -> list[str]:
    """All architectures of timm, without tags."""
    return list(timm.list_models())


def resolve(name: str, weights: str, args: Mapping[str, Any]) -> TimmArchitecture:
    """The architecture ``name`` with ``weights``: ``"none"``, ``"path"``, ``"pretrained"`` or a tag.

    ``args`` are further arguments of its constructor, which are not checked here.

    Raises TLR112 for an unknown name and TLR501 for weights that are not published.
    """
    known = names()
    if name not in known:
        raise unknown_name(name, known, _elsewhere(name, known))
    published = {
        full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items() if cfg.has_weights
    }
    cfg: PretrainedCfg | None
    if weights in ("none", "path"):
        cfg = get_pretrained_cfg(name) or PretrainedCfg()
    elif weights == "pretrained":
        cfg = get_pretrained_cfg(name)
    else:
        cfg = published.get(weights)
    if cfg is None or (weights == "pretrained" and not cfg.has_weights):
        raise no_weights(name, weights, list(published))
    return TimmArchitecture(name, cfg.tag or "", cfg, weights, args)


def _elsewhere(name: str, known: list[str]) -> str | None:
    bare, _, tag = name.partition(".")
    if tag and bare in known:
        return f'write the tag as weights: name = "{bare}", weights = "{tag}"'
    from tlrecipe.models import torchvision_source

    if name in torchvision_source.names():
        return f'torchvision has `{name}`: set source = "torchvision"'
    return None


@dataclass(frozen=True)
class TimmArchitecture:
    """An :class:`tlrecipe.models.architecture.Architecture` of timm."""

    name: str
    tag: str
    cfg: PretrainedCfg
    settings: str
    args: Mapping[str, Any]

    @property
    def library(self) -> str:
        return "timm"

    @property
    def reserved(self) -> Mapping[str, str]:
        return {"drop_rate": HEAD_DROPOUT}

    def with_args(self, args: Mapping[str, Any]) -> TimmArchitecture:
        return replace(self, args=args)

    def library_size(self, size: int | None) -> int | None:
        return size

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return as_preprocessing(
            self.cfg.input_size[-1],
            self.cfg.crop_pct,
            self.cfg.interpolation,
            self.cfg.mean,
            self.cfg.std,
            _CROP_MODES.get(self.cfg.crop_mode, "center"),
        )

    @property
    def license(self) -> str | None:
        return self.cfg.license

    @property
    def sized(self) -> bool:
        return self.cfg.fixed_input_size

    def construct(self, classes: int, dropout: float, size: int | None) -> nn.Module:
        return self._create(classes, dropout, size)

    def _create(self, classes: int, dropout: float, size: int | None, **more: Any) -> nn.Module:
        if size is None and self.cfg.input_size[1] != self.cfg.input_size[2]:
            size = self.preprocessing.size
        if size is not None and self.sized:
            more["img_size"] = size
        full = f"{self.name}.{self.tag}" if self.tag else self.name
        network: nn.Module = timm.create_model(
            full, num_classes=classes, drop_rate=dropout, **(dict(self.args) | more)
        )
        if dropout > 0 and not _drops(network, dropout):
            raise no_dropout(self.name)
        return network

    @property
    def _classifiers(self) -> tuple[str, ...]:
        classifier = self.cfg.classifier or ()
        return (classifier,) if isinstance(classifier, str) else tuple(classifier)

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        modules = dict(model.named_modules())
        if not self._classifiers or any(name not in modules for name in self._classifiers):
            raise TlrecipeError.of(
                "TLR113",
                f"`{self.name}` has no classifier to replace",
                path=("backbone", "name"),
                help="choose an architecture that ends in one; names of bare encoders end in `_enc`",
            )
        return self._classifiers

    def layers(self, model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
        return (
            _groups(model, coarse=True) or stages_by_name(model, self._classifiers),
            _groups(model, coarse=False) or depths_by_name(model, self._classifiers),
        )

    def published(self) -> WeightsFile:
        if self.name == _LITE0 and (packaged := lite0_from_package()) is not None:
            return packaged
        title = f"timm {self.name}.{self.tag}"
        if self.cfg.hf_hub_id:
            return from_hub(self.cfg.hf_hub_id, self.cfg.hf_hub_filename, title)
        return from_url(str(self.cfg.url), title)

    def loaded(self, state: StateDict, classes: int, dropout: float, size: int | None) -> nn.Module:
        if self.name == _LITE0 and "_conv_stem.weight" in state:
            state = lite0_names(state)
        # timm renames and resizes what a file holds (position embeddings, above all) on its way into the
        # network. No number of classes is -1, so timm leaves the head alone whatever the file has there.
        overlay = {
            "state_dict": state,
            "num_classes": -1,
            "label_offset": 0,
            "classifier": self._classifiers,
        }
        failure: Exception | None = None
        with _watched_loading() as seen:
            try:
                network = self._create(
                    classes, dropout, size, pretrained=True, pretrained_cfg_overlay=overlay
                )
            except Exception as error:  # the conversions of timm take foreign files apart without checks
                failure = error
        if seen:
            check_fit(*seen[0], self._classifiers, self.name)
        else:
            with torch.device("meta"):
                template = self.construct(classes, 0.0, size)
            check_fit(template, state, self._classifiers, self.name)
        if failure is not None or not seen:
            raise unfit(self.name, f"timm cannot convert them ({type(failure).__name__}: {failure})")
        network.pretrained_cfg = network.default_cfg = self.cfg.to_dict()  # type: ignore[no-untyped-call]
        return network

    def hub_config(self, model: nn.Module, classes: int, size: int | None) -> dict[str, Any]:
        pixels = size or self.preprocessing.size
        cfg: dict[str, Any] = self.cfg.to_dict(remove_source=True)  # type: ignore[no-untyped-call]
        for key in ("architecture", "label_offset", "label_names", "label_descriptions", "test_input_size"):
            cfg.pop(key, None)
        cfg |= {"input_size": (3, pixels, pixels), "num_classes": classes, "custom_load": False}
        if pixels != self.preprocessing.size:
            cfg["pool_size"] = None
        config: dict[str, Any] = {
            "architecture": self.name,
            "num_classes": classes,
            "num_features": model.num_features,
            "pretrained_cfg": cfg,
        }
        if model_args := dict(self.args) | ({"img_size": pixels} if self.sized else {}):
            config["model_args"] = model_args
        plain: dict[str, Any] = json.loads(json.dumps(config))
        return plain


def _drops(network: nn.Module, rate: float) -> bool:
    """Whether ``rate`` reached a dropout layer, or the network's own forward pass."""
    layers = (module for module in network.modules() if isinstance(module, _DropoutNd))
    return getattr(network, "drop_rate", None) == rate or any(layer.p == rate for layer in layers)


def _groups(model: nn.Module, coarse: bool) -> dict[str, int] | None:
    """timm's own layer groups by parameter name; None where the architecture defines none."""
    try:
        matcher = model.group_matcher(coarse=coarse)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        return None
    groups: dict[str, int] = group_parameters(model, matcher, reverse=True)
    return groups


@contextmanager
def _watched_loading() -> Iterator[list[tuple[nn.Module, dict[str, Tensor]]]]:
    """Collect each (network, state dict) that is loaded into a network built in this context.

    timm builds, converts and loads in one call and drops what does not match with a log line. This is
    the one place to see the converted state dict, so that the strict comparison can be made.
    """
    seen: list[tuple[nn.Module, dict[str, Tensor]]] = []
    watched: WeakSet[nn.Module] = WeakSet()
    handles = []

    def note(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        if not prefix:
            seen.append((module, dict(state)))

    def watch(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if parent not in watched:
            watched.add(parent)
            handles.append(parent.register_load_state_dict_pre_hook(note))  # type: ignore[no-untyped-call]

    handles.append(register_module_module_registration_hook(watch))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
