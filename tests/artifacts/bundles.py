"""Small bundles for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tlrecipe.artifacts.bundle import write_bundle
from tlrecipe.language.spec import (
    BackboneSpec,
    FolderData,
    HeadSpec,
    LoraAdapter,
    PhaseSpec,
    Recipe,
    TimmBackbone,
    TorchvisionBackbone,
)
from tlrecipe.models.backbones import Backbone, build

CLASSES = ("cat, tabby", 'dog "Rex"\nII', "=2+2", "<script>alert(1)</script>")
SIZE = 64


def spec(source: str, name: str, adapter: LoraAdapter | None = None) -> BackboneSpec:
    if source == "timm":
        return TimmBackbone(source="timm", name=name, weights="none", adapter=adapter)
    return TorchvisionBackbone(source="torchvision", name=name, weights="none", adapter=adapter)


def backbone(source: str, name: str, adapter: LoraAdapter | None = None) -> Backbone:
    return build(spec(source, name, adapter), HeadSpec(init="default"), len(CLASSES), seed=3, size=SIZE)


def recipe(source: str, name: str, adapter: LoraAdapter | None = None) -> Recipe:
    return Recipe(
        format=1,
        name="small",
        description="Says *little* about `itself`.",
        seed=3,
        data=FolderData(source="folder", path="relative/images"),
        backbone=spec(source, name, adapter),
        phase=(PhaseSpec(name="all", freeze=(), epochs=1, lr=0.1),),
    )


def write(
    folder: Path,
    network: Backbone,
    source: str = "timm",
    name: str = "test_resnet",
    adapter: LoraAdapter | None = None,
) -> Path:
    write_bundle(
        folder,
        backbone=network,
        classes=CLASSES,
        preprocessing=replace(network.table.preprocessing, size=SIZE),
        recipe=recipe(source, name, adapter),
        recipe_sha256="0" * 64,
        metrics={"test": {"accuracy": 0.5, "loss": 1.25, "count": 8, "precision": "fp32"}},
        precision="fp32",
        averaged=False,
    )
    return folder
