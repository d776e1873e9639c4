"""What is left of a run: what the events of the run then count, no more and no less."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from training.nets import Recorder, backbone, net, phase, plan_for, source

from tlrecipe.data.pixels import Geometry, Pixels
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.training.engine import Stopped
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.interpreter import Checkpoint, train


def counted(told: Recorder) -> Counter[tuple[str, str | None]]:
    """The images and steps that the events of a run count, by kind and phase."""
    done: Counter[tuple[str, str | None]] = Counter()
    for fields in told.of("features"):
        if fields["done"] == fields["total"]:
            done["features", fields["phase"] if fields["split"] != "test" else None] += fields["total"]
    for fields in told.of("evaluation"):
        if fields["done"] == fields["total"]:
            done["evaluation", fields["phase"]] += fields["total"]
    for fields in told.of("epoch"):
        done["step", fields["phase"]] = fields["step"]
    return done


def foreseen(told: Recorder) -> Counter[tuple[str, str | None]]:
    (outlook,) = told.of("outlook")
    return Counter({(part["kind"], part["phase"]): part["units"] - part["done"] for part in outlook["work"]})


@pytest.mark.parametrize("features", ["store", "recompute", "off"])
def test_a_run_does_what_was_foreseen(features: str) -> None:
    told = Recorder()
    phases = [
        phase(augment={"hflip": True}),
        phase(name="two", freeze=["stem", "blocks.[0-1]"]),
        phase(name="three", freeze=[], epochs=None, steps=7),
    ]
    plan = plan_for(net(), phase=phases, compute={"features": features, "precision": "fp32"})
    train(plan, backbone(net()), source, emit=told)
    done = counted(told)
    assert +foreseen(told) == done
    assert done["step", "three"] == 7
    assert done["features", "one"] == (112 if features == "store" else 0)
    measured = {part["seconds_each"] for part in told.of("outlook")[0]["work"] if part["kind"] == "step"}
    assert len(measured) == 3
    assert all(seconds > 0 for seconds in measured), "each phase has a step of its own"


def test_what_an_earlier_run_stored_is_not_to_be_done(tmp_path: Any) -> None:
    plan = plan_for(net(), phase=[phase()], compute={"features": "auto", "precision": "fp32"})
    stored = plan_for(net(), phase=[phase()], compute={"features": "store", "precision": "fp32"})
    train(stored, backbone(net()), source, store=FeatureStore(tmp_path))
    told = Recorder()
    train(plan, backbone(net()), source, store=FeatureStore(tmp_path), emit=told)
    assert foreseen(told)["features", "one"] == 0
    assert {part["seconds_each"] for part in told.of("outlook")[0]["work"] if part["units"]} == {None}


def test_a_resumed_run_has_the_rest_before_it() -> None:
    plan = plan_for(net(), phase=[phase(), phase(name="two", freeze=["stem"], epochs=3)])
    saved: list[Checkpoint] = []

    def in_the_second_epoch_of_the_second_phase() -> bool:
        state = saved[-1].values["state"] if saved else {"phase": 0, "step": 0}
        return (state["phase"], state["step"]) == (1, 6)

    with pytest.raises(Stopped):
        train(
            plan,
            backbone(net()),
            source,
            save=saved.append,
            save_now=lambda: True,
            stop=in_the_second_epoch_of_the_second_phase,
        )
    told = Recorder()
    train(plan, backbone(net()), source, resume=saved[-1], emit=told)
    (outlook,) = told.of("outlook")
    parts = {(part["kind"], part["phase"]): (part["done"], part["units"]) for part in outlook["work"]}
    # An epoch has five steps: after the seventh, one validation of three is over.
    assert parts == {
        ("step", "two"): (7, 15),
        ("evaluation", "two"): (12, 36),
        ("evaluation", None): (0, 12),
    }


def fitted(split: str, preprocessing: Preprocessing) -> Pixels | None:
    """Images of which only those of the wanted size are kept."""
    size = preprocessing.size
    pixels = source(split, preprocessing)
    assert pixels is not None
    return replace(pixels, images=pixels.images[..., :size, :size], fitted=Geometry.of(preprocessing))


@pytest.mark.parametrize("kept", ["as they are", "fitted"])
def test_images_of_another_size_are_decoded_again_where_they_do_not_serve(kept: str) -> None:
    phases = [phase(size=8), phase(name="two"), phase(name="three"), phase(name="four", size=8)]
    plan = plan_for(net(), phase=phases, compute={"features": "off"})
    told = Recorder()
    train(plan, backbone(net()), fitted if kept == "fitted" else source, emit=told)
    again = {phase: images for (kind, phase), images in foreseen(told).items() if kind == "data"}
    assert again == ({"two": 62} if kept == "fitted" else {})


def test_a_stop_rule_makes_the_time_left_an_upper_bound() -> None:
    told = Recorder()
    plan = plan_for(net(), phase=[phase(stop={"metric": "loss", "patience": 1}), phase(name="two")])
    train(plan, backbone(net()), source, emit=told)
    ends = {(p["kind"], p["phase"]) for p in told.of("outlook")[0]["work"] if p["may_end"]}
    assert ends == {("step", "one"), ("evaluation", "one")}
