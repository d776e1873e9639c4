"""Predictions on disk: re-parsed to exactly what was written, and whole or absent."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe import files
from tlrecipe.artifacts.predictions import Prediction, cell_of, inputs, write_predictions
from tlrecipe.language.diagnostics import TlrecipeError

AWKWARD = [
    "plain",
    "a,b",
    'say "hi"',
    "two\nlines",
    "car\rriage",
    "=2+2",
    "<script>",
    "é漢\u202e",
    "",
    " pad ",
]


def rows() -> list[Prediction]:
    good = [Prediction(name or "x", name, 0.75, None, ((name, 0.75), ("other", 0.25))) for name in AWKWARD]
    return [*good, Prediction("bad\n.png", None, None, "no, image")]


def parse(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.case("E04")
def test_csv_parses_to_what_was_written(tmp_path: Path) -> None:
    write_predictions(rows(), tmp_path / "out.csv")
    parsed = parse(tmp_path / "out.csv")
    assert list(parsed[0]) == ["file", "label", "probability", "error"]
    assert [cell_of(row["label"]) for row in parsed] == [*AWKWARD, ""]
    assert [row["file"] for row in parsed][-1] == "bad\n.png"
    assert parsed[0]["probability"] == "0.750000"
    assert parsed[-1] == {"file": "bad\n.png", "label": "", "probability": "", "error": "no, image"}
    assert b"\r\n" not in (tmp_path / "out.csv").read_bytes()


@given(label=st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.case("E04")
def test_any_class_name_survives_csv(label: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "out.csv"
    write_predictions([Prediction(label, label, 1.0, None)], path)
    (row,) = parse(path)
    assert (cell_of(row["file"]), cell_of(row["label"])) == (label, label)


@pytest.mark.case("E04")
@pytest.mark.parametrize(
    "label", ["=cmd|'/c calc'!A0", "+1+cmd|'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "＝1", "'=1", "''=1"]
)
def test_a_name_that_a_spreadsheet_would_carry_out_is_kept_from_it(label: str, tmp_path: Path) -> None:
    write_predictions([Prediction(label, label, 0.5, label)], tmp_path / "out.csv")
    (row,) = parse(tmp_path / "out.csv")
    assert row == dict.fromkeys(["file", "label", "error"], f"'{label}") | {"probability": "0.500000"}
    write_predictions([Prediction(label, label, 0.5, label)], tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["label"] == label


@pytest.mark.parametrize("label", ["-1", "+0.5", "a=b", "e-mail", "'quoted'"])
def test_numbers_and_what_only_holds_such_a_character_stay_as_they_are(label: str, tmp_path: Path) -> None:
    write_predictions([Prediction(label, label, 0.5, None)], tmp_path / "out.csv")
    assert parse(tmp_path / "out.csv")[0]["label"] == label


def test_more_ranks_are_more_columns(tmp_path: Path) -> None:
    write_predictions(rows(), tmp_path / "out.csv", top=3)
    parsed = parse(tmp_path / "out.csv")
    assert list(parsed[0])[4:] == ["label_2", "probability_2", "label_3", "probability_3"]
    assert (parsed[0]["label_2"], parsed[0]["probability_2"]) == ("other", "0.250000")
    assert parsed[0]["label_3"] == parsed[-1]["label_2"] == ""


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".JSON"])
@pytest.mark.case("E04")
def test_json_lines_by_the_ending(ending: str, tmp_path: Path) -> None:
    write_predictions(rows(), tmp_path / f"out{ending}", top=2)
    parsed = [json.loads(line) for line in (tmp_path / f"out{ending}").read_text().splitlines()]
    assert [row["label"] for row in parsed] == [*AWKWARD, None]
    assert parsed[0]["top"][1] == {"label": "other", "probability": 0.25}
    assert parsed[-1] == {"file": "bad\n.png", "label": None, "probability": None, "error": "no, image"}


def test_a_name_that_is_not_utf8_does_not_break_the_file(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_predictions([Prediction(name, "a", 1.0, None)], tmp_path / "out.csv")
    assert parse(tmp_path / "out.csv")[0]["file"] == "caf\\udce9.png"


@pytest.mark.case("E07")
def test_an_interrupted_prediction_leaves_no_file(tmp_path: Path) -> None:
    def stopping() -> Iterator[Prediction]:
        yield rows()[0]
        raise KeyboardInterrupt

    (tmp_path / "out.csv").write_text("from before")
    with pytest.raises(KeyboardInterrupt):
        write_predictions(stopping(), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "from before"
    assert files.leftovers(tmp_path) == []


def test_folders_are_walked_in_order_and_files_kept_where_they_are_given(tmp_path: Path) -> None:
    for name in ["b/2.png", "b/10.JPG", "b/a/3", "b/.hidden.png", "b/notes.txt", "b/Thumbs.db", "a.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    given_last = [tmp_path / "notes.txt", tmp_path / "b", tmp_path / "a.png", tmp_path / "missing"]
    found = [str(path.relative_to(tmp_path)) for path in inputs(given_last)]
    assert found == ["notes.txt", "b/10.JPG", "b/2.png", "b/a/3", "a.png", "missing"]


def test_links_that_lead_out_of_a_folder_are_refused_and_named_ones_followed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret.png").touch()
    (tmp_path / "photos" / "inside.png").touch()
    (tmp_path / "photos" / "to-inside.png").symlink_to("inside.png")
    assert len(inputs([tmp_path / "photos"])) == 2
    link = tmp_path / "photos" / "to-secret.png"
    link.symlink_to(tmp_path / "secret.png")
    with pytest.raises(TlrecipeError, match="is a link out of the folder") as caught:
        inputs([tmp_path / "photos"])
    assert caught.value.exit_code == 4
    assert inputs([link]) == [link]
