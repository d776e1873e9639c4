"""`tlrecipe params`: a tree on a terminal of any width, and lines with full names in a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import invoke
from terminal import show

SHIPPED = Path(__file__).parents[2] / "recipes"


def test_a_terminal_shows_a_tree_with_sizes_stages_and_groups(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = show(monkeypatch, "params", project / "tiny.toml").lines
    assert lines[0] == "test_resnet: 372,979 values"
    weight = next(line for line in lines if line.startswith("├── weight") and "3×96" in line)
    assert weight.split() == ["├──", "weight", "3×96", "288", "stage", "5", "head"]
    # Columns are straight.
    assert len({line.index("stage") for line in lines[1:]}) == 1


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_tree_fits_into_any_terminal(
    project: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    screen = show(monkeypatch, "params", project / "tiny.toml", "--depth", "9", columns=columns)
    assert "layer4" in screen.written
    if columns >= 60:
        # A line that is too long would have gone on in the next one.
        rows = [line for line in screen.written.split("\n") if line.strip()]
        assert len(screen.lines) == len(rows)


def test_groups_have_colours_and_no_color_takes_only_them_away(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured = show(monkeypatch, "params", project / "tiny.toml")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = show(monkeypatch, "params", project / "tiny.toml")
    assert "\x1b[" in coloured.written
    assert "\x1b" not in plain.written
    assert coloured.lines == plain.lines
    colours = {
        word: next(
            cell.fg
            for row in coloured.screen.buffer.values()
            for column, cell in row.items()
            if "".join(row[column + at].data for at in range(4)) == word
        )
        for word in ("head", "rest")
    }
    assert colours == {"head": "cyan", "rest": "magenta"}


def test_parameters_in_no_group_stand_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show(monkeypatch, "params", project / "tiny.toml", "--set", 'group.rest.match=["layer1"]')
    assert any(line.endswith("no group") for line in screen.lines)
    assert "\x1b[1;31m" in screen.written


def test_what_a_glob_takes_of_a_module_is_counted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show(monkeypatch, "params", project / "tiny.toml", "layer1.0.bn?", "@head").lines
    module = next(line for line in lines if line.startswith("layer1.0 "))
    assert module.split()[1:4] == ["4", "of", "6"]
    at = lines.index(next(line for line in lines if line.startswith("`layer1.0.bn?` matches 4 of 47")))
    assert lines[at + 1 : at + 4 : 2] == ["  now in: rest 4", "  now in: head 2"]


def test_in_a_pipe_every_line_has_the_full_name() -> None:
    printed = invoke("params", SHIPPED / "hybrid.toml", "blocks.4.0.bn1").stdout.splitlines()
    assert [line.split()[0] for line in printed[1:3]] == ["blocks.4.0.bn1.weight", "blocks.4.0.bn1.bias"]
    assert not any("\x1b" in line or "├" in line for line in printed)
