"""A small data set, a recipe for it, and one finished run of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project import RECIPE, Finished, invoke, write_images


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.toml`` and its data, which nobody changes."""
    folder = tmp_path_factory.mktemp("project")
    write_images(folder / "colours" / "train", 8)
    write_images(folder / "colours" / "test", 4)
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="session")
def finished(project: Path) -> Finished:
    directory = project / "run"
    return Finished(
        directory, invoke("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu")
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
