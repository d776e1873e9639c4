"""Frozen means frozen: bytes stay, others move, and a violation is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training.nets import backbone, net, phase, plan_for, source, state

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.training import freezing
from tlrecipe.training.interpreter import train

NETS = {
    "batch-norm": {},
    "group-norm": {"norm": "group"},
    "dropout-and-depth": {"dropout": 0.3, "drop_path": 0.3},
}


@pytest.mark.parametrize("features", ["off", "store", "recompute"])
@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_frozen_bytes_stay_and_others_move(options: dict[str, Any], features: str) -> None:
    model = net(**options)
    before = state(model)
    phases = [
        phase(optimizer={"name": "sgd", "weight_decay": 0.5, "momentum": 0.9, "no_decay": []}, freeze=[]),
        phase(name="two", freeze=["stem", "blocks.[0-1]"]),
    ]
    plan = plan_for(model, compute={"features": features}, phase=phases[1:])
    result = train(plan, backbone(model), source)
    frozen = plan.phases[0].frozen | {n for n in before if n.startswith(("blocks.0", "blocks.1"))}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name
    digests = result.phases[0].frozen_sha256
    assert digests["before"] == digests["after"]


def test_old_gradients_and_momentum_do_not_move_what_a_later_phase_freezes() -> None:
    model = net()
    heavy = {"name": "sgd", "weight_decay": 0.5, "momentum": 0.9, "no_decay": []}
    after: dict[str, Any] = {}

    def save(checkpoint: Any) -> None:
        if checkpoint.values["state"]["phase"] == 1 and not after:
            after.update(state(model))

    plan = plan_for(model, optimizer=heavy, phase=[phase(freeze=[]), phase(name="two")])
    train(plan, backbone(model), source, save=save)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, after[n])}
    assert moved == {"head.weight", "head.bias"}


def test_norm_train_lets_statistics_of_frozen_layers_move_and_nothing_else() -> None:
    model = net()
    before = state(model)
    train(plan_for(model, phase=[phase(norm="train")]), backbone(model), source)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    statistics = {n for n in before if "running" in n or "num_batches" in n}
    assert moved == statistics | {"head.weight", "head.bias"}


def test_evaluation_leaves_modes_and_statistics_alone() -> None:
    model = net(dropout=0.5)
    plan = plan_for(model, phase=[phase(freeze=["stem"])])
    modes: list[bool] = []
    train(
        plan,
        backbone(model),
        source,
        emit=lambda kind, /, **f: modes.append(model.drop.training) if kind == "step" else None,
    )
    freezing.apply(model, plan.phases[0])
    freezing.check(model, plan.phases[0])
    assert all(modes)


def test_a_frozen_tensor_that_moves_is_an_error() -> None:
    model = net()
    plan = plan_for(model)

    def meddle(kind: str, /, **fields: Any) -> None:
        if kind == "epoch":
            with torch.no_grad():
                model.stem.weight[0, 0, 0, 0] += 1e-6

    with pytest.raises(TlrecipeError) as caught:
        train(plan, backbone(model), source, emit=meddle)
    assert caught.value.diagnostics[0].code == "TLR702"
    assert "`stem.weight`" in caught.value.diagnostics[0].message


def test_a_mode_that_someone_changed_is_an_error() -> None:
    model = net()
    plan = plan_for(model)
    freezing.apply(model, plan.phases[0])
    model.blocks.train()
    with pytest.raises(TlrecipeError, match="which phase `one` does not say"):
        freezing.check(model, plan.phases[0])
