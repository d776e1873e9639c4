"""Features computed once train the network that the plain loop trains: recipes, architectures, precisions.

The plain run (``compute.features = "off"``) passes every image through the whole network in every step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.nets import Recorder, net, phase, plan_for
from training.nets import backbone as toy_backbone
from training.nets import source as toy_source

from tlrecipe.data.pixels import Pixels, decode_split
from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import HeadSpec, Recipe, SampleData, TimmBackbone, TorchvisionBackbone
from tlrecipe.language.text import load
from tlrecipe.models.backbones import Backbone, build
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.facts import DatasetInfo, Preprocessing
from tlrecipe.training.interpreter import RunResult, train

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
    if load(path).recipe.data.source == "sample"
]
PER_CLASS = 2
VAL = 8


@cache
def split_of(name: str) -> Pixels:
    """A few images of the sample, decoded once: they are stored at their own size and serve any other."""
    listing = list_data(SampleData(source="sample", per_class=PER_CLASS), 0)
    pixels = decode_split(listing, name, Preprocessing(64), on_bad="error")
    if name == "train":
        return pixels
    keep = torch.arange(len(pixels)) % (len(pixels) // VAL) == 0
    return replace(
        pixels,
        images=pixels.images[keep][:VAL],
        labels=pixels.labels[keep][:VAL],
        digest=f"{pixels.digest} few",
    )


def source(split: str, preprocessing: Preprocessing) -> Pixels | None:
    return None if split == "test" else split_of(split)


@cache
def original(library: str, name: str, size: int) -> Backbone:
    spec: TimmBackbone | TorchvisionBackbone = (
        TimmBackbone(source="timm", name=name, weights="none")
        if library == "timm"
        else TorchvisionBackbone(source="torchvision", name=name, weights="none")
    )
    return build(spec, HeadSpec(init="default"), 10, 0, size)


@dataclass(frozen=True)
class Trained:
    weights: dict[str, Tensor]
    losses: list[float]
    accuracies: list[float]
    result: RunResult

    @property
    def modes(self) -> list[str]:
        return [phase.prefix["mode"] for phase in self.result.phases]


def trained(recipe: Recipe, backbone: Backbone, features: str, precision: str = "fp32") -> Trained:
    """Train a copy of ``backbone``; random weights count as pretrained, so that they may be frozen."""
    own = replace(
        backbone, model=copy.deepcopy(backbone.model), table=replace(backbone.table, pretrained=True)
    )
    compute = recipe.compute.model_copy(update={"features": features, "precision": precision})
    info = DatasetInfo(
        list_data(recipe.data, 0).info.classes,
        {split: len(split_of(split)) for split in ("train", "val")},
    )
    plan = compile_recipe(recipe.model_copy(update={"compute": compute}), own.table, info)
    told = Recorder()
    result = train(plan, own, source, emit=told)
    epochs = told.of("epoch")
    return Trained(
        weights=own.model.state_dict(),
        losses=[epoch[split]["loss"] for epoch in epochs for split in ("train", "val")],
        accuracies=[epoch["val"]["accuracy"] for epoch in epochs],
        result=result,
    )


def assert_equal(fast: Trained, plain: Trained) -> None:
    """The same losses to 1e-5 and the same weights to 1e-4, relative to the largest of a tensor."""
    assert fast.losses == pytest.approx(plain.losses, rel=1e-5, abs=1e-5)
    for name, value in plain.weights.items():
        scale = max(1.0, float(value.abs().max()))
        difference = float((fast.weights[name] - value).abs().max())
        assert difference <= 1e-4 * scale, f"{name}: {difference}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_trains_the_same_weights_with_stored_features(path: Path) -> None:
    phases = [phase.name for phase in load(path).recipe.phase]
    # Where a gradient is nothing but rounding, AdamW takes a step of the whole rate in the direction of the
    # noise; a larger eps than the default keeps such weights out of the comparison.
    small = ["data.size=32", f"data.per_class={PER_CLASS}", "data.batch_size=8", "optimizer.eps=1e-6"]
    recipe = load(path, [*small, *(f"phase.{name}.epochs=2" for name in phases)]).recipe
    backbone = original(recipe.backbone.source, recipe.backbone.name, 32)
    plain = trained(recipe, backbone, "off")
    stored = trained(recipe, backbone, "store")
    assert plain.modes == ["plain"] * len(phases)
    frozen = [bool(phase.freeze) and views_are_finite(phase) for phase in recipe.phase]
    assert [mode == "store" for mode in stored.modes] == frozen
    assert_equal(stored, plain)


def views_are_finite(phase: Any) -> bool:
    return phase.augment.crop == 0 or phase.augment.views is not None


# Family: source, name, image size, what is frozen in the second phase, how many tensors are stored then.
FAMILIES: dict[str, tuple[str, str, int, Sequence[str], int]] = {
    "residual": ("timm", "test_resnet", 32, ["@stage:0..3"], 1),
    "dense": ("torchvision", "densenet121", 32, ["@stage:0..2"], 1),
    "inverted-bottleneck": ("timm", "test_efficientnet", 32, ["@stage:0..3"], 1),
    "convnext": ("timm", "test_convnext", 32, ["@stage:0..3"], 1),
    "transformer-with-class-token": ("timm", "test_vit", 32, ["@stage:0..4"], 1),
    "windows": ("timm", "swin_tiny_patch4_window7_224", 56, ["@stage:0..4"], 1),
    "mixer": ("timm", "mixer_s32_224", 64, ["@stage:0..6"], 1),
    "regnet": ("timm", "regnetx_002", 32, ["@stage:0..3"], 1),
    "parallel-resolutions": ("timm", "hrnet_w18_small", 32, ["@stage:0..2"], 3),
    "mobilenet": ("torchvision", "mobilenet_v3_small", 32, ["@stage:0..8"], 1),
}


def two_phases(name: str, late: Sequence[str]) -> Recipe:
    return Recipe.model_validate(
        {
            "format": 1,
            "name": "equal",
            "data": {"source": "sample", "per_class": PER_CLASS, "batch_size": 8},
            "backbone": {"source": "timm", "name": name, "weights": "none"},
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
            "phase": [
                {
                    "name": "extract",
                    "freeze": ["@backbone"],
                    "epochs": 1,
                    "lr": 0.01,
                    "augment": {"hflip": True},
                },
                {"name": "finetune", "freeze": list(late), "steps": 2, "lr": 0.001, "clip_norm": 1.0},
            ],
        }
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_architectures_of_all_families_train_the_same_weights(family: str) -> None:
    library, name, size, late, tensors = FAMILIES[family]
    backbone = original(library, name, size)
    recipe = two_phases(name, late)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": size})})
    plain, stored = trained(recipe, backbone, "off"), trained(recipe, backbone, "store")
    assert stored.modes == ["store", "store"]
    assert len(stored.result.phases[1].prefix["cut"]) == tensors
    assert_equal(stored, plain)


class ByValue(nn.Module):
    """A network whose Python looks at the values, so that no trace can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.late = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.mean() > 0:
            x = x * 2
        logits: Tensor = self.head(self.late(x).mean((2, 3)))
        return logits


def test_a_network_that_cannot_be_traced_is_trained_as_a_whole() -> None:
    recipe = two_phases("by-value", ["stem"])
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": 32})})
    network = toy_backbone(ByValue())
    plain, stored = trained(recipe, network, "off"), trained(recipe, network, "store")
    assert stored.modes == ["plain", "plain"]
    assert all("capture failed" in phase.prefix["reason"] for phase in stored.result.phases)
    assert stored.losses == plain.losses


# How far bfloat16 features may move what is learnt from them: of the range of the logits, and in points.
BF16_LOGITS = 0.05
BF16_ACCURACY = 0.02


def test_bfloat16_features_train_to_nearly_the_same_logits() -> None:
    """On the toy data, whose classes can be learnt; emulated where the processor has no bfloat16."""
    runs = {}
    for precision in ("fp32", "bf16"):
        model = net()
        compute = {"features": "store", "precision": precision}
        plan = plan_for(
            model, compute=compute, phase=[phase(epochs=4), phase(name="two", freeze=["stem"], lr=0.01)]
        )
        result = train(plan, toy_backbone(model), toy_source)
        assert [p.prefix["precision"] for p in result.phases] == [precision] * 2
        assert result.evaluated is not None
        runs[precision] = result.evaluated.evaluation
    exact, rounded = runs["fp32"], runs["bf16"]
    spread = float(exact.logits.max() - exact.logits.min())
    assert 0 < float((rounded.logits - exact.logits).abs().max()) <= BF16_LOGITS * spread
    difference = rounded.scalars()["accuracy"] - exact.scalars()["accuracy"]
    assert abs(difference) <= BF16_ACCURACY
