"""What a model bundle says of itself: ``bundle.json``, strict, and read without torch.

A bundle may come from anybody: what is not exactly of this form is refused before anything is built.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import Arguments, DataSpec, HeadSpec, LoraAdapter
from tlrecipe.planning.facts import CropMode, Preprocessing

WEIGHTS, BUNDLE = "model.safetensors", "bundle.json"

_MAX_BUNDLE_BYTES = 16 << 20


class _Record(BaseModel):
    """A strict part of ``bundle.json``. Unknown keys of later versions are errors: the format counts."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


Text = Annotated[str, Field(max_length=10_000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=8, le=4096)]
Channel = Annotated[int, Field(ge=0, le=255)]
Mean = Annotated[float, Field(ge=-10, le=10)]
Deviation = Annotated[float, Field(gt=1e-6, le=10)]


class BackboneRecord(_Record):
    """What :func:`tlrecipe.models.backbones.rebuild` needs to know."""

    source: Literal["timm", "torchvision"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,200}$")]
    weights: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]
    """Which weights' settings the architecture has; of a transfer of a transfer, those of the first."""
    args: Arguments = {}
    head: HeadSpec
    size: Size | None


class PreprocessingRecord(_Record):
    """:class:`tlrecipe.planning.facts.Preprocessing` within sane bounds."""

    size: Size
    crop_pct: Annotated[float, Field(ge=0.1, le=2)]
    crop_mode: CropMode = "center"
    interpolation: Literal["bilinear", "bicubic", "nearest"]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]
    background: tuple[Channel, Channel, Channel]
    max_pixels: Annotated[int, Field(ge=1, le=10**9)]

    @property
    def facts(self) -> Preprocessing:
        return Preprocessing(**self.model_dump())


class RecipeRecord(_Record):
    """The recipe that the model was trained with."""

    name: Text
    description: Text
    sha256: Digest
    seed: int


class Ancestor(_Record):
    """A model of ours that training started from."""

    recipe: RecipeRecord
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1_000_000)]
    model_sha256: Digest


class Bundle(_Record):
    """The content of ``bundle.json``."""

    format: Literal[1]
    tlrecipe: Text
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1_000_000)]
    """Class names in the order of the network's outputs."""
    preprocessing: PreprocessingRecord
    backbone: BackboneRecord
    heads: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Dotted names of the layers that give the class scores."""
    adapter: LoraAdapter | None = None
    """What trained beside some of the layers, and is part of their weights now."""
    averaged: bool
    """Whether the weights are an exponential moving average."""
    precision: Literal["fp32", "bf16"]
    """What the metrics were computed in, all but the head."""
    test_flip: bool = False
    """Whether probabilities are the mean over an image and its mirror image."""
    metrics: dict[Text, dict[Text, int | float | Text]]
    """By split and name."""
    origin: Text
    """Where the weights that training started from came from."""
    origin_sha256: Digest | None
    ancestors: Annotated[tuple[Ancestor, ...], Field(max_length=1000)] = ()
    """Models of ours that training started from, the nearest first; none where it started from published
    weights, a file or random weights."""
    license: Text | None
    """Licence of the published weights at the root."""
    recipe: RecipeRecord
    data: DataSpec
    """The data of the recipe, its paths absolute."""
    model_sha256: Digest


def find_bundle(path: Path) -> Path:
    """The bundle that a run directory or a bundle folder means. Raises TLR504 where there is none."""
    for folder in (path, path / "model"):
        if (folder / BUNDLE).exists():
            return folder
    if (path / "recipe.toml").exists():
        message, help = f"the run `{path}` has no model yet", "it appears when the run is complete"
    elif path.is_dir():
        message, help = f"`{path}` is neither a run directory nor a model bundle", None
    else:
        message, help = f"there is no folder `{path}`", None
    raise TlrecipeError.of("TLR504", message, help=help)


def read_bundle(folder: Path) -> Bundle:
    """The record of the bundle ``folder``. Raises TLR504 where it is missing or not valid."""
    path = folder / BUNDLE
    content = files.read(path, code="TLR504", limit=_MAX_BUNDLE_BYTES)
    try:
        return Bundle.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise bad_bundle(path, f"is not valid: {f'`{where}`: ' if where else ''}{reason}") from error


def backbone_bundle(path: str, sha256: str | None) -> tuple[Path, Bundle]:
    """The bundle that a recipe starts from: its folder, and what it says. Its weights are not read.

    Raises TLR504 where it is missing or not valid, TLR502 where its weights are not those of ``sha256``.
    """
    try:
        folder = find_bundle(Path(path))
        bundle = read_bundle(folder)
        if not (folder / WEIGHTS).is_file():
            raise bad_bundle(folder / WEIGHTS, "is missing")
    except TlrecipeError as error:
        raise TlrecipeError(replace(d, path=("backbone", "path")) for d in error.diagnostics) from error
    if sha256 not in (None, bundle.model_sha256):
        raise TlrecipeError.of(
            "TLR502",
            f"the weights of `{path}` have the SHA-256 {bundle.model_sha256}, not {sha256}",
            path=("backbone", "sha256"),
            help="it is another model: name the one that is meant, or correct the digest",
        )
    return folder, bundle


def bad_bundle(path: Path, what: str) -> TlrecipeError:
    """The TLR504 for a file of a bundle."""
    return TlrecipeError.of("TLR504", f"`{path}` {what}")
