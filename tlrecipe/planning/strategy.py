"""Which strategy fits a data set, and the numbers of a first recipe for it.

The field's guide by number of images and by how close they are to what the weights saw (Yosinski et al.
2014, https://arxiv.org/abs/1411.1792; Kornblith et al. 2019, https://arxiv.org/abs/1805.08974), as a pure
function. The numbers start from those of the shipped recipes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

FEW = 10_000
"""Training images below which a frozen backbone is the first thing to try."""
MANY = 100_000
"""Training images above which random weights can catch up with pretrained ones."""

StrategyName = Literal["feature extraction", "fine-tuning", "from scratch", "hybrid"]
Domain = Literal["similar", "different"]

WHAT: Mapping[StrategyName, str] = {
    "feature extraction": "a new head on a frozen backbone, which is computed once",
    "fine-tuning": "everything trains, the backbone at a lower rate than the head",
    "from scratch": "everything trains, from random weights",
    "hybrid": "first the head, then the last stages with it at lower rates",
}

_OWN_SIZE = 224  # what the weights of the backbone in the template were trained at
_SMALL_SIZE = 128  # smaller inputs cost a pretrained backbone more accuracy than they save time
_SIZE_STEP = 32  # backbones halve the image five times
_UNEVEN = 3.0
_LONG = 1.5
_MIRRORED = re.compile(r"\b(left|right|east|west|clockwise)", re.IGNORECASE)


@dataclass(frozen=True)
class Survey:
    """What a listing and the headers of some images say about a data set."""

    classes: Mapping[str, int]
    """Training images of each class, before any are held out."""
    counts: Mapping[str, int]
    """Images by split, as the source brings them: ``train``, and ``val`` and ``test`` where it has them."""
    typical: tuple[int, int] | None
    """Width and height in pixels of a typical image; None where none of the sampled could be read."""
    grey: bool
    """Most of the sampled images are grey, 1-bit or 16-bit."""
    sampled: int
    unusable: int
    """Sampled files whose header is not that of an image."""


@dataclass(frozen=True)
class Strategy:
    """A branch of the guide, why it was taken, and what would lead to another one."""

    name: StrategyName
    reason: str
    alternatives: tuple[tuple[str, StrategyName], ...]
    """Conditions under which another strategy fits, in words."""


def choose(survey: Survey, domain: Domain | None = None, wanted: StrategyName | None = None) -> Strategy:
    """The strategy for a data set.

    Args:
        survey: What the data looks like.
        domain: Whether the images are like those that the weights saw; by default judged by colour.
        wanted: Takes this strategy, whatever the data.
    """
    images = survey.counts["train"]
    guessed = domain is None
    domain = domain or ("different" if survey.grey else "similar")
    if images < FEW:
        name: StrategyName = "feature extraction" if domain == "similar" else "hybrid"
    elif images > MANY and domain == "different":
        name = "from scratch"
    else:
        name = "fine-tuning"
    size = f"{images:,} training images are " + (
        f"fewer than {FEW:,}" if images < FEW else f"more than {MANY:,}" if images > MANY else "enough"
    )
    seems = {
        "similar": "seem to be what the weights saw, colour photographs (judged by colour alone)",
        "different": "seem to be unlike the colour photographs that the weights saw (they are grey)",
    }
    stated = {
        "similar": "are like those that the weights saw",
        "different": "are unlike what the weights saw",
    }
    reason = f"{size}, and they {(seems if guessed else stated)[domain]}"
    if wanted is not None:
        return Strategy(wanted, f"it was asked for; the guide would take {name}, because {reason}", ())
    return Strategy(name, reason, tuple(_alternatives(name, domain)))


def _alternatives(name: StrategyName, domain: Domain) -> list[tuple[str, StrategyName]]:
    match name:
        case "feature extraction":
            return [
                ("accuracy counts more than time", "hybrid"),
                ("the images are unlike photographs of things: scans, drawings, spectra", "hybrid"),
                (f"there were {FEW:,} training images or more", "fine-tuning"),
            ]
        case "hybrid":
            return [
                ("the images are like those that the weights saw, or time is short", "feature extraction"),
                (f"there were {FEW:,} training images or more", "fine-tuning"),
            ]
        case "fine-tuning":
            return [
                ("time is short", "feature extraction"),
                (f"there were fewer than {FEW:,} training images", "hybrid"),
                (f"there were more than {MANY:,}, unlike what the weights saw", "from scratch"),
            ]
        case "from scratch":
            return [
                ("the images are like those that the weights saw after all", "fine-tuning"),
                (f"there were at most {MANY:,} training images", "fine-tuning"),
            ]


# --------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Setting:
    """A value of the recipe, and why it is this one."""

    value: int | float | bool
    why: str


@dataclass(frozen=True)
class Settings:
    """The numbers of a recipe; what is None is left at its default."""

    size: Setting
    batch_size: Setting
    val: Setting | None
    crop_pct: Setting | None
    hflip: Setting
    uneven: bool
    """The largest class has several times the images of the smallest."""
    head_epochs: int
    """Of training the head alone."""
    epochs: int
    """Of training more than the head."""
    notes: tuple[str, ...]
    """What the author should know about the data, in sentences."""


def settings(survey: Survey, strategy: StrategyName) -> Settings:
    """First numbers for a data set under a strategy."""
    size = _size(survey, strategy)
    val = _val(survey)
    share = 0.0 if val is None else float(val.value)
    left = sum(count - held_out(count, share) for count in survey.classes.values())
    batch_size = _batch_size(left, strategy)
    steps = ceil(left / int(batch_size.value))
    lengths: Mapping[StrategyName, int] = {
        "feature extraction": _clamped(90 / steps, 3, 10),
        "hybrid": _clamped(90 / steps, 3, 10),
        "fine-tuning": _clamped(2000 / steps, 4, 12),
        "from scratch": 90,
    }
    return Settings(
        size=size,
        batch_size=batch_size,
        val=val,
        crop_pct=_crop_pct(survey, int(size.value)),
        hflip=_hflip(survey),
        uneven=_uneven(survey),
        head_epochs=_clamped((300 if strategy == "feature extraction" else 225) / steps, 5, 30),
        epochs=lengths[strategy],
        notes=tuple(_notes(survey)),
    )


def held_out(count: int, share: float) -> int:
    """Images of a class of ``count`` that become validation images: the rule of the data's own split."""
    return min(max(round(share * count), 1), count - 1) if share else 0


def _size(survey: Survey, strategy: StrategyName) -> Setting:
    if survey.typical is None:
        return Setting(_OWN_SIZE, "What the weights were trained at.")
    shorter = min(survey.typical)
    least = 64 if strategy == "from scratch" else _SMALL_SIZE
    size = min(max(ceil(shorter / _SIZE_STEP) * _SIZE_STEP, least), _OWN_SIZE)
    typical = "the typical image has {}×{}".format(*survey.typical)
    capital = f"T{typical[1:]}"
    if size == _OWN_SIZE:
        return Setting(size, f"What the weights were trained at; {typical}.")
    if size > shorter:
        return Setting(
            size, f"{capital}; inputs smaller than {least} cost more accuracy than they save time."
        )
    return Setting(size, f"{capital}, so more pixels would add nothing.")


def _val(survey: Survey) -> Setting | None:
    """The share to hold out, or None where the source brings a validation split."""
    if "val" in survey.counts:
        return None
    smallest = min(survey.classes, key=survey.classes.__getitem__)
    count = survey.classes[smallest]
    if count < 2:
        return Setting(0.0, f"Class `{smallest}` has one image, too few to hold any out.")
    share = 0.1 if count >= 20 else 0.2
    held = held_out(count, share)
    return Setting(
        share,
        f"Share of each class that is held out: `{smallest}`, the smallest, gives {held} of its {count}.",
    )


def _batch_size(images: int, strategy: StrategyName) -> Setting:
    batch = 64
    while batch > 8 and images < 10 * batch:
        batch //= 2
    why = "Images per step." if batch == 64 else "Smaller than usual, so that an epoch has more steps."
    if strategy in ("fine-tuning", "from scratch"):
        # Batch norm cannot train on a last batch of one image.
        while images % batch == 1:
            batch -= 1
    return Setting(batch, why)


def _crop_pct(survey: Survey, size: int) -> Setting | None:
    if survey.typical is None or min(survey.typical) > size:
        return None
    return Setting(1.0, "The images are small: keep all of each instead of cutting a border off.")


def _hflip(survey: Survey) -> Setting:
    names = list(survey.classes)
    if all(len(name) == 1 or name.isdecimal() for name in names):
        return Setting(
            False, "The classes look like digits or letters, which mean something else in a mirror."
        )
    sided = next((name for name in names if _MIRRORED.search(name.replace("_", " "))), None)
    if sided is not None:
        return Setting(False, f"Class `{sided}` would change its meaning in a mirror.")
    return Setting(True, "Mirrors left and right at random: false if that changes what an image shows.")


def _uneven(survey: Survey) -> bool:
    return max(survey.classes.values()) >= _UNEVEN * min(survey.classes.values())


def _notes(survey: Survey) -> list[str]:
    notes = []
    order = sorted(survey.classes, key=survey.classes.__getitem__)
    smallest, largest = order[0], order[-1]
    few, many = survey.classes[smallest], survey.classes[largest]
    if _uneven(survey):
        notes.append(
            f"The classes are uneven: `{largest}` has {many:,} images and `{smallest}` {few:,}. A model can"
            " be right often and miss the small classes: look at each class, not at the accuracy alone, and"
            " add images to the small ones. Where small classes matter as much, let them count as much:"
            ' `class_weights = "balanced"` in `[loss]`, or `sampling = "balanced"` in the phases.'
        )
    elif few < 20:
        notes.append(f"Class `{smallest}` has only {few} images: more of them help more than any setting.")
    if "test" not in survey.counts:
        notes.append(
            "There is no test split: the final accuracy is that on the validation images. For one that no"
            " decision has seen, put images aside in a folder `test` beside `train`."
        )
    if survey.typical:
        longer, shorter = max(survey.typical), min(survey.typical)
        if longer >= _LONG * shorter:
            notes.append(
                f"The typical image is {longer / shorter:.1f} times as long as it is wide, and the network"
                f" sees the middle {shorter / longer:.0%} of it."
            )
    if survey.unusable:
        notes.append(
            f"{survey.unusable} of {survey.sampled} sampled files are no images: `tlrecipe validate --data`"
            ' names all, and `on_bad = "skip"` leaves them out.'
        )
    return notes


def _clamped(epochs: float, least: int, most: int) -> int:
    return min(max(round(epochs), least), most)
