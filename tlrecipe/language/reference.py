"""The key reference in ``docs/recipe.md``, written from the grammar.

``python -m tlrecipe.language.reference docs/recipe.md`` renews it in place after a change of the grammar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tlrecipe.language import grammar
from tlrecipe.language.grammar import Shape, Table, inline

BEGIN = "<!-- reference: begin (written by `python -m tlrecipe.language.reference docs/recipe.md`) -->"
END = "<!-- reference: end -->"


def reference() -> str:
    """Every table and key of the grammar as Markdown, in the order of a recipe."""
    return "\n".join(line for table in _distinct_tables() for line in _section(table))


def renewed(page: str) -> str:
    """``page`` with everything between the two marks written anew. Raises ValueError without marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks for the reference")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def _distinct_tables() -> Iterator[Table]:
    """Tables in order; one that may stand in several places, such as an optimizer, only at the first."""
    seen: list[Shape] = []
    for table in grammar.tables():
        if table.shape not in seen:
            seen.append(table.shape)
            yield table


def _section(table: Table) -> Iterator[str]:
    yield f"### {table.title[:1].upper()}{table.title[1:]}"
    yield ""
    yield _sentence(table.shape["description"])
    yield ""
    yield "| key | value | default | what it does |"
    yield "| --- | --- | --- | --- |"
    chosen = grammar.tag(table.shape)
    required = table.shape.get("required", [])
    for key, node in table.shape["properties"].items():
        if chosen and key == chosen[0]:
            continue
        default = node.get("default")
        if key in required:
            said = "**required**"
        elif default is None or default in ([], ""):
            said = "–"
        else:
            said = _code(_without_unset(default))
        value = grammar.expected(grammar.shapes(node))
        example = _code(node["examples"][0])
        words = _sentence(node["description"])
        yield f"| `{key}` | {value.replace('|', chr(92) + '|')} | {said} | {words} Example: {example} |"
    yield ""


def _without_unset(default: object) -> object:
    if isinstance(default, dict):
        return {key: value for key, value in default.items() if value is not None}
    return default


def _sentence(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _code(value: object) -> str:
    return f"`{inline(value)}`".replace("|", r"\|")


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
