"""A trained network as evaluation and prediction run it: one way, for a run, its bundle and the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import log

import torch
from torch import Tensor, nn

from tlrecipe.models.fast import DTYPES, Precision, fast_copy, fastest_copy, settled
from tlrecipe.models.memory import keep_freed_memory
from tlrecipe.models.prefix import Frozen, split


class Inference:
    """Logits of a network in eval mode: all but the head fast (folded, channels-last, ``precision``),
    the heads in float32.

    With ``flip``, the probabilities are the mean over each image and its mirror image (as in
    https://papers.nips.cc/paper/4824, section 4.1, without the crops).

    ``precision`` is ``"fp32"``, ``"bf16"`` or ``"auto"``; what it became is in :attr:`precision`. The
    number of images in a batch does not change which numbers are computed, only their order in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[str],
        size: int,
        *,
        precision: str = "auto",
        flip: bool = False,
    ):
        self.flip = flip
        self.device = next(model.parameters()).device
        model.eval()
        keep_freed_memory()
        inside = tuple(f"{head}." for head in heads)
        head_params = frozenset(name for name, _ in model.named_parameters() if name.startswith(inside))
        self.parts = split(model, Frozen(head_params, frozenset()), size)
        """The network, cut where the heads begin."""
        self._model, self._size = model, size
        self.precision: Precision
        if self.parts.prefix is None:
            self.precision, self.why = "fp32", self.parts.note
        else:
            known = settled(precision, self.device)
            if known is None:
                self._body, self.precision, self.why = fastest_copy(self.parts.prefix, self._sample(16))
            else:
                self.precision, self.why = known

    def _sample(self, count: int = 4) -> Tensor:
        sample = torch.rand(count, 3, self._size, self._size, device=self.device)
        return sample.to(memory_format=torch.channels_last)

    @cached_property
    def _body(self) -> nn.Module:
        # Folding watches the versions of tensors, which inference tensors do not have.
        with torch.inference_mode(False):
            return fast_copy(self.parts.prefix or self._model, self._sample(), self.precision)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised images to (N, classes) float32 logits on the network's device.

        With ``flip`` they are logarithms of the mean probabilities.
        """
        own = self._logits(images)
        if not self.flip:
            return own
        mirrored = self._logits(images.flip(3))
        return torch.logaddexp(own.log_softmax(1), mirrored.log_softmax(1)) - log(2)

    def _logits(self, images: Tensor) -> Tensor:
        images = images.to(self.device, DTYPES[self.precision], memory_format=torch.channels_last)
        body = self._body(images)
        return torch.as_tensor(body).float() if self.parts.prefix is None else self.classify(body)

    @torch.inference_mode()
    def classify(self, features: Sequence[Tensor]) -> Tensor:
        """What the body gives, in any type, to (N, classes) float32 logits."""
        return torch.as_tensor(self.parts.suffix(*(part.float() for part in features))).float()
