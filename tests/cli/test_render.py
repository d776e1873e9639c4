"""Diagnostics as text of 80 columns, as JSON and as annotations."""

from __future__ import annotations

import json
import unicodedata
from textwrap import dedent

from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.cli.render import as_github, as_json, as_text
from tlrecipe.language.diagnostics import Diagnostic, Label

PATTERN = Diagnostic(
    "TLR104",
    "`layerr4` matches no parameter",
    ("phase", 0, "freeze", 0),
    "did you mean `layer4`?",
    file="recipe.toml",
    line=14,
    column=11,
    end_column=20,
    source='freeze = ["layerr4"]',
)


def text(*diagnostics: Diagnostic, width: int | None = 80) -> str:
    return "".join(part for part, _ in as_text(diagnostics, width))


def test_a_mistake_shows_its_place_the_line_and_the_cure() -> None:
    assert text(PATTERN) == dedent(
        """\
        recipe.toml:14:11: error[TLR104]: `layerr4` matches no parameter
        14 | freeze = ["layerr4"]
           |           ^^^^^^^^^
        help: did you mean `layer4`?

        1 error
        """
    )


def test_a_second_place_is_shown_too() -> None:
    first = Label((), "first defined here", "base.toml", 3, 1, 5, "name = 1")
    duplicate = Diagnostic(
        "TLR109", "twice", labels=(first,), file="r.toml", line=120, column=1, source="name = 2"
    )
    assert text(duplicate) == dedent(
        """\
        r.toml:120:1: error[TLR109]: twice
        120 | name = 2
            | ^
        base.toml:3:1: note: first defined here
        3 | name = 1
          | ----

        1 error
        """
    )


GROUPS = {3: 'match = ["layer4", "fc"]', 4: "", 8: 'match = ["layer4.1"]'}


def label(said: str, line: int, marked: str) -> Label:
    column = GROUPS[line].index(marked) + 1
    return Label((), said, "r.toml", line, column, column + len(marked), GROUPS[line])


def twice(*labels: Label, line: int = 8, marked: str = '"layer4.1"') -> Diagnostic:
    column = GROUPS[line].index(marked) + 1
    return Diagnostic(
        *("TLR105", "taken"),
        labels=labels,
        label="nothing is left",
        file="r.toml",
        line=line,
        column=column,
        end_column=column + len(marked),
        source=GROUPS[line],
    )


def test_places_in_one_file_are_shown_as_one_picture_in_the_order_of_the_file() -> None:
    assert text(twice(label("taken here", 3, '"layer4"'))) == dedent(
        """\
        r.toml:8:10: error[TLR105]: taken
        3 | match = ["layer4", "fc"]
          |          -------- taken here
        ...
        8 | match = ["layer4.1"]
          |          ^^^^^^^^^^ nothing is left

        1 error
        """
    )


def test_two_places_on_a_line_have_a_line_of_marks_each_and_neighbours_no_dots() -> None:
    GROUPS[4] = 'match = ["fc"]'
    shown = text(twice(label("one", 3, '"layer4"'), label("two", 3, '"fc"'), line=4, marked='"fc"'))
    assert shown.splitlines()[1:6] == [
        '3 | match = ["layer4", "fc"]',
        "  |          -------- one",
        "  |                    ---- two",
        '4 | match = ["fc"]',
        "  |          ^^^^ nothing is left",
    ]


def test_what_is_said_of_a_mark_stays_within_the_terminal() -> None:
    shown = text(twice(label("a long explanation", 3, '"fc"')), width=30)
    assert shown.splitlines()[2:5] == [
        '3 | match = ["layer4", "fc"]',
        "  |                    ----",
        "  |         a long explanation",
    ]


def test_places_go_into_json() -> None:
    (found,) = json.loads(as_json([twice(label("taken here", 3, '"layer4"'))]))
    assert found["labels"] == [
        {"file": "r.toml", "line": 3, "column": 10, "end_column": 18, "message": "taken here"}
    ]


def test_long_texts_are_wrapped_on_a_terminal_and_not_in_a_pipe() -> None:
    long = Diagnostic("TLR401", "word " * 30 + "end", help="cure " * 20 + "end", severity="warning")
    assert text(long) == dedent(
        """\
        warning[TLR401]: word word word word word word word word word word word word
          word word word word word word word word word word word word word word word
          word word word end
        help: cure cure cure cure cure cure cure cure cure cure cure cure cure cure cure
              cure cure cure cure cure end

        1 warning
        """
    )
    assert text(long, width=None).splitlines()[0] == f"warning[TLR401]: {'word ' * 30}end"


def test_mistakes_and_warnings_are_counted() -> None:
    warning = Diagnostic("TLR403", "odd", severity="warning")
    assert text(PATTERN, PATTERN, warning).endswith("\n\n2 errors, 1 warning\n")


def test_a_long_line_is_cut_around_the_span() -> None:
    source = f"match = [{', '.join(f'{chr(34)}blocks.{n}{chr(34)}' for n in range(60))}]"
    column = source.index("blocks.40") + 1
    shown = text(
        Diagnostic("TLR104", "x", file="r", line=7, column=column, end_column=column + 9, source=source)
    )
    assert shown.splitlines()[1:3] == [
        '7 | …ocks.38", "blocks.39", "blocks.40", "blocks.41", "blocks.42", "blocks.43",…',
        "  |                          ^^^^^^^^^",
    ]


def columns(line: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line
    )


@given(
    before=st.text(st.characters(exclude_characters="\n\rQ"), max_size=200),
    after=st.text(st.characters(exclude_characters="\n\rQ"), max_size=200),
    length=st.integers(1, 40),
    width=st.integers(30, 120),
)
def test_marks_stand_below_the_span_and_no_line_is_wider_than_the_terminal(
    before: str, after: str, length: int, width: int
) -> None:
    column = len(before) + 1
    source = f"{before}Q{after}"
    place = {"file": "r", "line": 1, "column": column, "end_column": column + length, "source": source}
    found = Diagnostic("TLR102", "x", **place)
    _, shown, marks, *_ = text(found, width=width).split("\n")
    assert columns(shown) <= width
    assert columns(marks) <= width
    assert columns(shown[: shown.index("Q")]) == marks.index("^")


def test_foreign_text_cannot_act_on_the_terminal() -> None:
    hostile = "\x1b[31mred\x07 \u202egnp.exe [bold]markup[/] \x9b2J \udcff \u200b \r\n::error::forged"
    found = Diagnostic(
        "TLR404",
        f"`{hostile}`",
        help=hostile,
        labels=(Label((), hostile, hostile, 1, 1, 2, hostile.replace("\n", " ")),),
        file=hostile,
        line=1,
        column=1,
        source=hostile.replace("\n", " "),
    )
    shown = text(found)
    assert "[bold]markup[/]" in shown
    assert r"\x1b[31mred\x07 \u202egnp.exe" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert not any(line.startswith("::error") for line in shown.splitlines())
    # A workflow command ends at a line feed, so none may be left.
    (command,) = as_github([found]).splitlines()
    assert all(char.isprintable() for char in command)


def test_json_has_one_object_per_mistake() -> None:
    parsed = json.loads(as_json([PATTERN, Diagnostic("TLR001", "gone", file="r.toml")]))
    assert parsed[0] == {
        "file": "recipe.toml",
        "line": 14,
        "column": 11,
        "code": "TLR104",
        "severity": "error",
        "path": ["phase", 0, "freeze", 0],
        "message": "`layerr4` matches no parameter",
        "help": "did you mean `layer4`?",
        "end_column": 20,
        "labels": [],
    }
    assert parsed[1]["line"] is None
    assert parsed[1]["path"] == []


def test_annotations_are_workflow_commands() -> None:
    assert as_github([PATTERN]) == (
        "::error file=recipe.toml,line=14,col=11,endColumn=20,title=TLR104"
        "::`layerr4` matches no parameter%0Ahelp: did you mean `layer4`?"
    )
    odd = Diagnostic("TLR401", "100% gone", file="a,b:c.toml", severity="warning")
    assert as_github([odd]) == "::warning file=a%2Cb%3Ac.toml,title=TLR401::100%25 gone"
