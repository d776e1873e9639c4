"""Losses against the formulas of their papers, one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tlrecipe.language.spec import CrossEntropyLoss, FocalLoss, LossSpec
from tlrecipe.training.losses import Loss

CPU = torch.device("cpu")
LOGITS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 4
WEIGHTS = (0.5, 2.0, 1.0, 0.25)
PLAIN = CrossEntropyLoss(name="cross_entropy")


def by_hand(spec: LossSpec, weights: tuple[float, ...] | None, smoothing: float) -> list[float]:
    gamma = spec.gamma if isinstance(spec, FocalLoss) else 0.0
    totals = []
    for logits, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        normal = sum(math.exp(value) for value in logits)
        total = 0.0
        for index, value in enumerate(logits):
            p = math.exp(value) / normal
            target = smoothing / 4 + (1 - smoothing) * (index == label)
            total -= (weights[index] if weights else 1.0) * target * (1 - p) ** gamma * math.log(p)
        totals.append(total)
    return totals


@pytest.mark.parametrize("spec", [PLAIN, FocalLoss(name="focal"), FocalLoss(name="focal", gamma=0.5)])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_is_its_formula(spec: LossSpec, weights: tuple[float, ...] | None, smoothing: float) -> None:
    loss = Loss(spec, weights, smoothing, CPU)
    each = torch.tensor(by_hand(spec, weights, smoothing))
    assert float(loss.total(LOGITS, LABELS)) == pytest.approx(float(each.sum()), rel=1e-5)
    # A mixed label counts as the loss of the mixed target.
    others, share = LABELS.roll(1), torch.linspace(0, 1, 20)
    rolled = Loss(spec, weights, smoothing, CPU)
    wanted = sum(
        float(s * rolled.total(x[None], a[None]) + (1 - s) * rolled.total(x[None], b[None]))
        for x, a, b, s in zip(LOGITS, LABELS, others, share, strict=True)
    )
    assert float(loss.total(LOGITS, LABELS, (others, share))) == pytest.approx(wanted, rel=1e-5)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    loss = Loss(FocalLoss(name="focal", gamma=0.0), None, 0.0, CPU)
    wanted = F.cross_entropy(LOGITS, LABELS, reduction="sum")
    assert torch.allclose(loss.total(LOGITS, LABELS), wanted)


@pytest.mark.parametrize("spec", [PLAIN, FocalLoss(name="focal")], ids=["N05-plain", "N05-focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_whose_images_weigh_nothing_has_a_loss_and_no_nan(spec: LossSpec, smoothing: float) -> None:
    """Losses are divided by the number of images, never by the sum of their weights."""
    logits = LOGITS.clone().requires_grad_()
    total = Loss(spec, (0.0,) * 4, smoothing, CPU).total(logits, LABELS)
    total.backward()
    assert float(total.detach()) == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_gradients_of_a_certain_image_are_finite() -> None:
    logits = torch.tensor([[80.0, -80.0]], requires_grad=True)
    Loss(FocalLoss(name="focal", gamma=0.5), None, 0.0, CPU).total(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()
