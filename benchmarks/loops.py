"""The plain loops that the engine is measured against, both honest.

Both keep frozen parameters out of the backward pass and frozen batch norm in eval mode, so that they train
the same thing; they differ in where the images come from.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from tlrecipe.data.listing import Listing
from tlrecipe.data.pixels import Pixels
from tlrecipe.planning.facts import Preprocessing

BATCH = 32
Batches = Callable[[str], Iterator[tuple[Tensor, Tensor]]]
"""Gives the batches of a split, for one epoch."""


@dataclass(frozen=True)
class Loop:
    """Seconds and test accuracy of a loop."""

    seconds: float
    accuracy: float


class Files(Dataset[tuple[Tensor, int]]):
    """Images opened by Pillow and transformed one by one, as tutorials do."""

    def __init__(self, listing: Listing, split: str, p: Preprocessing):
        self._listing, self._items = listing, listing.splits[split]
        self._transform = v2.Compose(
            [
                v2.Resize((p.size, p.size), interpolation=v2.InterpolationMode.BICUBIC),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(p.mean, p.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self._items[index]
        image = Image.open(io.BytesIO(self._listing.read(item))).convert("RGB")
        tensor: Tensor = self._transform(image)
        return tensor, item.label


def textbook(listing: Listing, p: Preprocessing) -> Batches:
    """Batches of a DataLoader over :class:`Files`."""
    loaders = {
        split: DataLoader(Files(listing, split, p), BATCH, shuffle=split == "train")
        for split in ("train", "test")
    }
    return lambda split: iter(loaders[split])


def in_memory(pixels: dict[str, Pixels], p: Preprocessing) -> Batches:
    """Batches of decoded pixels: the fairer loop, without the cost of opening files."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (p.mean, p.std))

    def batches(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        data = pixels[split]
        order = torch.randperm(len(data)) if split == "train" else torch.arange(len(data))
        for ids in order.split(BATCH):
            images = data.batch(ids, p).contiguous()
            yield (images.float() / 255 - mean) / std, data.labels[ids]

    return batches


def train(
    model: nn.Module,
    trainable: frozenset[str],
    batches: Batches,
    *,
    epochs: int,
    lr: float,
) -> Loop:
    """AdamW on ``trainable``, the whole network forward in each epoch, float32; then the test accuracy."""
    started = time.perf_counter()
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(epochs):
        for images, labels in batches("train"):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    correct = count = 0
    with torch.no_grad():
        for images, labels in batches("test"):
            correct += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    return Loop(time.perf_counter() - started, correct / count)
