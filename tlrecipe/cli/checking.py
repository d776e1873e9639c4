"""All that is known and checked about a recipe before training: the one path of `validate`, `explain`
and `run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tlrecipe import files
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.language.text import Document, load

if TYPE_CHECKING:
    from tlrecipe.data.listing import Listing
    from tlrecipe.planning.facts import ParamTable
    from tlrecipe.planning.plan import Plan

# Stands in for the number of classes where the data is not there; no check depends on it.
PLACEHOLDER_CLASSES = 2


@dataclass(frozen=True)
class Checked:
    """A recipe without mistakes."""

    document: Document
    table: ParamTable
    listing: Listing | None
    """None where the data is not there."""
    plan: Plan
    warnings: tuple[Diagnostic, ...]


def check(path: Path, overrides: Sequence[str] = (), *, needs_data: bool) -> Checked:
    """Read a recipe, list its data, describe its network and compile the plan.

    No weights, no network and no decoded image are needed. Where the data is not there, that is an error
    if ``needs_data``, else a warning that says what could not be checked.

    Raises:
        TlrecipeError: with all mistakes at once; those of the text alone where it cannot be understood.
    """
    document = load(path, overrides)
    # The grammar is checked without these imports, which take seconds.
    from tlrecipe.data.sources import list_data
    from tlrecipe.models.table import described
    from tlrecipe.planning.compile import compile_recipe

    recipe = document.recipe
    found: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    listing = table = plan = None
    try:
        listing = list_data(recipe.data, recipe.seed)
        warnings += listing.warnings
    except TlrecipeError as error:
        absent = not needs_data and all(d.code == "TLR401" for d in error.diagnostics)
        if absent:
            warnings += [_unchecked(d) for d in error.diagnostics]
        else:
            found += error.diagnostics
    try:
        table = described(
            recipe.backbone,
            recipe.head,
            len(listing.info.classes) if listing else PLACEHOLDER_CLASSES,
            files.cache_dir(),
            recipe.data.size,
        )
        plan = compile_recipe(recipe, table, listing.info if listing else None)
        warnings += plan.warnings
    except TlrecipeError as error:
        found = [*error.diagnostics, *found]
    if found or table is None or plan is None:
        raise TlrecipeError(document.locate(found))
    return Checked(document, table, listing, plan, document.locate(warnings))


def _unchecked(missing: Diagnostic) -> Diagnostic:
    return replace(
        missing,
        severity="warning",
        message=f"{missing.message}; classes, splits and numbers of steps were not checked",
    )


@contextmanager
def located(document: Document) -> Iterator[None]:
    """Give mistakes that are found in the block their places in the recipe."""
    try:
        yield
    except TlrecipeError as error:
        raise TlrecipeError(document.locate(error.diagnostics)) from error
