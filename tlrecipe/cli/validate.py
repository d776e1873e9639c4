"""`tlrecipe validate`: everything that `run` checks before it trains."""

from __future__ import annotations

from pathlib import Path

import click

from tlrecipe.cli import console
from tlrecipe.cli.checking import Checked, check
from tlrecipe.cli.progress import progress
from tlrecipe.cli.reporting import errors_as_text, stop, tell
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError


def validate(recipes: tuple[Path, ...], overrides: tuple[str, ...], decode: bool) -> None:
    """Check every recipe, and say one line for each that is right; stop with the first error's code."""
    reported: list[Diagnostic] = []
    exit_code = 0
    for path in recipes:
        try:
            checked = check(path, overrides, needs_data=decode)
            reported += checked.warnings
            if decode:
                reported += _decode(checked)
            if errors_as_text():
                console.out(f"{path}: ok, {_summary(checked)}")
        except TlrecipeError as error:
            reported += error.diagnostics
            exit_code = exit_code or error.exit_code
    tell(reported)
    raise click.exceptions.Exit(exit_code)


def _summary(checked: Checked) -> str:
    plan = checked.plan
    phases = f"{len(plan.phases)} phase{'s' if len(plan.phases) > 1 else ''}"
    if checked.listing is None:
        return f"{phases}; without its data"
    counts = checked.listing.info.counts
    images = ", ".join(
        f"{counts[split]:,} {name} images"
        for split, name in (("train", "training"), ("val", "validation"), ("test", "test"))
        if counts.get(split)
    )
    return f"{phases}, {len(plan.classes)} classes, {images}"


def _decode(checked: Checked) -> list[Diagnostic]:
    """Open every image; files that the recipe says to skip become warnings."""
    from tlrecipe.data.pixels import decode_split

    recipe, listing = checked.document.recipe, checked.listing
    assert listing is not None
    warnings: list[Diagnostic] = []
    with progress(plain=False) as emit:
        for split in listing.splits:
            try:
                pixels = decode_split(
                    listing,
                    split,
                    checked.plan.preprocessing,
                    on_bad=recipe.data.on_bad,
                    progress=lambda done, total, split=split: emit(
                        "data", split=split, done=done, total=total
                    ),
                )
            except TlrecipeError as error:
                raise TlrecipeError(checked.document.locate(error.diagnostics)) from error
            warnings += [
                Diagnostic("TLR404", f"`{name}` is left out: {reason}", listing.place, severity="warning")
                for name, reason in pixels.bad
            ]
    return list(checked.document.locate(warnings))
