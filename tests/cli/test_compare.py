"""Runs side by side in the terminal, as JSON and as a page; and the picture of a plan."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image
from project import Finished, invoke
from run_directories import predictions, write_run

from tlrecipe.planning.intervals import wilson_interval as interval

CLASSES = ("cat", "dog", "owl")
LONG = "x" * 200


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "one", predictions(CLASSES, 300, right=0.7)),
        write_run(tmp_path / "two", predictions(CLASSES, 300, right=0.9, seed=1), lr=2e-3),
        write_run(tmp_path / "three", predictions(CLASSES, 90), name=f"\x1b[2J{LONG}", val=False),
    ]


def test_runs_are_shown_in_eighty_columns_without_anything_that_acts(runs: list[Path]) -> None:
    result = invoke("compare", *runs)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout
    assert "B against A on the same 300 images: +" in result.stdout
    assert "not measured on the images of A: C" in result.stdout
    assert "  phase.head.lr                 A 0.001   B 0.002   C 0.001\n" in result.stdout


def test_json_is_one_object(runs: list[Path]) -> None:
    found = json.loads(invoke("compare", *runs, "--json").stdout)
    assert [run["letter"] for run in found["runs"]] == ["A", "B", "C"]
    assert [run["run_dir"] for run in found["runs"]] == [str(run) for run in runs]
    first = found["runs"][0]
    assert first["accuracy_interval"] == list(interval(first["metrics"]["accuracy"], 300))
    assert [(duel["first"], duel["second"]) for duel in found["paired"]] == [("A", "B")]
    assert {each["key"] for each in found["differences"]} == {"phase.head.lr", "phase.all.lr"}


def test_the_page_is_written_beside_the_text(runs: list[Path], tmp_path: Path) -> None:
    result = invoke("compare", *runs[:2], "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    assert "what differs in the recipes" in result.stdout
    assert "<table" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_real_run_equals_itself(finished: Finished) -> None:
    result = invoke("compare", finished.directory, finished.directory)
    assert result.exit_code == 0, result.stderr
    assert "only B is right on 0, only A on 0, McNemar p = 1" in " ".join(result.stdout.split())
    assert "the recipes do not differ" in result.stdout


def test_a_folder_that_is_no_run_is_named(runs: list[Path], tmp_path: Path) -> None:
    result = invoke("compare", runs[0], tmp_path)
    assert result.exit_code == 6
    assert f"`{tmp_path}` is not a run directory" in " ".join(result.stderr.split())


# --------------------------------------------------------------------------- explain --plot


def test_a_plan_is_drawn_as_svg_with_what_is_frozen_in_each_phase(project: Path, tmp_path: Path) -> None:
    result = invoke("explain", project / "tiny.toml", "--plot", tmp_path / "plan.svg")
    assert result.exit_code == 0, result.stderr
    words = [element.text for element in ET.parse(tmp_path / "plan.svg").getroot().iter() if element.text]
    assert {"head", "rest", "trains", "steps"} <= set(words)


def test_a_plan_is_drawn_as_png(project: Path, tmp_path: Path) -> None:
    result = invoke("explain", project / "tiny.toml", "--plot", tmp_path / "plan.PNG")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "plan.PNG") as image:
        assert image.format == "PNG"


def test_a_plot_of_another_kind_is_refused_before_any_work(project: Path, tmp_path: Path) -> None:
    result = invoke("explain", project / "tiny.toml", "--plot", tmp_path / "plan.pdf")
    assert result.exit_code == 2
    assert "--plot writes .svg or .png" in " ".join(result.stderr.split())
