"""`recipes/mnist.toml` on files of MNIST's own kind, and on other sets of that shape by changing one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlrecipe

RECIPE = Path(__file__).parents[2] / "recipes" / "mnist.toml"
CLASSES = {
    "MNIST": ("0 - zero", "1 - one"),
    "FashionMNIST": ("T-shirt/top", "Trouser"),
    "KMNIST": ("o", "ki"),
}


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """An array of bytes in the format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a set, whose files are in ``data``: bright and dark squares of 28 pixels."""
    folder = tmp_path / "data" / request.param / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 40), ("t10k", 8)):
        labels = np.arange(count, dtype=np.uint8) % 2
        images = np.random.default_rng(count).integers(0, 100, (count, 28, 28), dtype=np.uint8)
        images += 150 * labels[:, None, None]
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return str(request.param)


def test_another_set_of_the_same_shape_by_changing_one_line(name: str, tmp_path: Path) -> None:
    plan = tlrecipe.plan(RECIPE, {"data.name": name, "data.root": str(tmp_path / "data")}).plan
    assert set(plan.classes) == set(CLASSES[name])
    assert dict(plan.counts) == {"train": 36, "val": 4, "test": 8}
    assert plan.preprocessing.size == 32


def test_the_recipe_runs_on_it(name: str, tmp_path: Path) -> None:
    small = {
        "data.name": name,
        "data.root": str(tmp_path / "data"),
        "data.batch_size": 8,
        "backbone": {"source": "timm", "name": "test_resnet", "weights": "none"},
        "phase.finetune.freeze": [],
    }
    run = tlrecipe.run(RECIPE, small, run_dir=tmp_path / "run")
    assert run.metrics["test"]["count"] == 8
    assert run.model().classes == tuple(sorted(CLASSES[name]))
