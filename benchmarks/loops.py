"""The plain loops that the engine is measured against: what a careful person writes with PyTorch alone.

Both train the same network with the same optimizer, schedule, batch size and epochs as the recipe beside
them. What is frozen has ``requires_grad = False`` and stands in eval mode, so that its statistics stay and
no gradient is computed for it. The whole network runs forward in every step, in float32 and PyTorch's own
memory format.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from tlrecipe.data.pixels import Pixels
from tlrecipe.planning.facts import Preprocessing


@dataclass(frozen=True)
class Training:
    """What both sides of a comparison do."""

    trains: Callable[[str], bool]
    """Whether a parameter, by its name, trains."""
    norms_stand: bool
    """All batch norms use their stored statistics; else those that train use the batch's."""
    flip: bool
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    seconds: float
    """All of it: reading the images, training, one evaluation at the end."""
    accuracy: float
    training_seconds: float
    """Of the epochs alone."""


def textbook(model: nn.Module, root: Path, training: Training, p: Preprocessing, workers: int) -> Outcome:
    """PIL transforms in a DataLoader over image files in class folders."""

    def loader(split: str, *random: nn.Module, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
        steps = [
            transforms.Resize(p.resized, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(p.size),
            *random,
            transforms.ToTensor(),
            transforms.Normalize(p.mean, p.std),
        ]
        data = torchvision.datasets.ImageFolder(root / split, transforms.Compose(steps))
        return DataLoader(
            data, training.batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0
        )

    _default_allocator()
    start = time.perf_counter()
    torch.manual_seed(training.seed)
    flip = [transforms.RandomHorizontalFlip()] if training.flip else []
    train = loader("train", *flip, shuffle=True)
    spent = _fit(model, training, lambda: train, len(train))
    accuracy = _accuracy(model, loader("test", shuffle=False))
    return Outcome(time.perf_counter() - start, accuracy, spent)


def fairer(
    model: nn.Module, decode: Callable[[str], Pixels], training: Training, p: Preprocessing
) -> Outcome:
    """Images decoded once and kept in memory as bytes; resize, flip and normalisation on whole batches."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (p.mean, p.std))

    def batches(pixels: Pixels, order: Tensor, flip: bool) -> Iterator[tuple[Tensor, Tensor]]:
        for ids in order.split(training.batch_size):
            images = pixels.images[ids].float() / 255
            images = F.interpolate(images, size=(p.size, p.size), mode="bicubic", antialias=True).clamp(0, 1)
            if flip:
                mirrored = torch.rand(len(ids)) < 0.5
                images[mirrored] = images[mirrored].flip(-1)
            yield ((images - mean) / std).contiguous(), pixels.labels[ids]

    _default_allocator()
    start = time.perf_counter()
    torch.manual_seed(training.seed)
    train, test = decode("train"), decode("test")
    steps = -(-len(train) // training.batch_size)
    spent = _fit(model, training, lambda: batches(train, torch.randperm(len(train)), training.flip), steps)
    accuracy = _accuracy(model, batches(test, torch.arange(len(test)), False))
    return Outcome(time.perf_counter() - start, accuracy, spent)


def _default_allocator() -> None:
    """Take back what :func:`tlrecipe.models.memory.keep_freed_memory` asked of glibc in this process: the
    limits are those that its own adaptive ones grow to (malloc.c, ``DEFAULT_MMAP_THRESHOLD_MAX``)."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 << 20)
        mallopt(-1, 64 << 20)


def _fit(
    model: nn.Module,
    training: Training,
    epoch: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    steps: int,
) -> float:
    start = time.perf_counter()
    model.to(memory_format=torch.contiguous_format)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(training.trains(name))
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=training.lr,
        weight_decay=training.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs * steps)
    for _ in range(training.epochs):
        _train_mode(model, training)
        for images, labels in epoch():
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


def _train_mode(model: nn.Module, training: Training) -> None:
    """Train mode for what trains; batch norms of the frozen part keep their statistics."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        stands = training.norms_stand or not any(parameter.requires_grad for parameter in own)
        if isinstance(module, nn.BatchNorm2d) and stands:
            module.eval()


def _accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    hits = count = 0
    with torch.no_grad():
        for images, labels in batches:
            hits += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    return hits / count
