"""`tlrecipe preview`: what the augmentation of each phase does, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.reporting import warn
from tlrecipe.workflow import checking


def preview(path: Path, overrides: Sequence[str], out: Path | None, *, images: int, epochs: int) -> None:
    """Write a contact sheet: for each phase, some training images as they are and as its first epochs see
    them. By default `NAME-preview.png` beside where the command runs, NAME being the recipe's."""
    checked = checking.plan(path, overrides, needs_data=True)
    warn(checked.warnings)
    from tlrecipe.data.preview import contact_sheet, preview_rows
    from tlrecipe.language.grammar import inline
    from tlrecipe.planning.explain import given

    plan, listing = checked.plan, checked.listing
    assert listing is not None
    phases = []
    with checking.located(checked.document):
        for phase in plan.phases:
            keys = given(phase.augment)
            said = ", ".join(f"{key} = {inline(value)}" for key, value in keys.items()) or "no augmentation"
            rows = list(preview_rows(plan, phase, listing, images, epochs if keys else 0))
            phases.append((f"{phase.name}: {said}", rows))
    picture = io.BytesIO()
    contact_sheet(phases).save(picture, "PNG")
    out = out or Path(f"{plan.name}-preview.png")
    files.write_atomic(out, picture.getvalue())
    console.out(f"contact sheet: {out}")
