"""`tlrecipe explain`: what a recipe means, or what an error code means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlrecipe.cli import console
from tlrecipe.cli.render import printable
from tlrecipe.language.diagnostics import CODES, Diagnostic, did_you_mean
from tlrecipe.language.explanations import EXPLANATIONS, explain

if TYPE_CHECKING:
    from tlrecipe.cli.checking import Checked
    from tlrecipe.planning.explain import PrefixFacts


def is_code(text: str) -> bool:
    """Whether an argument of the command is an error code and not a recipe."""
    return re.fullmatch(r"TLR\d{3}", text, re.IGNORECASE) is not None


def explain_code(text: str, *, as_json: bool) -> None:
    """Say what a code means, with an example and the cure. Raises a usage error for an unknown one."""
    code = text.upper()
    if code not in CODES:
        hint = did_you_mean(code, list(CODES))
        raise click.UsageError(f"there is no code {code}" + (f": {hint}" if hint else ""))
    if as_json:
        facts = {"code": code, "title": CODES[code], "exit_code": Diagnostic(code, "").exit_code}
        console.out(json.dumps(facts | asdict(EXPLANATIONS[code]), indent=2))
    else:
        console.out(explain(code))


def explain_recipe(path: Path, overrides: Sequence[str], *, memory: bool, as_json: bool) -> None:
    """Print the plan of a recipe."""
    from tlrecipe.cli.checking import check
    from tlrecipe.cli.reporting import warn
    from tlrecipe.planning.explain import explain as facts_of
    from tlrecipe.planning.explain import explain_text

    checked = check(path, overrides, needs_data=False)
    facts = facts_of(checked.plan, checked.table, _prefixes(checked, memory=memory))
    if as_json:
        console.out(json.dumps(facts, indent=2))
    else:
        text = explain_text(facts, printable(" ".join(checked.document.recipe.description.split())))
        console.out("\n".join(printable(line) for line in text.rstrip("\n").split("\n")))
    warn(checked.warnings)


def _prefixes(checked: Checked, *, memory: bool) -> tuple[PrefixFacts, ...]:
    """What each phase could compute once, found on a network without memory behind its weights."""
    from tlrecipe.cli.checking import PLACEHOLDER_CLASSES
    from tlrecipe.models.backbones import rebuild
    from tlrecipe.models.table import weights_kind
    from tlrecipe.training.forecast import decoded_bytes, prefix_facts

    recipe, plan = checked.document.recipe, checked.plan
    said = {
        **recipe.backbone.model_dump(include={"source", "name"}),
        "weights": weights_kind(recipe.backbone.weights),
        "head": recipe.head.model_dump(),
        "size": recipe.data.size,
    }
    model = rebuild({"tlrecipe": said}, len(plan.classes) or PLACEHOLDER_CLASSES).to("meta")
    known = memory and checked.listing is not None
    pixels = decoded_bytes(checked.listing, plan.preprocessing) if known and checked.listing else 0
    facts = prefix_facts(plan, model, pixel_bytes=pixels)
    return facts if known else tuple(replace(item, memory_bytes=None) for item in facts)
