"""Trackers: what arrives in real local stores, and that nothing they do harms a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tlrecipe.artifacts import tracking
from tlrecipe.artifacts.tracking import About, Tracking, tracker
from tlrecipe.language.diagnostics import TlrecipeError

PLAN: Any = SimpleNamespace(
    name="hybrid",
    phases=[SimpleNamespace(name="one", index=0, steps=4), SimpleNamespace(name="two", index=1, steps=6)],
)
SETTINGS = {
    "seed": 0,
    "phase": [{"name": "one", "lr": 1e-3, "freeze": ["@head"]}, {"name": "two", "lr": 2.0}],
}
EPOCH = {
    "phase": "two",
    "epoch": 1,
    "step": 3,
    "lr": {"head": 0.5},
    "train": {"loss": 1.5, "accuracy": 0.25},
    "val": None,
    "seconds": 2.0,
}
TEST = {"loss": 0.5, "accuracy": 0.75, "count": 12, "precision": "fp32"}


class Recorder:
    """A tracker that remembers, and raises where it is told to."""

    package = "json"
    made: list[Recorder]

    def __init__(self, where: str):
        self.where, self.seen, self.thread = where, [], 0
        Recorder.made.append(self)

    def _record(self, name: str, *values: object) -> None:
        self.thread = threading.get_ident()
        self.seen.append((name, *values))
        if self.where == name:
            raise SystemExit(f"no {name}\nand more")

    def start(self, about: About) -> None:
        self._record("start", about)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._record("log", dict(values), step)

    def finish(self, complete: bool, results: Sequence[Path]) -> None:
        self._record("finish", complete, [path.name for path in results])


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    Recorder.made = []
    monkeypatch.setattr(tracking, "TRACKERS", {"recorder": Recorder})
    return Recorder.made


def tracked(folder: Path, *chosen: str, warn: list[str] | None = None) -> Tracking:
    """A run in which one epoch and the test have happened."""
    warnings: list[str] = [] if warn is None else warn
    run = Tracking(chosen, PLAN, folder, SETTINGS, warnings.append)
    run("phase", name="two")
    run("epoch", **EPOCH)
    run("test", **TEST)
    (folder / "result.json").write_text("{}")
    run.finish(True, [folder / "result.json"])
    return run


def test_events_become_values_at_steps_over_all_phases(tmp_path: Path, recorders: list[Recorder]) -> None:
    warnings: list[str] = []
    tracked(tmp_path, "recorder", warn=warnings)
    start, epoch, test, finish = recorders[0].seen
    assert start[1].settings == {
        "seed": 0,
        "phase.one.name": "one",
        "phase.one.lr": 1e-3,
        "phase.one.freeze": '["@head"]',
        "phase.two.name": "two",
        "phase.two.lr": 2.0,
    }
    values = {"train/loss": 1.5, "train/accuracy": 0.25, "lr/head": 0.5, "epoch_seconds": 2.0}
    assert epoch == ("log", values, 7)
    assert test == ("log", {"test/loss": 0.5, "test/accuracy": 0.75, "test/count": 12.0}, 10)
    assert finish == ("finish", True, ["result.json"])
    assert recorders[0].thread != threading.get_ident()
    assert warnings == []


def test_values_within_an_epoch_are_sent_from_time_to_time(
    tmp_path: Path, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])
    run = Tracking(["recorder"], PLAN, tmp_path, {}, pytest.fail)
    for second in range(12):
        clock[0] = second
        run("step", phase="one", step=second, loss=1.0, images_per_second=9.0)
    run.finish(False, [])
    logged = [step for name, *_, step in recorders[0].seen if name == "log"]
    assert logged == [5, 10]


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_failure_is_one_warning_and_the_others_go_on(
    where: str, tmp_path: Path, recorders: list[Recorder]
) -> None:
    warnings: list[str] = []
    tracked(tmp_path, f"recorder:{where}", "recorder:fine", warn=warnings)
    assert warnings == [f"recorder: SystemExit: no {where}; the run goes on without it"]
    assert [name for name, *_ in recorders[1].seen] == ["start", "log", "log", "finish"]


def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(Recorder, "start", lambda self, about: release.wait(60))
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", 0.05)
    warnings: list[str] = []
    tracked(tmp_path, "recorder", warn=warnings)
    release.set()
    assert warnings == ["recorder: it did not end within 0 seconds; the run goes on without it"]


def test_a_resumed_run_has_the_trackers_and_the_id_of_before(
    tmp_path: Path, recorders: list[Recorder]
) -> None:
    tracked(tmp_path, "recorder:a")
    tracked(tmp_path)
    tracked(tmp_path, "recorder:b")
    assert [recorder.where for recorder in recorders] == ["a", "a", "a", "b"]
    assert len({recorder.seen[0][1].id for recorder in recorders}) == 1
    (tmp_path / "tracking.json").write_text("{")
    with pytest.raises(TlrecipeError, match="TLR601"):
        tracked(tmp_path)


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    tracked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorbord", "there is no tracker 'tensorbord'; there are tensorboard, mlflow, wandb"),
        ("mlflow:https://me:secret@host/", "a password in the address would be written down"),
    ],
)
def test_a_wrong_choice_is_a_wrong_argument(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        tracker(text)
    assert "secret" not in str(raised.value)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tlrecipe\[mlflow\]'"):
        tracker("mlflow")


# --------------------------------------------------------------------------- real stores, read back


@pytest.mark.parametrize("where", ["", "logs"])
def test_tensorboard(where: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "20260101-1a2b"
    run.mkdir()
    tracked(run, f"tensorboard:{tmp_path / where}" if where else "tensorboard")
    folder = tmp_path / where / "hybrid" / run.name if where else run / "tensorboard"
    found = EventAccumulator(str(folder)).Reload()
    assert [(item.step, item.value) for item in found.Scalars("train/loss")] == [(7, 1.5)]
    assert [(item.step, item.value) for item in found.Scalars("test/accuracy")] == [(10, 0.75)]
    assert "lr/head" in found.Tags()["scalars"]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    # Folders are MLflow's old local store; its database takes half a minute of migrations to begin with.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"file://{tmp_path}/store"
    run = tmp_path / "20260101-1a2b"
    run.mkdir()
    tracked(run, f"mlflow:{address}")
    tracked(run)  # as resume does: the same run goes on
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("hybrid")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name
    assert found.info.status == "FINISHED"
    assert found.data.params["phase.one.freeze"] == '["@head"]'
    assert found.data.metrics["test/accuracy"] == 0.75
    steps = [(item.step, item.value) for item in client.get_metric_history(found.info.run_id, "train/loss")]
    assert steps == [(7, 1.5), (7, 1.5)]
    assert [item.path for item in client.list_artifacts(found.info.run_id)] == ["result.json"]


def test_wandb_keeps_an_offline_run_in_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    warnings: list[str] = []
    tracked(tmp_path, "wandb:project", warn=warnings)
    assert warnings == []
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = record.read_bytes()
    key = json.loads((tmp_path / "tracking.json").read_text())["id"]
    assert key.encode() in content
    assert b"train/loss" in content and b"phase.one.freeze" in content


def test_every_tracker_has_its_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(tracking.TRACKERS) <= set(project["project"]["optional-dependencies"])
