"""Evaluation of a network on a split: every image once, and what its logits are worth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlrecipe.data.pixels import Pixels
from tlrecipe.data.preprocess import normalise
from tlrecipe.models.inference import Inference
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.training import metrics


@dataclass(frozen=True)
class Evaluation:
    """The logits of one split, and what follows from them."""

    logits: Tensor
    """(N, classes) float32 on the CPU, in the order of the split."""
    labels: Tensor
    """(N,) int64."""

    @property
    def count(self) -> int:
        return len(self.labels)

    @cached_property
    def scores(self) -> metrics.Scores:
        return metrics.Scores(self.logits, self.labels)

    def scalars(self, names: Collection[str] = metrics.METRICS.keys()) -> dict[str, float]:
        """Metrics by name; of those in ``names``, the ones that are defined here."""
        return metrics.scalars(self.scores, names)

    def predictions(self, classes: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        """True class, predicted class and its probability of each image, in the order of the split."""
        scores = self.scores
        for label, best, probability in zip(
            scores.truth.tolist(), scores.predicted.tolist(), scores.confidence.tolist(), strict=True
        ):
            yield classes[label], classes[best], probability

    def report(self, classes: Sequence[str]) -> dict[str, Any]:
        """All there is to say, as plain data: ``metrics``, their ``intervals``, and the detail of
        :func:`tlrecipe.training.metrics.detail`."""
        return {
            "metrics": self.scalars(),
            "intervals": {name: list(ends) for name, ends in metrics.intervals(self.scores).items()},
            "classes": list(classes),
            **metrics.detail(self.scores, classes),
        }


def evaluate(
    logits_of: Callable[[np.ndarray], Tensor],
    labels: Tensor,
    batch_size: int,
    *,
    told: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Evaluate on images ``0 … len(labels) - 1``, ``logits_of`` giving (B, classes) for their numbers.

    ``told`` is called before each batch and at the end with the number of images that are done; what it
    raises ends the evaluation.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            told(start)
            ids = np.arange(start, min(len(labels), start + batch_size), dtype=np.int64)
            parts.append(logits_of(ids).float().cpu())
    told(len(labels))
    return Evaluation(torch.cat(parts), labels)


def evaluate_pixels(
    inference: Inference,
    pixels: Pixels,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
    told: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Evaluate as a bundle does: the same function for a run's test metrics and `tlrecipe evaluate`.

    ``told`` is called as by :func:`evaluate`.
    """

    def logits_of(ids: np.ndarray) -> Tensor:
        images = pixels.batch(torch.from_numpy(ids), preprocessing)
        return inference.logits(normalise(images, preprocessing))

    return evaluate(logits_of, pixels.labels, batch_size, told=told)
