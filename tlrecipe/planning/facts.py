"""What the compiler is told about the network and the data: plain values, no tensors, no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal


@dataclass(frozen=True)
class ParamFact:
    """One parameter. Tied parameters appear once, under their first name."""

    name: str
    shape: tuple[int, ...]
    module: str
    """Dotted name of the module that owns it; empty for the network itself."""
    norm: bool = False
    """Belongs to a normalisation layer."""
    bias: bool = False
    """Is a bias (of any layer, norm layers included)."""
    head: bool = False
    """Belongs to the new classifier."""
    adapter: bool = False
    """Belongs to an adapter of the layer :attr:`module`."""
    stage: int = 0
    """The architecture's own coarse stage, 0 is the stem. The head has the highest number."""
    depth: int = 0
    """Layer number for layer-wise rate decay, 0 is nearest to the input."""
    aliases: tuple[str, ...] = ()
    """Further names of the same tensor (tied parameters)."""

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class ModuleFact:
    """One module, named as in ``named_modules()``; the network itself has the empty name."""

    name: str
    kind: str
    """Class name."""
    norm: bool = False
    """A normalisation layer of any sort."""
    statistics: bool = False
    """A norm layer that keeps running statistics, such as batch norm."""
    random: bool = False
    """Draws random numbers in train mode with non-zero probability (dropout, stochastic depth)."""
    buffers: tuple[str, ...] = ()
    """Full dotted names of its own persistent and non-persistent buffers."""


CropMode = Literal["center", "squash", "border"]
"""How an image that is not square becomes square, in timm's words; see :class:`Preprocessing`."""


@dataclass(frozen=True)
class AdapterMatch:
    """What one pattern of ``[backbone] adapter`` became."""

    pattern: str
    layers: tuple[str, ...]
    """Layers that have an adapter and that the pattern matches, in the network's order."""
    left_out: tuple[str, ...]
    """What each layer is that the pattern matches and that takes none."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: stored as data in the bundle, used everywhere.

    Resize to :attr:`resized` pixels, cut ``size`` by ``size`` from the centre, scale to [0, 1], subtract
    ``mean``, divide by ``std`` (RGB). What is resized to that length is by ``crop_mode``:

    - ``"center"``: the shorter side; of the longer one, the ends are lost. Where ``crop_pct`` is more than 1
      the image is smaller than the network's size, and lies on black.
    - ``"squash"``: both sides, whatever the image's shape; nothing is lost where ``crop_pct`` is 1.
    - ``"border"``: the longer side; the image lies on the mean colour.
    """

    size: int
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 89_478_485
    crop_mode: CropMode = "center"

    @property
    def resized(self) -> int:
        """Pixels that the resize gives: ``size / crop_pct`` without its fraction, as timm computes it."""
        # A quotient that is whole may come out a last bit below it.
        return int(self.size / self.crop_pct + 1e-6)

    @property
    def geometry(self) -> str:
        """What is done to the shape of an image, for people."""
        what = {"center": "shorter side", "squash": "both sides", "border": "longer side"}[self.crop_mode]
        filled = ", what is missing in the mean colour" if self.crop_mode == "border" else ""
        return (
            f"{what} to {self.resized} px ({self.interpolation}),"
            f" {self.size} × {self.size} from the centre{filled}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "background": list(self.background),
            "max_pixels": self.max_pixels,
            "crop_mode": self.crop_mode,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class ParamTable:
    """The network as the compiler sees it: ordered parameters and modules, no tensors."""

    params: tuple[ParamFact, ...]
    modules: tuple[ModuleFact, ...]
    preprocessing: Preprocessing
    """The weights' own preprocessing at their own size."""
    pretrained: bool = True
    """False where the weights are random."""
    fixed_size: bool = False
    """The architecture accepts no image size but its own."""
    built_size: int | None = None
    """The one image size that the network, as built, accepts; None where it takes more than one."""
    license: str | None = None
    """Licence of the weights, where known."""
    architecture: str = "the backbone"
    """What the library calls the network."""
    adapters: tuple[AdapterMatch, ...] = ()
    """What the patterns of the adapter became; none without an adapter."""

    @cached_property
    def by_name(self) -> dict[str, ParamFact]:
        """Every name, aliases included, to its parameter."""
        names = {param.name: param for param in self.params}
        for param in self.params:
            names.update(dict.fromkeys(param.aliases, param))
        return names

    @property
    def adapted(self) -> tuple[str, ...]:
        """The layers that have an adapter, each once."""
        return tuple(dict.fromkeys(layer for match in self.adapters for layer in match.layers))

    def __iter__(self) -> Iterator[ParamFact]:
        return iter(self.params)


@dataclass(frozen=True)
class DatasetInfo:
    """The data as the compiler sees it, from listing alone."""

    classes: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    """Images by split: ``train``, ``val``, ``test``; absent splits are 0."""
    origin: str = ""
    """Where it lies, for people."""
    class_counts: tuple[int, ...] = ()
    """Training images of each class, in the order of the classes; empty where not known."""
