"""A trained network as evaluation and prediction run it: one way, for a run, its bundle and the report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tlrecipe.models.fast import DTYPES, best_precision, fast_copy
from tlrecipe.models.prefix import Frozen, split


class Inference:
    """Logits of a network in eval mode: all but the head fast (folded, channels-last, ``precision``),
    the heads in float32.

    ``precision`` is ``"fp32"``, ``"bf16"`` or ``"auto"``; what it became is in :attr:`precision`. The
    number of images in a batch does not change which numbers are computed, only their order in memory.
    """

    def __init__(self, model: nn.Module, heads: Sequence[str], size: int, *, precision: str = "auto"):
        self.device = next(model.parameters()).device
        model.eval()
        inside = tuple(f"{head}." for head in heads)
        head_params = frozenset(name for name, _ in model.named_parameters() if name.startswith(inside))
        halves = split(model, Frozen(head_params, frozenset()), size)
        sample = torch.rand(4, 3, size, size, device=self.device)
        sample = sample.to(memory_format=torch.channels_last)
        self._body: nn.Module
        self._head: nn.Module | None
        if halves.prefix is None:
            self.precision, self.why = "fp32", halves.note
            self._body, self._head = fast_copy(model, sample), None
        else:
            self.precision, self.why = best_precision(halves.prefix, sample, precision)
            self._body = fast_copy(halves.prefix, sample, self.precision)
            self._head = halves.suffix

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised images to (N, classes) float32 logits on the network's device."""
        images = images.to(self.device, DTYPES[self.precision], memory_format=torch.channels_last)
        body = self._body(images)
        if self._head is None:
            return torch.as_tensor(body).float()
        return torch.as_tensor(self._head(*(part.float() for part in body))).float()
