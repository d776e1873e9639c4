"""Names from strangers in every command that shows them: nothing acts on a terminal or a page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image
from project import RECIPE, Finished, invoke, write_images
from terminal import show

NAMES = (
    "<img src=x onerror=alert(1)>",
    "كلب كبير",
    "x" * 200,
    "a\u202eb\x1b[2J",
    "two\nlines",
    "=cmd()",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run on classes, files and a folder of such names."""
    folder = tmp_path_factory.mktemp("names") / "\x1b[31m\u202efolder"
    for split, count in (("train", 4), ("test", 2)):
        for name in NAMES:
            write_images(folder / "images" / split, count, ("red",))
            (folder / "images" / split / "red").rename(folder / "images" / split / name)
            (folder / "images" / split / name / "0.png").rename(
                folder / "images" / split / name / "\u202egnp.0.png"
            )
    recipe = RECIPE.replace('path = "colours"', 'path = "images"').replace("epochs = 2", "epochs = 1")
    (folder / "tiny.toml").write_text(recipe)
    return Finished(
        folder / "run",
        invoke("run", folder / "tiny.toml", "--run-dir", folder / "run", "--device", "cpu"),
    )


def inert(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_a_run_and_its_progress(trained: Finished) -> None:
    assert trained.printed.exit_code == 0, trained.printed.output
    assert inert(trained.printed.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "{run}"),
        ("compare", "{run}", "{run}"),
        ("preview", "{recipe}", "-o", "{out}", "--images", "2", "--epochs", "1"),
        ("validate", "{recipe}", "--data"),
        ("explain", "{recipe}"),
        ("params", "{recipe}", "@head"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_a_command_prints(trained: Finished, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = trained.directory
    places = {"run": run, "recipe": run.parent / "tiny.toml", "out": tmp_path / "preview.png"}
    done = invoke(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == 0, done.output
    assert done.stdout
    assert inert(done.stderr)
    assert inert(done.stdout)
    if arguments[0] == "preview":
        assert Image.open(tmp_path / "preview.png").width > 64


@pytest.mark.parametrize("pattern", NAMES)
def test_a_pattern_that_matches_nothing(project: Path, pattern: str) -> None:
    done = invoke("params", project / "tiny.toml", pattern)
    assert done.exit_code == 3
    assert "TLR10" in done.stderr
    assert inert(done.stderr)


def test_rows_of_predict_on_a_terminal_and_in_a_file(
    trained: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = trained.directory.parent / "images" / "test"
    screen = show(monkeypatch, "predict", trained.directory, images, columns=600)
    assert inert(screen.written)
    invoke("predict", trained.directory, images, "-o", tmp_path / "rows.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text(), newline="")))
    assert len(rows) == 12
    assert {row["label"].removeprefix("'") for row in rows} <= set(NAMES)
    assert not any(row["label"].startswith("=") for row in rows)


def test_the_report_and_the_model_card(trained: Finished) -> None:
    report = (trained.directory / "report.html").read_text("utf-8")
    card = (trained.directory / "model" / "README.md").read_text("utf-8")
    for text in (report, card):
        assert "<img src=x" not in text
        assert inert(text.replace("\u00a0", ""))
        assert "x" * 200 in text
