"""The main path from Python: a recipe checked, planned, trained at two rates, and its best model used.

It takes some seconds on a laptop: 30 images a class of the sample that ships with tlrecipe, at 64 pixels.
The frozen backbone runs in the first run only: the second one reads its stored features.

    python examples/compare_rates.py
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import tlrecipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/feature_extraction.toml"
SMALLER = {"data.size": 64, "data.per_class": 30, "phase.extract.epochs": 4}


def show(kind: str, /, **event: Any) -> None:
    """Print what a run tells of its validation images, and its warnings."""
    if kind == "epoch" and event["val"]:
        print(f"  epoch {event['epoch']}: {event['val']['accuracy']:.0%} of the validation images")
    elif kind == "warning":
        print(f"  warning: {event['message']}")


def main() -> None:
    # A typo is an object with a place and a cure, and nothing has been trained yet.
    for mistake in tlrecipe.validate(RECIPE, {**SMALLER, "phase.extract.freeze": ["@backbon"]}):
        print(f"{mistake.code}: {mistake.message}; {mistake.help}")

    # The plan: every name and number of the recipe, resolved.
    checked = tlrecipe.plan(RECIPE, SMALLER)
    (phase,) = checked.plan.phases
    print(f"{phase.steps} steps train {phase.trainable_count:,} values, {phase.frozen_count:,} stand still")

    # Two runs, each in a new folder below runs/.
    runs = {}
    for rate in (1e-3, 3e-3):
        print(f"rate {rate}")
        runs[rate] = tlrecipe.run(RECIPE, {**SMALLER, "phase.extract.lr": rate}, on_event=show)
    best = max(runs, key=lambda rate: runs[rate].metrics["val"]["accuracy"])
    print(f"best rate {best}: {runs[best].metrics['test']['accuracy']:.1%} of the test images")

    # The model of the best run, on files.
    model = runs[best].model()
    with tempfile.TemporaryDirectory() as folder:
        for prediction in model.predict(some_images(Path(folder)), top=2):
            print(prediction.file.removeprefix(folder), *(f"{name} {p:.0%}" for name, p in prediction.top))


def some_images(folder: Path) -> list[Path]:
    """Three test images of the sample, as files."""
    with zipfile.ZipFile(Path(tlrecipe.__file__).parent / "data/samples/cifar10.zip") as sample:
        names = [name for name in sample.namelist() if name.startswith("test/")][::400]
        return [Path(sample.extract(name, folder)) for name in names]


if __name__ == "__main__":
    main()
