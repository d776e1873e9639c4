"""Completion in the shell: commands and options by click, and what only tlrecipe knows.

Nothing here may import PyTorch, and nothing may fail: where something cannot be known, there is nothing to
suggest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.language.diagnostics import CODES, TlrecipeError

_MANY = 2000


def print_script(shell: str) -> None:
    """Print what a shell has to evaluate, and learn the backbones' names while nobody waits for a key."""
    from tlrecipe.cli.app import cli

    complete = get_completion_class(shell)
    assert complete is not None
    console.out(complete(cli, {}, "tlrecipe", "_TLRECIPE_COMPLETE").source().rstrip("\n"))
    backbones("")


# --------------------------------------------------------------------------- what can be suggested


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes here and one folder below, as far as they begin like this; else any file."""
    typed = Path(incomplete)
    folder, start = (typed, "") if incomplete.endswith("/") else (typed.parent, typed.name)
    try:
        places = [folder, *(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))]
        found = sorted(
            str(path)
            for place in places
            for path in place.glob("*.toml")
            if path.name != "pyproject.toml" and str(path.relative_to(folder)).startswith(start)
        )
    except OSError:
        found = []
    prefix = "./" if incomplete.startswith("./") else ""
    if not found:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(prefix + name) for name in found]


def recipes_or_codes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Error codes where one was begun, else recipes."""
    if incomplete.upper().startswith("TLR"):
        return [
            CompletionItem(code, help=title)
            for code, title in CODES.items()
            if code.startswith(incomplete.upper())
        ]
    return recipes(context, parameter, incomplete)


def names_of_kind(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Backbones, where they are what is listed."""
    wanted = context.params.get("kind") == "backbones"
    return _items(backbones(incomplete)) if wanted else []


def overrides(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of the recipe that was named, and names of backbones behind ``backbone.name=``."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return _items(f"{key}={name}" for name in backbones(value)) if key == "backbone.name" else []
    return _items(f"{name}=" for name in _keys() if name.startswith(key))


def backbones(start: str) -> list[str]:
    """Names of backbones that begin like this, each once."""
    from tlrecipe.models.names import known_backbones

    names = dict.fromkeys(name for name, _ in known_backbones(files.cache_dir()))
    return [name for name in names if name.startswith(start)]


def _keys() -> list[str]:
    """Keys of the recipe on the line. Click has not read its arguments where an option lacks its value."""
    from tlrecipe.language.layers import settable_keys
    from tlrecipe.language.source import read_source

    named = next((word for word in os.environ["COMP_WORDS"].split() if word.endswith(".toml")), "")
    try:
        return settable_keys(read_source(Path(named)), Path(named))
    except TlrecipeError:
        return []


def _items(values: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(value) for value in list(values)[:_MANY]]


# --------------------------------------------------------------------------- bash


@add_completion_class
class _Bash(BashComplete):
    """Bash takes ``key=value`` apart at the equals sign, and replaces only what stands behind it."""

    def get_completion_args(self) -> tuple[list[str], str]:
        arguments, incomplete = super().get_completion_args()
        if incomplete == "=":
            arguments, incomplete = [*arguments, "="], ""
        joined: list[str] = []
        for word in [*arguments, incomplete]:
            before = joined[-1] if joined else "--"
            if (word == "=" or before.endswith("=")) and before != "=" and not before.startswith("--"):
                joined[-1] += word
            else:
                joined.append(word)
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        # Only what the cursor stands in is replaced: the value, once there is an equals sign.
        behind = os.environ["COMP_WORDS"].split("\n")[int(os.environ["COMP_CWORD"]) - 1 :]
        value = item.value.partition("=")[2] if "=" in behind[:2] else item.value
        return f"{item.type},{value}"
