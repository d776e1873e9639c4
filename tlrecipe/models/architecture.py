"""What a backbone source has to know about a network, and the mistakes all sources share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import nn

from tlrecipe.language.diagnostics import TlrecipeError, did_you_mean
from tlrecipe.models.weights import PLACE, StateDict, WeightsFile
from tlrecipe.planning.facts import CropMode, Preprocessing


class Architecture(Protocol):
    """One network of one library, with one choice of weights, before anything is built."""

    @property
    def library(self) -> str:
        """``"timm"`` or ``"torchvision"``: what builds it."""

    @property
    def name(self) -> str:
        """What the library calls it."""

    @property
    def settings(self) -> str:
        """Which weights' settings it has, as the ``weights`` that the library's ``resolve`` took."""

    @property
    def args(self) -> Mapping[str, Any]:
        """Further arguments of its constructor."""

    @property
    def reserved(self) -> Mapping[str, str]:
        """Arguments of its constructor that other keys of the recipe decide, and which."""

    def with_args(self, args: Mapping[str, Any]) -> Architecture:
        """The same with these further arguments instead of the recipe's."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the weights were trained with; the architecture's own default where there are none."""

    @property
    def license(self) -> str | None:
        """Licence of the published weights, where known."""

    @property
    def sized(self) -> bool:
        """Whether the network is built for one image size and then takes no other."""

    def construct(self, classes: int, dropout: float, size: int | None) -> nn.Module:
        """The network with ``classes`` outputs, initialised by the library from the global random state.

        ``size`` None is the weights' own. Raises TLR113 where ``dropout`` has no place.
        """

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Dotted names of the layers that give the class scores, usually one. Raises TLR113 if none do."""

    def layers(self, model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
        """Coarse stage and fine depth of every parameter by name, in forward order."""

    def published(self) -> WeightsFile:
        """The chosen published weights as a local file. Raises TLR501, TLR502, TLR901."""

    def loaded(self, state: StateDict, classes: int, dropout: float, size: int | None) -> nn.Module:
        """:meth:`construct`, with all but the head taken from ``state``. Raises TLR503."""

    def hub_config(self, model: nn.Module, classes: int, size: int | None) -> dict[str, Any]:
        """``config.json`` of timm's hub layout, as plain JSON values."""

    def library_size(self, size: int | None) -> int | None:
        """``size`` as the library's own architecture of this name takes it."""


HEAD_DROPOUT = "write it as `dropout` of `[head]`"
"""The cure for an argument that is the dropout in front of the head."""

_INTERPOLATIONS: dict[str, Literal["bilinear", "nearest"]] = {"bilinear": "bilinear", "nearest": "nearest"}


def as_preprocessing(
    size: int,
    crop_pct: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    crop_mode: CropMode = "center",
) -> Preprocessing:
    """What a library says of its weights, in our terms. Rarer interpolations become bicubic."""
    (r, g, b), (r_std, g_std, b_std) = mean, std
    return Preprocessing(
        size=size,
        crop_pct=crop_pct,
        interpolation=_INTERPOLATIONS.get(interpolation, "bicubic"),
        mean=(r, g, b),
        std=(r_std, g_std, b_std),
        crop_mode=crop_mode,
    )


def unknown_name(name: str, names: Sequence[str], help: str | None) -> TlrecipeError:
    """TLR112, with ``help`` or the three nearest names."""
    return TlrecipeError.of(
        "TLR112",
        f"there is no backbone `{name}`",
        path=("backbone", "name"),
        help=help or did_you_mean(name, names, count=3) or "see `tlrecipe list backbones`",
    )


def no_weights(name: str, tag: str, tags: Sequence[str]) -> TlrecipeError:
    """TLR501 for weights that nobody publishes: ``tags`` are those that somebody does."""
    if tag == "pretrained":
        message = f"no weights are published for `{name}`"
    else:
        message = f"no weights `{tag}` are published for `{name}`"
    if tags:
        cure = did_you_mean(tag, tags) or f"published are {', '.join(f'`{known}`' for known in tags)}"
    else:
        cure = 'write the path of a file, or weights = "none" to train from random weights'
    return TlrecipeError.of("TLR501", message, path=PLACE, help=cure)


def no_dropout(name: str) -> TlrecipeError:
    """TLR113 for a head dropout that the architecture has no place for."""
    return TlrecipeError.of(
        "TLR113",
        f"`{name}` has no place for dropout in front of its head",
        path=("head", "dropout"),
        help="leave `dropout` out, or choose an architecture that has one",
    )
