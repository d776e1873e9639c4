"""`tlrecipe new`: a recipe that is valid, says why it is so, and overwrites nothing."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from project import invoke, write_images

from tlrecipe.language.text import load

STRATEGIES = ("feature-extraction", "fine-tuning", "from-scratch", "hybrid")


@pytest.fixture
def photos(here: Path) -> Path:
    write_images(here / "photos" / "train", 12)
    write_images(here / "photos" / "test", 2)
    return here / "photos"


def test_a_folder_gives_a_valid_recipe_and_the_reason(photos: Path, here: Path) -> None:
    result = invoke("new", "photos")
    assert result.exit_code == 0, result.output
    assert "strategy: feature extraction" in result.stdout
    assert "36 training images are fewer than 10,000" in result.stdout
    assert "Another strategy would fit if" in result.stdout
    assert "- there were 10,000 training images or more: fine-tuning" in result.stdout
    assert "wrote photos.toml" in result.stdout
    assert invoke("validate", "photos.toml").stdout.startswith("photos.toml: ok, 1 phase, 3 classes")
    recipe = load(here / "photos.toml").recipe
    assert recipe.name == "photos"
    assert recipe.data.path == str(photos)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_a_valid_recipe_in_80_columns(photos: Path, here: Path, strategy: str) -> None:
    result = invoke("new", "photos", "--strategy", strategy, "-o", "own.toml")
    assert max(map(len, result.stdout.splitlines())) <= 80
    text = (here / "own.toml").read_text()
    assert max(map(len, text.splitlines())) <= 80
    result = invoke("validate", "own.toml")
    assert (result.exit_code, result.stderr) == (0, "")
    name = strategy.replace("-", " " if strategy != "fine-tuning" else "-")
    assert f"# Strategy: {name}" in text


def test_without_a_folder_the_hybrid_template_is_written(here: Path) -> None:
    assert invoke("new").exit_code == 0
    assert tomllib.loads((here / "hybrid.toml").read_text())["phase"][1]["name"] == "finetune"
    assert invoke("validate", "hybrid.toml").stderr == ""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_there_is_a_template_for_each_strategy(here: Path, strategy: str) -> None:
    assert invoke("new", "--strategy", strategy, "-o", "other.toml").exit_code == 0
    assert load(here / "other.toml").recipe.data.source == "sample"


def test_the_hybrid_template_has_the_numbers_of_the_shipped_recipe(here: Path) -> None:
    invoke("new")
    ours = load(here / "hybrid.toml").recipe
    shipped = load(Path(__file__).parents[2] / "recipes" / "hybrid.toml").recipe
    assert ours.data == shipped.data
    assert [phase.model_dump(exclude={"freeze"}) for phase in ours.phase] == [
        phase.model_dump(exclude={"freeze"}) for phase in shipped.phase
    ]


def test_taking_the_marks_off_gives_the_hybrid_strategy(photos: Path, here: Path) -> None:
    invoke("new", "photos")
    before, _, ready = (here / "photos.toml").read_text().partition("# off the lines below.\n#\n")
    freed = re.sub("^# ?", "", ready, flags=re.MULTILINE)
    (here / "photos.toml").write_text(before + freed)
    assert invoke("validate", "photos.toml").stdout.startswith("photos.toml: ok, 2 phases")


def test_uneven_classes_can_be_made_to_count_the_same_by_taking_marks_off(here: Path) -> None:
    write_images(here / "photos", 4, ("blue", "green"))
    write_images(here / "photos" / "more", 12, ("red",))
    (here / "photos" / "more" / "red").rename(here / "photos" / "red")
    (here / "photos" / "more").rmdir()
    said = invoke("new", "photos")
    assert 'class_weights = "balanced"' in said.stdout
    text = (here / "photos.toml").read_text()
    assert load(here / "photos.toml").recipe.loss.class_weights is None
    marked = '# [loss]\n# name = "cross_entropy"\n# class_weights = "balanced"\n'
    assert text.count(marked) == 1
    (here / "photos.toml").write_text(text.replace(marked, marked.replace("# ", "")))
    assert load(here / "photos.toml").recipe.loss.class_weights == "balanced"
    assert invoke("validate", "photos.toml").exit_code == 0


@pytest.mark.parametrize("out", ["recipes/own.toml", "../photos-recipe.toml", "photos/own.toml"])
def test_the_path_is_relative_to_the_recipe(
    photos: Path, here: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "recipes").mkdir()
    target = here / out
    target.unlink(missing_ok=True)
    assert invoke("new", "photos", "-o", out).exit_code == 0
    path = tomllib.loads(target.read_text())["data"]["path"]
    assert not Path(path).is_absolute()
    assert (target.parent / path).resolve() == photos
    monkeypatch.chdir("/")
    assert load(target).recipe.data.path == str(photos)
    target.unlink()


def test_nothing_is_overwritten(photos: Path, here: Path) -> None:
    (here / "photos.toml").write_text("mine")
    (here / "link.toml").symlink_to("nowhere")
    for arguments in (["new", "photos"], ["new", "photos", "-o", "link.toml"]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "error[TLR007]" in result.stderr
        assert "help: name another file with -o" in result.stderr
    assert (here / "photos.toml").read_text() == "mine"
    assert not (here / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["new", "phots"], "TLR401", 4),
        (["new", "empty"], "TLR402", 4),
        (["new", "photos", "-o", "nowhere/own.toml"], "TLR901", 9),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_said_and_writes_nothing(
    photos: Path, here: Path, arguments: list[str], code: str, exit_code: int
) -> None:
    (here / "empty").mkdir()
    result = invoke(*arguments)
    assert result.exit_code == exit_code
    assert f"error[{code}]" in result.stderr
    assert not list(here.glob("**/*.toml"))


def test_a_recipe_can_be_printed_and_a_zip_is_as_good_as_a_folder(photos: Path, here: Path) -> None:
    shutil.make_archive(str(here / "packed"), "zip", photos)
    result = invoke("new", "packed.zip", "-o", "-")
    assert tomllib.loads(result.stdout)["data"]["path"] == "packed.zip"
    assert tomllib.loads(result.stdout)["name"] == "packed"
    assert "strategy: feature extraction" in result.stderr
    assert not list(here.glob("*.toml"))


HOSTILE = ("<img src=x onerror=alert(1)>", "\u202egnp.exe", 'quo"te\\', "new\nline = 1", "x" * 200)


def test_hostile_names_stay_names(here: Path) -> None:
    folder = here / 'pho"tos\x7f\n[data]'
    for name in HOSTILE:
        write_images(folder / "plain", 3, ("red", "blue"))
        shutil.move(folder / "plain" / "red", folder / name)
        shutil.rmtree(folder / "plain")
    result = invoke("new", folder, "-o", "own.toml")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert all(char.isprintable() or char == "\n" for char in result.stdout)
    text = (here / "own.toml").read_text()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert load(here / "own.toml").recipe.data.path == str(folder)
    assert tomllib.loads(text)["name"] == "pho-tos-data"
