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
from typing import Any

import jinja2
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tlrecipe import files
from tlrecipe.artifacts import tensors
from tlrecipe.artifacts.environment import version
from tlrecipe.artifacts.predictions import Prediction
from tlrecipe.data.pixels import decode_files
from tlrecipe.data.preprocess import BadImage, normalise
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import DataSpec, Recipe
from tlrecipe.models.backbones import Backbone, rebuild
from tlrecipe.models.bundle_record import BUNDLE, WEIGHTS, Bundle, bad_bundle, find_bundle, read_bundle
from tlrecipe.models.fast import native_bf16
from tlrecipe.models.forked import refuse_dead_threads
from tlrecipe.models.inference import Inference
from tlrecipe.planning.facts import Preprocessing

__all__ = ["Bundle", "Model", "find_bundle", "write_bundle"]

CONFIG, CARD = "config.json", "README.md"

_EXAMPLES = 5


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
                    "ancestors": [item.model_dump(mode="json") for item in backbone.ancestors],
                    "license": backbone.license,
                    "recipe": {
                        "name": recipe.name,
                        "description": recipe.description,
                        "sha256": recipe_sha256,
                        "seed": recipe.seed,
                    },
                    "data": _with_absolute_paths(recipe.data),
                    "model_sha256": files.sha256(inside / WEIGHTS, code="TLR901"),
                }
            )
        )
        files.write_atomic(inside / BUNDLE, (bundle.model_dump_json(indent=2) + "\n").encode())
        files.write_atomic(inside / CONFIG, _hub_config(backbone, bundle).encode())
        files.write_atomic(inside / CARD, _card(bundle).encode())
    return bundle


def _with_absolute_paths(data: DataSpec) -> dict[str, Any]:
    values = data.model_dump(mode="json")
    for key in ("path", "root"):
        if values.get(key) is not None:
            values[key] = str(Path(values[key]).absolute())
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
        not fit the others, and RuntimeError where this process was forked too late to compute.
        """
        refuse_dead_threads()
        folder = find_bundle(Path(folder))
        bundle = read_bundle(folder)
        digest = files.sha256(folder / WEIGHTS, code="TLR504")
        if digest != bundle.model_sha256:
            raise bad_bundle(
                folder / WEIGHTS, f"is damaged: its SHA-256 is {digest}, not {bundle.model_sha256}"
            )
        try:
            state = safetensors.torch.load_file(folder / WEIGHTS)
        except (SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
            raise bad_bundle(folder / WEIGHTS, f"is not a sound safetensors file: {error}") from error
        try:
            model = rebuild({"tlrecipe": bundle.backbone.model_dump()}, len(bundle.classes))
        except TlrecipeError as error:
            raise bad_bundle(folder / BUNDLE, f"names no network: {error.diagnostics[0].message}") from error
        if strange := set(bundle.heads) - dict(model.named_modules()).keys():
            raise bad_bundle(folder / BUNDLE, f"names a head that the network has not: `{min(strange)}`")
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

        ``top`` is how many of the most probable classes each prediction lists. Raises RuntimeError where this
        process was forked too late to compute.
        """
        refuse_dead_threads()
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
        raise bad_bundle(path, f"does not fit `{bundle.backbone.name}`: tensors {' and '.join(parts)}")
    for name, tensor in state.items():
        expected = wanted[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise bad_bundle(
                path,
                f"does not fit `{bundle.backbone.name}`: `{name}` is {tuple(tensor.shape)} {tensor.dtype},"
                f" expected {tuple(expected.shape)} {expected.dtype}",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise bad_bundle(path, f"holds values in `{name}` that are not finite")
