"""The texts that a recipe is read from: their bytes, their syntax, and places in them."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, NoReturn, TypeVar

from tlrecipe.language.diagnostics import Diagnostic, Label, Path, TlrecipeError, did_you_mean

MAX_BYTES = 1 << 20

OVERRIDES = "<--set>"
"""What stands in the place of a file name for what the command line overrides."""

Located = TypeVar("Located", Diagnostic, Label)


@dataclass(frozen=True)
class Spot:
    """A stretch of one line: 1-based, in characters, ``end_column`` exclusive."""

    line: int
    column: int
    end_column: int


@dataclass(frozen=True)
class Place:
    """Where a key and its value stand. The value of a table with a header is its header."""

    key: Spot
    value: Spot


@dataclass(frozen=True)
class Source:
    """A text that a recipe, or a part of one, is written in."""

    name: str
    """The file as the user named it, or :data:`OVERRIDES`."""
    text: str
    """As written, byte order mark included."""
    base: FilePath
    """Folder that relative paths in the text are relative to."""
    first_line: int = 1
    known_places: Mapping[Path, Place] | None = None
    """Places that are known without parsing: those of an override."""

    @cached_property
    def toml(self) -> str:
        """The text without byte order mark: what lines and columns count in."""
        return self.text.removeprefix("\ufeff")

    @cached_property
    def lines(self) -> list[str]:
        return [line.partition("\r")[0] for line in self.toml.split("\n")]

    @cached_property
    def _places(self) -> Mapping[Path, Place]:
        if self.known_places is not None:
            return self.known_places
        from tlrecipe.language.places import places

        return places(self.toml)

    def locate(self, item: Located, path: Path, *, at_key: bool = False) -> Located:
        """``item`` with the place of ``path``, or of the nearest enclosing table that is written out."""
        for length in range(len(path), 0, -1):
            place = self._places.get(path[:length])
            if place:
                return self.mark(item, place.key if at_key and length == len(path) else place.value)
        return self.mark_at(item, 1, 1)

    def mark(self, item: Located, spot: Spot) -> Located:
        return self.mark_at(item, spot.line, spot.column, spot.end_column)

    def mark_at(self, item: Located, line: int, column: int, end_column: int | None = None) -> Located:
        """``item`` at a line of this text (1-based), with its number in the file and its words."""
        return replace(
            item,
            file=self.name,
            line=self.first_line + line - 1,
            column=column,
            end_column=end_column or column + 1,
            source=self.lines[line - 1],
        )

    def parse(self) -> dict[str, Any]:
        """The values of the text. Raises TLR004 at the first mistake in its syntax."""
        carriage = re.search(r"\r(?!\n)", self.toml)
        if carriage:
            self._refuse(
                *self._position(carriage.start()),
                "a carriage return that no line feed follows",
                "save the file with the line ends LF or CR LF",
            )
        try:
            return tomllib.loads(self.toml)
        except tomllib.TOMLDecodeError as error:
            self._explain(str(error))
        except RecursionError:
            self._refuse(1, 1, "lists or tables are nested too deeply")
        except ValueError:
            # What Python refuses to read as an int: the only mistake that tomllib does not place.
            digits = re.search(r"[0-9_]{4000,}", self.toml)
            self._refuse(*self._position(digits.start() if digits else 0), "a number with too many digits")

    def _explain(self, reason: str) -> NoReturn:
        """Say what tomllib complains about, in the words of somebody who writes a recipe."""
        if reason.startswith(("Cannot", "Duplicate")):
            self._refuse_duplicate()
        found = re.search(r" \(at line (\d+), column (\d+)\)$", reason)
        line, column = map(int, found.groups()) if found else self._unfinished(reason)
        reason = re.sub(r" \(at [^()]*\)$", "", reason)
        for mistake in _MISTAKES:
            if not re.match(mistake.reason, reason):
                continue
            start = max(1, column - mistake.behind)
            here = re.match(mistake.rest, self.lines[line - 1][start - 1 :])
            if here:
                help = mistake.help and mistake.help.format(here[0])
                end = start + max(1, len(here[0]))
                self._refuse(line, start, mistake.message.format(here[0]), help, end)
        self._refuse(line, column, reason[:1].lower() + reason[1:])

    def _unfinished(self, reason: str) -> tuple[int, int]:
        """Where something began that the end of the file cut off."""
        quote = re.match(r"Expected \"'|Unterminated", reason)
        opening = re.findall(r"'+|\"+", self.toml) if quote else []
        if opening:
            return self._position(self.toml.rfind(opening[-1]))
        return self._position(len(self.toml.rstrip()))

    def _refuse_duplicate(self) -> None:
        from tlrecipe.language.places import first_duplicate

        duplicate = first_duplicate(self.toml)
        if duplicate:
            label = self.mark(Label(duplicate.path, "first defined here"), duplicate.first)
            what = f"`{'.'.join(map(str, duplicate.path))}` is defined twice"
            help = "keep one of the two; phases and groups are written `[[phase]]`, `[[group]]`"
            error = Diagnostic("TLR004", what, duplicate.path, help, (label,), "defined again", at="key")
            raise TlrecipeError([self.mark(error, duplicate.second)])

    def _position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character of :attr:`toml`, both 1-based."""
        return self.toml.count("\n", 0, offset) + 1, offset - self.toml.rfind("\n", 0, offset)

    def _refuse(
        self, line: int, column: int, message: str, help: str | None = None, end_column: int | None = None
    ) -> NoReturn:
        error = Diagnostic("TLR004", message, help=help)
        raise TlrecipeError([self.mark_at(error, line, column, end_column)])


@dataclass(frozen=True)
class _Mistake:
    """A mistake in TOML: what tomllib says, what stands there, and how to say it. ``{}`` is what stands
    there."""

    reason: str
    rest: str
    message: str
    help: str | None = None
    behind: int = 0
    """How far behind the mistake tomllib points."""


_MISTAKES = (
    _Mistake("Invalid value", r"(?i:true|false)\b", "`{}` is not a value", "write `true` or `false`"),
    _Mistake(
        "Invalid value", r"(?i:none|null|nil)\b", "`{}` is not a value", "leave the key out: TOML has no null"
    ),
    _Mistake("Invalid value", r"\s*(#.*)?$", "the value is missing", "write one, or take the key out"),
    _Mistake(
        "Invalid value", r"\.[0-9][\w.+-]*", "`{}` is not a number", "write a digit before the dot: `0{}`"
    ),
    _Mistake("Invalid value", r"[^\W\d][\w./@*-]*", "`{}` is not a value", 'texts stand in quotes: `"{}"`'),
    _Mistake("Invalid value", r"[^\s,\]}]+", "`{}` is not a value"),
    _Mistake("Invalid date", r"[^\s,\]}]*", "`{}` is not a date that exists"),
    _Mistake(
        "Expected newline",
        r"[0-9]\S*",
        "unexpected `{}` behind the value",
        "numbers have no leading zeros, and one key stands on a line",
    ),
    _Mistake("Expected newline", r".*\S", "unexpected `{}` behind the value", "one key stands on a line"),
    _Mistake("Expected '='", r"\S*", "expected `=` behind the key", "keys with spaces stand in quotes"),
    _Mistake("Expected '\\]", r"\S*", "the table's header is not closed", "write `[data]` or `[[phase]]`"),
    _Mistake("Invalid statement", "=", "there is no key before `=`"),
    _Mistake(
        "Invalid statement",
        r"\S+",
        "`{}` cannot begin a line",
        "a line is `key = value` or `[table]`; keys are made of A to Z, a to z, 0 to 9, `_` and `-`, "
        "others stand in quotes",
    ),
    _Mistake(
        "Invalid initial character",
        r"[,}]|$",
        "expected another key",
        "an inline table stands on one line and has no comma at its end",
    ),
    _Mistake("Invalid initial character", r"\S+", "`{}` cannot be a key", "keys like this stand in quotes"),
    _Mistake(
        "Unclosed array",
        ".*",
        "the list is not closed",
        "entries are separated by `,`; the list ends with `]`",
    ),
    _Mistake(
        "Unclosed inline", ".*", "the inline table is not closed", "it ends with `}}` on the line it began on"
    ),
    _Mistake(
        r"(Unterminated string|Expected \"|(Illegal|Found invalid) character '\\n')",
        ".*",
        "the text is not closed",
        "end it with the quote that it began with",
    ),
    _Mistake(
        "Unescaped",
        r"\\.?",
        "`{}` is no known escape",
        "write `\\\\`, or use single quotes: 'a\\b'",
        behind=2,
    ),
)
"""Tried in order. Reasons that are not here are said in tomllib's own words."""


def read_source(path: FilePath, name: str | None = None) -> Source:
    """Read a recipe file, called ``name`` in messages (default: the path).

    Raises TLR001 (cannot be opened), TLR002 (no regular file, or larger than 1 MiB) or TLR003 (not UTF-8).
    """
    name = name or str(path)
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            _refuse_file(name, "TLR002", f"`{name}` is a directory", "name the recipe's file")
        if not stat.S_ISREG(info.st_mode):
            _refuse_file(name, "TLR002", f"`{name}` is not a regular file")
        if info.st_size > MAX_BYTES:
            _refuse_file(name, "TLR002", f"`{name}` is larger than 1 MiB", "is it a recipe?")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        _refuse_file(name, "TLR001", f"cannot open `{name}`: no such file", _nearest_file(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _refuse_file(name, "TLR001", f"cannot open `{name}`: {reason.lower()}")
    if len(content) > MAX_BYTES:
        _refuse_file(name, "TLR002", f"`{name}` is larger than 1 MiB", "is it a recipe?")
    return Source(name, _decode(name, content), path.absolute().parent)


def _decode(name: str, content: bytes) -> str:
    try:
        text = content.decode()
        offset, what = text.find("\0"), "a zero byte"
    except UnicodeDecodeError as error:
        offset, what = error.start, "not UTF-8"
    if offset < 0:
        return text
    start = content.rfind(b"\n", 0, offset) + 1
    line = content.count(b"\n", 0, offset) + 1
    wide = b"\0" in content
    help = "the file looks like UTF-16: save it as UTF-8" if wide else "save the file as UTF-8"
    column = len(content[start:offset].decode(errors="replace")) + 1
    words = content[start:].split(b"\n", 1)[0].decode(errors="replace").rstrip("\r")
    raise TlrecipeError(
        [
            Diagnostic(
                "TLR003",
                f"{what} at byte {offset} (line {line})",
                help=help,
                file=name,
                line=line,
                column=column,
                end_column=column + 1,
                source=None if wide else words,
            )
        ]
    )


def _nearest_file(path: FilePath) -> str | None:
    try:
        recipes = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == ".toml")
    except OSError:
        return f"there is no folder `{path.parent}`"
    return did_you_mean(path.name, recipes)


def _refuse_file(name: str, code: str, message: str, help: str | None = None) -> NoReturn:
    raise TlrecipeError([Diagnostic(code, message, help=help, file=name)])
