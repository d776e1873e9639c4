"""`tlrecipe new`: a commented recipe to start from, by the data that is there."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import tomli_w

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.render import printable
from tlrecipe.cli.reporting import warn
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.planning.strategy import (
    WHAT,
    Domain,
    Setting,
    Settings,
    Strategy,
    Survey,
    choose,
    settings,
)

_WIDTH = 80
_TO_STDOUT = Path("-")
# What shipped recipes/hybrid.toml has for the data set in the package.
_TEMPLATE_STRATEGY = Strategy("hybrid", "it is the default where nothing is known of the data", ())
_TEMPLATE_SETTINGS = Settings(
    size=Setting(128, "Pixels that the backbone sees."),
    batch_size=Setting(64, "Images per step."),
    val=Setting(0.1, "Share of the training images that is held out for validation."),
    crop_pct=Setting(1.0, "These images are small: keep all of each instead of cutting a border off."),
    hflip=Setting(True, "Mirrors left and right at random: false if that changes what an image shows."),
    uneven=False,
    head_epochs=15,
    epochs=6,
    notes=(),
)


def new(data: Path | None, out: Path | None, *, domain: Domain | None, strategy: str | None) -> None:
    """Write a recipe for the images in ``data``, or a template, and say why it is this one.

    Raises:
        TlrecipeError: TLR007 where the file is there already, TLR401 to TLR403 where the data is not
            fit, TLR901 where the file cannot be written.
    """
    name = "hybrid" if data is None else _name(data)
    out = out or Path(f"{name}.toml")
    if out != _TO_STDOUT:
        _refuse_existing(out)
    wanted = next((name for name in WHAT if name.replace(" ", "-") == strategy), None)
    survey = None if data is None else _look_at(data)
    if survey is None:
        chosen, values = _TEMPLATE_STRATEGY, _TEMPLATE_SETTINGS
        if wanted is not None:
            chosen = Strategy(wanted, "it was asked for", ())
    else:
        chosen = choose(survey, domain, wanted)
        values = settings(survey, chosen.name)
    text = _recipe(name, data, out, survey, chosen, values)
    words = _words(data, survey, chosen, values)
    if out == _TO_STDOUT:
        console.note(words)
        console.out(text.rstrip("\n"))
        return
    files.write_atomic(out, text.encode())
    shown = shlex.quote(printable(str(out)))
    console.out(f"{words}\n\nwrote {shown}\nnext: tlrecipe explain {shown}\n      tlrecipe run {shown}")


def _name(data: Path) -> str:
    """The folder's name as a recipe may have it."""
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", data.resolve().name.removesuffix(".zip")).strip("-_")
    return words[:64] or "recipe"


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise TlrecipeError.of(
            "TLR007", f"`{out}` is there already", help="name another file with -o, or remove this one"
        )
    if not out.absolute().parent.is_dir():
        raise TlrecipeError.of("TLR901", f"there is no folder `{out.parent}`", help="make it first")


def _look_at(data: Path) -> Survey:
    from tlrecipe.data.sources import list_data
    from tlrecipe.data.survey import survey
    from tlrecipe.language.spec import FolderData

    listing = list_data(FolderData(source="folder", path=str(data), val=0.0), seed=0)
    warn(listing.warnings)
    return survey(listing)


# --------------------------------------------------------------------------- in words


def _seen(survey: Survey) -> list[str]:
    """What the data looks like, in sentences."""
    few, many = min(survey.classes.values()), max(survey.classes.values())
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    others = [f"{survey.counts[split]:,} {split}" for split in ("val", "test") if split in survey.counts]
    images = " and ".join(others) + " images" if others else "no validation or test images"
    train, classes = f"{survey.counts['train']:,}", len(survey.classes)
    seen = [f"{train} training images of {classes} classes, {each} of each; {images}."]
    if survey.typical:
        colour = "grey" if survey.grey else "in colour"
        of = f"by the headers of {survey.sampled} images"
        seen.append("The typical image has {}×{} pixels, {}, {}.".format(*survey.typical, colour, of))
    return seen


def _changes(strategy: Strategy) -> list[str]:
    """What would lead to another strategy, as a list."""
    listed = [f"- {condition}: {other}" for condition, other in strategy.alternatives]
    return ["Another strategy would fit if", *listed] if listed else []


def _words(data: Path | None, survey: Survey | None, strategy: Strategy, values: Settings) -> str:
    parts = [] if survey is None else [f"{data}: {' '.join(_seen(survey))}", ""]
    parts += [f"strategy: {strategy.name}", f"what: {WHAT[strategy.name]}", f"why: {strategy.reason}"]
    parts += _changes(strategy)
    if survey is None:
        parts.append("For a folder of images (tlrecipe new photos) it is chosen by what is there.")
    parts += ["", *(f"note: {note}" for note in values.notes)] if values.notes else []
    return "\n".join(line for part in parts for line in _wrapped(printable(part), ""))


def _wrapped(text: str, mark: str) -> list[str]:
    """``text`` in lines of at most 80 columns that begin with ``mark``; entries of a list are indented."""
    rest = f"{mark}  " if text.startswith("- ") or not mark else mark
    lines = textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=rest, break_on_hyphens=False)
    return lines or [mark.rstrip()]


# --------------------------------------------------------------------------- the recipe


def _recipe(
    name: str, data: Path | None, out: Path, survey: Survey | None, strategy: Strategy, values: Settings
) -> str:
    about = [] if survey is None else [*_seen(survey), ""]
    about += [f"Strategy: {strategy.name}, because {strategy.reason}."]
    about += _changes(strategy)
    about += [part for note in values.notes for part in ("", note)]
    what = WHAT[strategy.name]
    folder = Path.cwd() if out == _TO_STDOUT else out.absolute().parent
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"comment": _comment, "commented_out": _commented_out, "toml": _toml}
    template = resources.files("tlrecipe.cli").joinpath("recipe.toml.jinja").read_text("utf-8")
    rendered = environment.from_string(template).render(
        title=f"{strategy.name[0].upper()}{strategy.name[1:]}: {what}.",
        file="RECIPE" if out == _TO_STDOUT else printable(out.name),
        about=about,
        name=name,
        description=f"{what[0].upper()}{what[1:]}.",
        path=None if data is None else os.path.relpath(data, folder),
        values=values,
        strategy=strategy.name,
    )
    return rendered.strip("\n") + "\n"


def _comment(paragraphs: Iterable[str]) -> str:
    """Sentences as comment lines of at most 80 columns; an empty one is an empty line."""
    return "\n".join(line for text in paragraphs for line in _wrapped(printable(text), "# "))


def _commented_out(lines: str) -> str:
    """The lines as comments, without the comments that are among them."""
    return "\n".join(f"# {line}".rstrip() for line in lines.split("\n") if not line.startswith("#"))


def _toml(value: Any) -> str:
    return tomli_w.dumps({"": value}).partition(" = ")[2].rstrip("\n")
