"""Tables in the docs that a command writes, between marks that name the command."""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "backbones.md"


def write_between_marks(command: str, text: str) -> None:
    """Replace what stands in the document between the marks of ``command``."""
    begin, end = f"<!-- begin: written by `{command}` -->", f"<!-- end of `{command}` -->"
    page = DOCUMENT.read_text(encoding="utf-8")
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{DOCUMENT} has no marks for `{command}`")
    DOCUMENT.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
