"""What is read out of predictions, held to the plain loops that define it."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_directories import predictions

from tlrecipe.artifacts.report import findings
from tlrecipe.artifacts.report.findings import Predictions


def confusion(found: Predictions) -> np.ndarray:
    matrix = np.zeros((len(found.classes), len(found.classes)), int)
    for truth, predicted in zip(found.labels, found.predicted, strict=True):
        matrix[truth, predicted] += 1
    return matrix


@pytest.fixture(scope="module")
def found() -> Predictions:
    return predictions([f"class {number}" for number in range(30)], 600, right=0.5)


def test_a_small_matrix_is_shown_whole() -> None:
    few = predictions(("cat", "dog", "owl"), 100)
    block = findings.block(few, 20)
    assert block.whole
    assert (block.counts == confusion(few)).all()
    assert (block.elsewhere == 0).all()
    assert block.totals.tolist() == confusion(few).sum(1).tolist()


def test_of_a_large_matrix_the_part_holds_the_most_frequent_confusion(found: Predictions) -> None:
    block = findings.block(found, 5)
    matrix = confusion(found)
    off = matrix - np.diag(matrix.diagonal())
    truth, predicted = divmod(int(off.argmax()), 30)
    assert not block.whole
    assert {found.classes[truth], found.classes[predicted]} <= set(block.classes)
    chosen = [found.classes.index(name) for name in block.classes]
    assert (block.counts == matrix[np.ix_(chosen, chosen)]).all()
    assert (block.counts.sum(1) + block.elsewhere == matrix[chosen].sum(1)).all()


def test_a_block_without_any_confusion_has_its_size() -> None:
    block = findings.block(predictions([str(n) for n in range(30)], 60, right=1.0), 20)
    assert len(block.classes) == 20
    assert (block.counts == np.diag([2] * 20)).all()


def test_confusions_come_by_number_with_the_surest_images_first(found: Predictions) -> None:
    matrix = confusion(found)
    off = matrix - np.diag(matrix.diagonal())
    pairs = findings.confusions(found, 8, 3)
    assert [pair.count for pair in pairs] == sorted(off.ravel().tolist(), reverse=True)[:8]
    for pair in pairs:
        truth, predicted = found.classes.index(pair.truth), found.classes.index(pair.predicted)
        own = [i for i in range(600) if (found.labels[i], found.predicted[i]) == (truth, predicted)]
        assert list(pair.examples) == sorted(own, key=lambda i: -found.probability[i])[:3]
        assert pair.share == pair.count / matrix[truth].sum()


def test_the_worst_mistakes_are_the_surest_wrong_answers(found: Predictions) -> None:
    wrong = [i for i in range(600) if found.labels[i] != found.predicted[i]]
    assert findings.mistakes(found, 10) == sorted(wrong, key=lambda i: -found.probability[i])[:10]


def test_each_class_has_its_recall_and_what_it_is_taken_for(found: Predictions) -> None:
    matrix = confusion(found)
    for index, item in enumerate(findings.by_class(found)):
        assert item.images == matrix[index].sum()
        assert item.recall == matrix[index, index] / matrix[index].sum()
        off = matrix[index].copy()
        off[index] = 0
        assert item.taken_count == off.max()
        assert item.taken_for is not None
        assert off[found.classes.index(item.taken_for)] == off.max()


def test_a_class_without_images_has_no_recall() -> None:
    none = Predictions(("cat", "dog"), ("a",), np.array([0]), np.array([0]), np.array([0.9]))
    assert findings.by_class(none)[1].recall is None


def test_chance_is_the_share_of_the_largest_class() -> None:
    skewed = Predictions(("a", "b"), ("x",) * 4, np.array([0, 0, 0, 1]), np.zeros(4, int), np.ones(4))
    assert findings.chance(skewed) == 0.75


# --------------------------------------------------------------------------- two models


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_test_of_two_models_is_the_sign_test(pairs: list[tuple[bool, bool]]) -> None:
    one, two = (np.array(side) for side in zip(*pairs, strict=True))
    found = findings.paired(one, two)
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    total = lost + won
    tail = sum(comb(total, k) for k in range(min(lost, won) + 1)) / 2**total
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert found.difference == pytest.approx(two.mean() - one.mean())
    low, high = found.difference_interval
    assert -1 <= low <= high <= 1


def test_the_interval_of_two_models_by_hand() -> None:
    # 50 images: 10 only the first, 2 only the second has right; Agresti and Min add half to each cell.
    one = np.array([True] * 10 + [False] * 2 + [True] * 38)
    two = np.array([False] * 10 + [True] * 2 + [True] * 38)
    low, high = findings.paired(one, two).difference_interval
    centre, half = (2.5 - 10.5) / 52, 1.959964 * (13 - 64 / 52) ** 0.5 / 52
    assert (low, high) == (pytest.approx(centre - half), pytest.approx(centre + half))


def test_tens_of_thousands_of_disagreements_are_no_problem() -> None:
    one = np.tile([True, False], 20_000)
    assert findings.paired(one, ~one).p_value == 1.0
