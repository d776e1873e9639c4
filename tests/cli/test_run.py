"""A run from the recipe to the bundle, and what is done with the bundle."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from project import CLASSES, RECIPE, Finished, invoke, write_images

from tlrecipe.language.text import load


def result_of(finished: Finished) -> dict[str, object]:
    value: dict[str, object] = json.loads((finished.directory / "result.json").read_text())
    return value


# --------------------------------------------------------------------------- run


def test_a_run_says_what_it_reached_where_it_is_and_what_comes_next(finished: Finished) -> None:
    assert finished.printed.exit_code == 0, finished.printed.stderr
    accuracy, directory, report, following = finished.printed.stdout.splitlines()
    assert accuracy.startswith("test accuracy ")
    assert "95 % interval" in accuracy
    assert accuracy.endswith(", 12 images)")
    assert directory == f"run directory: {finished.directory}"
    assert report == f"report: {finished.directory / 'report.html'}"
    assert following.startswith(f"next: tlrecipe predict {finished.directory}")
    assert "epoch   2" in finished.printed.stderr


def test_the_run_directory_has_its_files(finished: Finished) -> None:
    names = {path.name for path in finished.directory.iterdir()}
    assert names == {
        *("recipe.toml", "recipe.resolved.toml", "plan.json", "environment.json", "log.jsonl"),
        *("metrics.jsonl", "checkpoints", "model", "result.json", "evaluation.json", "predictions.csv"),
        *("plots", "report.html", "data.json"),
    }


def test_the_recipe_is_kept_as_written_and_resolved(finished: Finished, project: Path) -> None:
    assert (finished.directory / "recipe.toml").read_text() == RECIPE
    resolved = tomllib.loads((finished.directory / "recipe.resolved.toml").read_text())
    assert resolved["data"]["path"] == str(project / "colours")
    assert load(finished.directory / "recipe.resolved.toml").recipe == load(project / "tiny.toml").recipe


def test_the_result_has_the_fields_of_the_contract(finished: Finished) -> None:
    result = result_of(finished)
    assert result["status"] == "complete"
    assert result["recipe"] == "tiny"
    assert result["recipe_sha256"] == hashlib.sha256(RECIPE.encode()).hexdigest()
    assert result["classes"] == list(CLASSES)
    assert {"accuracy", "loss"} <= result["metrics"]["test"].keys()
    assert {"accuracy", "loss"} <= result["metrics"]["val"].keys()
    assert {"total", "data", "features", "train", "evaluate"} <= result["seconds"].keys()
    assert result["peak_memory_bytes"] > 0
    (phase,) = result["phases"]
    assert (phase["name"], phase["steps"], phase["epochs"]) == ("all", 6, 2)
    assert phase["frozen_sha256"]["before"] == phase["frozen_sha256"]["after"]
    assert {"trainable_params", "frozen_params", "seconds", "prefix", "best"} <= phase.keys()


def test_metrics_have_a_line_per_epoch_and_evaluation(finished: Finished) -> None:
    rows = [json.loads(line) for line in (finished.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("epoch") for row in rows] == [1, 2, None]
    assert rows[0]["lr"] == {"head": 1e-3, "rest": 5e-4}
    assert {"phase", "step", "train", "val"} <= rows[0].keys()
    assert rows[2]["test"]["count"] == 12


def test_the_log_has_every_event_but_steps(finished: Finished) -> None:
    events = [
        json.loads(line)["event"] for line in (finished.directory / "log.jsonl").read_text().splitlines()
    ]
    assert events == ["outlook", "phase", "epoch", "epoch", "phase_end", "test"]


@pytest.mark.case("C07")
def test_a_used_run_directory_is_refused_before_any_work(
    finished: Finished, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlrecipe.models.backbones.build", pytest.fail)
    before = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*")}
    result = invoke("run", project / "tiny.toml", "--run-dir", finished.directory)
    assert result.exit_code == 6
    assert "nothing is overwritten" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*")} == before


@pytest.mark.case("W15")
def test_weights_that_are_not_there_leave_no_run_directory(project: Path, here: Path) -> None:
    result = invoke("run", project / "tiny.toml", "--set", 'backbone.weights="/nowhere/weights.pt"')
    assert result.exit_code == 5
    assert "TLR501" in result.stderr
    assert list(here.iterdir()) == []


def test_json_is_one_object_and_overrides_count(project: Path, here: Path) -> None:
    result = invoke(
        *("run", project / "tiny.toml", "--json", "--device", "cpu", "--set", "phase.all.epochs=1"),
        *("--set", "data.val=0"),
    )
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["phases"][0]["epochs"] == 1
    assert "val" not in printed["metrics"]
    assert (here / printed["run_dir"] / "model" / "bundle.json").exists()
    assert Path(printed["run_dir"]).parts[:2] == ("runs", "tiny")


def test_an_unknown_tracker_is_a_usage_error_before_any_work(project: Path, here: Path) -> None:
    result = invoke("run", project / "tiny.toml", "--track", "tensorbord")
    assert result.exit_code == 2
    assert "there is no tracker 'tensorbord'" in result.stderr
    assert list(here.iterdir()) == []


@pytest.mark.case("I01")
def test_bad_images_stop_a_run_with_their_names(tmp_path: Path) -> None:
    write_images(tmp_path / "colours" / "train", 8)
    write_images(tmp_path / "colours" / "test", 2)
    (tmp_path / "colours" / "test" / "red" / "0.png").write_text("no image")
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("batch_size = 8", "batch_size = 9"))
    result = invoke("run", tmp_path / "tiny.toml", "--run-dir", tmp_path / "run")
    assert result.exit_code == 4
    assert f"{tmp_path / 'tiny.toml'}:7:8: error[TLR404]: `test/red/0.png`" in result.stderr
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_same_file_in_two_splits_is_warned_of(tmp_path: Path) -> None:
    write_images(tmp_path / "colours" / "train", 8)
    write_images(tmp_path / "colours" / "test", 2)
    shutil.copy(tmp_path / "colours/train/red/3.png", tmp_path / "colours/test/red/same.png")
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("epochs = 2", "steps = 1"))
    result = invoke("run", tmp_path / "tiny.toml", "--run-dir", tmp_path / "run", "--set", "data.val=0")
    assert result.exit_code == 0, result.stderr
    assert "warning: 1 file of test also in train" in result.stderr
    assert "same.png" in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_signal_stops_a_run_with_a_checkpoint(project: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tlrecipe", "run", project / "tiny.toml", "--device", "cpu"),
            *("--run-dir", tmp_path / "run", "--set", "phase.all.epochs=100000"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("  epoch   2"):
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert f"next: tlrecipe resume {tmp_path / 'run'}" in out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "stopped"
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "lock").exists()


# --------------------------------------------------------------------------- evaluate


def test_evaluation_from_the_bundle_gives_the_metrics_of_the_run(finished: Finished) -> None:
    result = invoke("evaluate", finished.directory, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    evaluated = json.loads(result.stdout)
    expected = result_of(finished)["metrics"]["test"]
    assert evaluated["split"] == "test"
    assert evaluated["metrics"] == expected
    assert evaluated["intervals"] == result_of(finished)["intervals"]["test"]
    low, high = evaluated["intervals"]["accuracy"]
    assert low < expected["accuracy"] < high
    written = json.loads((finished.directory / "evaluation.json").read_text())
    assert written.items() <= evaluated.items()


def test_every_test_image_has_its_row_in_the_predictions(finished: Finished, tmp_path: Path) -> None:
    text = (finished.directory / "predictions.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["file"] for row in rows] == [f"test/{name}/{n}.png" for name in CLASSES for n in range(4)]
    assert all(row["label"] == row["file"].split("/")[1] for row in rows)
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / 12 == result_of(finished)["metrics"]["test"]["accuracy"]
    invoke("evaluate", finished.directory, "-o", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == text


def test_evaluation_tells_the_metrics_and_the_classes(finished: Finished) -> None:
    lines = invoke("evaluate", finished.directory).stdout.splitlines()
    metrics = result_of(finished)["metrics"]["test"]
    assert any(line.startswith(f"test macro f1 {metrics['macro_f1']:.4f} (") for line in lines)
    assert {line.split()[0] for line in lines[-3:]} == set(CLASSES)


@pytest.mark.case("E11")
def test_the_bundle_is_enough_wherever_it_lies(finished: Finished, project: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.directory / "model", tmp_path / "moved")
    for data in (project / "colours", project / "tiny.toml", project / "colours" / "test"):
        result = invoke("evaluate", tmp_path / "moved", "--data", data)
        assert result.exit_code == 0, result.stderr
        assert "12 images" in result.stdout


def test_without_a_test_split_the_validation_split_is_taken(finished: Finished, tmp_path: Path) -> None:
    write_images(tmp_path / "train", 4)
    write_images(tmp_path / "val", 3)
    result = invoke("evaluate", finished.directory, "--data", tmp_path, "--json")
    assert json.loads(result.stdout)["split"] == "val"


@pytest.mark.case("E05")
def test_classes_are_matched_by_name(finished: Finished, tmp_path: Path, project: Path) -> None:
    bundle = shutil.copytree(finished.directory / "model", tmp_path / "model")
    before = json.loads(invoke("evaluate", bundle, "--data", project / "colours", "--json").stdout)
    # The same network whose outputs are named in another order is another classifier.
    values = json.loads((bundle / "bundle.json").read_text())
    values["classes"] = values["classes"][1:] + values["classes"][:1]
    (bundle / "bundle.json").write_text(json.dumps(values))
    after = json.loads(invoke("evaluate", bundle, "--data", project / "colours", "--json").stdout)
    assert after["metrics"]["loss"] != pytest.approx(before["metrics"]["loss"], abs=1e-4)
    # Renaming the folders in the same way undoes it.
    renamed = dict(zip(CLASSES, values["classes"], strict=True))
    for old, new in renamed.items():
        shutil.copytree(project / "colours" / "test" / old, tmp_path / "renamed" / new)
    undone = json.loads(invoke("evaluate", bundle, "--data", tmp_path / "renamed", "--json").stdout)
    assert undone["metrics"]["loss"] == pytest.approx(before["metrics"]["loss"], abs=1e-6)


@pytest.mark.case("E05")
def test_other_classes_are_an_error_that_names_them(finished: Finished, tmp_path: Path) -> None:
    write_images(tmp_path / "data", 2, ["red", "green"])
    (tmp_path / "data" / "green").rename(tmp_path / "data" / "violet")
    result = invoke("evaluate", finished.directory, "--data", tmp_path / "data")
    assert result.exit_code == 4
    assert "TLR403" in result.stderr
    assert "does not know `violet`; the data lacks `blue`, `green`" in result.stderr


def test_data_that_is_gone_is_an_error(finished: Finished, tmp_path: Path) -> None:
    bundle = shutil.copytree(finished.directory / "model", tmp_path / "model")
    values = json.loads((bundle / "bundle.json").read_text())
    values["data"]["path"] = str(tmp_path / "gone")
    (bundle / "bundle.json").write_text(json.dumps(values))
    result = invoke("evaluate", bundle)
    assert result.exit_code == 4
    assert "gone" in result.stderr


@pytest.mark.parametrize("command", [["evaluate"], ["predict"]])
def test_what_is_no_model_exits_with_5(command: list[str], tmp_path: Path) -> None:
    more = [tmp_path / "x.png"] if command == ["predict"] else []
    result = invoke(*command, tmp_path, *more)
    assert result.exit_code == 5
    assert "neither a run directory nor a model bundle" in result.stderr


# --------------------------------------------------------------------------- predict


def test_predictions_go_to_stdout_one_row_per_file(finished: Finished, project: Path) -> None:
    folder = project / "colours" / "test"
    result = invoke("predict", finished.directory, folder / "red" / "1.png", folder, "--top", "9")
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    files = [str(path) for path in sorted(folder.rglob("*.png"))]
    assert [row["file"] for row in rows] == [str(folder / "red" / "1.png"), *files]
    assert {row["label"] for row in rows} <= set(CLASSES)
    assert list(rows[0])[-1] == "probability_3"
    total = sum(float(rows[0][name]) for name in ("probability", "probability_2", "probability_3"))
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.case("E01")
def test_a_file_that_cannot_be_used_has_a_row_and_the_exit_code_says_so(
    finished: Finished, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    good = project / "colours" / "test" / "red" / "1.png"
    out = tmp_path / "out.jsonl"
    result = invoke("predict", finished.directory, tmp_path / "bad.png", good, tmp_path / "none", "-o", out)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert "2 of 3 files could not be used" in result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["error"] is None for row in rows] == [False, True, False]
    again = invoke("predict", finished.directory, tmp_path / "bad.png", "--keep-going", "-o", out)
    assert again.exit_code == 0


@pytest.mark.case("E03")
def test_an_empty_folder_gives_a_header(finished: Finished, tmp_path: Path) -> None:
    result = invoke("predict", finished.directory, tmp_path)
    assert (result.exit_code, result.stdout) == (0, "file,label,probability,error\n")


def test_a_place_that_cannot_be_written_exits_with_9(finished: Finished, project: Path) -> None:
    image = project / "colours" / "test" / "red" / "1.png"
    result = invoke("predict", finished.directory, image, "-o", project / "no" / "folder.csv")
    assert result.exit_code == 9
    assert "TLR901" in result.stderr


def test_explain_predicts_the_memory_of_each_phase_where_it_is_asked_to(project: Path) -> None:
    asked, unasked = (
        json.loads(invoke("explain", project / "tiny.toml", "--json", *more).stdout)["phases"]
        for more in (["--memory"], [])
    )
    assert [phase["predicted_memory_bytes"] for phase in unasked] == [None]
    assert all(phase["predicted_memory_bytes"] > 10**8 for phase in asked)


def test_a_finished_run_is_the_backbone_of_the_next(project: Path, finished: Finished, here: Path) -> None:
    backbone = f'backbone={{ source = "bundle", path = "{finished.directory}" }}'
    done = invoke("run", project / "tiny.toml", "--set", backbone, "--run-dir", here / "next")
    assert done.exit_code == 0, done.stderr
    before = json.loads((finished.directory / "model/bundle.json").read_text())
    said = json.loads((here / "next/result.json").read_text())["backbone"]
    assert said["sha256"] == before["model_sha256"]
    assert [item["recipe"]["name"] for item in said["ancestors"]] == ["tiny"]
    assert before["model_sha256"] in (here / "next/model/README.md").read_text()


@pytest.mark.case("E07")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["E07-term", "E07-int"]
)
def test_an_interrupted_prediction_leaves_no_file_and_no_part_of_one(
    number: int, code: int, finished: Finished, project: Path, tmp_path: Path
) -> None:
    slow = (
        "import time\n"
        "from tlrecipe.data import pixels\n"
        "decode = pixels.decode_with_facts\n"
        "pixels.decode_with_facts = lambda data, p: time.sleep(0.3) or decode(data, p)\n"
        "from tlrecipe.__main__ import main\n"
        "main()\n"
    )
    (tmp_path / "out.csv").write_text("from before")
    images = [project / "colours"] * 40
    options = ["--batch-size", "1", "-o", tmp_path / "out.csv", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "predict", finished.directory, *images, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while process.poll() is None and not any(path.name.startswith(".out.csv") for path in tmp_path.iterdir()):
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "from before"
