"""The guide to strategies: its branches, and numbers that make a valid recipe for any data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.planning.strategy import WHAT, Survey, choose, held_out, settings


def survey(images: int = 1_000, **changes: Any) -> Survey:
    classes = {"cat": images // 2, "dog": images - images // 2}
    values: dict[str, Any] = {
        "classes": classes,
        "counts": {"train": images},
        "typical": (500, 375),
        "grey": False,
        "sampled": 200,
        "unusable": 0,
    }
    return Survey(**values | changes)


@pytest.mark.parametrize(
    ("images", "grey", "domain", "expected"),
    [
        (300, False, None, "feature extraction"),
        (9_999, False, None, "feature extraction"),
        (9_999, True, None, "hybrid"),
        (9_999, True, "similar", "feature extraction"),
        (300, False, "different", "hybrid"),
        (10_000, False, None, "fine-tuning"),
        (100_000, True, None, "fine-tuning"),
        (100_001, False, None, "fine-tuning"),
        (100_001, True, None, "from scratch"),
        (100_001, False, "different", "from scratch"),
    ],
)
def test_the_branch_follows_from_the_number_of_images_and_their_kind(
    images: int, grey: bool, domain: Any, expected: str
) -> None:
    strategy = choose(survey(images, grey=grey), domain)
    assert strategy.name == expected
    assert f"{images:,} training images" in strategy.reason
    assert strategy.alternatives
    assert all(other in WHAT and other != expected for _, other in strategy.alternatives)
    # What was guessed is said to be a guess.
    assert ("seem" in strategy.reason) == (domain is None)


def test_a_strategy_that_is_asked_for_is_taken_and_the_guide_still_said() -> None:
    strategy = choose(survey(300), wanted="from scratch")
    assert strategy.name == "from scratch"
    assert "the guide would take feature extraction" in strategy.reason


@pytest.mark.parametrize(
    ("typical", "size", "whole"),
    [
        (None, 224, False),
        ((32, 32), 128, True),
        ((150, 300), 160, True),
        ((224, 300), 224, True),
        ((4000, 3000), 224, False),
    ],
)
def test_the_size_is_that_of_the_images_within_what_the_weights_take(
    typical: tuple[int, int] | None, size: int, whole: bool
) -> None:
    values = settings(survey(typical=typical), "hybrid")
    assert values.size.value == size
    assert (values.crop_pct is not None) == whole


def test_small_images_stay_small_for_random_weights() -> None:
    assert settings(survey(typical=(28, 28)), "from scratch").size.value == 64


@pytest.mark.parametrize(
    ("classes", "val"),
    [
        ({"a": 1, "b": 50}, 0.0),
        ({"a": 2, "b": 50}, 0.2),
        ({"a": 19, "b": 50}, 0.2),
        ({"a": 20, "b": 50}, 0.1),
    ],
)
def test_validation_is_held_out_where_every_class_can_give_some(classes: dict[str, int], val: float) -> None:
    data = survey(classes=classes, counts={"train": sum(classes.values())})
    setting = settings(data, "hybrid").val
    assert setting is not None
    assert setting.value == val
    assert "`a`" in setting.why


def test_the_sources_own_validation_split_is_left_alone() -> None:
    assert settings(survey(counts={"train": 1000, "val": 100}), "hybrid").val is None


@given(count=st.integers(2, 10**6), share=st.floats(0.01, 0.99))
def test_what_is_held_out_is_what_the_data_will_hold_out(count: int, share: float) -> None:
    assert held_out(count, share) == np.clip(np.rint(share * count), 1, count - 1)


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        ("0 1 2", False),
        ("10 20 30", False),
        ("A b c", False),
        ("turn_left turn_right", False),
        ("cat dog", True),
        ("bright dark", True),
    ],
)
def test_mirroring_is_left_out_where_class_names_speak_against_it(names: str, flips: bool) -> None:
    classes = dict.fromkeys(names.split(), 100)
    data = survey(classes=classes, counts={"train": 100 * len(classes)})
    assert settings(data, "hybrid").hflip.value is flips


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": {"cat": 300, "lynx": 40}}, "`cat` has 300 images and `lynx` 40"),
        ({"classes": {"cat": 300, "lynx": 100}}, '`class_weights = "balanced"` in `[loss]`'),
        ({"classes": {"cat": 30, "lynx": 11}}, "`lynx` has only 11"),
        ({"counts": {"train": 1000}}, "no test split"),
        ({"typical": (800, 400)}, "the middle 50%"),
        ({"unusable": 3}, "3 of 200 sampled files"),
    ],
)
def test_what_the_author_should_know_is_said(changes: dict[str, Any], words: str) -> None:
    assert any(words in note for note in settings(survey(**changes), "hybrid").notes)
    even = survey(counts={"train": 1000, "test": 100})
    assert settings(even, "hybrid").notes == ()


@given(
    sizes=st.lists(st.integers(1, 400_000), min_size=2, max_size=6),
    own_val=st.booleans(),
    side=st.integers(1, 10_000) | st.none(),
    strategy=st.sampled_from(sorted(WHAT)),
)
def test_numbers_fit_any_data_set(sizes: list[int], own_val: bool, side: int | None, strategy: Any) -> None:
    classes = {f"class {index}": size for index, size in enumerate(sizes)}
    counts = {"train": sum(sizes)} | ({"val": 5} if own_val else {})
    typical = None if side is None else (side, 2 * side)
    values = settings(survey(classes=classes, counts=counts, typical=typical), strategy)
    assert 64 <= values.size.value <= 224
    assert 8 <= values.batch_size.value <= 64
    share = 0 if values.val is None else values.val.value
    left = sum(size - held_out(size, float(share)) for size in sizes)
    assert left >= len(sizes)
    assert share == 0 or min(sizes) > 1
    if strategy in ("fine-tuning", "from scratch"):
        assert left % int(values.batch_size.value) != 1
    assert 1 <= values.epochs <= 90
    assert 1 <= values.head_epochs <= 30
