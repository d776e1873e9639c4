"""All that is known and checked about a recipe before training: the one path of `validate`, `explain`
and `run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlrecipe import files
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped
from tlrecipe.language.text import Document, Overrides, load

if TYPE_CHECKING:
    from torch import nn

    from tlrecipe.data.card import DataCard
    from tlrecipe.data.listing import Listing
    from tlrecipe.planning.explain import PrefixFacts
    from tlrecipe.planning.facts import ParamTable
    from tlrecipe.planning.plan import Plan
    from tlrecipe.training.engine import Emit

# Stands in for the number of classes where the data is not there; no check depends on it.
PLACEHOLDER_CLASSES = 2


@dataclass(frozen=True)
class Checked:
    """A recipe without mistakes: its plan, and all that the plan was made from."""

    document: Document
    table: ParamTable
    """The parameters of the network."""
    listing: Listing | None
    """The images by split; None where the data is not there."""
    plan: Plan
    warnings: tuple[Diagnostic, ...]

    def explain(self, *, memory: bool = False) -> dict[str, Any]:
        """The plan as plain data: who trains when and at which rates, what became of every pattern, what
        can be computed once. With ``memory`` also the predicted peak of each phase, in bytes."""
        from tlrecipe.planning.explain import explain

        return explain(self.plan, self.table, self._prefixes(memory=memory))

    def explain_text(self, *, memory: bool = False) -> str:
        """:meth:`explain` as text of at most 80 columns."""
        from tlrecipe.planning.explain import explain_text

        return explain_text(self.explain(memory=memory), " ".join(self.document.recipe.description.split()))

    def _prefixes(self, *, memory: bool) -> tuple[PrefixFacts, ...]:
        """What each phase could compute once, found on a network without memory behind its weights."""
        if not memory or self.listing is None:
            return tuple(replace(item, memory_bytes=None) for item in self._forecast[1])
        from tlrecipe.training.forecast import decoded_bytes, with_pixels

        return with_pixels(self._forecast[1], decoded_bytes(self.listing, self.plan.preprocessing))

    def unfit_phases(self) -> tuple[Diagnostic, ...]:
        """The phases that cannot fit into this machine's memory as errors, those that may not as warnings."""
        from tlrecipe.training.forecast import unfit_phases

        model, facts = self._forecast
        return self.document.locate(unfit_phases(self.plan, model, facts))

    @cached_property
    def _forecast(self) -> tuple[nn.Module, tuple[PrefixFacts, ...]]:
        """The network without memory behind its weights, and what is foreseen of it, images not counted."""
        from tlrecipe.models.backbones import outline
        from tlrecipe.training.forecast import prefix_facts

        recipe = self.document.recipe
        classes = len(self.plan.classes) or PLACEHOLDER_CLASSES
        model = outline(recipe.backbone, recipe.head, classes, recipe.data.size)
        return model, prefix_facts(self.plan, model)


def plan(recipe: str | Path | Document, overrides: Overrides = (), *, needs_data: bool = False) -> Checked:
    """Read a recipe, list its data, describe its network and compile the plan.

    No weights, no network and no decoded image are needed. Where the data is not there, that is an error
    if ``needs_data``, else a warning that says what could not be checked.

    Args:
        recipe: A recipe file, or what :func:`tlrecipe.load` and :func:`tlrecipe.loads` gave.
        overrides: Values to change in a recipe file; see :func:`tlrecipe.load`.
        needs_data: Whether missing data is an error.

    Raises:
        TlrecipeError: with all mistakes at once; those of the text alone where it cannot be understood.
        ValueError: where there are overrides for a recipe that is loaded already.
    """
    document = _document(recipe, overrides)
    # The grammar is checked without these imports, which take seconds.
    from tlrecipe.data.sources import list_data
    from tlrecipe.models.table import described
    from tlrecipe.planning.compile import compile_recipe

    said = document.recipe
    found: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    listing = table = compiled = None
    try:
        listing = list_data(said.data, said.seed, fetch=needs_data)
        warnings += listing.warnings
    except TlrecipeError as error:
        absent = not needs_data and all(d.code == "TLR401" for d in error.diagnostics)
        if absent:
            warnings += [_unchecked(d) for d in error.diagnostics]
        else:
            found += error.diagnostics
    try:
        table = described(
            said.backbone,
            said.head,
            len(listing.info.classes) if listing else PLACEHOLDER_CLASSES,
            files.cache_dir(),
            said.data.size,
        )
        compiled = compile_recipe(said, table, listing.info if listing else None)
        warnings += compiled.warnings
    except TlrecipeError as error:
        found = [*error.diagnostics, *found]
    if found or table is None or compiled is None:
        raise TlrecipeError(document.locate(found))
    return Checked(document, table, listing, compiled, document.locate(warnings))


def validate(
    recipe: str | Path | Document, overrides: Overrides = (), *, decode: bool = False
) -> tuple[Diagnostic, ...]:
    """Everything that is wrong with a recipe, and everything odd: the mistakes as errors, or the warnings
    of a recipe without any. Empty where there is nothing to say.

    Args:
        recipe: A recipe file, or what :func:`tlrecipe.load` and :func:`tlrecipe.loads` gave.
        overrides: Values to change in a recipe file; see :func:`tlrecipe.load`.
        decode: Open every image too, which takes as long as decoding them.
    """
    try:
        checked = plan(recipe, overrides, needs_data=decode)
        return (*checked.warnings, *(opened(checked)[1] if decode else ()))
    except TlrecipeError as error:
        return error.diagnostics


def opened(
    checked: Checked, emit: Emit = lambda kind, /, **fields: None
) -> tuple[DataCard, tuple[Diagnostic, ...]]:
    """Open every image; give the data's card, and warnings: for each file that the recipe says to skip, for
    images in two splits, and for files that have changed.

    Raises TLR402 and TLR404 with the mistakes of all splits.
    """
    from tlrecipe.data.card import data_card, findings
    from tlrecipe.workflow.decoding import DecodedData, left_out

    listing = checked.listing
    assert listing is not None
    errors: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    decoded = {}
    data = DecodedData(listing, checked.document.recipe.data.on_bad, emit)
    for split in listing.splits:
        try:
            pixels = data(split, checked.plan.preprocessing)
        except TlrecipeError as error:
            errors += error.diagnostics
        else:
            assert pixels is not None
            decoded[split] = pixels
            warnings += left_out(pixels, listing)
    if errors:
        raise TlrecipeError(checked.document.locate(errors))
    card = data_card(listing, decoded)
    warnings = [*(capped(warnings) if warnings else ()), *findings(card, listing)]
    return card, checked.document.locate(warnings)


def _document(recipe: str | Path | Document, overrides: Overrides) -> Document:
    if not isinstance(recipe, Document):
        return load(recipe, overrides)
    if overrides:
        raise ValueError("overrides are for a recipe file; give them to `load` for a loaded one")
    return recipe


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
