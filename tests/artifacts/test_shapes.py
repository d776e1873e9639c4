"""Figures: what is drawn where, as SVG and as PNG."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tlrecipe.artifacts.report import charts, text
from tlrecipe.artifacts.report.charts import Curve, Row, Span, spread
from tlrecipe.artifacts.report.shapes import LIGHT, Figure, Line, shortened, text_width

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figure() -> Figure:
    return charts.curves(
        [Curve("<b>&", "s1", [[(0, 0.2), (5, 0.4)], [(5, 0.9), (10, 0.1)]], thick=True)],
        title="A title",
        description="What it shows",
        width=400,
        number=lambda value: f"{value:.1f}",
        x_name="steps",
        spans=[Span("first", 0, 5), Span("second", 5, 10)],
        rows=[Row("all", "s1", [("trains", True), ("frozen", False)])],
        height=270,
        hints=[(2.5, "here")],
    )


def test_a_file_is_valid_and_says_what_it_shows(figure: Figure) -> None:
    root = ET.fromstring(figure.svg_file())
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title").text == "A title"  # type: ignore[union-attr]
    assert root.find(f"{SVG}desc").text == "What it shows"  # type: ignore[union-attr]
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"<b>&", "first", "second", "trains", "frozen", "steps", "all"} <= set(words)


def test_a_curve_is_broken_where_a_phase_ends_and_stays_inside(figure: Figure) -> None:
    lines = [shape for shape in figure.shapes if isinstance(shape, Line) and shape.width == 2.25]
    assert len(lines) == 2
    for line in lines:
        assert all(0 < x < 400 and 0 < y < 270 for x, y in line.points)
    rising, falling = (line.points for line in lines)
    assert rising[0][1] > rising[1][1]
    assert falling[0][1] < falling[1][1]


def test_a_png_has_twice_the_size_and_its_colours(figure: Figure) -> None:
    image = Image.open(io.BytesIO(figure.png()))
    assert image.size == (800, 540)
    colours = {colour for _, colour in image.getcolors(1 << 20)}  # type: ignore[union-attr]
    blue = LIGHT["s1"]
    assert tuple(int(blue[i : i + 2], 16) for i in (1, 3, 5)) in colours


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_names_at_the_ends_of_lines_do_not_overlap(places: list[float]) -> None:
    moved = sorted(spread(places, 15, 0, 100))
    assert all(after - before >= 15 - 1e-9 for before, after in pairwise(moved))
    assert moved[-1] <= 100 + 1e-9


def test_long_names_keep_both_ends() -> None:
    name = shortened("a" + "-" * 200 + "z", 100)
    assert text_width(name) <= 100
    assert (name[0], name[-1]) == ("a", "z")
    assert "…" in name


def test_a_flat_line_and_a_single_point_are_drawn() -> None:
    for points in ([(1, 0.5), (2, 0.5)], [(1, 0.5)]):
        drawn = charts.curves(
            [Curve("one", "s1", [points])],
            title="",
            description="",
            width=300,
            number=str,
            x_name="epochs",
        )
        assert "NaN" not in drawn.svg()


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1e-3, "0.001"), (3e-4, "3e−4"), (1.5e-5, "1.5e−5"), (0.1, "0.1")],
)
def test_rates_are_short(value: float, shown: str) -> None:
    assert text.rate(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_carry_over(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_what_acts_is_made_visible_and_scripts_are_left_alone() -> None:
    assert text.visible("a\u202eb\x1b\udcff") == "a\\u202eb\\x1b\\udcff"
    assert text.visible("كلب نمی\u200cخواهم") == "كلب نمی\u200cخواهم"
