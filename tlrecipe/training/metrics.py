"""What a set of logits is worth: the metrics of a split, their 95 % intervals, and the detail by class.

Everything is computed from logits ``(N, classes)`` and labels ``(N,)`` by operations on whole arrays, so
that it can be done after each epoch. The tests compare each number with torchmetrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tlrecipe.planning.intervals import Z95, wilson_interval
from tlrecipe.planning.randomness import key, uniforms

_TOP = 5
_BINS = 15
_RESAMPLES = 200
# Classes whose scores are ranked at a time: bounds the memory for many classes.
_RANKED_TOGETHER = 16
# A matrix of more classes than this would be megabytes of zeros.
_MATRIX_CLASSES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The logits of a split, float32 ``(N, C)`` on the CPU, beside the labels, int64 ``(N,)``."""

    logits: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        return self.labels.numpy()

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The class of the largest logit; of equal ones the first."""
        return self.logits.argmax(1).numpy()

    @cached_property
    def losses(self) -> Floats:
        """Negative log likelihood of each image's label, in nats."""
        return F.cross_entropy(self.logits, self.labels, reduction="none").double().numpy()

    @cached_property
    def probabilities(self) -> Tensor:
        return self.logits.softmax(1)

    @cached_property
    def confidence(self) -> Floats:
        """Probability of the predicted class."""
        return self.probabilities.amax(1).double().numpy()

    @cached_property
    def confidence_bins(self) -> NDArray[np.int64]:
        """Which of 15 bins of equal width, open below and closed above, holds the confidence."""
        edges = np.linspace(0, 1, _BINS + 1)[1:-1]
        return np.searchsorted(edges, self.confidence, side="left")

    @cached_property
    def in_top(self) -> NDArray[np.bool_]:
        """Whether the label is among the five largest logits."""
        best = self.logits.topk(min(_TOP, self.classes), dim=1).indices
        return (best == self.labels[:, None]).any(1).numpy()

    @cached_property
    def ranking(self) -> _Ranking:
        return _ranking(self)


# --------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class _Sample:
    """The images of a split that count, each as often as ``rows`` names it."""

    scores: Scores
    rows: NDArray[np.int64] | None = None

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.rows is None else values[self.rows]

    @cached_property
    def counts(self) -> tuple[Floats, Floats, Floats]:
        """By class: images of it, predictions of it, right predictions of it."""
        truth, predicted = self(self.scores.truth), self(self.scores.predicted)
        classes = self.scores.classes
        support, called, hits = (
            np.bincount(each, minlength=classes).astype(np.float64)
            for each in (truth, predicted, truth[truth == predicted])
        )
        return support, called, hits


def _loss(sample: _Sample) -> float:
    return float(sample(sample.scores.losses).mean())


def _accuracy(sample: _Sample) -> float:
    return float(sample.counts[2].sum() / sample.counts[0].sum())


def _top5_accuracy(sample: _Sample) -> float:
    return float(sample(sample.scores.in_top).mean())


def _macro_f1(sample: _Sample) -> float:
    support, called, hits = sample.counts
    known = support + called > 0
    return float((2 * hits[known] / (support + called)[known]).mean())


def _balanced_accuracy(sample: _Sample) -> float:
    support, _, hits = sample.counts
    known = support > 0
    return float((hits[known] / support[known]).mean())


def _calibration_error(sample: _Sample) -> float:
    scores = sample.scores
    hits = sample(scores.truth == scores.predicted).astype(np.float64)
    gaps = np.bincount(sample(scores.confidence_bins), weights=sample(scores.confidence) - hits)
    return float(np.abs(gaps).sum() / len(hits))


def _auroc(sample: _Sample) -> float:
    return sample.scores.ranking.mean


@dataclass(frozen=True)
class Metric:
    """A row of :data:`METRICS`."""

    of: Callable[[_Sample], float]
    """Its value on some images; not a number where it is not defined."""
    higher_is_better: bool = True
    share: bool = False
    """Whether it is the share of images of which something is true."""
    least_classes: int = 2
    """Below this many classes it says nothing and is left out."""


METRICS: Mapping[str, Metric] = {
    "loss": Metric(_loss, higher_is_better=False),
    "accuracy": Metric(_accuracy, share=True),
    "top5_accuracy": Metric(_top5_accuracy, share=True, least_classes=_TOP + 1),
    "macro_f1": Metric(_macro_f1),
    "balanced_accuracy": Metric(_balanced_accuracy),
    "auroc": Metric(_auroc),
    "calibration_error": Metric(_calibration_error, higher_is_better=False),
}
"""Each metric that the grammar names (:data:`tlrecipe.language.spec.Metric`), where they are explained."""

EACH_EPOCH = tuple(name for name in METRICS if name != "auroc")
"""What costs next to nothing. Ranking all images by each class can take longer than a fast epoch."""


def scalars(scores: Scores, names: Collection[str] = METRICS.keys()) -> dict[str, float]:
    """The metrics of :data:`METRICS` that are asked for and defined: with at most five classes every
    label is among the top five, and a class without images has no AUROC."""
    sample = _Sample(scores)
    rows = {name: METRICS[name] for name in METRICS if name in names}
    values = {name: row.of(sample) for name, row in rows.items() if scores.classes >= row.least_classes}
    return {name: value for name, value in values.items() if isfinite(value) or name == "loss"}


# --------------------------------------------------------------------------- intervals


def intervals(scores: Scores) -> dict[str, tuple[float, float]]:
    """95 % intervals of :func:`scalars`: what the number of images leaves open, not what another training
    run would.

    Wilson's for shares; DeLong's for AUROC; for the others the value and 1.96 standard errors of 200
    bootstrap resamples with a fixed seed (Efron and Tibshirani, Statistical Science 1:54, 1986).
    """
    values = scalars(scores)
    count = len(scores.labels)
    found: dict[str, tuple[float, float]] = {}
    others = [name for name in values if not METRICS[name].share and name != "auroc"]
    errors = _standard_errors(scores, others)
    for name, value in values.items():
        if METRICS[name].share:
            found[name] = wilson_interval(value, count)
        else:
            half = Z95 * (scores.ranking.standard_error if name == "auroc" else errors[name])
            top = float("inf") if name == "loss" else 1.0
            found[name] = max(0.0, value - half), min(top, value + half)
    return {name: ends for name, ends in found.items() if all(map(isfinite, ends))}


def _standard_errors(scores: Scores, names: Sequence[str]) -> dict[str, float]:
    count = len(scores.labels)
    rows = []
    for number in range(_RESAMPLES):
        draws = uniforms(key("bootstrap", number), np.arange(count))
        sample = _Sample(scores, (draws * count).astype(np.int64))
        rows.append([METRICS[name].of(sample) for name in names])
    spread = np.std(np.array(rows), axis=0, ddof=1)
    return dict(zip(names, spread.tolist(), strict=True))


# --------------------------------------------------------------------------- ranking


@dataclass(frozen=True)
class _Ranking:
    """Areas under the one-vs-rest ROC curves."""

    by_class: Floats
    """``(C,)``; not a number for a class of which there are no images, or no others."""
    standard_error: float
    """Of the mean over the classes that have one."""

    @property
    def mean(self) -> float:
        known = self.by_class[np.isfinite(self.by_class)]
        return float(known.mean()) if len(known) else float("nan")


def _ranking(scores: Scores) -> _Ranking:
    """Area as the share of pairs that are in the right order, ties counting half, with the variance of
    DeLong, DeLong and Clarke-Pearson (Biometrics 44:837, 1988).

    An image's placement among the images of the other kind is what it adds to the area, and how far
    placements spread is how uncertain the area is.
    """
    count, classes = scores.probabilities.shape
    areas: list[Floats] = []
    pull = torch.zeros(count, dtype=torch.float64)
    for start in range(0, classes, _RANKED_TOGETHER):
        block = scores.probabilities[:, start : start + _RANKED_TOGETHER].T.contiguous()
        ids = torch.arange(start, start + len(block))
        positive = (scores.labels == ids[:, None]).double()
        values, order = block.sort(dim=1)
        below = torch.zeros(len(block), count + 1, dtype=torch.float64)
        torch.cumsum(positive.gather(1, order), 1, out=below[:, 1:])
        first = torch.searchsorted(values, block)
        after = torch.searchsorted(values, block, right=True)
        # Positives below each image, those level with it counting half; of all images it is the rank.
        positives = (below.gather(1, first) + below.gather(1, after)) / 2
        negatives = (first + after) / 2 - positives
        p = positive.sum(1, keepdim=True)
        n = count - p
        placement = torch.where(positive > 0, negatives / n, 1 - positives / p)
        area = (placement * positive).sum(1, keepdim=True) / p
        share = (placement - area) / torch.where(positive > 0, p, n)
        pull += share.nan_to_num(0.0, 0.0, 0.0).sum(0)
        areas.append(torch.where(n > 0, area, torch.nan)[:, 0].numpy())
    by_class = np.concatenate(areas)
    known = max(1, int(np.isfinite(by_class).sum()))
    return _Ranking(by_class, float((pull / known).square().sum().sqrt()))


# --------------------------------------------------------------------------- detail


def detail(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """What :func:`scalars` sums up, as plain data: by class, as a confusion matrix, and by confidence.

    ``confusion_matrix`` has a row for each true and a column for each predicted class; it is None for
    more than 1,000 classes. ``calibration`` has the bins of the calibration error that are not empty.
    """
    support, called, hits = _Sample(scores).counts
    matrix = None
    if len(classes) <= _MATRIX_CLASSES:
        cells = np.bincount(scores.truth * len(classes) + scores.predicted, minlength=len(classes) ** 2)
        matrix = cells.reshape(len(classes), -1).tolist()
    per_class = [
        {
            "class": name,
            "support": int(support[index]),
            "precision": _ratio(hits[index], called[index]),
            "recall": _ratio(hits[index], support[index]),
            "f1": _ratio(2 * hits[index], support[index] + called[index]),
            "auroc": _or_none(scores.ranking.by_class[index]),
        }
        for index, name in enumerate(classes)
    ]
    return {"per_class": per_class, "confusion_matrix": matrix, "calibration": _calibration(scores)}


def _calibration(scores: Scores) -> list[dict[str, Any]]:
    bins = []
    for index in range(_BINS):
        inside = scores.confidence_bins == index
        if inside.any():
            bins.append(
                {
                    "low": index / _BINS,
                    "high": (index + 1) / _BINS,
                    "count": int(inside.sum()),
                    "confidence": float(scores.confidence[inside].mean()),
                    "accuracy": float((scores.truth == scores.predicted)[inside].mean()),
                }
            )
    return bins


def _ratio(part: float, whole: float) -> float | None:
    """None where nothing was counted, which is not the same as 0."""
    return float(part / whole) if whole else None


def _or_none(value: float) -> float | None:
    return float(value) if isfinite(value) else None
