"""Losses: what is minimised, as a sum over images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tlrecipe.language.spec import CrossEntropyLoss, FocalLoss, LossSpec


class Loss:
    """A loss of the grammar, for one phase.

    ``class_weights`` are one per class, or None. ``label_smoothing`` spreads that share of each label over
    all classes (https://arxiv.org/abs/1512.00567).
    """

    def __init__(
        self,
        spec: LossSpec,
        class_weights: Sequence[float] | None,
        label_smoothing: float,
        device: torch.device,
    ):
        self._gamma = spec.gamma if isinstance(spec, FocalLoss) else 0.0
        self._plain = isinstance(spec, CrossEntropyLoss)
        self._smoothing = label_smoothing
        self._weights = None if class_weights is None else torch.tensor(class_weights, device=device)

    def total(self, logits: Tensor, labels: Tensor, mix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Sum over a batch: logits ``(B, C)`` float32, labels ``(B,)``.

        ``mix`` are the labels mixed in, ``(B,)``, and the share of the image's own, ``(B,)``. All losses here
        are linear in the label, so a mixed label's loss is the mixed loss.
        """
        if mix is not None:
            others, share = mix
            own, other = self._each(logits, labels), self._each(logits, others)
            return torch.lerp(other, own, share.to(own.dtype)).sum()
        if self._plain:
            return F.cross_entropy(
                logits, labels, self._weights, label_smoothing=self._smoothing, reduction="sum"
            )
        return self._each(logits, labels).sum()

    def _each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image, ``(B,)``."""
        if self._plain:
            return F.cross_entropy(
                logits, labels, self._weights, label_smoothing=self._smoothing, reduction="none"
            )
        log_p = logits.log_softmax(1)
        # Kept off zero, where the power of a gamma below 1 has no derivative.
        doubt = (-log_p.expm1()).clamp_min(1e-6)
        terms = -log_p * doubt**self._gamma
        if self._weights is not None:
            terms = terms * self._weights
        hard = terms.gather(1, labels[:, None])[:, 0]
        return torch.lerp(hard, terms.mean(1), self._smoothing)
