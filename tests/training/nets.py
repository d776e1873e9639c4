"""Small networks, images made from numbers, and plans for them: training tests need no files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlrecipe.data.pixels import Pixels
from tlrecipe.language.spec import Recipe
from tlrecipe.models.anatomy import module_facts, param_facts
from tlrecipe.models.backbones import Backbone
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.facts import DatasetInfo, ParamTable, Preprocessing
from tlrecipe.planning.plan import Plan

CLASSES = ("cat", "dog", "owl")
SIZE = 16
COUNTS = {"train": 50, "val": 12, "test": 12}


class DropPath(nn.Module):
    """Stochastic depth by sample, as timm and torchvision have it."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.ndim - 1)) >= self.drop_prob
        return x * keep / (1 - self.drop_prob)


class Block(nn.Module):
    def __init__(self, width: int, norm: str, drop_path: float):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(1, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(torch.relu(self.norm(self.conv(x))))


class Net(nn.Module):
    """stem, three residual blocks, pooling, dropout, head."""

    def __init__(self, norm: str = "batch", dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(8, norm, drop_path) for _ in range(3)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x))).flatten(1)
        logits: Tensor = self.head(self.drop(x))
        return logits


def net(**options: Any) -> Net:
    """A network with the same weights each time, and statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(**options)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5) if "var" in name else buffer.uniform_(-0.2, 0.2)
        return model.eval()


def backbone(model: nn.Module) -> Backbone:
    return Backbone(
        model=model,
        table=_table(model),
        heads=("head",),
        origin="test",
        weights_sha256=None,
        license=None,
        config={"tlrecipe": {"source": "timm", "name": "net", "args": {}, "size": None}},
    )


def _table(model: nn.Module) -> ParamTable:
    depths = {name: _depth(name) for name, _ in model.named_parameters()}
    return ParamTable(param_facts(model, ["head"], depths, depths), module_facts(model), Preprocessing(SIZE))


def _depth(name: str) -> int:
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 0


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "format": 1,
        "name": "toy",
        "data": {"source": "sample", "batch_size": 12},
        "backbone": {"source": "timm", "name": "net", "weights": "pretrained"},
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        "phase": [phase()],
    }
    return Recipe.model_validate(values | changes)


def phase(**changes: Any) -> dict[str, Any]:
    values = {"name": "one", "freeze": ["@backbone"], "epochs": 2, "lr": 0.05} | changes
    return {key: value for key, value in values.items() if value is not None}


def plan_for(model: nn.Module, **changes: Any) -> Plan:
    info = DatasetInfo(CLASSES, COUNTS)
    return compile_recipe(recipe(**changes), backbone(model).table, info)


def images(split: str) -> Pixels:
    """Images whose class can be learnt: a colour per class under noise."""
    rng = np.random.default_rng([1, sorted(COUNTS).index(split)])
    count = COUNTS[split]
    labels = np.arange(count) % len(CLASSES)
    values = rng.integers(0, 160, (count, 3, SIZE, SIZE))
    values[np.arange(count), labels] += 80
    return Pixels(
        images=torch.from_numpy(values.astype(np.uint8)).contiguous(memory_format=torch.channels_last),
        labels=torch.from_numpy(labels.astype(np.int64)),
        names=tuple(f"{split}/{CLASSES[label]}/{index}.png" for index, label in enumerate(labels)),
        fingerprints=np.zeros((count, 32), np.uint8),
        digest=f"toy {split}",
        bad=(),
        fitted=None,
    )


_SPLITS = {split: images(split) for split in COUNTS}


def source(split: str, preprocessing: Preprocessing) -> Pixels | None:
    return _SPLITS.get(split)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Recorder:
    """An ``emit`` that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, /, **fields: Any) -> None:
        self.events.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == kind]
