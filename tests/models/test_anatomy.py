"""What counts as a norm layer, a bias, something random; and how layers are numbered by name."""

from __future__ import annotations

import pytest
import timm.layers
import torch
import torchvision
from torch import nn

from tlrecipe.models.anatomy import depths_by_name, is_norm, module_facts, param_facts, stages_by_name

NORMS: list[nn.Module] = [
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm(4),
    nn.GroupNorm(2, 4),
    nn.RMSNorm(4),
    torchvision.ops.FrozenBatchNorm2d(4),
    torchvision.models.convnext.LayerNorm2d(4),
    timm.layers.LayerNorm2d(4),
    timm.layers.RmsNorm(4),
    timm.layers.BatchNormAct2d(4),
    timm.layers.GroupNormAct(4, 2),
    timm.layers.LayerNormAct2d(4),
    timm.layers.EvoNorm2dB0(4),
    timm.layers.EvoNorm2dS0(4, groups=2),
    timm.layers.FrozenBatchNormAct2d(4),
    timm.layers.grn.GlobalResponseNorm(4),
    timm.models.mlp_mixer.Affine(4),
]
OTHERS: list[nn.Module] = [
    nn.Linear(4, 4),
    nn.Conv2d(4, 4, 1),
    timm.layers.ConvNormAct(4, 4, 1),
    timm.layers.NormMlpClassifierHead(4, 2),
    timm.layers.LayerScale(4),
    timm.layers.ScaledStdConv2d(4, 4, 1),
    torchvision.ops.Conv2dNormActivation(4, 4),
    nn.LocalResponseNorm(2),
]


@pytest.mark.parametrize("module", NORMS, ids=lambda module: type(module).__name__)
def test_norm_layers(module: nn.Module) -> None:
    assert is_norm(module)


@pytest.mark.parametrize("module", OTHERS, ids=lambda module: type(module).__name__)
def test_layers_that_are_none(module: nn.Module) -> None:
    assert not is_norm(module)


def test_modules_tell_their_statistics_and_buffers() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4), nn.BatchNorm2d(4, track_running_stats=False))
    net.register_buffer("scale", torch.ones(1), persistent=False)
    root, batch, layer, stateless = module_facts(net)
    assert root.buffers == ("scale",)
    assert batch.buffers == ("0.running_mean", "0.running_var", "0.num_batches_tracked")
    assert (batch.statistics, layer.statistics, stateless.statistics) == (True, False, False)
    assert (root.norm, batch.norm, layer.norm, stateless.norm) == (False, True, True, True)


class Functional(nn.Module):
    """Draws with a function, at the rate of its attribute, as timm's classifiers do."""

    def __init__(self, rate: float):
        super().__init__()
        self.drop_rate = rate


class Informed(Functional):
    """Knows the rate that it gave to a layer of its own."""

    def __init__(self, rate: float):
        super().__init__(rate)
        self.drop = nn.Dropout(rate)


@pytest.mark.parametrize(
    ("module", "random"),
    [
        (nn.Dropout(0.1), {""}),
        (nn.Dropout(0.0), set()),
        (nn.Dropout2d(0.1), {""}),
        (timm.layers.DropPath(0.1), {""}),
        (timm.layers.DropPath(0.0), set()),
        (torchvision.ops.StochasticDepth(0.1, "row"), {""}),
        (timm.layers.PatchDropout(0.1), {""}),
        (nn.MultiheadAttention(4, 1, dropout=0.1), {""}),
        (nn.MultiheadAttention(4, 1), set()),
        (Functional(0.1), {""}),
        (Functional(0.0), set()),
        (Informed(0.1), {"drop"}),
        (nn.RReLU(), {""}),
    ],
)
def test_random_modules(module: nn.Module, random: set[str]) -> None:
    assert {fact.name for fact in module_facts(module) if fact.random} == random


def test_parameters_in_order_with_ties_and_closed_gaps() -> None:
    net = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "body": nn.LayerNorm(2), "tied": nn.Linear(2, 2), "head": nn.Linear(2, 5)}
    )
    net["tied"].weight = net["stem"].weight
    numbers = {
        "stem.weight": 3,
        "stem.bias": 3,
        "body.weight": 7,
        "body.bias": 7,
        "tied.bias": 9,
        "head.weight": 7,
        "head.bias": 9,
    }
    facts = {fact.name: fact for fact in param_facts(net, ("head",), numbers, numbers)}
    assert list(facts) == [
        "stem.weight",
        "stem.bias",
        "body.weight",
        "body.bias",
        "tied.bias",
        "head.weight",
        "head.bias",
    ]
    assert facts["stem.weight"].aliases == ("tied.weight",)
    assert [fact.stage for fact in facts.values()] == [0, 0, 1, 1, 2, 3, 3]
    assert [fact.depth for fact in facts.values()] == [0, 0, 1, 1, 2, 3, 3]
    assert [name for name, fact in facts.items() if fact.bias] == [
        "stem.bias",
        "body.bias",
        "tied.bias",
        "head.bias",
    ]
    assert [name for name, fact in facts.items() if fact.norm] == ["body.weight", "body.bias"]
    assert [name for name, fact in facts.items() if fact.head] == ["head.weight", "head.bias"]
    assert facts["head.weight"].shape == (5, 2)
    assert facts["head.weight"].module == "head"


def test_a_table_of_biases_is_no_bias() -> None:
    net = nn.Module()
    net.relative_position_bias = nn.Parameter(torch.zeros(4, 2))
    net.q_bias = nn.Parameter(torch.zeros(4))
    numbers = {"relative_position_bias": 0, "q_bias": 0}
    assert [fact.bias for fact in param_facts(net, (), numbers, numbers)] == [False, True]


@pytest.mark.parametrize(
    ("name", "head", "stages", "depths"),
    [
        ("resnet18", "fc", {"bn1.bias": 0, "layer1.1.conv2.weight": 1, "layer4.0.bn1.weight": 4}, 9),
        (
            "densenet121",
            "classifier",
            {"features.norm0.bias": 0, "features.transition1.conv.weight": 2, "features.norm5.bias": 7},
            62,
        ),
        (
            "vgg11_bn",
            "classifier.6",
            {"features.1.bias": 0, "features.25.weight": 7, "classifier.3.weight": 9},
            10,
        ),
        (
            "vit_b_32",
            "heads.head",
            {
                "encoder.pos_embedding": 0,
                "encoder.layers.encoder_layer_2.ln_1.bias": 3,
                "encoder.ln.bias": 12,
            },
            13,
        ),
        (
            "swin_t",
            "head",
            {"features.0.2.bias": 0, "features.1.1.norm1.bias": 1, "features.2.norm.bias": 2, "norm.bias": 7},
            16,
        ),
        ("inception_v3", "fc", {"Conv2d_1a_3x3.bn.bias": 0, "Mixed_7c.branch_pool.bn.bias": 15}, 16),
    ],
)
def test_numbers_by_name(name: str, head: str, stages: dict[str, int], depths: int) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
    found = stages_by_name(net, (head,))
    assert {key: found[key] for key in stages} == stages
    assert set(depths_by_name(net, (head,)).values()) == set(range(depths))
