"""Runs side by side: differences of recipes, pairs of models, and the page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_directories import predictions, write_run
from test_report_page import HOSTILE, Page

from tlrecipe.artifacts.report.comparison import ABSENT, compare, comparison_page
from tlrecipe.artifacts.report.record import read_record
from tlrecipe.artifacts.report.text import percent

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first", predictions(CLASSES, 300, right=0.7))


def test_only_what_differs_is_listed_by_key(first: Path, tmp_path: Path) -> None:
    second = write_run(tmp_path / "second", predictions(CLASSES, 300), name="other", lr=2e-3)
    found = compare([read_record(first), read_record(second)])
    assert [(each.key, each.values) for each in found.differences] == [
        ("phase.head.lr", ("0.001", "0.002")),
        ("phase.all.lr", ("0.001", "0.002")),
    ]


def test_a_key_that_one_recipe_lacks_is_absent(first: Path, tmp_path: Path) -> None:
    second = write_run(tmp_path / "second", predictions(CLASSES, 300))
    recipe = second / "recipe.resolved.toml"
    recipe.write_text(recipe.read_text() + 'augment = { hflip = true, note = "a\\"b" }\n')
    found = compare([read_record(first), read_record(second)])
    assert [(each.key, each.values) for each in found.differences] == [
        ("phase.all.augment.hflip", (ABSENT, "true")),
        ("phase.all.augment.note", (ABSENT, '"a\\"b"')),
    ]


def test_models_are_paired_by_file_whatever_the_order(first: Path, tmp_path: Path) -> None:
    one = predictions(CLASSES, 300, right=0.7)
    other = predictions(CLASSES, 300, right=0.9, seed=1)
    order = np.random.default_rng(0).permutation(300)
    shuffled = replace(
        other,
        files=tuple(other.files[i] for i in order),
        labels=other.labels[order],
        predicted=other.predicted[order],
        probability=other.probability[order],
    )
    second = write_run(tmp_path / "second", shuffled)
    (duel,) = compare([read_record(first), read_record(second)]).duels
    assert duel.found.only_second == int((~one.right & other.right).sum())
    assert duel.found.only_first == int((one.right & ~other.right).sum())
    assert duel.found.difference == pytest.approx(other.accuracy - one.accuracy)


@pytest.mark.parametrize("change", ["a file is missing", "a label differs", "no predictions"])
def test_models_on_other_images_are_not_paired(first: Path, tmp_path: Path, change: str) -> None:
    other = predictions(CLASSES, 300)
    if change == "a file is missing":
        other = predictions(CLASSES, 299)
    elif change == "a label differs":
        other = replace(other, labels=np.roll(other.labels, 1))
    second = write_run(tmp_path / "second", None if change == "no predictions" else other, classes=CLASSES)
    found = compare([read_record(first), read_record(second)])
    assert (found.duels, found.not_paired) == ((), ("B",))


def test_the_page_holds_all_runs_unfinished_ones_too(first: Path, tmp_path: Path) -> None:
    second = write_run(tmp_path / "second", predictions(CLASSES, 300), done=False)
    page = Page(comparison_page(compare([read_record(first), read_record(second)])))
    assert "2 runs side by side." in page.text
    assert "second, not finished" in page.text
    assert "The recipes do not differ." in page.text


def test_the_page_has_all_metrics_of_all_runs(first: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", predictions([*CLASSES, "fox", "elk", "emu"], 300))
    unfinished = write_run(tmp_path / "unfinished", predictions(CLASSES, 300), done=False)
    records = [read_record(path) for path in (first, other, unfinished)]
    page = Page(comparison_page(compare(records)))
    evaluations = [record.evaluation for record in records]
    assert evaluations[0] is not None
    low, high = evaluations[0].intervals["balanced_accuracy"]
    shown = f"{percent(evaluations[0].metrics['balanced_accuracy'])}{percent(low)} to {percent(high)}"
    row = re.search(r"Balanced accuracy(.*?)Macro F1", "".join(page.words).replace("\n", ""))
    assert row is not None
    assert shown in row[1]
    assert row[1].rstrip().endswith(ABSENT), "the run that did not finish"
    assert re.search(rf"Top-5 accuracy\D+{ABSENT}\s+\d", page.text), "three classes have no top five"


def test_hostile_names_are_text_in_the_page(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a<img src=x>", predictions(HOSTILE, 50), name=HOSTILE[0]),
        write_run(tmp_path / "b", predictions(HOSTILE, 50), name="كلب"),
        write_run(tmp_path / "c", predictions(HOSTILE, 50), name=HOSTILE[3]),
    ]
    page = Page(comparison_page(compare([read_record(run) for run in runs])))
    assert HOSTILE[0] in page.text
    assert "a\\u202eb\\n" in page.text
    assert not list(page.named("img"))


def test_more_runs_than_letters_have_names(first: Path) -> None:
    record = read_record(first)
    letters = [entry.letter for entry in compare([record] * 28).entries]
    assert letters[:2] == ["A", "B"]
    assert letters[25:] == ["Z", "AA", "AB"]
