"""Run directories of any shape, without a run: what a report and a comparison are made from."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tlrecipe.artifacts.predictions import write_evaluated
from tlrecipe.artifacts.report.findings import Predictions
from tlrecipe.artifacts.report.thumbnails import THUMBNAILS, data_url, shown
from tlrecipe.data.card import DataCard, Duplicates, InTwoClasses, SplitCard
from tlrecipe.training.evaluate import Evaluation

DIGEST = "3f" * 32


def predictions(classes: Sequence[str], images: int, *, right: float = 0.8, seed: int = 0) -> Predictions:
    """Predictions that are right in about a share ``right`` of the images, and else of a nearby class."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % len(classes)
    wrong = random.random(images) > right
    predicted = np.where(wrong, (labels + 1 + random.integers(0, 2, images)) % len(classes), labels)
    probability = random.uniform(0.5, 1.0, images).round(6)
    files = tuple(f"test/{classes[label]}/{number}.png" for number, label in enumerate(labels))
    return Predictions(tuple(classes), files, labels, predicted, probability)


def card_of(classes: Sequence[str], **found: Any) -> DataCard:
    """The card of odd data: uneven classes, several formats, files left out, images in two splits."""
    counts = {name: 3 + 2 * number for number, name in enumerate(classes)}
    odd = tuple((f"{name}/broken.png", f"{name} is no image") for name in classes[:12])
    part = SplitCard(
        images=sum(counts.values()),
        by_class=counts,
        formats={"JPEG": 70, "PNG": 20},
        traits={"grey": 4, "turned by EXIF": 2},
        smallest=(20, 30),
        median=(500, 375),
        largest=(4000, 3000),
        bad=odd,
        changed=(f"{classes[0]}/new.png",),
    )
    pair = (f"{classes[0]}/1.png", f"{classes[0]}/2.png")
    values: dict[str, Any] = {
        "origin": "pictures",
        "classes": tuple(classes),
        "imbalance": max(counts.values()) / min(counts.values()),
        "splits": dict.fromkeys(("train", "val", "test"), part),
        "duplicates": (Duplicates("test", "train", 3, (pair,)),),
        "in_two_classes": (InTwoClasses("train", 1, (pair,)),),
        "ignored": {"hidden": 2},
    }
    return DataCard(**values | found)


def write_run(
    folder: Path,
    found: Predictions | None,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    name: str = "tiny",
    lr: float = 1e-3,
    epochs: int = 3,
    val: bool = True,
    done: bool = True,
    images: bool = True,
    card: DataCard | None = None,
) -> Path:
    """A run of two phases: the head, then all of it. ``found`` None means that there is no test split."""
    classes = classes if found is None else found.classes
    folder.mkdir(parents=True)
    phases = ("head", ["head.weight"], ["body.weight"]), ("all", ["body.weight", "head.weight"], [])
    counts = {"train": 90} | ({"val": 10} if val else {}) | ({} if found is None else {"test": len(found)})
    plan = {
        "name": name,
        "seed": 0,
        "classes": list(classes),
        "counts": counts,
        "preprocessing": _PREPROCESSING,
        "phases": [_phase(*phase, lr=lr, epochs=epochs) for phase in phases],
        "group_params": {"head": ["head.weight"], "body": ["body.weight"]},
        "final_weights": "last",
    }
    _write(folder / "plan.json", plan)
    _write(folder / "data.json", (card or card_of(classes)).as_dict())
    _write(folder / "environment.json", {"python": "3.13", "packages": {"tlrecipe": "1", "timm": None}})
    (folder / "recipe.resolved.toml").write_text(
        _RECIPE.format(name=json.dumps(name), lr=lr), encoding="utf-8"
    )
    rows = [_epoch(phase, index, val) for phase, *_ in phases for index in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        _write(folder / "result.json", _result(found, phases, epochs, val))
    if found is not None and done:
        _write_evaluation(folder, found)
    if found is not None and done and images:
        (folder / THUMBNAILS).parent.mkdir()
        _write(folder / THUMBNAILS, _pictures(found))
    return folder


def _write_evaluation(folder: Path, found: Predictions) -> None:
    """As a run does, from logits that give these predictions."""
    logits = torch.full((len(found), len(found.classes)), 0.0)
    logits[torch.arange(len(found)), torch.from_numpy(found.predicted)] = 3.0
    report = Evaluation(logits, torch.from_numpy(found.labels)).report(found.classes)
    _write(folder / "evaluation.json", report | {"split": "test"})
    names = found.classes
    rows = zip(found.labels, found.predicted, found.probability, strict=True)
    said = ((names[truth], names[best], p) for truth, best, p in rows)
    write_evaluated(found.files, said, folder / "predictions.csv")


_PREPROCESSING = {"size": 32, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5], "std": [0.5]}

_RECIPE = """\
format = 1
name = {name}
description = "Two phases."

[data]
source = "folder"
path = "pictures"

[backbone]
source = "timm"
name = "test_resnet"
weights = "none"

[[phase]]
name = "head"
freeze = ["@backbone"]
lr = {lr}

[[phase]]
name = "all"
freeze = []
lr = {lr}
"""


def _phase(name: str, trains: list[str], frozen: list[str], *, lr: float, epochs: int) -> dict[str, Any]:
    return {
        "name": name,
        "steps": 10 * epochs,
        "steps_per_epoch": 10,
        "batch_size": 9,
        "size": 32,
        "groups": [{"name": part.split(".")[0], "lr": lr, "weight_decay": 0.0} for part in trains],
        "trainable": trains,
        "frozen": frozen,
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "warmup_steps": 3,
        "augment": {},
        "norm": "follow",
        "accumulate": 1,
        "trainable_count": 1000 * len(trains),
        "frozen_count": 1000 * len(frozen),
    }


def _epoch(phase: str, index: int, val: bool) -> dict[str, Any]:
    measured = {"loss": 1.0 / (index + 1), "accuracy": 1 - 0.5 / (index + 1)}
    return {
        "phase": phase,
        "epoch": index + 1,
        "step": 10 * (index + 1),
        "lr": {"head": 1e-3},
        "train": measured,
        "val": measured if val else None,
        "seconds": 1.0,
    }


def _result(
    found: Predictions | None, phases: Sequence[tuple[str, list[str], list[str]]], epochs: int, val: bool
) -> dict[str, Any]:
    metrics: dict[str, Any] = {"val": {"loss": 0.5, "accuracy": 0.8}} if val else {}
    if found is not None:
        metrics["test"] = {"loss": 0.6, "accuracy": found.accuracy, "count": len(found), "precision": "fp32"}
    return {
        "status": "complete",
        "recipe": "tiny",
        "recipe_sha256": DIGEST,
        "metrics": metrics,
        "phases": [
            {
                "name": name,
                "steps": 10 * epochs,
                "epochs": float(epochs),
                "seconds": 2.5,
                "trainable_params": 1000 * len(trains),
                "frozen_params": 1000 * len(frozen),
                "frozen_sha256": {"before": DIGEST, "after": DIGEST},
                "prefix": {
                    "mode": "store" if frozen else "plain",
                    "reason": "it pays" if frozen else "nothing is frozen",
                    "cut": ["pool"] if frozen else [],
                    "prefix_seconds": 0.1,
                    "images_computed": 100 if frozen else 0,
                },
                "best": {"epoch": 2, "metric": "accuracy", "value": 0.8} if val else None,
            }
            for name, trains, frozen in phases
        ],
        "seconds": {"total": 9.0, "data": 1.0, "features": 2.0, "train": 4.0, "evaluate": 1.0, "survey": 0.5},
        "peak_memory_bytes": 500_000_000,
    }


def _pictures(found: Predictions) -> dict[str, str]:
    random = np.random.default_rng(0)
    return {
        str(number): data_url(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for number in shown(found)
    }


def png(url: str) -> Image.Image:
    """The image in a data URL."""
    import base64

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
