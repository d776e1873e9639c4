"""The contact sheet shows what a run trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from training.nets import net, phase, plan_for

from tlrecipe.data.augment import augment_batch
from tlrecipe.data.listing import Listing
from tlrecipe.data.pixels import decode_split
from tlrecipe.data.preview import contact_sheet, preview_rows
from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import SampleData
from tlrecipe.planning.plan import Plan
from tlrecipe.planning.randomness import key

TEN = tuple("abcdefghij")


@pytest.fixture(scope="module")
def listing() -> Listing:
    return list_data(SampleData(source="sample", per_class=3), 0)


def rows_of(listing: Listing, augment: dict[str, Any]) -> tuple[Plan, list[Any]]:
    plan = replace(plan_for(net(), phase=[phase(augment=augment)]), classes=TEN)
    return plan, list(preview_rows(plan, plan.phases[0], listing, 7, 2))


def test_rows_are_what_the_epochs_of_the_run_see(listing: Listing) -> None:
    augment = {"hflip": True, "rotation": 30.0, "trivial_augment": True}
    plan, rows = rows_of(listing, augment)
    assert [row.title for row in rows] == ["as it is", "epoch 1", "epoch 2"]
    labels = listing.splits["train"].labels
    pixels = decode_split(listing, "train", plan.preprocessing, on_bad="error")
    chosen = np.linspace(0, len(labels) - 1, 7).round().astype(int)
    whole = pixels.batch(torch.from_numpy(chosen), plan.preprocessing)
    assert torch.equal(rows[0].images, whole)
    assert rows[0].labels == tuple(TEN[labels[index]] for index in chosen)
    for epoch in range(2):
        stream = key(0, "one", epoch, "augment")
        wanted = augment_batch(whole, plan.phases[0].augment, key=stream, ids=chosen)
        assert torch.equal(rows[epoch + 1].images, wanted)


def test_mixed_images_say_what_they_are(listing: Listing) -> None:
    _, rows = rows_of(listing, {"cutmix": 1.0})
    assert not torch.equal(rows[1].images, rows[0].images)
    assert any("%" in label for label in rows[1].labels)


def test_the_sheet_has_a_tile_for_each_image(listing: Listing) -> None:
    _, rows = rows_of(listing, {"hflip": True})
    one, two = contact_sheet([("one", rows)]), contact_sheet([("one", rows), ("two", rows)])
    assert two.height - one.height == one.height - 6
    assert two.width == one.width
    assert len(set(np.asarray(one).reshape(-1, 3).sum(1).tolist())) > 100
