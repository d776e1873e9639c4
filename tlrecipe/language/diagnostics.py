"""What can be wrong, said once: a code, a sentence, a place and a cure.

Every part of the program reports mistakes as :class:`Diagnostic` values inside a
:class:`TlrecipeError`; only the command line turns them into text and exit codes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Path = tuple[str | int, ...]
"""A place in a recipe as keys and list positions: ``("phase", 0, "freeze", 1)``."""


@dataclass(frozen=True)
class Label:
    """A second place that belongs to a diagnostic, such as the first of two duplicates."""

    path: Path
    text: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    end_column: int | None = None
    source: str | None = None
    at: Literal["value", "key"] = "value"


@dataclass(frozen=True)
class Diagnostic:
    """One mistake (or warning), with its place and its cure.

    ``path`` is where it stands in the recipe; ``file``, ``line``, ``column`` (1-based, in
    characters), ``end_column`` (exclusive) and ``source`` (the text of the line) are filled in by
    :meth:`tlrecipe.language.text.Document.locate`. ``at`` says whether the key or its value is meant.
    """

    code: str
    message: str
    path: Path = ()
    help: str | None = None
    labels: tuple[Label, ...] = ()
    label: str | None = None
    """What is marked, in a few words, where ``labels`` mark other places as well."""
    severity: Literal["error", "warning"] = "error"
    at: Literal["value", "key"] = "value"
    file: str | None = None
    line: int | None = None
    column: int | None = None
    end_column: int | None = None
    source: str | None = None

    @property
    def exit_code(self) -> int:
        """The process exit code of this code: its hundreds digit, and 3 for everything in a recipe."""
        if self.code in ("TLR001", "TLR007"):
            return 2
        return max(3, int(self.code[3:-2]))


class TlrecipeError(Exception):
    """One or more mistakes that stop the work. Never empty; carries all that were found at once."""

    def __init__(self, diagnostics: Iterable[Diagnostic]):
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        if not self.diagnostics:
            raise ValueError("a TlrecipeError needs at least one diagnostic")
        super().__init__("; ".join(f"{d.code}: {d.message}" for d in self.diagnostics))

    @classmethod
    def of(cls, code: str, message: str, *, path: Path = (), help: str | None = None) -> TlrecipeError:
        return cls([Diagnostic(code, message, path, help)])

    @property
    def exit_code(self) -> int:
        return self.diagnostics[0].exit_code


def capped(diagnostics: Sequence[Diagnostic], limit: int = 20) -> list[Diagnostic]:
    """The first ``limit`` of many diagnostics of one code, and one more that counts the rest."""
    rest = len(diagnostics) - limit
    if rest <= 0:
        return list(diagnostics)
    last = diagnostics[-1]
    return [*diagnostics[:limit], Diagnostic(last.code, f"and {rest:,} more", last.path, last.help)]


def nearest(word: str, names: Sequence[str], count: int = 1) -> list[str]:
    """The ``count`` valid names that look most like ``word``, best first; empty if none is near."""
    folded = {name.lower(): name for name in reversed(names)}
    hits = difflib.get_close_matches(word.lower(), folded, n=count, cutoff=0.55)
    return [folded[hit] for hit in hits]


def did_you_mean(word: str, names: Sequence[str], count: int = 1) -> str | None:
    """A help sentence that names what was probably meant, or None."""
    hits = nearest(word, names, count)
    if not hits:
        return None
    quoted = [f"`{hit}`" for hit in hits]
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
    return f"did you mean {listed}?"


CODES: dict[str, str] = {
    # the file and its syntax
    "TLR001": "the recipe cannot be opened",
    "TLR002": "not a regular file, or too large",
    "TLR003": "not UTF-8",
    "TLR004": "not valid TOML",
    "TLR005": "`extends` cannot be followed",
    "TLR006": "an override (`--set`) cannot be applied",
    "TLR007": "the file is there already",
    # grammar
    "TLR101": "unknown key",
    "TLR102": "wrong type or value",
    "TLR103": "a required key is missing",
    # names and patterns
    "TLR104": "a pattern matches no parameter",
    "TLR105": "a pattern is taken whole by an earlier one",
    "TLR106": "not a valid pattern",
    "TLR107": "a parameter is in no group",
    "TLR108": "a tied parameter is claimed twice",
    "TLR109": "duplicate name",
    "TLR110": "unknown group name",
    "TLR111": "a group that trains has no learning rate",
    "TLR112": "unknown backbone",
    "TLR113": "the backbone cannot be built",
    "TLR114": "an argument that the backbone does not take",
    "TLR115": "an adapter has no place",
    # phases
    "TLR120": "a phase trains nothing",
    "TLR121": "the new head is frozen",
    "TLR122": "frozen layers on random weights",
    "TLR123": "epochs or steps: exactly one",
    "TLR124": "the schedule does not fit into the phase",
    "TLR125": "the last batch of an epoch has one image",
    "TLR126": "`start_from` has nothing to start from",
    "TLR127": "stopping or keeping the best needs a validation split",
    "TLR128": "the batch is larger than the data",
    "TLR129": "a `thaw` pattern exempts nothing",
    "TLR130": "a rate for a group that does not train",
    "TLR131": "the backbone does not take this image size",
    "TLR132": "a metric that says nothing about these data",
    "TLR133": "the augmentation contradicts itself",
    "TLR134": "unknown class name",
    "TLR135": "the classes are unbalanced",
    "TLR136": "there are no weights to hold on to",
    "TLR137": "a method that adapters rule out",
    "TLR138": "an adapter that is of no use",
    # data
    "TLR401": "the data cannot be found or read",
    "TLR402": "the data has no usable classes",
    "TLR403": "the splits do not agree",
    "TLR404": "an image cannot be used",
    "TLR405": "the validation split is not possible",
    "TLR406": "a table of images has a mistake",
    # weights and models
    "TLR501": "the weights cannot be found",
    "TLR502": "the weights are not what they should be",
    "TLR503": "the weights do not fit the model",
    "TLR504": "a model bundle cannot be read",
    "TLR505": "the weights may not be used for everything",
    # run directory and checkpoints
    "TLR601": "the run directory cannot be used",
    "TLR602": "a checkpoint cannot be used",
    # numerics
    "TLR701": "a value is not finite",
    "TLR702": "a frozen tensor moved",
    # memory, disk, processes
    "TLR801": "out of memory",
    "TLR901": "the disk cannot be written",
    "TLR1001": "a worker does not answer",
}
"""Every code and its title. A code is never reused; its hundreds are its exit code (0 to 3: 3)."""
