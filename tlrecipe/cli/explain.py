"""`tlrecipe explain`: what a recipe means, or what an error code means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from tlrecipe.cli import console
from tlrecipe.cli.render import printable
from tlrecipe.cli.reporting import warn
from tlrecipe.language.diagnostics import CODES, Diagnostic, did_you_mean
from tlrecipe.workflow import checking

_EXIT_MEANINGS = {
    2: "usage",
    3: "recipe",
    4: "data",
    5: "weights or model file",
    6: "checkpoint or run directory",
    7: "numerics",
    8: "memory",
    9: "disk",
}


def is_code(text: str) -> bool:
    """Whether an argument of the command is an error code and not a recipe."""
    return re.fullmatch(r"TLR\d{3}", text, re.IGNORECASE) is not None


def explain_code(text: str, *, as_json: bool) -> None:
    """Say what a code stands for and which exit code it has. Raises a usage error for an unknown one."""
    code = text.upper()
    if code not in CODES:
        hint = did_you_mean(code, list(CODES))
        raise click.UsageError(f"there is no code {code}" + (f": {hint}" if hint else ""))
    exit_code = Diagnostic(code, "").exit_code
    if as_json:
        console.out(json.dumps({"code": code, "title": CODES[code], "exit_code": exit_code}))
    else:
        console.out(f"{code}: {CODES[code]}\nexit code {exit_code}: {_EXIT_MEANINGS[exit_code]}")


def explain_recipe(path: Path, overrides: Sequence[str], *, memory: bool, as_json: bool) -> None:
    """Print the plan of a recipe."""
    checked = checking.plan(path, overrides)
    if as_json:
        console.out(json.dumps(checked.explain(memory=memory), indent=2))
    else:
        text = checked.explain_text(memory=memory)
        console.out("\n".join(printable(line) for line in text.rstrip("\n").split("\n")))
    warn(checked.warnings)
