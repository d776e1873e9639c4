import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlrecipe.data.augment import AUGMENTATIONS, augment_batch, flip_mask
from tlrecipe.language.spec import Augment
from tlrecipe.planning import randomness

KEY = randomness.key(0, "finetune", 3, "augment")


def batch(count, side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def coordinates(count, side):
    """Images whose first channel is the row and whose second is the column."""
    images = torch.zeros((count, 3, side, side), dtype=torch.uint8)
    images[:, 0] = torch.arange(side)[:, None]
    images[:, 1] = torch.arange(side)[None, :]
    return images


def test_every_change_of_the_grammar_has_a_row():
    # `views` says how often changes are drawn; mixing takes two images, and has tests of its own.
    assert list(AUGMENTATIONS) == [k for k in Augment.model_fields if k not in {"views", "mixup", "cutmix"}]


@given(
    st.booleans(),
    st.integers(0, 40),
    st.integers(8, 17),
    st.integers(0, 2**64 - 1),
    st.permutations(range(6)),
)
@settings(max_examples=60, deadline=None)
def test_a_change_depends_on_key_and_id_alone(hflip, crop, side, key, order):
    spec = Augment(hflip=hflip, crop=crop)
    images, ids = batch(6, side), np.arange(6) * 1000
    before = images.clone()
    together = augment_batch(images, spec, key=key, ids=ids)
    assert torch.equal(images, before)
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    assert together.is_contiguous(memory_format=torch.channels_last)
    permuted = augment_batch(images[order], spec, key=key, ids=ids[order])
    assert torch.equal(permuted, together[order])
    alone = [augment_batch(images[i : i + 1], spec, key=key, ids=ids[i : i + 1]) for i in range(6)]
    assert torch.equal(torch.cat(alone), together)


EVERY_CHANGE = {
    "rotation": 30.0,
    "resized_crop": {"scale": [0.3, 1.0]},
    "rand_augment": {"operations": 3, "magnitude": 20},
    "trivial_augment": True,
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    "erasing": {"probability": 0.7},
}


@pytest.mark.parametrize("name", EVERY_CHANGE)
def test_each_change_depends_on_key_and_id_alone(name):
    spec = Augment.model_validate({name: EVERY_CHANGE[name]})
    images, ids = batch(16, 24), np.arange(16) * 1000
    before = images.clone()
    together = augment_batch(images, spec, key=KEY, ids=ids)
    assert torch.equal(images, before)
    assert not torch.equal(together, images)
    assert together.shape == images.shape
    assert together.dtype == torch.uint8
    assert together.is_contiguous(memory_format=torch.channels_last)
    order = np.random.default_rng(0).permutation(16)
    assert torch.equal(augment_batch(images[order], spec, key=KEY, ids=ids[order]), together[order])
    alone = [augment_batch(images[i : i + 1], spec, key=KEY, ids=ids[i : i + 1]) for i in range(16)]
    assert torch.equal(torch.cat(alone), together)
    assert not torch.equal(augment_batch(images, spec, key=KEY + 1, ids=ids), together)


def test_no_augmentation_changes_nothing():
    images = batch(4, 8)
    assert torch.equal(augment_batch(images, Augment(), key=KEY, ids=np.arange(4)), images)


def test_a_flip_mirrors_the_images_of_its_mask_and_no_others():
    images, ids = batch(50, 9), np.arange(50)
    mask = torch.from_numpy(flip_mask(KEY, ids))
    changed = augment_batch(images, Augment(hflip=True), key=KEY, ids=ids)
    assert 10 < int(mask.sum()) < 40
    assert torch.equal(changed[mask], images[mask].flip(3))
    assert torch.equal(changed[~mask], images[~mask])


def test_flips_are_fair_and_independent_between_epochs():
    n = 40_000
    masks = [flip_mask(randomness.key(0, "p", epoch, "augment"), np.arange(n)) for epoch in range(3)]
    for mask in masks:
        assert abs(mask.mean() - 0.5) < 5 * 0.5 / n**0.5
    for first, second in ((0, 1), (1, 2)):
        assert abs((masks[first] ^ masks[second]).mean() - 0.5) < 5 * 0.5 / n**0.5


@pytest.mark.parametrize("margin", [1, 3, 7, 20])
def test_a_crop_is_a_window_of_the_reflected_image(margin):
    images = batch(30, 8)
    changed = augment_batch(images, Augment(crop=margin), key=KEY, ids=np.arange(30))
    padding = [(0, 0), (margin, margin), (margin, margin)]
    for image, found in zip(images.numpy(), changed.numpy(), strict=True):
        padded = np.pad(image, padding, mode="reflect")
        offsets = range(2 * margin + 1)
        assert any(np.array_equal(padded[:, y : y + 8, x : x + 8], found) for y in offsets for x in offsets)


def test_crops_are_uniform_over_both_offsets():
    margin, n = 2, 20_000
    ids = np.arange(n)
    changed = augment_batch(coordinates(n, 8), Augment(crop=margin), key=KEY, ids=ids)
    # The pixel at the centre shows where the window began.
    rows, columns = changed[:, 0, 4, 4].int() - 4 + margin, changed[:, 1, 4, 4].int() - 4 + margin
    counts = torch.bincount(rows * 5 + columns, minlength=25)
    assert len(counts) == 25
    assert (counts - n / 25).abs().max() < 5 * (n / 25) ** 0.5


def test_flip_and_crop_are_drawn_independently():
    n = 20_000
    ids = np.arange(n)
    cropped = augment_batch(coordinates(n, 8), Augment(crop=1), key=KEY, ids=ids)
    columns = cropped[:, 1, 4, 4].numpy().astype(int)
    rows = cropped[:, 0, 4, 4].numpy().astype(int)
    flips = flip_mask(KEY, ids)
    for first, second in ((columns, flips), (rows, flips), (rows, columns)):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / n**0.5
