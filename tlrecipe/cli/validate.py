"""`tlrecipe validate`: everything that `run` checks before it trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.exceptions import Exit

from tlrecipe.cli import console
from tlrecipe.cli.card import card_lines
from tlrecipe.cli.progress import progress
from tlrecipe.cli.render import printable
from tlrecipe.cli.reporting import errors_as_text, tell
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.workflow import checking


def validate(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    *,
    decode: bool,
    plain: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check every recipe, and say one line for each that is right; exit by the first error.

    With ``decode``, the card of its data follows; with ``as_json`` the cards are all that is printed.
    """
    cards: dict[str, Any] = {}
    reported: list[Diagnostic] = []
    exit_code = 0
    for path in recipes:
        try:
            checked = checking.plan(path, overrides, needs_data=decode)
            reported += checked.warnings
            card = None
            if decode:
                with progress(plain=plain, quiet=quiet) as show:
                    card, warnings = checking.opened(checked, show)
                cards[str(path)] = card.as_dict()
                reported += warnings
            if errors_as_text() and not as_json:
                console.out(f"{printable(str(path))}: ok, {_summary(checked)}")
                for line in card_lines(card) if card else ():
                    console.out(line)
        except TlrecipeError as error:
            reported += error.diagnostics
            exit_code = exit_code or error.exit_code
    if as_json:
        console.out(json.dumps(cards, indent=2))
    tell(reported)
    raise Exit(exit_code)


def _summary(checked: checking.Checked) -> str:
    plan = checked.plan
    phases = f"{len(plan.phases)} phase{'s' if len(plan.phases) > 1 else ''}"
    if checked.listing is None:
        return f"{phases}; its data is not there"
    counts = checked.listing.info.counts
    named = (("train", "training"), ("val", "validation"), ("test", "test"))
    images = [f"{counts[split]:,} {name} images" for split, name in named if counts.get(split)]
    return ", ".join([phases, f"{len(plan.classes)} classes", *images])
