"""Evaluation of a network on a split: loss and accuracy over every image once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tlrecipe.data.pixels import Pixels
from tlrecipe.data.preprocess import normalise
from tlrecipe.models.inference import Inference
from tlrecipe.planning.facts import Preprocessing


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split, with the logits that they come from."""

    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    accuracy: float
    """Share of images whose largest logit is their label."""
    count: int
    logits: Tensor
    """(N, classes) float32 on the CPU, in the order of the split."""

    def as_dict(self) -> dict[str, float]:
        return {"loss": self.loss, "accuracy": self.accuracy}


def evaluate(logits_of: Callable[[np.ndarray], Tensor], labels: Tensor, batch_size: int) -> Evaluation:
    """Evaluate on images ``0 … len(labels) - 1``, ``logits_of`` giving (B, classes) for their numbers."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            ids = np.arange(start, min(len(labels), start + batch_size), dtype=np.int64)
            parts.append(logits_of(ids).float().cpu())
    logits = torch.cat(parts)
    correct = int((logits.argmax(1) == labels).sum())
    loss = float(F.cross_entropy(logits, labels))
    return Evaluation(loss, correct / len(labels), len(labels), logits)


def evaluate_pixels(
    inference: Inference,
    pixels: Pixels,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate as a bundle does: the same function for a run's test metrics and `tlrecipe evaluate`.

    ``between`` is called before each batch; what it raises ends the evaluation.
    """

    def logits_of(ids: np.ndarray) -> Tensor:
        between()
        images = pixels.batch(torch.from_numpy(ids), preprocessing)
        return inference.logits(normalise(images, preprocessing))

    return evaluate(logits_of, pixels.labels, batch_size)


def wilson_interval(accuracy: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share of ``count`` trials (Wilson, JASA 22:209, 1927)."""
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)
