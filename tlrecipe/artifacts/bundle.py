"""The model bundle: a folder that is all that prediction, evaluation and export need.

``model.safetensors`` holds the weights; ``config.json`` lets timm load them; ``bundle.json`` says what
the outputs and inputs mean; ``README.md`` is the model card. A bundle may come from anybody: nothing in
it is run, and everything in it is checked before it is used.
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from tlrecipe import files
from tlrecipe.artifacts import tensors
from tlrecipe.artifacts.environment import version
from tlrecipe.artifacts.predictions import Prediction
from tlrecipe.data.pixels import decode_files
from tlrecipe.data.preprocess import BadImage, normalise
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import DataSpec, HeadSpec, Recipe
from tlrecipe.models.backbones import Backbone, rebuild
from tlrecipe.models.fast import native_bf16
from tlrecipe.models.inference import Inference
from tlrecipe.planning.facts import Preprocessing

WEIGHTS, CONFIG, BUNDLE, CARD = "model.safetensors", "config.json", "bundle.json", "README.md"

_MAX_BUNDLE_BYTES = 16 << 20
_EXAMPLES = 5


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
    head: HeadSpec
    size: Size | None


class PreprocessingRecord(_Record):
    """:class:`tlrecipe.planning.facts.Preprocessing` within sane bounds."""

    size: Size
    crop_pct: Annotated[float, Field(ge=0.1, le=1)]
    interpolation: Literal["bilinear", "bicubic", "nearest"]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]
    background: tuple[Channel, Channel, Channel]
    max_pixels: Annotated[int, Field(ge=1, le=10**9)]


class RecipeRecord(_Record):
    """The recipe that the model was trained with."""

    name: Text
    description: Text
    sha256: Digest
    seed: int


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
    license: Text | None
    """Licence of those weights."""
    recipe: RecipeRecord
    data: DataSpec
    """The data of the recipe, its paths absolute."""
    model_sha256: Digest


# --------------------------------------------------------------------------- writing


def write_bundle(
    folder: Path,
    *,
    backbone: Backbone,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    recipe: Recipe,
    recipe_sha256: str,
    metrics: Mapping[str, Mapping[str, Any]],
    precision: str,
    averaged: bool,
) -> Bundle:
    """Write ``backbone``'s network, as it is now, to the new folder ``folder``: all of it, or nothing.

    Raises TLR601 where ``folder`` is there already, and TLR901.
    """
    state = {name: tensor.detach() for name, tensor in backbone.model.state_dict().items()}
    about = {"format": "pt"}
    with files.new_folder(folder) as inside:
        files.write_atomic(
            inside / WEIGHTS, tensors.pieces(state, about), size=tensors.file_size(state, about)
        )
        bundle = Bundle.model_validate_json(
            json.dumps(
                {
                    "format": 1,
                    "tlrecipe": version("tlrecipe") or "unknown",
                    "classes": list(classes),
                    "preprocessing": preprocessing.as_dict(),
                    "backbone": backbone.config["tlrecipe"],
                    "heads": list(backbone.heads),
                    "averaged": averaged,
                    "precision": precision,
                    "test_flip": recipe.test_flip,
                    "metrics": metrics,
                    "origin": backbone.origin,
                    "origin_sha256": backbone.weights_sha256,
                    "license": backbone.license,
                    "recipe": {
                        "name": recipe.name,
                        "description": recipe.description,
                        "sha256": recipe_sha256,
                        "seed": recipe.seed,
                    },
                    "data": _with_absolute_path(recipe.data),
                    "model_sha256": files.sha256(inside / WEIGHTS, code="TLR901"),
                }
            )
        )
        files.write_atomic(inside / BUNDLE, (bundle.model_dump_json(indent=2) + "\n").encode())
        files.write_atomic(inside / CONFIG, _hub_config(backbone, bundle).encode())
        files.write_atomic(inside / CARD, _card(bundle).encode())
    return bundle


def _with_absolute_path(data: DataSpec) -> dict[str, Any]:
    values = data.model_dump(mode="json")
    if "path" in values:
        values["path"] = str(Path(values["path"]).absolute())
    return values


def _hub_config(backbone: Backbone, bundle: Bundle) -> str:
    """``config.json`` of timm's hub layout; the preprocessing is this bundle's, not the weights' own."""
    config = {key: value for key, value in backbone.config.items() if key != "tlrecipe"}
    p = bundle.preprocessing
    config["pretrained_cfg"] = config.get("pretrained_cfg", {}) | {
        "input_size": [3, p.size, p.size],
        "crop_pct": p.crop_pct,
        "test_crop_pct": p.crop_pct,
        "interpolation": p.interpolation,
        "mean": list(p.mean),
        "std": list(p.std),
    }
    config["label_names"] = list(bundle.classes)
    if bundle.backbone.source == "torchvision":
        config["architecture"] = f"torchvision/{bundle.backbone.name}"
    return json.dumps(config, indent=2) + "\n"


def _card(bundle: Bundle) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["md"] = _markdown
    template = resources.files("tlrecipe.artifacts").joinpath("model_card.md.jinja").read_text("utf-8")
    return environment.from_string(template).render(bundle=bundle)


def _markdown(value: object) -> str:
    """A foreign text that stays a text in Markdown, HTML and on a terminal, on one line."""
    line = " ".join(str(value).split())
    line = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in line)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(line, quote=False))


# --------------------------------------------------------------------------- reading


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


class Model:
    """A trained classifier from its bundle.

    Attributes:
        bundle: what ``bundle.json`` says.
        model: the network, in eval mode.
        classes: class names in the order of the outputs.
        preprocessing: how images become its inputs.
    """

    def __init__(self, bundle: Bundle, model: nn.Module):
        self.bundle = bundle
        self.model = model
        self.classes = bundle.classes
        self.preprocessing = Preprocessing(**bundle.preprocessing.model_dump())

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> Model:
        """Load and check a bundle: ``folder``, or the folder ``model`` of the run directory ``folder``.

        Raises TLR504 where there is none, or where a file is missing, damaged, of another format, or does
        not fit the others.
        """
        folder = find_bundle(Path(folder))
        bundle = _read_bundle(folder / BUNDLE)
        digest = files.sha256(folder / WEIGHTS, code="TLR504")
        if digest != bundle.model_sha256:
            raise _bad(folder / WEIGHTS, f"is damaged: its SHA-256 is {digest}, not {bundle.model_sha256}")
        try:
            state = safetensors.torch.load_file(folder / WEIGHTS)
        except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
            raise _bad(folder / WEIGHTS, f"is not a sound safetensors file: {error}") from error
        try:
            model = rebuild({"tlrecipe": bundle.backbone.model_dump()}, len(bundle.classes))
        except TlrecipeError as error:
            raise _bad(folder / BUNDLE, f"names no network: {error.diagnostics[0].message}") from error
        if strange := set(bundle.heads) - dict(model.named_modules()).keys():
            raise _bad(folder / BUNDLE, f"names a head that the network has not: `{min(strange)}`")
        _check_state(folder / WEIGHTS, state, model, bundle)
        model.load_state_dict(state, strict=True)
        return cls(bundle, model.eval().to(torch.device(device)))

    @cached_property
    def inference(self) -> Inference:
        """The network as it was evaluated: in the recorded precision, where this processor has it."""
        device = next(self.model.parameters()).device
        precision = self.bundle.precision if native_bf16(device.type) else "fp32"
        return Inference(
            self.model,
            self.bundle.heads,
            self.preprocessing.size,
            precision=precision,
            flip=self.bundle.test_flip,
        )

    def predict(
        self, paths: Iterable[str | Path], top: int = 1, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """One prediction per file, in the order given; a file that cannot be used has its error instead.

        ``top`` is how many of the most probable classes each prediction lists.
        """
        decoded = decode_files([Path(path) for path in paths], self.preprocessing)
        while batch := list(itertools.islice(decoded, batch_size)):
            images = [image for _, image in batch if isinstance(image, Tensor)]
            ranked = iter(self._ranked(torch.stack(images), top) if images else ())
            for path, image in batch:
                if isinstance(image, BadImage):
                    yield Prediction(str(path), None, None, image.reason)
                else:
                    best = next(ranked)
                    yield Prediction(str(path), *best[0], None, best)

    def _ranked(self, images: Tensor, top: int) -> Iterator[tuple[tuple[str, float], ...]]:
        """The most probable classes of uint8 images (N, 3, S, S), for each one best first."""
        logits = self.inference.logits(normalise(images, self.preprocessing))
        found = logits.float().softmax(1).cpu().topk(min(top, len(self.classes)), dim=1)
        for values, places in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            yield tuple((self.classes[place], value) for value, place in zip(values, places, strict=True))


def _read_bundle(path: Path) -> Bundle:
    content = files.read(path, code="TLR504", limit=_MAX_BUNDLE_BYTES)
    try:
        return Bundle.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise _bad(path, f"is not valid: {f'`{where}`: ' if where else ''}{reason}") from error


def _check_state(path: Path, state: Mapping[str, Tensor], model: nn.Module, bundle: Bundle) -> None:
    """Names, shapes and types exactly those of the network, and nothing that is not finite."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:_EXAMPLES])})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise _bad(path, f"does not fit `{bundle.backbone.name}`: tensors {' and '.join(parts)}")
    for name, tensor in state.items():
        expected = wanted[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise _bad(
                path,
                f"does not fit `{bundle.backbone.name}`: `{name}` is {tuple(tensor.shape)} {tensor.dtype},"
                f" expected {tuple(expected.shape)} {expected.dtype}",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise _bad(path, f"holds values in `{name}` that are not finite")


def _bad(path: Path, what: str) -> TlrecipeError:
    return TlrecipeError.of("TLR504", f"`{path}` {what}")
