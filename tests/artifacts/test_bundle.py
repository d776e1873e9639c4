"""The bundle: complete, portable, and safe to load from a stranger."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from bundles import CLASSES, SIZE
from PIL import Image

from tlrecipe import files
from tlrecipe.artifacts.bundle import Model, find_bundle
from tlrecipe.data.preprocess import normalise
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import LoraAdapter
from tlrecipe.models.backbones import Backbone

IMAGES = torch.rand(4, 3, SIZE, SIZE)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IMAGES)
    return result


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((bundle / "bundle.json").read_text())
    change(values)
    (bundle / "bundle.json").write_text(json.dumps(values))


def put_weights(bundle: Path, state: dict[str, torch.Tensor]) -> None:
    """Replace the weights, with a digest that agrees."""
    safetensors.torch.save_file(state, bundle / "model.safetensors")
    digest = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    edit(bundle, lambda values: values.update(model_sha256=digest))


def state_of(bundle: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(bundle / "model.safetensors"))


def refused(bundle: Path, reason: str) -> None:
    with pytest.raises(TlrecipeError, match=reason) as caught:
        Model.load(bundle)
    assert caught.value.diagnostics[0].code == "TLR504"
    assert caught.value.exit_code == 5


# --------------------------------------------------------------------------- what is written


def test_the_network_comes_back_bit_for_bit_with_classes_and_preprocessing(
    written: Path, network: Backbone
) -> None:
    model = Model.load(written)
    assert torch.equal(logits(model.model), logits(network.model))
    assert model.classes == CLASSES
    assert model.preprocessing.size == SIZE
    assert model.preprocessing.mean == network.table.preprocessing.mean


def test_timm_loads_it_without_us(written: Path, network: Backbone) -> None:
    model = timm.create_model(f"local-dir:{written}", pretrained=True)
    assert torch.equal(logits(model), logits(network.model))
    assert tuple(model.pretrained_cfg["label_names"]) == CLASSES
    config = timm.data.resolve_data_config(model=model)
    assert list(config["input_size"]) == [3, SIZE, SIZE]
    assert tuple(config["mean"]) == network.table.preprocessing.mean


def test_how_images_become_square_comes_back_and_reaches_timm(tmp_path: Path, network: Backbone) -> None:
    own = replace(network.table.preprocessing, crop_mode="squash", crop_pct=0.9)
    folder = bundles.write(
        tmp_path / "model", replace(network, table=replace(network.table, preprocessing=own))
    )
    assert Model.load(folder).preprocessing.crop_mode == "squash"
    config = timm.data.resolve_data_config(model=timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert (config["crop_mode"], config["crop_pct"]) == ("squash", 0.9)
    assert "both sides to 71 px" in (folder / "README.md").read_text()


def test_a_bundle_from_before_there_was_a_crop_mode_is_cut_from_the_centre(bundle: Path) -> None:
    edit(bundle, lambda values: values["preprocessing"].pop("crop_mode"))
    assert Model.load(bundle).preprocessing.crop_mode == "center"


def test_a_backbone_of_torchvision_comes_back_and_says_what_it_is(tmp_path: Path) -> None:
    network = bundles.backbone("torchvision", "squeezenet1_1")
    folder = bundles.write(tmp_path / "model", network, "torchvision", "squeezenet1_1")
    assert torch.equal(logits(Model.load(folder).model), logits(network.model))
    assert json.loads((folder / "config.json").read_text())["architecture"] == "torchvision/squeezenet1_1"
    assert "timm does not build" in (folder / "README.md").read_text()


def test_adapters_are_merged_and_on_record(tmp_path: Path) -> None:
    adapter = LoraAdapter(name="lora", match=("layer[3-4]", "conv1.0"), rank=2, alpha=8.0)
    network = bundles.backbone("timm", "test_resnet", adapter)
    plain = logits(bundles.backbone("timm", "test_resnet").model)
    for name, parameter in network.model.named_parameters():
        if name.endswith("lora_up"):
            torch.nn.init.normal_(parameter, std=0.1)
    folder = bundles.write(tmp_path / "model", network, adapter=adapter)
    assert not any("lora" in name for name in state_of(folder))
    wanted = logits(network.model)
    assert (wanted - plain).abs().max() > 0.01
    torch.testing.assert_close(logits(Model.load(folder).model), wanted, rtol=1e-4, atol=1e-4)
    alone = timm.create_model(f"local-dir:{folder}", pretrained=True)
    torch.testing.assert_close(logits(alone), wanted, rtol=1e-4, atol=1e-4)
    assert Model.load(folder).bundle.adapter == adapter
    card = (folder / "README.md").read_text()
    assert "Adapters (lora, rank 2, alpha 8.0) trained" in card
    assert "\nlayer\\[3-4\\], conv1.0, and are merged" in card


def test_it_holds_nothing_but_plain_files_of_known_kinds(written: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    assert names == ["README.md", "bundle.json", "config.json", "model.safetensors"]


@pytest.mark.case("E11")
def test_it_moves(written: Path, tmp_path: Path, network: Backbone) -> None:
    (tmp_path / "elsewhere").symlink_to(written)
    assert torch.equal(logits(Model.load(tmp_path / "elsewhere").model), logits(network.model))


def test_data_paths_are_absolute(written: Path) -> None:
    data = json.loads((written / "bundle.json").read_text())["data"]
    assert data["path"] == str(Path.cwd() / "relative" / "images")


@pytest.mark.case("E04")
def test_the_model_card_shows_foreign_names_as_text(written: Path) -> None:
    card = (written / "README.md").read_text()
    assert "<script>" not in card
    assert "&lt;script&gt;alert\\(1\\)&lt;/script&gt;" in card
    assert "little\\*" in card
    assert '1. dog "Rex" II\n2. =2' in card
    assert "| test | accuracy | 0.5000 |" in card


@pytest.mark.case("E10")
def test_a_failed_write_leaves_no_folder(
    tmp_path: Path, network: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullAfterWeights(files.Operations):
        def open(self, path: Path, flags: int) -> int:
            if "bundle.json" in path.name:
                raise OSError(28, "No space left on device")
            return super().open(path, flags)

    monkeypatch.setattr(files, "operations", FullAfterWeights())
    with pytest.raises(TlrecipeError) as caught:
        bundles.write(tmp_path / "model", network)
    assert caught.value.exit_code == 9
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_never_overwritten(bundle: Path, network: Backbone) -> None:
    before = (bundle / "model.safetensors").read_bytes()
    with pytest.raises(TlrecipeError) as caught:
        bundles.write(bundle, network)
    assert caught.value.exit_code == 6
    assert (bundle / "model.safetensors").read_bytes() == before


# --------------------------------------------------------------------------- finding it


def test_a_run_directory_stands_for_its_model(written: Path) -> None:
    assert find_bundle(written) == written
    assert find_bundle(written.parent) == written


@pytest.mark.parametrize(
    ("content", "reason"),
    [({}, "neither"), ({"recipe.toml": ""}, "no model yet"), (None, "no folder")],
)
@pytest.mark.case("E10")
def test_what_is_no_model_is_said(content: dict[str, str] | None, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(TlrecipeError, match=reason) as caught:
        find_bundle(folder)
    assert caught.value.exit_code == 5


# --------------------------------------------------------------------------- damage and malice


@pytest.mark.parametrize("where", [0, 8, 1000, -1])
@pytest.mark.case("E10")
def test_one_flipped_bit_in_the_weights_is_found(where: int, bundle: Path) -> None:
    content = bytearray((bundle / "model.safetensors").read_bytes())
    content[where] ^= 1
    (bundle / "model.safetensors").write_bytes(content)
    refused(bundle, "is damaged")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x80\x04\x95pickle", (2**62).to_bytes(8, "little")])
def test_weights_that_are_no_safetensors_are_refused(content: bytes, bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(bundle, lambda values: values.update(model_sha256=digest))
    refused(bundle, "not a sound safetensors file")


def test_a_missing_tensor_and_a_strange_one_are_named(bundle: Path) -> None:
    state = state_of(bundle)
    state["fc.wait"] = state.pop("fc.weight")
    put_weights(bundle, state)
    refused(bundle, r"1 missing \(fc.weight\) and 1 unexpected \(fc.wait\)")


def test_a_wrong_shape_or_type_is_named(bundle: Path) -> None:
    state = state_of(bundle)
    put_weights(bundle, state | {"fc.weight": state["fc.weight"][:, :5].contiguous()})
    refused(bundle, r"`fc.weight` is \(4, 5\)")
    put_weights(bundle, state | {"fc.weight": state["fc.weight"].double()})
    refused(bundle, "float64")


def test_values_that_are_not_finite_are_refused(bundle: Path) -> None:
    state = state_of(bundle)
    state["fc.bias"][1] = float("nan")
    put_weights(bundle, state)
    refused(bundle, "`fc.bias` that are not finite")


@pytest.mark.parametrize(
    ("name", "missing"), [("model.safetensors", "ENOENT"), ("bundle.json", "nor a model bundle")]
)
def test_missing_files_and_fifos_are_refused_at_once(name: str, missing: str, bundle: Path) -> None:
    (bundle / name).unlink()
    refused(bundle, missing)
    os.mkfifo(bundle / name)
    refused(bundle, "not a regular file")


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda b: b.update(format=2), "`format`"),
    "an unknown key": (lambda b: b.update(exec="rm"), "`exec`"),
    "no classes": (lambda b: b.update(classes=[]), "`classes`"),
    "classes of another type": (lambda b: b.update(classes=[1, 2, 3, 4]), "`classes"),
    "more classes": (lambda b: b["classes"].append("fifth"), r"`fc.bias` is \(4,\)"),
    "a path as backbone": (lambda b: b["backbone"].update(name="local-dir:/etc"), "`backbone.name`"),
    "a hub name as backbone": (
        lambda b: b["backbone"].update(name="hf-hub:a/b"),
        "`backbone.name`",
    ),
    "a path as weights": (lambda b: b["backbone"].update(weights="../../secret.pt"), "`backbone.weights`"),
    "weights to fetch": (lambda b: b["backbone"].update(weights="no_such_tag"), "names no network"),
    "an unknown backbone": (lambda b: b["backbone"].update(name="os_system"), "no backbone `os_system`"),
    "another source": (lambda b: b["backbone"].update(source="pickle"), "`backbone.source`"),
    "a file as an argument": (
        lambda b: asks_for(b, checkpoint_path="/etc/passwd"),
        "`checkpoint_path` is decided",
    ),
    "weights as an argument": (lambda b: asks_for(b, pretrained=True), "`pretrained` is decided elsewhere"),
    "an argument of the builder": (lambda b: asks_for(b, scriptable=True), "`scriptable` is no argument"),
    "a huge width": (lambda b: asks_for(b, stem_width=10**9), "`backbone.args.stem_width"),
    "a wide network": (lambda b: asks_for(b, stem_width=99_999), "does not fit `test_resnet`"),
    "another network": (
        lambda b: b["backbone"].update(name="resnet152"),
        "does not fit `resnet152`",
    ),
    "an unknown head": (lambda b: b.update(heads=["__class__"]), "head that the network has not"),
    "a huge size": (lambda b: b["preprocessing"].update(size=10**9), "`preprocessing.size`"),
    "a size that is true": (lambda b: b["preprocessing"].update(size=True), "`preprocessing.size`"),
    "a deviation of zero": (lambda b: b["preprocessing"].update(std=[0.0, 1, 1]), "`preprocessing.std"),
    "two channels": (lambda b: b["preprocessing"].update(mean=[0.5, 0.5]), "`preprocessing.mean"),
    "a tiny crop": (lambda b: b["preprocessing"].update(crop_pct=1e-9), "`preprocessing.crop_pct`"),
    "a digest in capitals": (lambda b: b.update(model_sha256="A" * 64), "`model_sha256`"),
}


def asks_for(values: dict[str, Any], **args: Any) -> None:
    values["backbone"]["args"] = args


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.case("E11")
def test_a_hostile_bundle_json_is_refused(case: str, bundle: Path) -> None:
    change, reason = HOSTILE[case]
    edit(bundle, change)
    refused(bundle, reason)


@pytest.mark.case("E11")
def test_a_network_that_is_larger_than_its_weights_is_given_no_memory(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlrecipe.artifacts.bundle.rebuild", lambda *_: pytest.fail("it was built"))
    edit(bundle, lambda b: b["backbone"].update(name="resnet152"))
    refused(bundle, "does not fit `resnet152`")


@pytest.mark.case("E11")
def test_a_network_of_endless_modules_is_not_made(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlrecipe.models.backbones.MOST_MODULES", 10)
    refused(bundle, "more than 10 modules")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": NaN}', "\udcff", "[" * 100_000],
    ids=["empty", "list", "cut", "nan", "bytes", "deep"],
)
def test_a_bundle_json_that_is_no_bundle_is_refused(text: str, bundle: Path) -> None:
    (bundle / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(bundle, "is not valid")


def test_a_huge_bundle_json_is_not_read(bundle: Path) -> None:
    with (bundle / "bundle.json").open("ab") as file:
        file.truncate(17 << 20)
    refused(bundle, "larger than")


# --------------------------------------------------------------------------- prediction


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven images of several sizes, and two files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    paths = []
    sizes = [(64, 64), (80, 64), (100, 150), (64, 64), (70, 90), (64, 64), (65, 65)]
    for index, (height, width) in enumerate(sizes):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{9 - index}.png")
        Image.fromarray(pixels).save(paths[-1])
    (folder / "text.png").write_text("no image")
    return [paths[0], folder / "text.png", *paths[1:], folder / "missing.png"]


@pytest.mark.case("E01", "E02")
def test_one_row_per_file_in_the_order_given(written: Path, photos: list[Path]) -> None:
    rows = list(Model.load(written).predict(photos, top=2))
    assert [row.file for row in rows] == [str(path) for path in photos]
    assert [row.error is None for row in rows] == [True, False, *[True] * 6, False]
    assert rows[1].error is not None
    assert "not an allowed format" in rows[1].error
    assert rows[1].label is None
    for row in rows:
        if row.error is None:
            assert [row.top[0]] == [(row.label, row.probability)]
            assert row.top[0][1] >= row.top[1][1]


@pytest.mark.case("E03")
def test_the_size_of_batches_does_not_change_results(written: Path, photos: list[Path]) -> None:
    model = Model.load(written)
    whole = list(model.predict(photos))
    for batch_size in (1, 3, 4):
        rows = list(model.predict(photos, batch_size=batch_size))
        assert [row.file for row in rows] == [row.file for row in whole]
        for row, expected in zip(rows, whole, strict=True):
            assert row.label == expected.label
            if row.probability is not None:
                assert row.probability == pytest.approx(expected.probability, abs=1e-5)


def test_predictions_are_those_of_the_plain_network(
    written: Path, network: Backbone, photos: list[Path]
) -> None:
    model = Model.load(written)
    with Image.open(photos[0]) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    from tlrecipe.data.preprocess import fit_batch

    with torch.no_grad():
        inputs = normalise(fit_batch(pixels, model.preprocessing), model.preprocessing)
        expected = network.model.eval()(inputs).softmax(1)[0]
    (row,) = model.predict(photos[:1], top=len(CLASSES))
    assert row.label == CLASSES[int(expected.argmax())]
    for label, probability in row.top:
        assert probability == pytest.approx(float(expected[CLASSES.index(label)]), abs=1e-4)


@pytest.mark.case("E03")
def test_no_files_give_no_rows(written: Path) -> None:
    assert list(Model.load(written).predict([])) == []
