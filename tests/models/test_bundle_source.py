"""A model of ours as the backbone of the next: its weights without its head, its preprocessing, its past."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tlrecipe.artifacts.bundle import Model, write_bundle
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import BundleBackbone, HeadSpec, Recipe, TimmBackbone, TorchvisionBackbone
from tlrecipe.models.backbones import Backbone, build, describe, outline
from tlrecipe.models.bundle_record import Bundle
from tlrecipe.models.table import described
from tlrecipe.planning.facts import Preprocessing

HEAD = HeadSpec(init="default")
CLASSES = ("ant", "bee", "cow")
RECIPE = Recipe.model_validate(
    {
        "format": 1,
        "name": "first",
        "data": {"source": "sample"},
        "backbone": {"source": "timm", "name": "test_vit", "weights": "none"},
        "phase": [{"name": "all", "freeze": [], "epochs": 1, "lr": 0.1}],
    }
)


def save(folder: Path, network: Backbone, preprocessing: Preprocessing, name: str = "first") -> Bundle:
    return write_bundle(
        folder,
        backbone=network,
        classes=CLASSES,
        preprocessing=preprocessing,
        recipe=RECIPE.model_copy(update={"name": name}),
        recipe_sha256="0" * 64,
        metrics={},
        precision="fp32",
        averaged=False,
    )


def spec(path: Path, **more: Any) -> BundleBackbone:
    return BundleBackbone(source="bundle", path=str(path), **more)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a vision transformer for 64 pixels, its own mean and a licence."""
    request = TimmBackbone(source="timm", name="test_vit", weights="none", args={"pos_drop_rate": 0.1})
    network = replace(build(request, HEAD, 3, seed=1, size=64), license="cc-by-nc-4.0", origin="the hub")
    folder = tmp_path_factory.mktemp("runs") / "first"
    folder.mkdir()
    own = Preprocessing(64, crop_pct=0.8, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save(folder / "model", network, own)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return Model.load(folder).model.state_dict()


@pytest.mark.parametrize("place", [".", "model"])
def test_everything_but_the_head_is_the_bundle_s(first: Path, place: str) -> None:
    built = build(spec(first / place), HEAD, 3, seed=0)
    for name, value in weights_of(first / "model").items():
        # The head is new even where there are as many classes.
        assert torch.equal(built.model.state_dict()[name], value) != (name == "head.weight"), name
    p = built.table.preprocessing
    assert (p.size, p.crop_pct, p.interpolation) == (64, 0.8, "bilinear")
    assert (p.mean, p.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (built.table.built_size, built.table.pretrained) == (64, True)
    assert built.table.license == built.license == "cc-by-nc-4.0"
    assert built.config["tlrecipe"]["args"] == {"pos_drop_rate": 0.1}


def test_it_is_described_without_its_weights(first: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(first, tmp_path / "copy")
    table = describe(spec(folder), HEAD, 5)
    (folder / "model/model.safetensors").write_bytes(b"")
    assert describe(spec(folder), HEAD, 5) == table
    assert [p.shape[0] for p in table if p.head] == [5, 5]
    assert sum(p.numel() for p in outline(spec(folder), HEAD, 5).parameters()) == sum(p.numel for p in table)


def test_the_table_is_remembered_by_what_the_bundle_says(first: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(first / "model", tmp_path / "copy")
    assert described(spec(folder), HEAD, 3, tmp_path / "cache").license == "cc-by-nc-4.0"
    edited = json.loads((folder / "bundle.json").read_text()) | {"license": "mit"}
    (folder / "bundle.json").write_text(json.dumps(edited))
    assert described(spec(folder), HEAD, 3, tmp_path / "cache").license == "mit"


def test_a_model_from_a_model_stands_alone_and_names_all_its_past(first: Path, tmp_path: Path) -> None:
    one = build(spec(first), HEAD, 3, seed=2)
    second = save(tmp_path / "second", one, one.table.preprocessing, "second")
    two = build(spec(tmp_path / "second", args={"drop_path_rate": 0.2}), HEAD, 3, seed=3, size=96)
    third = save(tmp_path / "third", two, replace(two.table.preprocessing, size=96), "third")
    assert [item.recipe.name for item in third.ancestors] == ["second", "first"]
    assert third.ancestors[0].model_sha256 == third.origin_sha256 == second.model_sha256
    assert third.ancestors[1] == second.ancestors[0]
    assert third.ancestors[1].classes == CLASSES
    assert third.origin.startswith("model of the recipe second for 3 classes, from model of the recipe first")
    assert third.origin.endswith("from the hub")
    assert third.license == "cc-by-nc-4.0"
    assert third.backbone.args == {"pos_drop_rate": 0.1, "drop_path_rate": 0.2}
    shutil.rmtree(tmp_path / "second")
    model = Model.load(tmp_path / "third")
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(model.model(images), two.model(images))


def test_another_size_resizes_the_position_embeddings(first: Path) -> None:
    built = build(spec(first), HEAD, 3, seed=0, size=32).model
    assert built.pos_embed.shape != weights_of(first / "model")["pos_embed"].shape
    assert built(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_a_network_of_torchvision(tmp_path: Path) -> None:
    request = TorchvisionBackbone(source="torchvision", name="squeezenet1_1", weights="none")
    network = build(request, HEAD, 3, seed=1)
    save(tmp_path / "model", network, Preprocessing(128))
    built = build(spec(tmp_path / "model"), HEAD, 2, seed=0)
    assert built.table.preprocessing.size == 128
    stem = "features.0.weight"
    assert torch.equal(built.model.state_dict()[stem], network.model.state_dict()[stem])


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "TLR504", "no folder"),
        (lambda folder: (folder / "bundle.json").unlink(), "TLR504", "neither a run directory nor a model"),
        (lambda folder: (folder / "bundle.json").write_text("{}"), "TLR504", "is not valid"),
        (lambda folder: (folder / "model.safetensors").unlink(), "TLR504", "is missing"),
        (lambda folder: _say(folder, name="no_such_network"), "TLR504", "names no network"),
        (
            lambda folder: _say(folder, name="vit_giant_patch14_224"),
            "TLR503",
            "do not fit `vit_giant_patch14_224`",
        ),
        (lambda folder: _say(folder, args={"pretrained": True}), "TLR504", "decided elsewhere"),
        (lambda folder: _say(folder, args={"embed_dim": 9_000}), "TLR503", "do not fit `test_vit`"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "TLR502", "SHA-256"),
    ],
)
def test_what_cannot_be_used(
    first: Path, tmp_path: Path, spoil: Callable[[Path], None], code: str, says: str
) -> None:
    folder = shutil.copytree(first / "model", tmp_path / "copy")
    spoil(folder)
    with pytest.raises(TlrecipeError) as caught:
        build(spec(folder), HEAD, 3, seed=0)
    (found,) = caught.value.diagnostics
    assert (found.code, found.path[0], caught.value.exit_code) == (code, "backbone", 5)
    assert says in found.message


def _say(folder: Path, **backbone: Any) -> None:
    said = json.loads((folder / "bundle.json").read_text())
    said["backbone"] |= backbone
    (folder / "bundle.json").write_text(json.dumps(said))


def test_another_digest_than_the_stated_one_is_found_without_the_weights(first: Path) -> None:
    right = json.loads((first / "model/bundle.json").read_text())["model_sha256"]
    assert describe(spec(first, sha256=right), HEAD, 3)
    with pytest.raises(TlrecipeError) as caught:
        describe(spec(first, sha256="0" * 64), HEAD, 3)
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("TLR502", ("backbone", "sha256"))


def test_its_head_trains_on_a_backbone_that_stands_still(first: Path) -> None:
    table = describe(spec(first), HEAD, 3)
    assert {param.module for param in table if param.head} == {"head"}
    assert isinstance(build(spec(first), HEAD, 4, seed=0).model.head, nn.Linear)
