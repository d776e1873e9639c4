"""The main path from Python: what a person does without the command line, and that it is the same path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli.project import CLASSES, write_images

import tlrecipe

RECIPE = """\
format = 1
name = "tiny"
[data]
source = "folder"
path = "colours"
size = 64
batch_size = 8
val = 0.25
[backbone]
source = "timm"
name = "test_resnet"
weights = "none"
[[phase]]
name = "all"
freeze = []
epochs = 2
lr = 1e-3
"""


class Events:
    """Remembers what it receives."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, /, **fields: Any) -> None:
        self.seen.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.seen if name == kind]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    write_images(folder / "colours" / "train", 8)
    write_images(folder / "colours" / "test", 4)
    (folder / "tiny.toml").write_text(RECIPE)
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def events() -> Events:
    return Events()


@pytest.fixture(scope="module")
def finished(recipe: Path, events: Events) -> tlrecipe.Run:
    return tlrecipe.run(str(recipe), run_dir=recipe.parent / "run", device="cpu", on_event=events)


# --------------------------------------------------------------------------- load, validate, plan


def test_overrides_are_values_by_key_or_texts(recipe: Path) -> None:
    values = {
        "phase.all.epochs": 3,
        "phase.all.schedule": {"name": "cosine", "warmup": 0.1},
        "phase.all.freeze": ("conv1", "layer1"),
        "data.background": [1, 2, 3],
        "phase.all.augment": {"hflip": True},
        "description": 'a "quoted" \\ text\nof two lines, and \x7f',
    }
    changed = tlrecipe.load(str(recipe), values).recipe
    (phase,) = changed.phase
    assert (phase.epochs, phase.freeze) == (3, ("conv1", "layer1"))
    assert phase.schedule.name == "cosine"
    assert phase.augment.hflip is True
    assert changed.description == values["description"]
    texts = tlrecipe.load(recipe, ["phase.all.epochs=3"]).recipe
    assert texts == tlrecipe.load(recipe, {"phase.all.epochs": 3}).recipe
    assert texts == tlrecipe.load(recipe, "phase.all.epochs=3").recipe


def test_a_mistake_in_an_override_by_value_is_placed_in_it(recipe: Path) -> None:
    (mistake,) = tlrecipe.validate(recipe, {"phase.all.lr": "fast"})
    assert (mistake.code, mistake.source) == ("TLR102", 'phase.all.lr="fast"')


def test_validation_gives_every_mistake_as_an_object(recipe: Path) -> None:
    assert tlrecipe.validate(recipe) == ()
    text = RECIPE.replace("epochs = 2", "epoch = 2")
    found = tlrecipe.validate(tlrecipe.loads(RECIPE.replace("[]", '["layr1"]'), base=recipe.parent))
    assert [(item.code, item.severity, item.line) for item in found] == [("TLR104", "error", 15)]
    assert found[0].help == "did you mean `layer1`?"
    with pytest.raises(tlrecipe.TlrecipeError) as raised:
        tlrecipe.loads(text, base=recipe.parent)
    assert raised.value.exit_code == 3


def test_validation_can_open_every_image(tmp_path: Path) -> None:
    write_images(tmp_path / "colours" / "train", 8)
    (tmp_path / "colours" / "train" / "red" / "0.png").write_text("no image")
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("val = 0.25", "val = 0"))
    assert tlrecipe.validate(tmp_path / "tiny.toml") == ()
    (bad,) = tlrecipe.validate(tmp_path / "tiny.toml", decode=True)
    assert (bad.code, bad.severity) == ("TLR404", "error")
    (odd,) = tlrecipe.validate(tmp_path / "tiny.toml", {"data.on_bad": "skip"}, decode=True)
    assert (odd.code, odd.severity) == ("TLR404", "warning")


def test_overrides_of_a_loaded_recipe_are_refused_and_not_dropped(recipe: Path) -> None:
    document = tlrecipe.load(recipe)
    for function in (tlrecipe.plan, tlrecipe.validate, tlrecipe.run):
        with pytest.raises(ValueError, match="give them to `load`"):
            function(document, {"seed": 1})
    with pytest.raises(ValueError, match="give them to `load`"):
        tlrecipe.run(tlrecipe.plan(recipe), {"seed": 1})


def test_a_plan_answers_questions_and_explains_itself(recipe: Path) -> None:
    checked = tlrecipe.plan(recipe)
    (phase,) = checked.plan.phases
    assert (phase.steps, checked.plan.classes) == (6, CLASSES)
    assert set(phase.rates(0)) == {1e-3}
    assert "fc.weight" in phase.trainable
    facts = checked.explain(memory=True)
    assert facts["phases"][0]["steps"] == 6
    assert facts["phases"][0]["predicted_memory_bytes"] > 10**6
    assert json.dumps(facts)
    assert "phase 1 of 1: all – 2 epochs, 6 steps" in checked.explain_text()


def test_a_plan_without_its_data_says_so(recipe: Path) -> None:
    checked = tlrecipe.plan(recipe, {"data.path": "nowhere"})
    assert [(item.code, item.severity) for item in checked.warnings] == [("TLR401", "warning")]
    assert checked.listing is None
    with pytest.raises(tlrecipe.TlrecipeError, match="TLR401"):
        tlrecipe.run(checked)


# --------------------------------------------------------------------------- run, resume


def test_a_run_tells_its_events_and_gives_its_result(finished: tlrecipe.Run, events: Events) -> None:
    assert finished.complete
    assert finished.metrics["test"]["count"] == 12
    assert finished.result == json.loads((finished.path / "result.json").read_text())
    assert tlrecipe.Run.load(finished.path) == finished
    kinds = [kind for kind, _ in events.seen if kind not in ("data", "step", "features", "evaluation")]
    assert kinds == ["outlook", "phase", "epoch", "epoch", "phase_end", "test"]
    assert events.of("test")[0]["accuracy"] == finished.metrics["test"]["accuracy"]


def test_a_planned_recipe_can_be_run(recipe: Path, finished: tlrecipe.Run) -> None:
    again = tlrecipe.run(tlrecipe.plan(recipe), run_dir=recipe.parent / "again", device="cpu")
    assert again.metrics == finished.metrics


def test_a_stopped_run_goes_on_to_the_same_model(recipe: Path, finished: tlrecipe.Run) -> None:
    events = Events()
    stopped = tlrecipe.run(
        recipe,
        run_dir=recipe.parent / "stopped",
        device="cpu",
        on_event=events,
        stop=lambda: bool(events.of("epoch")),
    )
    assert not stopped.complete
    assert stopped.metrics == {}
    with pytest.raises(tlrecipe.TlrecipeError, match="TLR504"):
        stopped.model()
    resumed = tlrecipe.resume(stopped.path, device="cpu", on_event=events)
    assert resumed.metrics == finished.metrics
    assert events.of("resume") == [{"phase": 0, "step": 3}]
    weights = [run.path / "model" / "model.safetensors" for run in (resumed, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert tlrecipe.resume(finished.path) == finished


def test_a_tracked_run_is_tracked_on_after_resume(recipe: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = Events()
    stopped = tlrecipe.run(
        recipe,
        run_dir=recipe.parent / "tracked",
        device="cpu",
        track=["tensorboard"],
        on_event=events,
        stop=lambda: bool(events.of("epoch")),
    )
    tlrecipe.resume(stopped.path, device="cpu", on_event=events)
    found = accumulator.EventAccumulator(str(stopped.path / "tensorboard")).Reload()
    assert [item.step for item in found.Scalars("val/accuracy")] == [3, 6]
    assert [item.step for item in found.Scalars("test/accuracy")] == [6]
    assert events.of("warning") == []
    with pytest.raises(ValueError, match="there is no tracker"):
        tlrecipe.run(recipe, track=["tensorbord"])


def test_odd_things_in_a_recipe_are_events_of_its_run(tmp_path: Path) -> None:
    write_images(tmp_path / "colours" / "train", 8)
    write_images(tmp_path / "colours" / "test", 2)
    shutil.rmtree(tmp_path / "colours" / "test" / "red")
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 2", "steps = 1"))
    (odd,) = tlrecipe.validate(tmp_path / "tiny.toml")
    events = Events()
    tlrecipe.run(tmp_path / "tiny.toml", run_dir=tmp_path / "run", device="cpu", on_event=events)
    assert [fields["message"] for fields in events.of("warning")] == [odd.message]


@pytest.mark.parametrize("device", ["cude", "gpu"])
def test_a_device_that_is_none_is_a_wrong_argument(recipe: Path, device: str) -> None:
    with pytest.raises(ValueError, match="none of auto, cpu, cuda"):
        tlrecipe.run(recipe, device=device)


def test_what_is_no_run_directory_is_an_error(tmp_path: Path) -> None:
    for function in (tlrecipe.resume, tlrecipe.Run.load):
        with pytest.raises(tlrecipe.TlrecipeError, match="TLR601"):
            function(tmp_path)


# --------------------------------------------------------------------------- the model


def test_a_model_predicts_and_is_measured(recipe: Path, finished: tlrecipe.Run) -> None:
    model = tlrecipe.Model.load(str(finished.path))
    image = recipe.parent / "colours" / "test" / "red" / "1.png"
    (prediction,) = model.predict([str(image)], top=3)
    assert prediction == next(finished.model().predict([image], top=3))
    assert sum(share for _, share in prediction.top) == pytest.approx(1, abs=1e-5)
    for measured in (tlrecipe.evaluate(model), tlrecipe.evaluate(finished.path, recipe, device="cpu")):
        assert measured.split == "test"
        assert measured.metrics["accuracy"] == finished.metrics["test"]["accuracy"]
        low, high = measured.intervals["accuracy"]
        assert low < measured.metrics["accuracy"] < high
    whole = tlrecipe.evaluate(model, recipe.parent / "colours" / "test")
    assert (whole.split, whole.metrics["count"]) == ("train", 12)
