"""Adapters: they begin as nothing, end inside the weights, and refuse layers that they would not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.language.spec import HeadSpec, LoraAdapter, TimmBackbone, TorchvisionBackbone
from tlrecipe.models import adapters
from tlrecipe.models.adapters import Adapted, attach, merged_state
from tlrecipe.models.anatomy import module_facts, param_facts
from tlrecipe.models.backbones import Backbone, build, describe, outline
from tlrecipe.models.fast import fast_copy
from tlrecipe.models.table import from_json, to_json
from tlrecipe.planning.facts import ParamTable, Preprocessing
from tlrecipe.planning.patterns import Matcher

SIZE = 32
HEAD = HeadSpec(init="default")
# Source, name, pattern: linear layers of a transformer, convolutions of three families.
FAMILIES = {
    "transformer": ("timm", "vit_tiny_patch16_224", "blocks.*.attn.{qkv,proj}"),
    "inverted-bottleneck": ("timm", "test_efficientnet", "blocks"),
    "residual": ("timm", "test_resnet", "layer[2-4]"),
    "dense": ("torchvision", "densenet121", "features.denseblock4"),
}


def lora(*match: str, **changes: Any) -> LoraAdapter:
    return LoraAdapter(name="lora", match=match, **({"rank": 3, "alpha": 6.0} | changes))


def spec(source: str, name: str, adapter: LoraAdapter | None) -> TimmBackbone | TorchvisionBackbone:
    if source == "timm":
        return TimmBackbone(source="timm", name=name, weights="none", adapter=adapter)
    return TorchvisionBackbone(source="torchvision", name=name, weights="none", adapter=adapter)


def built(source: str, name: str, adapter: LoraAdapter | None, seed: int = 0) -> Backbone:
    return build(spec(source, name, adapter), HEAD, 5, seed, SIZE)


def images(count: int = 4, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def train(network: nn.Module) -> None:
    """What training does to adapters, in one step."""
    stream = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, Adapted):
            module.lora_up.uniform_(-0.1, 0.1, generator=stream)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_adapted_network_begins_as_the_plain_one_and_merges_into_it(family: str) -> None:
    source, name, pattern = FAMILIES[family]
    plain = built(source, name, None).model
    adapted = built(source, name, lora(pattern)).model
    assert torch.equal(adapted(images()), plain(images()))
    train(adapted)
    trained = adapted(images())
    difference = float((trained - plain(images())).abs().max())
    plain.load_state_dict(merged_state(adapted), strict=True)
    torch.testing.assert_close(plain(images()), trained, rtol=1e-4, atol=difference * 1e-3)
    fast = fast_copy(adapted, images())
    assert not any(isinstance(module, Adapted) for module in fast.modules())
    torch.testing.assert_close(fast(images()), trained, rtol=1e-3, atol=difference * 1e-2)
    assert any(isinstance(module, Adapted) for module in adapted.modules())


def with_adapter(layer: nn.Linear | nn.Conv2d, **changes: Any) -> nn.Sequential:
    network = nn.Sequential(layer)
    attach(network, ["0"], lora("0", **changes), seed=0)
    train(network)
    return network


def test_a_linear_layer_adds_the_scaled_product() -> None:
    network = with_adapter(nn.Linear(7, 5), rank=3, alpha=12.0)
    layer: Any = network[0]
    assert (layer.lora_down.shape, layer.lora_up.shape) == ((3, 7), (5, 3))
    x = torch.randn(4, 6, 7)
    wanted = F.linear(x, layer.weight + 4.0 * layer.lora_up @ layer.lora_down, layer.bias)
    torch.testing.assert_close(network(x), wanted)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2, "padding_mode": "reflect"}],
    ids=str,
)
def test_a_convolution_adds_one_of_its_own_shape(options: dict[str, Any]) -> None:
    network = with_adapter(nn.Conv2d(6, 8, 3, **options))
    layer: Any = network[0]
    assert (layer.lora_down.shape, layer.lora_up.shape) == ((3, 6, 3, 3), (8, 3, 1, 1))
    plain = nn.Conv2d(6, 8, 3, **options)
    x = torch.randn(2, 6, 9, 9)
    change = torch.einsum("or,rihw->oihw", layer.lora_up[:, :, 0, 0], layer.lora_down)
    plain.load_state_dict({"weight": layer.weight + 2.0 * change, "bias": layer.bias})
    torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)


def test_dropout_is_in_front_of_the_adapter_and_off_in_eval_mode() -> None:
    network = with_adapter(nn.Linear(50, 5), dropout=0.5)
    x = torch.randn(4, 50)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))
    assert [fact.random for fact in module_facts(network)] == [False, True]
    assert [fact.random for fact in module_facts(with_adapter(nn.Linear(7, 5)))] == [False, False]


def test_an_adapter_depends_on_its_layer_and_the_seed_alone() -> None:
    def down(seed: int, *match: str) -> Tensor:
        model = built("timm", "test_vit", lora(*match), seed).model
        return model.state_dict()["blocks.1.attn.proj.lora_down"]

    assert torch.equal(down(0, "blocks.1.attn.proj"), down(0, "blocks.*.attn", "blocks.1"))
    assert not torch.equal(down(0, "blocks.1.attn.proj"), down(1, "blocks.1.attn.proj"))


def test_the_table_knows_adapters_by_name_role_and_place() -> None:
    request = spec("timm", "vit_tiny_patch16_224", lora("blocks.3.mlp", "@stage:0"))
    table = describe(request, HEAD, 5, SIZE)
    assert from_json(to_json(table)) == table
    model = outline(request, HEAD, 5, SIZE)
    assert {param.name: param.shape for param in table} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
    assert table.adapted == ("blocks.3.mlp.fc1", "blocks.3.mlp.fc2", "patch_embed.proj")
    match = Matcher(table)
    assert match("@adapter") == {
        f"{layer}.{part}" for layer in table.adapted for part in ("lora_down", "lora_up")
    }
    roles = [match(role) for role in ("@head", "@backbone", "@adapter")]
    assert sum(map(len, roles)) == len(frozenset().union(*roles)) == len(table.params)
    assert "blocks.3.mlp.fc1.lora_up" in match("blocks.3")
    for layer in table.adapted:
        own = table.by_name[f"{layer}.weight"]
        for part in ("lora_down", "lora_up"):
            assert (table.by_name[f"{layer}.{part}"].stage, table.by_name[f"{layer}.{part}"].depth) == (
                own.stage,
                own.depth,
            )


# --------------------------------------------------------------------------- what is refused


def refused(request: TimmBackbone | TorchvisionBackbone) -> tuple[Diagnostic, ...]:
    with pytest.raises(TlrecipeError) as caught:
        describe(request, HEAD, 5)
    return caught.value.diagnostics


@pytest.mark.parametrize(
    ("name", "pattern", "code", "said", "cure"),
    [
        ("test_vit", "blocks.*.attn.qvk", "TLR104", "matches no parameter", "did you mean `blocks."),
        ("test_vit", "blocks.*.norm1", "TLR115", "no matrix of weights", "such as `blocks."),
        (
            "test_vit",
            "blocks.0.attn.qkv.bias",
            "TLR115",
            "no matrix of weights",
            "such as `blocks.0.attn.qkv`",
        ),
        ("test_vit", "@head", "TLR115", "the new head", "linear layers take one"),
        ("test_vit", "@adapter", "TLR104", "matches no parameter", "give the backbone one"),
        (
            "test_efficientnet",
            "blocks.*.*.conv_dw",
            "TLR115",
            "grouped Conv2d",
            "not grouped, such as `blocks",
        ),
        ("nf_resnet26", "stages", "TLR115", "ScaledStdConv2d", "not grouped"),
        ("coat_lite_tiny", "serial_blocks1.0.cpe", "TLR115", "tied Conv2d", "such as `serial_blocks1.0"),
    ],
)
def test_a_pattern_without_a_layer_that_takes_one(
    name: str, pattern: str, code: str, said: str, cure: str
) -> None:
    (found,) = refused(spec("timm", name, lora(pattern)))
    assert (found.code, found.path) == (code, ("backbone", "adapter", "match", 0))
    assert said in found.message
    assert cure in (found.help or "")


def test_all_patterns_without_a_layer_are_named_at_once() -> None:
    found = refused(spec("timm", "test_vit", lora("blocks.*.norm1", "blocks.*.attn", "hed")))
    assert [(d.code, d.path[-1]) for d in found] == [("TLR115", 0), ("TLR104", 2)]


@pytest.mark.parametrize(
    ("source", "name", "pattern", "layer"),
    [
        ("torchvision", "vit_b_16", "encoder", "encoder.layers.encoder_layer_0.self_attention.out_proj"),
        ("torchvision", "swin_t", "features.1", "features.1.0.attn.qkv"),
        ("timm", "eva02_tiny_patch14_224", "@backbone", "blocks.0.attn.qkv"),
    ],
)
def test_layers_whose_weight_the_network_reads_itself(
    source: str, name: str, pattern: str, layer: str
) -> None:
    (found,) = refused(spec(source, name, lora(pattern)))
    assert (found.code, found.path) == ("TLR115", ("backbone", "adapter", "match", 0))
    assert f"`{layer}`" in found.message
    assert "pass the adapter by" in found.message
    others = {"torchvision": "mlp", "timm": "attn.proj"}[source]
    assert describe(spec(source, name, lora(f"**.{others}")), HEAD, 5).adapted


class Reads(nn.Module):
    """``asked`` tells its type, ``twice`` runs and is read besides, ``never`` does not run, and ``still`` is
    only read in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.twice, self.never, self.still = (nn.Linear(3, 3) for _ in range(4))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.asked(x.mean((2, 3)).to(self.asked.weight.dtype))
        x = F.linear(self.twice(x), self.twice.weight)
        x = self.still(x) if self.training else F.linear(x, weight=self.still.weight)
        logits: Tensor = self.head(x)
        return logits


def table_of(network: nn.Module) -> ParamTable:
    numbers = {name: 0 for name, _ in network.named_parameters()}
    return ParamTable(
        param_facts(network, ["head"], numbers, numbers), module_facts(network), Preprocessing(SIZE)
    )


def test_every_way_past_a_layer_is_seen() -> None:
    with torch.device("meta"):
        network = Reads()
    table = table_of(network)
    for layer in ("twice", "never", "still"):
        with pytest.raises(TlrecipeError, match=f"`{layer}`, whose weight the network reads"):
            adapters.matches(network, table, lora(layer), SIZE)
    (found,) = adapters.matches(network, table, lora("asked"), SIZE)
    assert found.layers == ("asked",)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x.mean((2, 3)))
        logits: Tensor = self.head(x if float(x.sum()) > 0 else -x)
        return logits


def test_a_network_that_cannot_be_watched_takes_no_adapter() -> None:
    with torch.device("meta"):
        network = ByValue()
    with pytest.raises(TlrecipeError, match="cannot be run without values") as caught:
        adapters.matches(network, table_of(network), lora("body"), SIZE)
    assert caught.value.diagnostics[0].path == ("backbone", "adapter")
