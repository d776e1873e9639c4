"""What is said before a run about where the frozen part ends and the memory that it takes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training.nets import COUNTS, net, phase, plan_for, recipe

from tlrecipe.data.listing import Listing
from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import SampleData
from tlrecipe.models.backbones import describe, outline
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.training import forecast
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.forecast import decoded_bytes, prefix_facts
from tlrecipe.training.optimizers import OPTIMIZERS
from tlrecipe.training.survey import Addresses, split_plan, survey

GRADUAL = [
    phase(augment={"hflip": True}),
    phase(name="two", freeze=["stem", "blocks.[0-1]"], augment={"crop": 2}),
    phase(name="three", freeze=[]),
]


def test_the_cut_is_the_one_that_the_run_makes() -> None:
    model = net(dropout=0.3)
    plan = plan_for(model, phase=GRADUAL, compute={"precision": "fp32"})
    facts = prefix_facts(plan, copy.deepcopy(model).to("meta"))
    addresses = Addresses(plan, "net", torch.device("cpu"))
    splits = split_plan(plan, model, addresses.device)
    choices = survey(plan, model, splits, lambda *_: None, FeatureStore(), addresses)
    assert [fact.cut for fact in facts] == [parts.cut for parts in splits]
    assert [fact.feature_bytes for fact in facts] == [choice.feature_bytes for choice in choices]
    assert [fact.views for fact in facts] == [2, None, 1]
    assert facts[2].cut == ()


def memory(model: nn.Module | None = None, pixel_bytes: int = 0, **changes: Any) -> list[int]:
    network = model or net()
    facts = prefix_facts(
        plan_for(network, **changes), network.to("meta"), pixel_bytes=pixel_bytes, baseline=0
    )
    assert all(fact.memory_bytes is not None for fact in facts)
    return [fact.memory_bytes or 0 for fact in facts]


def test_memory_grows_with_what_is_kept() -> None:
    (frozen,) = memory(phase=[phase()])
    (whole,) = memory(phase=[phase(freeze=[], batch_size=40)])
    (large,) = memory(phase=[phase(freeze=[], batch_size=48)])
    assert frozen < whole < large
    assert memory(phase=[phase()], pixel_bytes=10**9) == [frozen + 10**9]
    # Both views of each image, one float32 vector of eight numbers each.
    (flipped,) = memory(phase=[phase(augment={"hflip": True})])
    assert flipped - frozen == COUNTS["train"] * 8 * 4


def test_an_optimizer_s_state_counts_for_what_trains_alone() -> None:
    model = net()
    trainable = sum(p.nbytes for p in model.parameters())
    one, two = (
        memory(net(), phase=[phase(freeze=[], batch_size=48, optimizer={"name": name})])[0]
        for name in ("sgd", "adamw")
    )
    assert two - one == trainable


def test_every_optimizer_s_state_is_known() -> None:
    assert forecast._STATES.keys() == OPTIMIZERS.keys()


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).mean((2, 3))
        return self.head(x * 2 if x.sum() > 0 else x)  # type: ignore[no-any-return]


def test_a_network_that_needs_values_has_no_forecast_of_memory() -> None:
    network = ByValue()
    (facts,) = prefix_facts(plan_for(network), network.to("meta"))
    assert facts.memory_bytes is None
    assert facts.cut == ()
    assert "capture failed" in facts.note


def test_decoded_images_count_at_the_size_that_they_are_kept_at() -> None:
    listing = list_data(SampleData(source="sample", per_class=3, val=0.0), 0)
    images = sum(len(split) for split in listing.splits.values())
    assert images == 30 + 1000
    assert decoded_bytes(listing, Preprocessing(128)) == images * 3 * 32 * 32
    assert decoded_bytes(listing, Preprocessing(16)) == images * 3 * 16 * 16

    def unreadable(item: Any) -> bytes:
        raise OSError

    broken = replace(listing, reader=unreadable)
    assert isinstance(broken, Listing)
    assert decoded_bytes(broken, Preprocessing(128)) == images * 3 * 128 * 128


# A run in a process of its own, whose peak memory nothing else has raised.
_RUN = """
import json, resource, sys
import tlrecipe.models.timm_source
from tlrecipe.data.pixels import decode_split
from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import Recipe
from tlrecipe.models.backbones import build
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.models.memory import process_bytes
from tlrecipe.training.interpreter import train

recipe = Recipe.model_validate(json.loads(sys.argv[1]))
start = process_bytes()
listing = list_data(recipe.data, 0)
backbone = build(recipe.backbone, recipe.head, 10, 0, recipe.data.size)
plan = compile_recipe(recipe, backbone.table, listing.info)
train_images = decode_split(listing, "train", plan.preprocessing, on_bad="error")
result = train(plan, backbone, lambda split, p: train_images if split == "train" else None)
print(json.dumps({"start": start, "peak": result.peak_memory_bytes}))
"""

CASES = {
    "frozen": {"freeze": ["@backbone"]},
    "last-stages": {"freeze": ["conv_stem", "bn1", "blocks.[0-3]"]},
    "everything": {"freeze": []},
}


@pytest.mark.parametrize("case", CASES)
def test_predicted_memory_is_within_30_percent_of_what_a_run_takes(case: str) -> None:
    values = recipe(
        data={"source": "sample", "size": 96, "batch_size": 60, "per_class": 6, "val": 0.0},
        backbone={"source": "timm", "name": "tf_efficientnet_lite0", "weights": "pretrained"},
        optimizer={"name": "adamw"},
        phase=[phase(**CASES[case], steps=2, epochs=None, lr=1e-4)],
    )
    done = subprocess.run(
        [sys.executable, "-c", _RUN, values.model_dump_json()], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    info = list_data(values.data, 0).info
    plan = compile_recipe(values, describe(values.backbone, values.head, 10, 96), info)
    model = outline(values.backbone, values.head, 10, 96)
    (facts,) = prefix_facts(plan, model, baseline=measured["start"])
    assert facts.memory_bytes == pytest.approx(measured["peak"], rel=0.3)
    # Most of it is the libraries; what the run itself adds is held to a bound of its own.
    own = measured["peak"] - measured["start"]
    assert facts.memory_bytes - measured["start"] == pytest.approx(own, rel=0.3, abs=100e6)
