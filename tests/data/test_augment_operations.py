"""Each random change against torchvision's function of one image, and the distribution of its draws."""

from __future__ import annotations

from math import ceil, log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from tlrecipe.data import augment, image_ops
from tlrecipe.data.augment import augment_batch, random_boxes
from tlrecipe.language.spec import Augment
from tlrecipe.planning import randomness

KEY = randomness.key(0, "finetune", 3, "augment")
SIDE = 32


def pictures(count: int = 8, side: int = SIDE) -> Tensor:
    """Smooth coloured images under a little noise: rounding of positions moves no pixel far."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    noise = torch.rand(count, 3, side, side, generator=generator)
    images = (smooth * 235 + noise * 20).to(torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def each(function: Any, amounts: Any) -> Tensor:
    """A function of one image and one amount on every picture."""
    return torch.stack(
        [function(x, a) for x, a in zip(pictures(), np.asarray(amounts).tolist(), strict=True)]
    )


def distance(found: Tensor, wanted: Tensor) -> int:
    return int((found.int() - wanted.int()).abs().max())


FACTORS = np.array([0.0, 0.1, 0.5, 0.99, 1.0, 1.3, 1.9, 2.0])

COLOURS = [
    ("brightness", FACTORS, tv.adjust_brightness, 0),
    ("contrast", FACTORS, tv.adjust_contrast, 1),
    ("saturation", FACTORS, tv.adjust_saturation, 1),
    ("sharpness", FACTORS, tv.adjust_sharpness, 1),
    ("hue", np.linspace(-0.5, 0.5, 8), tv.adjust_hue, 1),
    ("posterize", np.arange(1, 9), tv.posterize, 0),
    ("solarize", np.linspace(0, 255, 8), tv.solarize, 0),
]


@pytest.mark.parametrize(("name", "amounts", "one", "off"), COLOURS, ids=[row[0] for row in COLOURS])
def test_a_change_of_colour_is_torchvisions_for_each_image(
    name: str, amounts: Any, one: Any, off: int
) -> None:
    """Equal, or off by one where a product is rounded at another place."""
    found = getattr(image_ops, name)(pictures(), amounts)
    wanted = each(one, amounts)
    assert distance(found, wanted) <= off
    assert (found != wanted).float().mean() < 0.02


def bilinear(image: Tensor, fill: int, **changes: Any) -> Tensor:
    values = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | changes
    return tv.affine(image, **values, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)


def slope(amount: float) -> float:
    return float(np.degrees(np.arctan(amount)))


def agrees(found: Tensor, function: Any) -> bool:
    """Whether an image is what ``function`` gives for a fill of 128. Pixels that lie across the edge are
    left out: torchvision blends them with the fill twice."""
    dark, grey, bright = (function(fill) for fill in (0, 128, 255))
    whole = (dark == bright) | ((dark == 0) & (bright == 255))
    assert whole.float().mean() > 0.6
    return distance(found[whole], grey[whole]) <= 1


CORNER = [0, 0]
MOVES = [
    ("shear_x", lambda x, a, fill: bilinear(x, fill, shear=[slope(a), 0.0], center=CORNER), 0.3),
    ("shear_y", lambda x, a, fill: bilinear(x, fill, shear=[0.0, slope(a)], center=CORNER), 0.3),
    ("translate_x", lambda x, a, fill: bilinear(x, fill, translate=[int(a), 0]), 9.9),
    ("translate_y", lambda x, a, fill: bilinear(x, fill, translate=[0, int(a)]), 9.9),
    ("rotate", lambda x, a, fill: tv.rotate(x, a, v2.InterpolationMode.BILINEAR, fill=fill), 40.0),
]


@pytest.mark.parametrize(("name", "one", "largest"), MOVES, ids=[row[0] for row in MOVES])
def test_a_move_is_torchvisions_for_each_image(name: str, one: Any, largest: float) -> None:
    amounts = np.linspace(-largest, largest, 8)
    still = {move: np.zeros(8) for move, _, _ in MOVES}
    matrices = augment._moves(still | {name: amounts}, pictures())
    found = image_ops.affine(pictures(), matrices)
    for result, image, amount in zip(found, pictures(), amounts.tolist(), strict=True):
        assert agrees(result, lambda fill, x=image, a=amount: one(x, a, fill))


def test_a_rotation_shows_the_reflection_and_no_grey() -> None:
    images = torch.full((8, 3, SIDE, SIDE), 10, dtype=torch.uint8)
    turned = augment_batch(images, Augment(rotation=45.0), key=KEY, ids=np.arange(8))
    assert (turned == 10).all()
    inner = pictures()[..., 8:-8, 8:-8]
    found = augment_batch(pictures(), Augment(rotation=20.0), key=KEY, ids=np.arange(8))
    angles = -20 + 40 * augment.draws(KEY, "rotation", np.arange(8))
    wanted = each(lambda x, a: tv.rotate(x, a, v2.InterpolationMode.BILINEAR), angles)
    assert distance(found[..., 8:-8, 8:-8], wanted[..., 8:-8, 8:-8]) <= 1
    assert distance(found[..., 8:-8, 8:-8], inner) > 20


def test_a_resized_crop_is_torchvisions_of_its_box() -> None:
    boxes = random_boxes("test", KEY, np.arange(8), SIDE, (0.1, 1.0), (0.5, 2.0))
    found = image_ops.crop_and_resize(pictures(), boxes)
    for image, box, result in zip(pictures(), boxes.tolist(), found, strict=True):
        left, top, width, height = box
        wanted = tv.resized_crop(image, top, left, height, width, [SIDE, SIDE], antialias=True)
        assert distance(result, wanted) <= 1


# --------------------------------------------------------------------------- draws

MANY = np.arange(20_000)


def close(values: Any, mean: float, deviation: float) -> bool:
    """Whether a mean is within five standard errors of the expected one."""
    return abs(float(np.mean(values)) - mean) < 5 * deviation / len(values) ** 0.5


def test_boxes_have_the_areas_and_shapes_that_are_asked_for() -> None:
    scale, ratio = (0.1, 0.4), (0.5, 2.0)
    left, top, width, height = random_boxes("test", KEY, MANY, 1000, scale, ratio).T
    assert (left >= 0).all()
    assert (left + width <= 1000).all()
    assert (top >= 0).all()
    assert (top + height <= 1000).all()
    # All shapes fit here, so no draw is repeated and both are uniform.
    assert close(width * height / 1e6, 0.25, 0.3 / 12**0.5)
    assert close(np.log(width / height), 0.0, 2 * log(2) / 12**0.5)
    assert close((left + 0.5) / (1000 - width + 1), 0.5, 1 / 12**0.5)


def test_boxes_are_distributed_as_torchvisions_where_draws_are_rejected() -> None:
    found = random_boxes("test", KEY, MANY[:4000], SIDE, (0.5, 1.0), (0.5, 2.0))
    image = torch.zeros(3, SIDE, SIDE)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(SIDE, (0.5, 1.0), (0.5, 2.0))
    drawn = [crop.make_params([image]) for _ in range(4000)]
    for column, name in enumerate(("left", "top", "width", "height")):
        wanted = np.array([params[name] for params in drawn], dtype=float)
        spread = (found[:, column].std() + wanted.std()) / 2**0.5
        assert abs(found[:, column].mean() - wanted.mean()) < 5 * spread / 4000**0.5, name


def test_where_no_box_fits_the_largest_allowed_one_is_taken() -> None:
    boxes = random_boxes("test", KEY, np.arange(5), SIDE, (1.0, 1.0), (4.0, 4.0))
    assert (boxes == [0, (SIDE - SIDE // 4) // 2, SIDE, SIDE // 4]).all()


def test_erasing_fills_a_share_of_the_images_with_noise_of_all_colours() -> None:
    images = torch.full((2000, 3, 16, 16), 77, dtype=torch.uint8)
    spec = Augment.model_validate(
        {"erasing": {"probability": 0.25, "scale": [0.25, 0.25], "ratio": [1.0, 1.0]}}
    )
    found = augment_batch(images, spec, key=KEY, ids=np.arange(2000))
    changed = (found != 77).any(1)
    touched = changed.any(2).any(1).numpy()
    assert close(touched, 0.25, 0.43)
    assert changed[touched].sum((1, 2)).max() == 64
    noise = found.permute(0, 2, 3, 1)[changed].double()
    assert close(noise.flatten().numpy(), 127.5, 256 / 12**0.5)
    # Each pixel has its own noise, in each image and in each channel.
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.02


def test_color_jitter_draws_amounts_and_orders() -> None:
    images = torch.full((4000, 3, 4, 4), 100, dtype=torch.uint8)
    spec = Augment.model_validate({"color_jitter": {"brightness": 0.5}})
    found = augment_batch(images, spec, key=KEY, ids=np.arange(4000))[:, 0, 0, 0].numpy()
    assert (found.min(), found.max()) == (50, 149)
    assert close(found + 0.5, 100, 100 / 12**0.5)


@pytest.mark.parametrize("amounts", [(0.4, 0.4, 0.4, 0.1), (0.0, 0.4, 0.4, 0.0)])
def test_color_jitter_is_its_changes_in_the_drawn_order(amounts: tuple[float, ...]) -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    spec = Augment.model_validate({"color_jitter": dict(zip(names, amounts, strict=True))})
    ids = np.arange(8)
    found = augment_batch(pictures(), spec, key=KEY, ids=ids)
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    order = np.argsort([augment.draws(KEY, f"jitter-order-{name}", ids) for name in names], axis=0)
    for image, result, row in zip(pictures(), found, ids, strict=True):
        for index in order[:, row]:
            draw = 2 * float(augment.draws(KEY, f"jitter-{names[index]}", ids[row : row + 1])[0]) - 1
            if amounts[index]:
                image = functions[index](image, amounts[index] * draw + (names[index] != "hue"))
        assert distance(result, image) <= 6
        assert (result != image).float().mean() < 0.1
    assert len(set(map(tuple, order.T.tolist()))) > 3


def test_operations_are_drawn_equally_often() -> None:
    which = np.floor(augment.draws(KEY, "operation", MANY) * 14).astype(int)
    counts = np.bincount(which, minlength=14)
    assert (np.abs(counts - len(MANY) / 14) < 5 * (len(MANY) / 14) ** 0.5).all()


@pytest.mark.parametrize(
    ("changes", "theirs", "stream", "level"),
    [
        ({"rand_augment": {"operations": 1, "magnitude": 9}}, v2.RandAugment, ("rand-augment", 0), 9),
        ({"rand_augment": {"operations": 1, "magnitude": 30}}, v2.RandAugment, ("rand-augment", 0), 30),
        ({"trivial_augment": True}, v2.TrivialAugmentWide, ("trivial-augment",), None),
    ],
)
def test_a_drawn_operation_is_torchvisions_of_the_same_draw(
    changes: dict[str, Any], theirs: Any, stream: tuple[Any, ...], level: int | None
) -> None:
    count = 200
    ids, images = np.arange(count), pictures().repeat(ceil(count / 8), 1, 1, 1)[:count]
    found = augment_batch(images, Augment.model_validate(changes), key=KEY, ids=ids)
    key = randomness.key(KEY, *stream)
    transforms = {
        fill: theirs(interpolation=v2.InterpolationMode.BILINEAR, fill=fill) for fill in (0, 128, 255)
    }
    transform = transforms[128]
    space = {name: transform._AUGMENTATION_SPACE[name] for name in ORDER}
    assert set(space) == set(transform._AUGMENTATION_SPACE)
    operations = np.floor(augment.draws(key, "operation", ids) * 14).astype(int)
    strengths = np.floor(augment.draws(key, "strength", ids) * 31).astype(int)
    signs = np.where(augment.draws(key, "sign", ids) < 0.5, -1, 1)
    for row in ids:
        name = ORDER[operations[row]]
        magnitudes, signed = space[name]
        values = magnitudes(31, SIDE, SIDE)
        amount = 0.0 if values is None else float(values[strengths[row] if level is None else level])
        # Theirs is float32: 15.999999 pixels would be cut to 15, and 102.00001 is above the byte 102.
        amount = round(amount * 30) / 30 if name == "Solarize" else round(amount, 4)
        amount *= signs[row] if signed else 1

        def theirs_with(fill: int, image: Any = images[row], name: str = name, a: float = amount) -> Tensor:
            chosen = transforms[fill]
            return chosen._apply_image_or_video_transform(image, name, a, chosen.interpolation, chosen._fill)

        assert agrees(found[row], theirs_with), (name, amount)


ORDER = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"),
    *("Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


def test_two_operations_are_one_after_the_other_with_their_own_draws() -> None:
    spec = {"rand_augment": {"operations": 1, "magnitude": 9}}
    ids = np.arange(8)
    once = augment_batch(pictures(), Augment.model_validate(spec), key=KEY, ids=ids)
    spec["rand_augment"]["operations"] = 2
    twice = augment_batch(pictures(), Augment.model_validate(spec), key=KEY, ids=ids)
    limits = augment._RAND_AUGMENT | {"translate_x": 150 / 331 * SIDE, "translate_y": 150 / 331 * SIDE}
    second = randomness.key(KEY, "rand-augment", 1)
    assert torch.equal(twice, augment._drawn(once, np.full(8, 0.3), limits, 4.0, second, ids))
