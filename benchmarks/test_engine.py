"""The engine against the plain loop, in one process, one after the other, on the sample.

``pytest benchmarks --benchmark-only`` runs them. Each case trains the same parameters for as many epochs
with the same optimizer, and evaluates on the test images; times are of the whole, cold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from loops import Loop, in_memory, textbook
from loops import train as plain_train
from pytest_benchmark.fixture import BenchmarkFixture

from tlrecipe.data.pixels import Pixels, decode_split
from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import Recipe
from tlrecipe.models.backbones import Backbone, build
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.interpreter import RunResult, train

HEAD = ["@backbone"]
LATE = ["conv_stem", "bn1", "blocks.[0-3]"]


class Bench:
    """The sample, decoded once, and what runs on it."""

    def __init__(self, per_class: int, size: int):
        self.per_class, self.size = per_class, size
        self.listing = list_data(self.recipe(HEAD, 1).data, 0)
        backbone = self.backbone()
        self.preprocessing = replace(backbone.table.preprocessing, size=size, crop_pct=1.0)
        self.pixels = {
            split: decode_split(self.listing, split, self.preprocessing, on_bad="error")
            for split in ("train", "test")
        }

    def recipe(self, freeze: list[str], epochs: int, **phase: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "format": 1,
                "name": "bench",
                "data": {
                    "source": "sample",
                    "size": self.size,
                    "batch_size": 32,
                    "val": 0.0,
                    "per_class": self.per_class,
                    "crop_pct": 1.0,
                },
                "backbone": {"source": "timm", "name": "tf_efficientnet_lite0", "weights": "pretrained"},
                "optimizer": {"name": "adamw"},
                "compute": {"precision": "fp32"},
                "phase": [
                    {
                        "name": "train",
                        "freeze": freeze,
                        "epochs": epochs,
                        "lr": 1e-3,
                        "norm": "frozen",
                        **phase,
                    }
                ],
            }
        )

    def backbone(self) -> Backbone:
        recipe = self.recipe(HEAD, 1)
        return build(recipe.backbone, recipe.head, 10, 0)

    def ours(
        self, freeze: list[str], epochs: int, store: FeatureStore | None = None, **phase: Any
    ) -> RunResult:
        backbone = self.backbone()
        plan = compile_recipe(self.recipe(freeze, epochs, **phase), backbone.table, self.listing.info)
        return train(plan, backbone, self._source, store=store)

    def _source(self, split: str, preprocessing: Preprocessing) -> Pixels | None:
        return self.pixels.get(split)

    def plain(self, freeze: list[str], epochs: int, loop: str) -> Loop:
        backbone = self.backbone()
        plan = compile_recipe(self.recipe(freeze, epochs), backbone.table, self.listing.info)
        batches = (
            textbook(self.listing, self.preprocessing)
            if loop == "textbook"
            else in_memory(self.pixels, self.preprocessing)
        )
        return plain_train(backbone.model, plan.phases[0].trainable, batches, epochs=epochs, lr=1e-3)


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.config.getoption("per_class"), request.config.getoption("pixels"))


@pytest.mark.parametrize("loop", ["textbook", "in-memory"])
@pytest.mark.parametrize(("name", "freeze"), [("head only", HEAD), ("last three stages", LATE)])
def test_ten_epochs(
    name: str, freeze: list[str], loop: str, bench: Bench, benchmark: BenchmarkFixture, report: list[Any]
) -> None:
    theirs = bench.plain(freeze, 10, loop)
    result = benchmark.pedantic(bench.ours, args=(freeze, 10), rounds=1, iterations=1)
    seconds = benchmark.stats.stats.min
    accuracy = result.metrics["test"]["accuracy"]
    benchmark.extra_info.update(
        ratio=theirs.seconds / seconds, accuracy=accuracy, plain_accuracy=theirs.accuracy
    )
    report.append(
        (
            f"{name}, 10 epochs, {loop}",
            f"{seconds:.1f} s",
            f"{theirs.seconds:.1f} s",
            f"{theirs.seconds / seconds:.1f} times as fast;"
            f" accuracy {accuracy:.3f}, plain {theirs.accuracy:.3f}",
        )
    )
    assert abs(accuracy - theirs.accuracy) < 0.05


def test_fifty_epochs_against_one(bench: Bench, benchmark: BenchmarkFixture, report: list[Any]) -> None:
    one = _seconds(bench.ours(HEAD, 1))
    result = benchmark.pedantic(bench.ours, args=(HEAD, 50), rounds=1, iterations=1)
    fifty = _seconds(result)
    benchmark.extra_info["ratio"] = fifty / one
    report.append(
        (
            "head only, 50 epochs against 1",
            f"{fifty:.1f} s",
            f"{one:.1f} s",
            f"{fifty / one:.2f} times as long",
        )
    )


def test_a_second_run_with_another_rate(bench: Bench, benchmark: BenchmarkFixture, report: list[Any]) -> None:
    store = FeatureStore()
    first = _seconds(bench.ours(HEAD, 10, store))
    result = benchmark.pedantic(
        bench.ours, args=(HEAD, 10, store), kwargs={"lr": 3e-3}, rounds=1, iterations=1
    )
    second = _seconds(result)
    assert result.phases[0].prefix["images_computed"] == 0
    benchmark.extra_info["ratio"] = second / first
    report.append(
        (
            "head only, second run, another rate",
            f"{second:.2f} s",
            f"{first:.2f} s",
            f"{second / first:.3f} of the first, features and training",
        )
    )


def _seconds(result: RunResult) -> float:
    return result.seconds["features"] + result.seconds["train"]
