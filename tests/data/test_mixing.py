"""Mixup and CutMix: which images, how much of them, and that nothing depends on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tlrecipe.data.mixing import Mix, mix_of, mixed
from tlrecipe.language.spec import Augment
from tlrecipe.planning import randomness

KEY = randomness.key(0, "finetune", 3, "mix")
SIDE = 20
ORDER = randomness.permutation(5, 500)
MANY = np.arange(20_000)

SPECS = [Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)]
IDS = ["mixup", "cutmix", "both"]


def mix(spec: Augment, ids: np.ndarray) -> Mix:
    found = mix_of(spec, key=KEY, ids=ids, order=ORDER, side=SIDE)
    assert found is not None
    return found


def test_nothing_is_mixed_unless_it_is_asked_for() -> None:
    assert mix_of(Augment(hflip=True), key=KEY, ids=MANY, order=ORDER, side=SIDE) is None


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_a_mix_depends_on_key_and_id_alone(spec: Augment) -> None:
    ids = np.array([3, 77, 12, 450])
    together = mix(spec, ids)
    for row in range(4):
        alone = mix(spec, ids[row : row + 1])
        for field in ("partners", "share", "opacity", "boxes"):
            assert np.array_equal(getattr(alone, field)[0], getattr(together, field)[row]), field


def plain(images: torch.Tensor, partners: torch.Tensor, how: Mix) -> torch.Tensor:
    """The definition, image by image and, for CutMix, row by row."""
    result = images.clone()
    for index in range(len(images)):
        result[index] = how.opacity[index] * images[index] + (1 - how.opacity[index]) * partners[index]
        left, top, width, height = how.boxes[index]
        for y in range(top, top + height):
            result[index, :, y, left : left + width] = partners[index, :, y, left : left + width]
    return result


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_mixed_images_are_those_of_a_plain_loop(spec: Augment) -> None:
    images, partners = torch.rand(40, 3, SIDE, SIDE), torch.rand(40, 3, SIDE, SIDE)
    how = mix(spec, np.arange(40))
    found = mixed(images, partners, how)
    assert torch.allclose(found, plain(images, partners, how), atol=1e-6)
    # The share of the label is the share of the pixels.
    ones = mixed(torch.ones_like(images), torch.zeros_like(images), how)
    assert ones.mean((1, 2, 3)).numpy() == pytest.approx(how.share, abs=1e-6)


def test_partners_are_uniform_over_the_epoch() -> None:
    counts = np.bincount(mix(SPECS[0], MANY).partners, minlength=500)
    assert len(counts) == 500
    assert np.abs(counts - 40).max() < 5 * 40**0.5


def test_both_are_drawn_equally_often() -> None:
    is_mixup = mix(SPECS[2], MANY).opacity < 1
    assert abs(is_mixup.mean() - 0.5) < 5 * 0.5 / len(MANY) ** 0.5


def test_cutmix_cuts_what_torchvision_cuts() -> None:
    """The share of the label after the edges have cut off their part, for a uniform draw."""
    found = mix(SPECS[1], MANY).share
    rng = np.random.default_rng(0)
    drawn, x, y = rng.random(20_000), rng.integers(0, SIDE, 20_000), rng.integers(0, SIDE, 20_000)
    half = (0.5 * np.sqrt(1 - drawn) * SIDE).astype(int)
    width = np.minimum(x + half, SIDE) - np.maximum(x - half, 0)
    height = np.minimum(y + half, SIDE) - np.maximum(y - half, 0)
    wanted = 1 - width * height / SIDE**2
    assert abs(found.mean() - wanted.mean()) < 5 * 2**0.5 * wanted.std() / 20_000**0.5
    assert abs(found.std() - wanted.std()) < 0.02
