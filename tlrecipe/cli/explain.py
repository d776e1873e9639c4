"""`tlrecipe explain`: what a recipe means, or what an error code means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.render import printable
from tlrecipe.cli.reporting import warn
from tlrecipe.language.diagnostics import CODES, Diagnostic, TlrecipeError, did_you_mean
from tlrecipe.language.explanations import EXPLANATIONS, explain
from tlrecipe.workflow import checking

if TYPE_CHECKING:
    from tlrecipe.planning.plan import Plan

_PLOTS = (".svg", ".png")
_PLOT_WIDTH = 860.0


def is_code(text: str) -> bool:
    """Whether an argument of the command is an error code and not a recipe."""
    return re.fullmatch(r"TLR\d{3,4}", text, re.IGNORECASE) is not None


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


def explain_recipe(
    path: Path, overrides: Sequence[str], *, memory: bool, plot: Path | None, as_json: bool
) -> None:
    """Print the plan of a recipe, and draw it to the file ``plot``."""
    if plot is not None and plot.suffix.lower() not in _PLOTS:
        raise click.UsageError(f"--plot writes {' or '.join(_PLOTS)}, by the ending of the file: `{plot}`")
    checked = checking.plan(path, overrides)
    if plot is not None:
        _draw(checked.plan, plot)
    if as_json:
        console.out(json.dumps(checked.explain(memory=memory), indent=2))
    else:
        from tlrecipe.planning.explain import explain_text

        # Escaped before it is wrapped: what is escaped gets longer.
        title = printable(" ".join(checked.document.recipe.description.split()))
        text = explain_text(checked.explain(memory=memory), title)
        console.out("\n".join(printable(line) for line in text.rstrip("\n").split("\n")))
    unfit = checked.unfit_phases()
    warn([*checked.warnings, *(found for found in unfit if found.severity == "warning")])
    if errors := [found for found in unfit if found.severity == "error"]:
        raise TlrecipeError(errors)


def _draw(plan: Plan, path: Path) -> None:
    from tlrecipe.artifacts.report.page import rates_figure
    from tlrecipe.artifacts.report.record import planned

    figure = rates_figure(planned(plan.as_dict()), _PLOT_WIDTH)
    drawn = figure.png() if path.suffix.lower() == ".png" else figure.svg_file().encode()
    files.write_atomic(path, drawn)
    console.note(f"plot: {path}")
