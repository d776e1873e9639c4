"""A small bundle, written once; tests that damage it take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import bundles
import pytest

from tlrecipe.models.backbones import Backbone


@pytest.fixture(scope="session")
def network() -> Backbone:
    return bundles.backbone("timm", "test_resnet")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, network: Backbone) -> Path:
    """The bundle of ``network``, which nobody changes."""
    return bundles.write(tmp_path_factory.mktemp("bundle") / "model", network)


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(written, tmp_path / "model")
