"""Where the frozen part ends, and that the two halves are the network: proved on batches."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlrecipe.models.prefix import Frozen, Split, proved, split

SIZE = 16


class Stages(nn.Module):
    """stem, two stages with batch norm, pooling, dropout by function, head: the shape of most networks."""

    def __init__(self, drop_rate: float = 0.0):
        super().__init__()
        self.drop_rate = drop_rate
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stages = nn.Sequential(self._stage(4, 6), self._stage(6, 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 3)

    @staticmethod
    def _stage(channels: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stages(self.stem(x))).flatten(1)
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        logits: Tensor = self.head(x)
        return logits


class Tokens(nn.Module):
    """A transformer in small: patches, class token, position embedding, two blocks, head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        logits: Tensor = self.head(self.blocks(x)[:, 0])
        return logits


class Dense(nn.Module):
    """Later layers read all earlier ones: the cut is a set of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.c = nn.Conv2d(12, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(torch.cat([x.flip(-1), a, b], 1))
        logits: Tensor = self.head(c.mean((2, 3)))
        return logits


class ByValue(nn.Module):
    """Python that looks at the values: no trace can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if x.mean() > 0:
            x = x * 2
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class OtherWayInTraining(Stages):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        x = x.amax((2, 3)) if self.training else x.mean((2, 3))
        logits: Tensor = self.head(x)
        return logits


def built(network: nn.Module) -> nn.Module:
    """The same network each time, with statistics that are not the initial ones."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return network.eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def cut(
    network: nn.Module,
    trains: Iterable[str],
    in_train_mode: Iterable[str] = ("",),
    taps: Iterable[tuple[str, ...]] = (),
) -> Split:
    """Split where the parameters below ``trains`` are all that trains."""
    below = tuple(trains)
    trainable = frozenset(
        name
        for name, _ in network.named_parameters()
        if any(name == place or name.startswith(f"{place}.") for place in below)
    )
    modes = frozenset(in_train_mode)
    for name, module in network.named_modules():
        module.training = name in modes
    return split(network, Frozen(trainable, modes), SIZE, taps=tuple(taps))


CASES: dict[str, tuple[nn.Module, tuple[str, ...], tuple[str, ...]]] = {
    "head": (Stages(), ("head",), ("flatten",)),
    "last-stage": (Stages(), ("stages.1", "head"), ("stages.0",)),
    "norm-of-a-frozen-stage": (Stages(), ("stages.1.1", "head"), ("stages.1.0",)),
    "bias-only": (Stages(), ("head.bias",), ("flatten",)),
    "token-head": (Tokens(), ("head",), ("getitem_1",)),
    "token-block": (Tokens(), ("blocks.1", "head"), ("blocks.0",)),
    "frozen-but-for-the-class-token": (Tokens(), ("cls_token", "head"), ("transpose",)),
    "frozen-but-for-the-positions": (Tokens(), ("pos_embed", "head"), ("cat",)),
    "dense": (Dense(), ("c", "head"), ("cat",)),
    "dense-inside": (Dense(), ("b", "head"), ("a", "flip")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_halves_are_the_network(case: str) -> None:
    network, trains, expected = CASES[case]
    parts = cut(built(network), trains)
    assert parts.cut == expected
    assert parts.prefix is not None
    x = images()
    with torch.no_grad():
        features = parts.prefix(x)
        assert torch.equal(parts.suffix(*features), network(x))
        assert tuple(tuple(feature.shape[1:]) for feature in features) == parts.shapes


@pytest.mark.parametrize("case", CASES)
def test_features_belong_to_their_image_alone_and_are_the_same_each_time(case: str) -> None:
    network, trains, _ = CASES[case]
    parts = cut(built(network), trains)
    assert parts.prefix is not None
    x, order = images(), torch.tensor([2, 0, 3])
    with torch.no_grad():
        for once, again, others in zip(parts.prefix(x), parts.prefix(x), parts.prefix(x[order]), strict=True):
            assert torch.equal(once, again)
            torch.testing.assert_close(others, once[order])


@pytest.mark.parametrize("case", CASES)
def test_the_cut_is_the_same_on_the_meta_device(case: str) -> None:
    network, trains, expected = CASES[case]
    parts = cut(built(network), trains)
    empty = cut(type(network)().to("meta"), trains)
    assert (empty.cut, empty.shapes) == (expected, parts.shapes)


@pytest.mark.parametrize("case", CASES)
def test_modes_and_statistics_are_left_alone(case: str) -> None:
    network, trains, _ = CASES[case]
    built(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cut(network, trains, in_train_mode=("", "pool", "blocks.1"))
    modes = {name for name, module in network.named_modules() if module.training}
    assert modes == {"", "pool", "blocks.1"} & {name for name, _ in network.named_modules()}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_batch_norm_in_train_mode_ends_the_prefix() -> None:
    modes = ("", "stages", "stages.1", "stages.1.1")
    assert cut(built(Stages()), ["stages.1.0", "head"], modes).cut == ("stages.0",)
    # A block that is frozen as a whole is not looked into.
    assert cut(built(Stages()), ["head"], modes).cut == ("stem",)


class Dropping(Stages):
    def __init__(self, probability: float):
        super().__init__()
        self.pool = nn.Sequential(nn.Dropout(probability), nn.AdaptiveAvgPool2d(1))


def test_an_active_dropout_ends_the_prefix_and_an_idle_one_does_not() -> None:
    active = ("", "pool", "pool.0")
    assert cut(built(Dropping(0.5)), ["head"], active).cut == ("stages",)
    assert cut(built(Dropping(0.5)), ["head"]).cut == ("flatten",)
    assert cut(built(Dropping(0.0)), ["head"], active).cut == ("flatten",)


def test_a_random_activation_ends_the_prefix() -> None:
    network = Stages()
    network.pool = nn.Sequential(nn.RReLU(), nn.AdaptiveAvgPool2d(1))
    assert cut(built(network), ["head"], ("", "pool", "pool.0")).cut == ("stages",)
    assert cut(built(network), ["head"]).cut == ("flatten",)


def test_dropout_by_function_follows_the_mode_of_the_network() -> None:
    network = built(Stages(drop_rate=0.5))
    parts = cut(network, ["head"])
    assert parts.cut == ("flatten",)
    assert parts.prefix is not None
    x = images()
    with torch.no_grad():
        features = parts.prefix(x)
        assert not torch.equal(parts.suffix(*features), parts.suffix(*features))
        network.eval()
        assert torch.equal(parts.suffix(*features), network(x))


def test_a_network_that_takes_another_way_in_training_is_not_cut() -> None:
    parts = cut(built(OtherWayInTraining()), ["head"])
    assert parts.prefix is None
    assert "other code in training" in parts.note


class BehindThePooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.global_pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.0), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.drop(self.global_pool(x).flatten(1)))
        return logits


def test_the_cut_goes_past_pooling_that_stands_inside_the_head() -> None:
    network = nn.Sequential(Stages().stem, Stages().stages, BehindThePooling())
    parts = cut(built(network), ["2"])
    assert parts.shapes == ((8,),)


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.up = nn.Conv2d(3, 4, 3, stride=4), nn.Upsample(scale_factor=4)
        self.head = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.up(self.body(x))).mean((2, 3))
        return logits


def test_layers_that_make_the_features_larger_are_left_to_the_suffix() -> None:
    network = built(Growing())
    parts = cut(network, ["head"])
    assert parts.cut == ("body",)
    assert parts.prefix is not None
    with torch.no_grad():
        assert torch.equal(parts.suffix(*parts.prefix(images())), network(images()))


def test_a_tied_parameter_that_trains_is_frozen_under_no_name() -> None:
    network = Dense()
    network.b = nn.Conv2d(4, 4, 3, padding=1)
    network.c = nn.Conv2d(11, 6, 3, padding=1)
    network.later = nn.Conv2d(4, 4, 3, padding=1)
    network.later.weight = network.b.weight
    network.a = nn.Sequential(network.a, network.later)
    assert "a.1.weight" in dict(network.named_parameters())
    parts = cut(built(network), ["a.1.weight", "head"])
    assert parts.cut == ("a.0", "flip")


def test_taps_give_the_features_of_an_earlier_cut_in_the_same_pass() -> None:
    network = built(Stages())
    head = frozenset({"head.weight", "head.bias"})
    opened = frozenset({"", "stages"})
    late = split(network, Frozen(head, frozenset()), SIZE, open_modules=opened)
    early = split(network, Frozen(head | {"stages.1.0.weight"}, frozenset()), SIZE, open_modules=opened)
    both = split(network, Frozen(head, frozenset()), SIZE, open_modules=opened, taps=[early.nodes])
    assert both.prefix is not None
    assert early.prefix is not None
    assert late.prefix is not None
    with torch.no_grad():
        final, tapped = both.prefix(images())
        assert torch.equal(final, late.prefix(images())[0])
        assert torch.equal(tapped, early.prefix(images())[0])


class InPlaceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.relu_())  # type: ignore[no-any-return]


def test_a_tap_is_not_changed_by_layers_that_work_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), InPlaceFirst(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1))
    parts = cut(built(network), ["3"], taps=[("_0",)])
    assert parts.prefix is not None
    with torch.no_grad():
        _, tapped = parts.prefix(images())
        assert torch.equal(tapped, network[0](images()))


def test_a_tap_behind_the_cut_is_refused() -> None:
    network = built(Stages())
    parts = cut(network, ["stages.1", "head"], taps=[("flatten",)])
    assert parts.prefix is None
    assert "tap" in parts.note


def test_a_failed_capture_is_named_and_leaves_the_plain_network() -> None:
    network = built(ByValue())
    parts = cut(network, ["head"])
    assert parts.prefix is None
    assert parts.suffix is network
    assert parts.note.startswith("capture failed: TraceError")


def test_a_block_that_cannot_be_traced_only_moves_the_cut_before_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), ByValue())
    parts = cut(built(network), ["1.head"])
    assert parts.cut == ("0",)


def test_nothing_frozen_at_the_input_is_no_prefix() -> None:
    for trains in (["stem", "head"], ["stem", "stages", "head"]):
        parts = cut(built(Stages()), trains)
        assert parts.prefix is None
        assert "reads the images themselves" in parts.note


# --------------------------------------------------------------------------- the proof at run time


@pytest.mark.parametrize("case", CASES)
def test_the_proof_holds_for_what_is_right(case: str) -> None:
    network, trains, _ = CASES[case]
    parts = cut(built(network), trains)
    assert proved(network, parts, images()) is parts


class OfTheBatch(nn.Module):
    """Subtracts the mean of the batch, which no mode or parameter tells."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=self.generator)

    generator = torch.Generator()


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (OfTheBatch(), "depend on the other images"),
        (Noisy(), "two passes give different features"),
        (Remembering(), "two passes give different features"),
    ],
    ids=["of-the-batch", "noise", "memory"],
)
def test_the_proof_finds_layers_that_are_not_what_they_seem(layer: nn.Module, reason: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    parts = cut(built(network), ["4"])
    assert parts.prefix is not None
    found = proved(network, parts, images())
    assert found.prefix is None
    assert found.suffix is network
    assert reason in found.note


def test_the_proof_finds_halves_of_another_network() -> None:
    network = built(Stages())
    parts = cut(network, ["head"])
    other = built(Stages())
    with torch.no_grad():
        other.stem.weight.mul_(2)  # type: ignore[operator]
    assert "do not give the network's own output" in proved(other, parts, images()).note
