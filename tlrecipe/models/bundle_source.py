"""A model of ours as the backbone of the next recipe: transfer of a transfer.

Architecture, preprocessing and licence are what ``bundle.json`` says; the weights are the bundle's without
its head. The library that built the network builds it again, so another image size or other arguments
are handled as they are for published weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tlrecipe.models.architecture import Architecture
from tlrecipe.models.bundle_record import WEIGHTS, Ancestor, Bundle
from tlrecipe.models.weights import StateDict, WeightsFile
from tlrecipe.planning.facts import Preprocessing


@dataclass(frozen=True)
class BundleArchitecture:
    """The :class:`tlrecipe.models.architecture.Architecture` of a bundle."""

    folder: Path
    bundle: Bundle
    network: Architecture
    """The same network in its library, with the bundle's arguments and those of the recipe."""

    @property
    def library(self) -> str:
        return self.network.library

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def settings(self) -> str:
        return self.bundle.backbone.weights

    @property
    def args(self) -> Mapping[str, Any]:
        return self.network.args

    @property
    def reserved(self) -> Mapping[str, str]:
        return self.network.reserved

    def with_args(self, args: Mapping[str, Any]) -> BundleArchitecture:
        return replace(self, network=self.network.with_args({**self.bundle.backbone.args, **args}))

    @property
    def preprocessing(self) -> Preprocessing:
        return self.bundle.preprocessing.facts

    @property
    def license(self) -> str | None:
        return self.bundle.license

    @property
    def sized(self) -> bool:
        return self.network.sized

    def library_size(self, size: int | None) -> int | None:
        pixels = size or self.preprocessing.size
        return None if pixels == self.network.preprocessing.size else pixels

    def construct(self, classes: int, dropout: float, size: int | None) -> nn.Module:
        return self.network.construct(classes, dropout, self.library_size(size))

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        return self.network.heads(model)

    def layers(self, model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
        return self.network.layers(model)

    def published(self) -> WeightsFile:
        about = f"model of the recipe {self.bundle.recipe.name} for {len(self.bundle.classes)} classes"
        return WeightsFile(
            self.folder / WEIGHTS, f"{about}, from {self.bundle.origin}", self.bundle.model_sha256
        )

    def loaded(self, state: StateDict, classes: int, dropout: float, size: int | None) -> nn.Module:
        return self.network.loaded(state, classes, dropout, self.library_size(size))

    def hub_config(self, model: nn.Module, classes: int, size: int | None) -> dict[str, Any]:
        return self.network.hub_config(model, classes, size or self.preprocessing.size)

    @property
    def ancestors(self) -> tuple[Ancestor, ...]:
        said = self.bundle
        nearest = Ancestor(recipe=said.recipe, classes=said.classes, model_sha256=said.model_sha256)
        return nearest, *said.ancestors
