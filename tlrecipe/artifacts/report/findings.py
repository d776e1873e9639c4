"""What the predictions of a split say: confusions, the worst mistakes, and two models compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tlrecipe.planning.intervals import Z95, wilson_interval

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about each image of a labelled split, in the order of the split."""

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: Ints
    """(N,): the true class of each image."""
    predicted: Ints
    """(N,): the most probable class."""
    probability: Floats
    """(N,): the probability of the predicted class, of which six decimals count: so many are kept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", self.probability.round(6))

    @classmethod
    def of(
        cls, classes: Sequence[str], files: Iterable[str], rows: Iterable[tuple[str, str, float]]
    ) -> Predictions:
        """From the true class, the predicted class and its probability of each file.

        Raises ``KeyError`` for a class that is not among ``classes``.
        """
        place = {name: index for index, name in enumerate(classes)}
        numbers = [(place[truth], place[predicted], probability) for truth, predicted, probability in rows]
        return cls(
            tuple(classes),
            tuple(files),
            np.array([truth for truth, _, _ in numbers], np.int64),
            np.array([predicted for _, predicted, _ in numbers], np.int64),
            np.array([probability for _, _, probability in numbers], np.float64),
        )

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(N,): whether the prediction is the true class."""
        same: NDArray[np.bool_] = self.labels == self.predicted
        return same

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @cached_property
    def wrong_pairs(self) -> tuple[Ints, Ints, Ints]:
        """True class, predicted class and number of images of each confusion that occurs, most frequent
        first. A matrix would not do: of twenty thousand classes it has 400 million cells."""
        size = len(self.classes)
        wrong = ~self.right
        pairs, counts = np.unique(self.labels[wrong] * size + self.predicted[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        truth, predicted = np.divmod(pairs[order], size)
        return truth, predicted, counts[order].astype(np.int64)


@dataclass(frozen=True)
class ClassFinding:
    """How one class fares."""

    name: str
    images: int
    recall: float | None
    """Share of its images that are recognised; None without images."""
    recall_interval: tuple[float, float]
    taken_for: str | None
    """The class that it is most often mistaken for."""
    taken_count: int


@dataclass(frozen=True)
class Confusion:
    """One class taken for another."""

    truth: str
    predicted: str
    count: int
    share: float
    """Of all images of the true class."""
    examples: tuple[int, ...]
    """Numbers of the images, most confident first."""


@dataclass(frozen=True)
class Block:
    """A part of the confusion matrix that fits a page."""

    classes: tuple[str, ...]
    counts: Ints
    """(rows, columns) of the classes."""
    elsewhere: Ints
    """(rows,): images predicted as a class that is not in the block."""
    totals: Ints
    """(rows,): all images of the class."""
    whole: bool


def by_class(predictions: Predictions) -> list[ClassFinding]:
    """Every class, in the order of the classes."""
    size = len(predictions.classes)
    images = np.bincount(predictions.labels, minlength=size).tolist()
    right = np.bincount(predictions.labels[predictions.right], minlength=size).tolist()
    taken: dict[int, tuple[int, int]] = {}
    for truth, other, number in zip(*(part.tolist() for part in predictions.wrong_pairs), strict=True):
        taken.setdefault(truth, (other, number))
    found = []
    for index, name in enumerate(predictions.classes):
        recall = right[index] / images[index] if images[index] else None
        other, number = taken.get(index, (None, 0))
        found.append(
            ClassFinding(
                name=name,
                images=images[index],
                recall=recall,
                recall_interval=(0.0, 1.0) if recall is None else wilson_interval(recall, images[index]),
                taken_for=None if other is None else predictions.classes[other],
                taken_count=number,
            )
        )
    return found


def confusions(predictions: Predictions, limit: int, examples: int) -> list[Confusion]:
    """The pairs of classes that are confused most, with the images that show it."""
    totals = np.bincount(predictions.labels, minlength=len(predictions.classes))
    top = zip(*(part[:limit].tolist() for part in predictions.wrong_pairs), strict=True)
    found = []
    for truth, other, number in top:
        where = np.flatnonzero((predictions.labels == truth) & (predictions.predicted == other))
        order = np.argsort(-predictions.probability[where], kind="stable")
        found.append(
            Confusion(
                predictions.classes[truth],
                predictions.classes[other],
                number,
                number / int(totals[truth]),
                tuple(where[order][:examples].tolist()),
            )
        )
    return found


def mistakes(predictions: Predictions, limit: int) -> list[int]:
    """Numbers of the wrong predictions that the model was surest of, surest first."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-predictions.probability[wrong], kind="stable")
    return [int(index) for index in wrong[order][:limit]]


def block(predictions: Predictions, limit: int) -> Block:
    """The whole confusion matrix of up to ``limit`` classes; of more, the part with most confusions.

    The part grows from the most confused pair, always by the class that is confused most with those that
    are in it already.
    """
    size = len(predictions.classes)
    truth, other, number = predictions.wrong_pairs
    chosen = list(range(size)) if size <= limit else _most_confused(truth, other, number, size, limit)
    place = np.full(size, -1)
    place[chosen] = np.arange(len(chosen))
    counts = np.zeros((len(chosen), len(chosen)), np.int64)
    inside = (place[predictions.labels] >= 0) & (place[predictions.predicted] >= 0)
    np.add.at(counts, (place[predictions.labels[inside]], place[predictions.predicted[inside]]), 1)
    totals = np.bincount(predictions.labels, minlength=size)[chosen].astype(np.int64)
    names = tuple(predictions.classes[index] for index in chosen)
    return Block(names, counts, totals - counts.sum(1), totals, size <= limit)


def _most_confused(truth: Ints, other: Ints, number: Ints, size: int, limit: int) -> list[int]:
    chosen = [int(truth[0]), int(other[0])] if len(number) else [0, 1]
    inside = np.zeros(size, dtype=bool)
    while len(chosen) < limit:
        inside[chosen] = True
        gain = np.bincount(other, number * inside[truth], minlength=size)
        gain += np.bincount(truth, number * inside[other], minlength=size)
        gain[inside] = -1
        chosen.append(int(gain.argmax()))
    return sorted(chosen)


def chance(predictions: Predictions) -> float:
    """Accuracy of who always names the class with most images in the split."""
    return float(np.bincount(predictions.labels).max() / len(predictions))


# --------------------------------------------------------------------------- two models


@dataclass(frozen=True)
class Paired:
    """Two models on the same images."""

    images: int
    only_first: int
    """Images that only the first has right."""
    only_second: int
    difference: float
    """Accuracy of the second less that of the first."""
    difference_interval: tuple[float, float]
    p_value: float
    """Of McNemar's exact test that both are equally often right."""


def paired(first: Sequence[bool] | NDArray[np.bool_], second: Sequence[bool] | NDArray[np.bool_]) -> Paired:
    """Compare two models by whether each had the same N images right.

    The interval is the adjusted Wald interval of Agresti and Min (Statistics in Medicine 24:729, 2005);
    the test is the exact one of McNemar (Psychometrika 12:153, 1947): only images on which the models
    disagree tell them apart.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    count = len(one)
    lost, won = int((one & ~two).sum()), int((~one & two).sum())
    b, c, n = lost + 0.5, won + 0.5, count + 2
    centre = (c - b) / n
    half = Z95 * sqrt(b + c - (c - b) ** 2 / n) / n
    bounds = max(-1.0, centre - half), min(1.0, centre + half)
    return Paired(count, lost, won, (won - lost) / count, bounds, _sign_test(lost, won))


def _sign_test(lost: int, won: int) -> float:
    """Two-sided probability of a split at least as uneven as this one, both sides being equally likely."""
    total, fewer = lost + won, min(lost, won)
    tail, term = 0, 1
    for index in range(fewer + 1):
        tail += term
        term = term * (total - index) // (index + 1)
    # Whole numbers, because 2 to the power of the images on which they differ is no float.
    return min(1.0, (2 * tail) / (1 << total)) if total else 1.0
