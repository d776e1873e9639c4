"""Our side of the comparisons, and the data that both sides read."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from loops import Outcome, Training

from tlrecipe.data.listing import Listing
from tlrecipe.data.pixels import Pixels, decode_split
from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import Recipe, SampleData
from tlrecipe.models.backbones import Backbone, build
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.interpreter import PhaseResult, train

BACKBONE = {"source": "timm", "name": "tf_efficientnet_lite0", "weights": "pretrained"}
HEAD = ("classifier.",)
LAST_STAGES = ("blocks.4.", "blocks.5.", "blocks.6.", "conv_head.", "bn2.", *HEAD)
BEFORE_LAST_STAGES = ["conv_stem", "bn1", "blocks.[0-3]"]


@dataclass(frozen=True)
class Setting:
    """How large the comparisons are."""

    root: Path
    """Folder with ``train`` and ``test``, in each a folder of image files per class."""
    size: int
    seeds: int
    workers: int = 0
    """Of the textbook loop's DataLoader."""


@dataclass(frozen=True)
class Run(Outcome):
    """One of our runs."""

    phases: tuple[PhaseResult, ...]


def write_sample(root: Path, per_class: int) -> None:
    """Unpack up to ``per_class`` images of each class and split of the packaged sample as files."""
    listing = list_data(SampleData(source="sample", val=0.0), 0)
    for split, images in listing.splits.items():
        written = dict.fromkeys(listing.info.classes, 0)
        for image in images:
            name = listing.info.classes[image.label]
            if written[name] < per_class:
                target = root / split / name / Path(image.name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(listing.read(image))
                written[name] += 1


@cache
def pretrained() -> Backbone:
    return build(_backbone_spec(), recipe(Setting(Path(), 128, 1), []).head, 10, 0)


def fresh() -> Backbone:
    """The pretrained network under a new head, which nobody has trained yet."""
    return replace(pretrained(), model=copy.deepcopy(pretrained().model))


def _backbone_spec() -> Any:
    return recipe(Setting(Path(), 128, 1), []).backbone


def phase(name: str = "train", **keys: Any) -> dict[str, Any]:
    values = {"name": name, "freeze": ["@backbone"], "epochs": 10, "lr": 1e-3, "norm": "frozen"}
    return {**values, "schedule": {"name": "cosine"}, **keys}


def recipe(setting: Setting, phases: Sequence[Mapping[str, Any]], *, seed: int = 0, **compute: str) -> Recipe:
    return Recipe.model_validate(
        {
            "format": 1,
            "name": "benchmark",
            "seed": seed,
            "data": {
                "source": "folder",
                "path": str(setting.root),
                "size": setting.size,
                "batch_size": 32,
                "val": 0.0,
                "crop_pct": 1.0,
            },
            "backbone": BACKBONE,
            "optimizer": {"name": "adamw", "weight_decay": 0.02, "no_decay": []},
            "compute": compute,
            "phase": list(phases) or [phase()],
        }
    )


def as_training(recipe: Recipe, trains: tuple[str, ...]) -> Training:
    """What a recipe of one phase says, for a plain loop; ``trains`` are beginnings of parameter names."""
    (only,) = recipe.phase
    assert isinstance(only.lr, float)
    assert only.epochs is not None
    return Training(
        trains=lambda name: name.startswith(trains) or trains == ("",),
        norms_stand=only.norm == "frozen",
        flip=only.augment.hflip,
        epochs=only.epochs,
        batch_size=recipe.data.batch_size,
        lr=only.lr,
        weight_decay=recipe.optimizer.weight_decay,
        seed=recipe.seed,
    )


def decoder(listing: Listing, p: Preprocessing, shelves: Path | None = None) -> Any:
    """Decodes each split once, when it is asked for."""
    kept: dict[str, Pixels] = {}

    def decode(split: str, _: Preprocessing = p) -> Pixels | None:
        if split in listing.splits and split not in kept:
            kept[split] = decode_split(listing, split, p, on_bad="error", shelves=shelves)
        return kept.get(split)

    return decode


def ours(recipe: Recipe, backbone: Backbone, kept: Path | None = None) -> Run:
    """From the recipe to the test accuracy: list, compile, decode, choose, train, evaluate.

    ``kept`` is the cache folder: features and decoded images are found there by a later run.
    """
    start = time.perf_counter()
    listing = list_data(recipe.data, recipe.seed)
    plan = compile_recipe(recipe, backbone.table, listing.info)
    store = FeatureStore() if kept is None else FeatureStore(kept / "features")
    shelves = None if kept is None else kept / "pixels"
    result = train(plan, backbone, decoder(listing, plan.preprocessing, shelves), store=store)
    seconds = time.perf_counter() - start
    return Run(
        seconds=seconds,
        accuracy=result.metrics["test"]["accuracy"],
        training_seconds=sum(done.seconds for done in result.phases),
        phases=result.phases,
    )


def preprocessing(recipe: Recipe) -> Preprocessing:
    listing = list_data(recipe.data, recipe.seed)
    return compile_recipe(recipe, pretrained().table, listing.info).preprocessing
