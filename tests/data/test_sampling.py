"""Which images an epoch has."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.data.sampling import epoch_order
from tlrecipe.planning.randomness import key, permutation


def test_once_is_each_image_once() -> None:
    labels = np.array([0, 0, 1, 2])
    assert np.array_equal(epoch_order("once", 7, labels), permutation(7, 4))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 2**40))
def test_balanced_has_as_many_images_and_equally_many_of_each_class(labels: list[int], stream: int) -> None:
    found = epoch_order("balanced", stream, np.array(labels))
    assert len(found) == len(labels)
    assert len(set(found.tolist())) == len(labels)
    images, occurrence = found % len(labels), found // len(labels)
    counts = np.bincount(np.array(labels)[images])
    present = counts[np.unique(labels)]
    assert present.max() - present.min() <= 1
    # An image comes a second time only when all of its class have come once, and so on.
    for name in set(labels):
        inside = np.array(labels)[images] == name
        repeats = np.bincount(images[inside], minlength=len(labels))[np.array(labels) == name]
        assert repeats.max() - repeats.min() <= 1
        assert occurrence[inside].max() == repeats.max() - 1


def test_what_a_large_class_leaves_out_changes_from_epoch_to_epoch() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    orders = [epoch_order("balanced", key(0, "p", epoch), labels) % 100 for epoch in range(12)]
    assert np.array_equal(orders[0], epoch_order("balanced", key(0, "p", 0), labels) % 100)
    assert len(set(np.concatenate(orders).tolist())) == 100
    # The order mixes the classes.
    assert np.abs(np.diff(labels[orders[0]])).sum() > 20
