"""The first look at a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tlrecipe.data import survey as module
from tlrecipe.data.sources import list_data
from tlrecipe.data.survey import survey
from tlrecipe.language.spec import FolderData
from tlrecipe.planning.strategy import Survey


def image(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def look_at(folder: Path) -> Survey:
    return survey(list_data(FolderData(source="folder", path=str(folder), val=0.0), seed=0))


def test_classes_splits_and_a_typical_image_are_found(tmp_path: Path) -> None:
    for number, side in enumerate((10, 20, 300)):
        image(tmp_path / "train" / "a" / f"{number}.png", (2 * side, side))
    image(tmp_path / "train" / "b" / "0.png", (40, 20))
    image(tmp_path / "test" / "a" / "0.png", (1, 1))
    found = look_at(tmp_path)
    assert found.classes == {"a": 3, "b": 1}
    assert found.counts == {"train": 4, "test": 1}
    assert found.typical == (40, 20)
    assert (found.grey, found.sampled, found.unusable) == (False, 4, 0)


@pytest.mark.parametrize(("mode", "grey"), [("L", True), ("1", True), ("I;16", True), ("P", False)])
def test_grey_images_are_seen(tmp_path: Path, mode: str, grey: bool) -> None:
    image(tmp_path / "a" / "0.png", (8, 8), mode)
    image(tmp_path / "b" / "0.png", (8, 8), mode)
    assert look_at(tmp_path).grey is grey


def test_what_is_no_image_is_counted_and_nothing_is_decoded(tmp_path: Path) -> None:
    image(tmp_path / "a" / "0.png", (8, 8))
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[:45])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.png").write_bytes(b"<html>")
    (tmp_path / "b" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    found = look_at(tmp_path)
    assert (found.sampled, found.unusable, found.typical) == (4, 2, (8, 8))


def test_without_any_image_there_is_no_typical_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"")
    found = look_at(tmp_path)
    assert (found.typical, found.grey, found.unusable) == (None, False, 2)


def test_of_many_images_some_of_every_part_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAMPLE", 4)
    for name in ("a", "b"):
        for number in range(10):
            image(tmp_path / name / f"{number}.png", (8, 8), "L" if name == "b" else "RGB")
    found = look_at(tmp_path)
    assert found.sampled == 4
    assert found.grey is False
    assert found.classes == {"a": 10, "b": 10}
