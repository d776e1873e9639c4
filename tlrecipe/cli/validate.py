"""`tlrecipe validate`: everything that `run` checks before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from click.exceptions import Exit

from tlrecipe.cli import console
from tlrecipe.cli.checking import Checked, check
from tlrecipe.cli.render import printable
from tlrecipe.cli.reporting import errors_as_text, tell
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped


def validate(recipes: Sequence[Path], overrides: Sequence[str], *, decode: bool) -> None:
    """Check every recipe, and say one line for each that is right; exit by the first error."""
    reported: list[Diagnostic] = []
    exit_code = 0
    for path in recipes:
        try:
            checked = check(path, overrides, needs_data=decode)
            reported += checked.warnings
            if decode:
                reported += _decode(checked)
            if errors_as_text():
                console.out(f"{printable(str(path))}: ok, {_summary(checked)}")
        except TlrecipeError as error:
            reported += error.diagnostics
            exit_code = exit_code or error.exit_code
    tell(reported)
    raise Exit(exit_code)


def _summary(checked: Checked) -> str:
    plan = checked.plan
    phases = f"{len(plan.phases)} phase{'s' if len(plan.phases) > 1 else ''}"
    if checked.listing is None:
        return f"{phases}; its data is not there"
    counts = checked.listing.info.counts
    named = (("train", "training"), ("val", "validation"), ("test", "test"))
    images = [f"{counts[split]:,} {name} images" for split, name in named if counts.get(split)]
    return ", ".join([phases, f"{len(plan.classes)} classes", *images])


def _decode(checked: Checked) -> Sequence[Diagnostic]:
    """Open every image, and give a warning for each file that the recipe says to skip.

    Raises TLR402 and TLR404 with the mistakes of all splits.
    """
    from tlrecipe.cli.decoding import DecodedData, left_out
    from tlrecipe.cli.progress import progress

    listing = checked.listing
    assert listing is not None
    errors: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    with progress(plain=False) as emit:
        data = DecodedData(listing, checked.document.recipe.data.on_bad, emit)
        for split in listing.splits:
            try:
                pixels = data(split, checked.plan.preprocessing)
            except TlrecipeError as error:
                errors += error.diagnostics
            else:
                assert pixels is not None
                warnings += left_out(pixels, listing)
    if errors:
        raise TlrecipeError(checked.document.locate(errors))
    return checked.document.locate(capped(warnings)) if warnings else ()
