"""`[backbone] args`: checked against the constructor, and part of all that the network is known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.language.spec import HeadSpec, LibraryBackbone, TimmBackbone, TorchvisionBackbone
from tlrecipe.models.anatomy import draw_rate
from tlrecipe.models.backbones import build, describe, outline, rebuild
from tlrecipe.models.table import described

HEAD = HeadSpec()


def spec(name: str, source: str = "timm", weights: str = "none", **args: Any) -> LibraryBackbone:
    if source == "timm":
        return TimmBackbone(source="timm", name=name, weights=weights, args=args)
    return TorchvisionBackbone(source="torchvision", name=name, weights=weights, args=args)


def errors_of(request: LibraryBackbone) -> tuple[Diagnostic, ...]:
    with pytest.raises(TlrecipeError) as caught:
        describe(request, HEAD, 3)
    assert caught.value.exit_code == 3 or caught.value.diagnostics[0].code == "TLR503"
    return caught.value.diagnostics


@pytest.mark.parametrize(
    ("request_", "says", "help"),
    [
        (spec("test_resnet", drop_path_rat=0.1), "is no argument of `test_resnet`", "`drop_path_rate`?"),
        (spec("test_resnet", qux=0), "is no argument", "it takes `aa_layer`"),
        (spec("test_resnet", drop_path_rate=1), "probability", None),
        (spec("test_resnet", drop_path_rate="0.1"), "expects a number", None),
        (spec("test_resnet", drop_path_rate=True), "expects a number", None),
        (spec("test_resnet", num_classes=3), "decided elsewhere", "the classes are those of the data"),
        (spec("test_resnet", drop_rate=0.1), "decided elsewhere", "`dropout` of `[head]`"),
        (spec("test_vit", img_size=64), "decided elsewhere", "`size` of `[data]`"),
        (spec("test_resnet", in_chans=1), "decided elsewhere", "grey images are expanded"),
        (spec("test_resnet", global_pool="max_"), "`test_resnet` with `global_pool`", None),
        # Without pooling there is no score per image.
        (spec("test_resnet", global_pool=""), "`test_resnet` with `global_pool`", None),
        (spec("test_byobnet", widht_factor=0.5), "is no argument", "`width_factor`?"),
        (spec("efficientnet_b0", "torchvision", dropout=0.1), "decided elsewhere", "`dropout` of `[head]`"),
        (spec("swin_t", "torchvision", stochastic_depth_prob=0.3), "multiple values", "sets itself"),
    ],
    ids=lambda value: "-".join(value.args) if isinstance(value, LibraryBackbone) else "",
)
def test_arguments_that_are_refused(request_: LibraryBackbone, says: str, help: str | None) -> None:
    (found,) = errors_of(request_)
    assert found.code == "TLR114"
    assert found.path[:2] == ("backbone", "args")
    assert says in found.message
    assert (found.help is None) if help is None else (help in str(found.help))


def test_all_mistakes_at_once_each_at_its_place() -> None:
    found = errors_of(spec("test_vit", drop_path_rat=0.1, pos_drop_rate=2.0, depth=2))
    assert [item.path for item in found] == [
        ("backbone", "args", "drop_path_rat"),
        ("backbone", "args", "pos_drop_rate"),
    ]


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_stochastic_depth_reaches_the_network_that_is_built_described_and_rebuilt(source: str) -> None:
    name, args = {
        "timm": ("test_resnet", {"drop_path_rate": 0.25}),
        "torchvision": ("convnext_tiny", {"stochastic_depth_prob": 0.25}),
    }[source]
    request = spec(name, source, **args)
    assert any(module.random for module in describe(request, HEAD, 3).modules)
    assert not any(module.random for module in describe(spec("test_resnet"), HEAD, 3).modules)
    built = build(request, HEAD, 3, seed=0)
    for network in (built.model, outline(request, HEAD, 3), rebuild(built.config, 3)):
        assert max(draw_rate(module) for module in network.modules()) == pytest.approx(0.25, abs=0.01)


def test_a_table_is_remembered_under_its_arguments(tmp_path: Path) -> None:
    without = described(spec("test_resnet"), HEAD, 3, tmp_path)
    assert described(spec("test_resnet", drop_path_rate=0.1), HEAD, 3, tmp_path) != without
    assert described(spec("test_resnet"), HEAD, 3, tmp_path) == without


def test_arguments_that_change_no_weight_change_the_address_of_stored_features() -> None:
    plain, other = (
        build(spec("test_resnet", **args), HEAD, 3, seed=0) for args in ({}, {"global_pool": "max"})
    )
    assert all(
        torch.equal(value, other.model.state_dict()[name]) for name, value in plain.model.state_dict().items()
    )
    assert plain.identity != other.identity


def test_timm_alone_builds_the_network_of_a_bundle_with_arguments() -> None:
    built = build(spec("test_vit", depth=2, class_token=False, global_pool="avg"), HEAD, 3, seed=0, size=64)
    network = timm.create_model("test_vit", num_classes=3, **built.config["model_args"])
    network.load_state_dict(built.model.state_dict(), strict=True)


def test_weights_of_another_network_are_refused_before_they_are_read() -> None:
    # The published weights are not here: their shapes are known all the same.
    (found,) = errors_of(spec("vit_tiny_patch16_224", weights="pretrained", depth=3))
    assert found.code == "TLR503"
    describe(spec("vit_tiny_patch16_224", weights="pretrained", drop_path_rate=0.1), HEAD, 3)


def test_a_file_may_fit_the_arguments(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", depth=2, num_classes=5).state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    built = build(spec("test_vit", weights=str(tmp_path / "w.safetensors"), depth=2), HEAD, 3, seed=0)
    assert torch.equal(built.model.state_dict()["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_position_embeddings_are_resized_to_another_image_size(tmp_path: Path, source: str) -> None:
    if source == "timm":
        name, key = "test_vit", "pos_embed"
        network = timm.create_model(name, num_classes=3)
    else:
        name, key = "vit_b_16", "encoder.pos_embedding"
        network = build(spec(name, source), HEAD, 3, seed=0).model
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    request = spec(name, source, weights=str(tmp_path / "w.safetensors"))
    own = describe(request, HEAD, 3).preprocessing.size
    assert describe(request, HEAD, 3, own // 2).built_size == own // 2
    built = build(request, HEAD, 3, seed=0, size=own // 2).model
    before, after = network.state_dict()[key], built.state_dict()[key]
    assert after.shape[1] < before.shape[1]
    assert torch.equal(after[:, 0], before[:, 0])  # the class token's own stays
    # Bicubic resampling with antialiasing keeps the mean of a smooth field nearly where it was.
    assert torch.allclose(after[:, 1:].mean(1), before[:, 1:].mean(1), atol=0.02)
    with torch.no_grad():
        assert built(torch.rand(1, 3, own // 2, own // 2)).shape == (1, 3)
