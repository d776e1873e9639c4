"""Backbones of both libraries: `describe` tells what `build` makes, under a head that is always new."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import HeadSpec, LibraryBackbone, TimmBackbone, TorchvisionBackbone
from tlrecipe.models import backbones, timm_source
from tlrecipe.models.backbones import Backbone, available, build, describe, rebuild
from tlrecipe.models.bundle_record import PreprocessingRecord
from tlrecipe.planning.facts import ParamTable

CLASSES = 7
ZEROS, DEFAULT = HeadSpec(init="zeros"), HeadSpec(init="default")

TORCHVISION = torchvision.models.list_models(module=torchvision.models)

# A small member of each family, convolutional and attentional.
TIMM = """
    beit_base_patch16_224 caformer_s18 coat_lite_tiny convit_tiny convmixer_1024_20_ks9_p14
    convnextv2_atto cpubone_nano crossvit_9_240 cspnext_tiny darknet17 davit_tiny
    deit_tiny_distilled_patch16_224 dla34 dpn48b eca_vovnet39b edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 efficientvim_m3 efficientvit_b0 efficientvit_m1 eva02_tiny_patch14_224
    fasternet_t0 fastvit_t8 gcvit_xxtiny ghostnet_050 hgnet_tiny hiera_tiny_224 lambda_resnet26t
    lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception levit_192 levit_conv_128s lowformer_e1
    maxvit_rmlp_pico_rw_256 mixer_s16_224 mobilenetv4_conv_small_035 mobilevitv2_050 mvitv2_tiny
    naflexvit_base_patch16_gap nest_tiny nf_resnet26 pit_s_224 pit_ti_distilled_224 poolformerv2_s12
    pvt_v2_b0 rdnet_tiny regnetx_002 repvit_m0_9 res2net50_48w_2s resnest14d resnetv2_18d rexnet_100
    sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s2 skresnet18 starnet_s050
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 test_byobnet test_coatnet test_convnext3
    test_efficientnet test_mambaout test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tresnet_m
    twins_svt_small vgg11 visformer_small vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 volo_d1_224
    xcit_nano_12_p16_224
""".split()  # noqa: SIM905


def spec(name: str, weights: str = "none", source: Any = "timm", **more: Any) -> LibraryBackbone:
    library = TimmBackbone if source == "timm" else TorchvisionBackbone
    return library(source=source, name=name, weights=weights, **more)


def error_of(request: LibraryBackbone, head: HeadSpec = ZEROS) -> Any:
    with pytest.raises(TlrecipeError) as caught:
        describe(request, head, CLASSES)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic


def check_partition(table: ParamTable, model: nn.Module) -> None:
    named = dict(model.named_parameters())
    assert {param.name: param.shape for param in table} == {n: tuple(p.shape) for n, p in named.items()}
    assert [param.name for param in table] == list(named)
    everything = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert set(table.by_name) == everything
    modules = dict(model.named_modules())
    assert [fact.name for fact in table.modules] == list(modules)
    assert {name for fact in table.modules for name in fact.buffers} == set(dict(model.named_buffers()))
    head = [param for param in table if param.head]
    backbone = [param for param in table if not param.head]
    assert backbone
    assert {param.shape[0] for param in head} == {CLASSES}
    for numbers, tops in (
        ({param.stage for param in table}, {param.stage for param in head}),
        ({param.depth for param in table}, {param.depth for param in head}),
    ):
        assert numbers == set(range(len(numbers)))
        assert tops == {max(numbers)}
    assert all(a.stage < head[0].stage and a.depth < head[0].depth for a in backbone)
    assert len({param.stage for param in table}) >= 3
    assert any(fact.norm for fact in table.modules) == any(param.norm for param in table)


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that `describe` looked at."""
    seen: list[nn.Module] = []
    make = backbones._empty

    def keep(*arguments: Any) -> nn.Module:
        seen.append(make(*arguments))
        return seen[-1]

    monkeypatch.setattr(backbones, "_empty", keep)
    return seen


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_classifier_of_torchvision(name: str, empty: list[nn.Module]) -> None:
    table = describe(spec(name, "pretrained", "torchvision"), HeadSpec(), CLASSES)
    (model,) = empty
    check_partition(table, model)
    assert sum(parameter.is_meta for parameter in model.parameters()) > 0.5 * len(table.params)
    # torchvision's own count of classes reaches one layer and no other.
    (changed,) = {
        name.rpartition(".")[0]
        for (name, ours), theirs in zip(
            model.named_parameters(), _torchvision(name, classes=9).parameters(), strict=True
        )
        if ours.shape != theirs.shape
    }
    assert {param.module for param in table if param.head} == {changed}
    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    p = table.preprocessing
    assert (p.size, p.resized) == (preset.crop_size[0], preset.resize_size[0])
    assert (p.interpolation, list(p.mean), list(p.std)) == (
        preset.interpolation.value,
        preset.mean,
        preset.std,
    )
    assert table.pretrained
    assert table.license


def _torchvision(name: str, classes: int) -> nn.Module:
    request = spec(name, "none", "torchvision")
    return backbones._empty(name, lambda: backbones._resolve(request).construct(classes, 0.0, None))


@pytest.mark.parametrize("name", TIMM)
def test_families_of_timm(name: str, empty: list[nn.Module]) -> None:
    table = describe(spec(name), HeadSpec(), CLASSES)
    (model,) = empty
    check_partition(table, model)
    assert all(parameter.is_meta for parameter in model.parameters())
    heads = model.pretrained_cfg["classifier"]
    heads = [heads] if isinstance(heads, str) else heads
    assert {param.module for param in table if param.head} == set(heads)
    assert not table.pretrained
    assert table.license is None


def test_all_published_weights_of_timm_say_how_images_become_square() -> None:
    modes = {}
    for name in timm.list_models(pretrained=True):
        cfg = timm.models.get_pretrained_cfg(name)
        p = timm_source.TimmArchitecture(name, "", cfg, "pretrained", {}).preprocessing
        assert (p.size, p.resized) == (cfg.input_size[-1], math.floor(p.size / cfg.crop_pct)), name
        assert p.crop_mode == cfg.crop_mode, name
        PreprocessingRecord.model_validate_json(json.dumps(p.as_dict()))
        modes[p.crop_mode] = name
    assert len(modes) == 3


def test_tied_parameters_appear_once() -> None:
    table = describe(spec("coat_tiny"), HeadSpec(), CLASSES)
    tied = [param for param in table if param.aliases]
    assert tied
    assert all(table.by_name[alias] is param for param in tied for alias in param.aliases)


def test_a_distilled_network_has_two_heads() -> None:
    backbone = build(spec("deit_tiny_distilled_patch16_224"), HeadSpec(init="zeros"), CLASSES, seed=0)
    assert backbone.heads == ("head", "head_dist")
    assert {param.module for param in backbone.table if param.head} == {"head", "head_dist"}
    assert not backbone.model(torch.ones(1, 3, 224, 224)).any()


def test_batch_norm_tells_its_statistics() -> None:
    table = describe(spec("test_resnet"), HeadSpec(), CLASSES)
    batch = [fact for fact in table.modules if fact.norm]
    assert batch
    assert all(fact.statistics for fact in batch)
    norms = {fact.name for fact in batch}
    assert all(param.norm == (param.module in norms) for param in table)
    transformer = describe(spec("test_vit"), HeadSpec(), CLASSES)
    assert any(fact.norm for fact in transformer.modules)
    assert not any(fact.statistics for fact in transformer.modules)


def test_available_names_both_libraries() -> None:
    names = list(available())
    assert ("resnet18", "timm") in names
    assert [name for name, source in names if source == "torchvision"] == TORCHVISION
    assert len(TORCHVISION) == 80


# --------------------------------------------------------------------------- names and weights


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (spec("tf_effcientnet_lite0"), "did you mean `tf_efficientnet_lite0`, "),
        (spec("resnet_18", source="torchvision"), "did you mean `resnet18`, "),
        (spec("vit_b_16"), 'torchvision has `vit_b_16`: set source = "torchvision"'),
        (spec("test_resnet", source="torchvision"), 'timm has `test_resnet`: set source = "timm"'),
        (spec("resnet18.a1_in1k"), 'name = "resnet18", weights = "a1_in1k"'),
    ],
    ids=lambda value: value.name if isinstance(value, LibraryBackbone) else "",
)
def test_r11_unknown_names(request_: LibraryBackbone, says: str) -> None:
    diagnostic = error_of(request_)
    assert (diagnostic.code, diagnostic.path) == ("TLR112", ("backbone", "name"))
    assert says in diagnostic.help


def test_r11_three_names_are_offered() -> None:
    assert error_of(spec("resnet_50", source="torchvision")).help.count("`") == 6


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (spec("resnet18", "a1_in1"), "did you mean `a1_in1k`?"),
        (spec("resnet50", "IMAGENET1K_V3", "torchvision"), "did you mean `IMAGENET1K_V"),
        (spec("coatnet_0_224", "pretrained"), 'weights = "none"'),
    ],
    ids=["timm-tag", "torchvision-tag", "none-published"],
)
def test_w15_weights_that_nobody_publishes(request_: LibraryBackbone, says: str) -> None:
    diagnostic = error_of(request_)
    assert (diagnostic.code, diagnostic.path) == ("TLR501", ("backbone", "weights"))
    assert says in diagnostic.help


def test_a_digest_of_no_file_is_a_mistake() -> None:
    diagnostic = error_of(spec("test_resnet", sha256="0" * 64))
    assert (diagnostic.code, diagnostic.path) == ("TLR102", ("backbone", "sha256"))


def test_an_encoder_is_no_classifier() -> None:
    assert error_of(spec("qwen3_vit_88m_enc")).code == "TLR113"


def test_tags_bring_their_own_preprocessing_and_licence() -> None:
    plain, swag = (
        describe(spec("vit_b_16", tag, "torchvision"), HeadSpec(), CLASSES)
        for tag in ("pretrained", "IMAGENET1K_SWAG_E2E_V1")
    )
    assert (plain.preprocessing.size, plain.built_size) == (224, 224)
    assert (swag.preprocessing.size, swag.built_size) == (384, 384)
    assert plain.license == "BSD-3-Clause"
    assert "SWAG" in (swag.license or "")
    timm_default = describe(spec("convnext_tiny", "pretrained"), HeadSpec(), CLASSES)
    assert timm_default.license == timm.get_pretrained_cfg("convnext_tiny").license


def test_describe_needs_no_weights_file() -> None:
    table = describe(spec("test_resnet", "/nowhere/net.pth"), HeadSpec(), CLASSES)
    assert table.pretrained
    assert table.license is None


# --------------------------------------------------------------------------- the head


def head_of(backbone: Backbone) -> Tensor:
    return backbone.model.get_submodule(backbone.head).weight.detach().clone()


@pytest.mark.parametrize(("source", "name"), [("timm", "test_resnet"), ("torchvision", "squeezenet1_1")])
def test_the_seed_alone_decides_the_head(source: Any, name: str, tmp_path: Path) -> None:
    request = spec(name, source=source)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(request, DEFAULT, CLASSES, seed=0)
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
    torch.manual_seed(2)
    second = build(request, DEFAULT, CLASSES, seed=0)
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))
    assert not torch.equal(head_of(first), head_of(build(request, DEFAULT, CLASSES, seed=1)))
    torch.save(second.model.state_dict(), tmp_path / "net.pth")
    from_file = build(spec(name, str(tmp_path / "net.pth"), source), DEFAULT, CLASSES, seed=0)
    assert torch.equal(head_of(first), head_of(from_file))


def test_the_head_can_start_at_zero() -> None:
    backbone = build(spec("test_resnet"), ZEROS, CLASSES, seed=0)
    assert not backbone.model(torch.ones(2, 3, 64, 64)).any()
    assert any(parameter.any() for parameter in backbone.model.parameters())


@pytest.mark.parametrize(
    ("source", "name", "where"),
    [
        ("timm", "test_vit", "head_drop"),
        ("timm", "test_resnet", ""),
        ("torchvision", "mobilenet_v3_small", "classifier.2"),
        ("torchvision", "vgg11", "classifier.5"),
    ],
)
def test_dropout_goes_before_the_head(source: Any, name: str, where: str) -> None:
    def random(rate: float) -> set[str]:
        table = describe(spec(name, source=source), HeadSpec(dropout=rate), CLASSES)
        return {fact.name for fact in table.modules if fact.random}

    assert random(0.3) - random(0.0) == {where}


@pytest.mark.parametrize(
    ("source", "name", "where"),
    [("timm", "test_resnet", ""), ("torchvision", "mobilenet_v3_small", "classifier.2")],
)
def test_dropout_drops_in_train_mode_alone(source: Any, name: str, where: str) -> None:
    head = HeadSpec(dropout=0.9, init="default")
    model = build(spec(name, source=source), head, CLASSES, seed=0).model
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        layer = model.get_submodule(where)
        layer.training = True
        assert not torch.equal(model(images), model(images))


def test_dropout_without_a_place_is_a_mistake() -> None:
    diagnostic = error_of(spec("resnet18", source="torchvision"), HeadSpec(dropout=0.1))
    assert (diagnostic.code, diagnostic.path) == ("TLR113", ("head", "dropout"))


# --------------------------------------------------------------------------- built networks


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("timm", "test_resnet"),
        ("timm", "test_vit"),
        ("timm", "coat_tiny"),
        ("torchvision", "regnet_y_400mf"),
        ("torchvision", "mobilenet_v3_small"),
    ],
)
def test_build_makes_what_describe_tells(source: Any, name: str) -> None:
    request = spec(name, source=source)
    backbone = build(request, HeadSpec(), CLASSES, seed=0)
    assert backbone.table == describe(request, HeadSpec(), CLASSES)
    check_partition(backbone.table, backbone.model)
    assert not backbone.model.training
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in backbone.model.parameters())
    size = backbone.table.preprocessing.size
    with torch.no_grad():
        assert backbone.model(torch.zeros(2, 3, size, size)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("source", "name", "head", "size"),
    [
        ("timm", "test_resnet", HeadSpec(), None),
        ("timm", "test_vit", HeadSpec(dropout=0.1, init="zeros"), 96),
        ("torchvision", "squeezenet1_1", HeadSpec(dropout=0.2), 96),
        ("torchvision", "googlenet", HeadSpec(), None),
    ],
)
def test_rebuild_takes_the_weights(source: Any, name: str, head: HeadSpec, size: int | None) -> None:
    backbone = build(spec(name, source=source), head, CLASSES, seed=0, size=size)
    config = json.loads(json.dumps(backbone.config))
    assert config == backbone.config
    again = rebuild({"tlrecipe": config["tlrecipe"]}, CLASSES)
    assert not again.training
    again.load_state_dict(backbone.model.state_dict(), strict=True)
    pixels = size or backbone.table.preprocessing.size
    images = torch.rand(1, 3, pixels, pixels)
    with torch.no_grad():
        assert torch.equal(again(images), backbone.model(images))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tlrecipe": {"source": "timm"}},
        {"tlrecipe": {"source": "x", "name": "y", "weights": "z", "head": {}, "size": None}},
    ],
)
def test_rebuild_refuses_what_says_nothing(config: dict[str, Any]) -> None:
    with pytest.raises(TlrecipeError, match="TLR504"):
        rebuild(config, CLASSES)


@pytest.mark.parametrize(("name", "size"), [("test_resnet", None), ("test_vit", None), ("test_vit", 96)])
def test_timm_itself_loads_the_layout(name: str, size: int | None, tmp_path: Path) -> None:
    backbone = build(spec(name), HeadSpec(), CLASSES, seed=0, size=size)
    (tmp_path / "config.json").write_text(json.dumps(backbone.config))
    safetensors.torch.save_file(backbone.model.state_dict(), tmp_path / "model.safetensors")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = size or backbone.table.preprocessing.size
    images = torch.rand(1, 3, pixels, pixels)
    with torch.no_grad():
        assert torch.equal(theirs(images), backbone.model(images))
    resolved = timm.data.resolve_model_data_config(theirs)
    assert tuple(resolved["input_size"]) == (3, pixels, pixels)
    assert tuple(resolved["mean"]) == backbone.table.preprocessing.mean


# --------------------------------------------------------------------------- image sizes


@pytest.mark.parametrize(
    ("source", "name", "size", "fixed", "built"),
    [
        ("timm", "test_resnet", 96, False, None),
        ("timm", "test_vit", 96, False, 96),
        ("timm", "test_vit", 100, True, 160),
        ("torchvision", "resnet18", 96, False, None),
        ("torchvision", "vit_b_32", 96, False, 96),
        ("torchvision", "vit_b_32", 100, True, 224),
        ("torchvision", "maxvit_t", 192, True, 224),
        ("torchvision", "inception_v3", 32, True, None),
    ],
)
def test_other_image_sizes(source: Any, name: str, size: int, fixed: bool, built: int | None) -> None:
    table = describe(spec(name, "pretrained", source), HeadSpec(), CLASSES, size)
    assert (table.fixed_size, table.built_size) == (fixed, built)
    if fixed:
        with pytest.raises(TlrecipeError, match=r"TLR113.*cannot be built for images of") as caught:
            build(spec(name, "pretrained", source), HeadSpec(), CLASSES, seed=0, size=size)
        assert caught.value.diagnostics[0].path == ("data", "size")


def test_weights_can_forbid_a_size_that_random_ones_take() -> None:
    trained, random = (
        describe(spec("mixer_b16_224", weights), HeadSpec(), CLASSES, 192)
        for weights in ("pretrained", "none")
    )
    assert (trained.fixed_size, random.fixed_size) == (True, False)


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    own = build(spec("test_vit"), DEFAULT, CLASSES, seed=3).model.state_dict()
    torch.save(own, tmp_path / "net.pth")
    model = build(spec("test_vit", str(tmp_path / "net.pth")), DEFAULT, CLASSES, seed=0, size=96).model
    other = model.state_dict()
    assert (own["pos_embed"].shape[1], other["pos_embed"].shape[1]) == (101, 37)
    # An average over the image survives a resize, near enough.
    means = [state["pos_embed"][:, 1:].mean() for state in (own, other)]
    assert torch.allclose(*means, atol=5e-3)
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, CLASSES)
    changed = {key for key, tensor in other.items() if not torch.equal(tensor, own[key])}
    assert changed == {"pos_embed", "head.weight"}


# --------------------------------------------------------------------------- what published files look like


def load(name: str, state: dict[str, Tensor]) -> nn.Module:
    return backbones._resolve(spec(name, source="torchvision")).loaded(state, CLASSES, 0.0, None)


def test_auxiliary_heads_are_left_out() -> None:
    published = torchvision.models.googlenet(init_weights=False).state_dict()
    assert any(key.startswith("aux1.") for key in published)
    model = load("googlenet", published)
    assert not any(key.startswith("aux") for key in model.state_dict())
    assert model.transform_input
    assert torch.equal(model.state_dict()["conv1.conv.weight"], published["conv1.conv.weight"])


def test_old_names_of_densenet() -> None:
    state = torchvision.models.densenet121().state_dict()
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): t for key, t in state.items()
    }
    assert published.keys() != state.keys()
    model = load("densenet121", published)
    key = "features.denseblock1.denselayer1.conv1.weight"
    assert torch.equal(model.state_dict()[key], state[key])


def test_mnasnet_without_versions() -> None:
    state = dict(torchvision.models.mnasnet0_5().state_dict())
    model = load("mnasnet0_5", state)
    assert torch.equal(model.state_dict()["layers.0.weight"], state["layers.0.weight"])
