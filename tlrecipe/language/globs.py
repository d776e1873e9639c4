"""Patterns over dotted parameter names: globs and selectors.

A glob is anchored at both ends and case-sensitive:

========================  =====================================================================
``*``                     any characters within one segment, also none
``**``                    any characters, dots included; ``**.`` as a whole segment may be nothing
``?``                     one character that is not a dot
``[abc]`` ``[a-f]``       one of these characters
``[0-12]``                a whole number from 0 to 12, without leading zeros
``{a,b}``                 as if both patterns were written out; may be nested
========================  =====================================================================

A pattern that names a module covers all below it: ``layer4`` matches what ``layer4.**`` does.

A glob is compiled to a nondeterministic finite automaton whose state sets are followed character by
character (K. Thompson, Regular Expression Search Algorithm, CACM 1968), so that matching takes time
linear in the length of the name, whatever the pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from tlrecipe.language.diagnostics import did_you_mean

MAX_LENGTH = 500
MAX_NESTING = 8
MAX_ALTERNATIVES = 256
MAX_DIGITS = 6

_SELECTORS = ("@head", "@backbone", "@adapter", "@norm", "@bias", "@stage:N")


class GlobError(ValueError):
    """A text that is no pattern: ``message`` says why, ``help`` what to write instead."""

    def __init__(self, message: str, help: str | None = None):
        super().__init__(message)
        self.message = message
        self.help = help


@dataclass(frozen=True)
class Selector:
    """A set of parameters by role, whatever the backbone: resolved against the parameter table."""

    kind: Literal["head", "backbone", "adapter", "norm", "bias", "stage"]
    first: int = 0
    """First stage, for ``stage``."""
    last: int = 0
    """Last stage (inclusive), for ``stage``."""

    def __str__(self) -> str:
        if self.kind != "stage":
            return f"@{self.kind}"
        return f"@stage:{self.first}" if self.first == self.last else f"@stage:{self.first}..{self.last}"


@dataclass(frozen=True)
class Glob:
    """A compiled glob; see the module's text for the dialect. Two globs are equal if their texts are."""

    text: str
    _automaton: _Automaton = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Glob:
        """Compile ``text``. Raises :class:`GlobError` for anything that is not a glob."""
        _refuse_other_languages(text)
        return cls(text, _compile(text))

    def matches(self, name: str) -> bool:
        """Whether the glob matches ``name`` as a whole, or a module that ``name`` is in."""
        return self._automaton.accepts_name(name)

    def __str__(self) -> str:
        return self.text


def parse_pattern(text: str) -> Glob | Selector:
    """Read a pattern as it stands in a recipe. Raises :class:`GlobError`."""
    return _parse_selector(text) if text.startswith("@") else Glob.parse(text)


def _parse_selector(text: str) -> Selector:
    for kind in ("head", "backbone", "adapter", "norm", "bias"):
        if text == f"@{kind}":
            return Selector(kind)
    stage = re.fullmatch(r"@stage:([0-9]{1,4})(?:\.\.([0-9]{1,4}))?", text)
    if stage:
        first = int(stage[1])
        last = int(stage[2]) if stage[2] else first
        if first > last:
            raise GlobError(f"the stages of `{text}` run backwards", f"write `@stage:{last}..{first}`")
        return Selector("stage", first, last)
    if re.match(r"@stage\b", text):
        raise GlobError(
            f"`{text}` does not say which stages", "write `@stage:2` for one stage, `@stage:0..2` for several"
        )
    kind = re.split(r"[^@\w]", text, maxsplit=1)[0]
    if kind in _SELECTORS:
        raise GlobError(f"`{text}` is not a selector: nothing may follow `{kind}`", f"write `{kind}`")
    raise GlobError(
        f"unknown selector `{text}`",
        did_you_mean(text, _SELECTORS)
        or "the selectors are `@head`, `@backbone`, `@adapter`, `@norm`, `@bias`, `@stage:N` and"
        " `@stage:A..B`",
    )


# --------------------------------------------------------------------------- what is no glob


_NEGATED_CLASS = re.compile(r"\[[!^]")
_REGEX = re.compile(r"[\\^$()|+]|^\.[*+]|\.\.[*+]")


def _refuse_other_languages(text: str) -> None:
    """Raise where ``text`` is a regular expression, a file path or a list rather than a glob."""
    if _REGEX.search(text) and not _NEGATED_CLASS.search(text) and len(text) <= MAX_LENGTH:
        glob = _glob_for_regex(text)
        raise GlobError(
            f"`{text}` looks like a regular expression; patterns are globs",
            f"write `{glob}`"
            if glob
            else "`*` stays within one segment, `**` crosses segments, `{a,b}` is either",
        )
    _refuse_malformed(text)


def _refuse_malformed(text: str) -> None:
    if not text.strip():
        raise GlobError("a pattern cannot be empty", "write `**` for all parameters")
    if len(text) > MAX_LENGTH:
        raise GlobError(f"a pattern of {len(text)} characters is too long (at most {MAX_LENGTH})")
    if text != text.strip():
        raise GlobError("a pattern cannot begin or end with a space", f"write `{text.strip()}`")
    if _NEGATED_CLASS.search(text):
        raise GlobError(
            f"`{text}` holds a negated class", "list exceptions under `thaw`, or name what is meant"
        )
    if text.startswith("!"):
        raise GlobError("a pattern cannot be negated", f"list exceptions under `thaw`: `{text[1:]}`")
    if "/" in text:
        raise GlobError(
            f"`{text}` looks like a file path; parameter names are dotted",
            f"write `{text.strip('/').replace('/', '.')}`",
        )
    if text.endswith(".") and not text.endswith(".."):
        raise GlobError(
            f"`{text}` ends with a dot", f"write `{text.rstrip('.')}`: it covers all below that module"
        )
    if text.startswith(".") or ".." in text:
        raise GlobError(f"`{text}` has an empty segment", "segments are separated by one dot")


_REGEX_TOKEN = re.compile(
    r"""(?P<many>\.[*+]\??|\\[wS][*+])
      | (?P<some>(?:\\d|\[0-9\])[*+]?)
      | (?P<escape>\\(?P<char>\W))
      | (?P<open>\((?:\?:)?)
      | (?P<close>\))
      | (?P<either>\|)
      | (?P<anchor>[\^$])
      | (?P<rest>.)""",
    re.VERBOSE | re.DOTALL,
)


def _glob_for_regex(text: str) -> str | None:
    """The glob that says what a simple regular expression means, or None where there is none."""
    parts: list[str] = []
    depth, alternatives = 0, False
    for token in _REGEX_TOKEN.finditer(text):
        match token.lastgroup:
            case "many":
                parts.append("**")
            case "some":
                parts.append("*" if token[0].endswith(("*", "+")) else "[0-9]")
            case "escape":
                parts.append(token["char"])
            case "open":
                depth += 1
                parts.append("{")
            case "close":
                depth -= 1
                parts.append("}")
            case "either":
                alternatives = alternatives or depth == 0
                parts.append(",")
            case "anchor":
                pass
            case _:
                parts.append(token[0])
    glob = "".join(parts)
    glob = "{" + glob + "}" if alternatives else glob
    if _REGEX.search(glob):
        return None
    try:
        _refuse_malformed(glob)
        _compile(glob)
    except GlobError:
        return None
    return glob


# --------------------------------------------------------------------------- the automaton


@dataclass(frozen=True)
class _Characters:
    """A set of characters, or (``negated``) all others."""

    members: frozenset[str]
    negated: bool = False

    def __contains__(self, char: str) -> bool:
        return (char in self.members) != self.negated


_ANY = _Characters(frozenset(), negated=True)
_NO_DOT = _Characters(frozenset("."), negated=True)
_CACHED_STEPS = 20_000


class _Automaton:
    """States are numbers; state 0 is the start. Steps taken are remembered, so that the second name
    costs one lookup a character."""

    def __init__(self) -> None:
        self._edges: list[list[tuple[_Characters, int]]] = [[]]
        self._silent: list[list[int]] = [[]]
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self.end = 0

    def state(self) -> int:
        self._edges.append([])
        self._silent.append([])
        return len(self._edges) - 1

    def edge(self, source: int, characters: _Characters, target: int) -> None:
        self._edges[source].append((characters, target))

    def silent(self, source: int, target: int) -> None:
        """Let ``source`` go on as ``target`` without a character."""
        self._silent[source].append(target)

    def accepts_name(self, name: str) -> bool:
        states = self._closure([0])
        for char in name:
            if char == "." and self.end in states:
                return True
            states = self._step(states, char)
            if not states:
                return False
        return self.end in states

    def _step(self, states: frozenset[int], char: str) -> frozenset[int]:
        key = (states, char)
        if key not in self._steps:
            if len(self._steps) >= _CACHED_STEPS:
                self._steps.clear()
            self._steps[key] = self._closure(
                [
                    target
                    for state in states
                    for characters, target in self._edges[state]
                    if char in characters
                ]
            )
        return self._steps[key]

    def _closure(self, pending: list[int]) -> frozenset[int]:
        found: set[int] = set()
        while pending:
            state = pending.pop()
            if state not in found:
                found.add(state)
                pending.extend(self._silent[state])
        return frozenset(found)


def _compile(text: str) -> _Automaton:
    automaton = _Automaton()
    automaton.end = automaton.state()
    alternatives, _ = _expand(text, 0, 0)
    for alternative in alternatives:
        automaton.silent(_Compiler(alternative, automaton).compile(), automaton.end)
    return automaton


def _expand(text: str, position: int, depth: int) -> tuple[list[str], int]:
    """The patterns without braces that ``text`` stands for from ``position`` on: up to its end, or within
    braces up to the one that closes them. Also the position behind that."""
    if depth > MAX_NESTING:
        raise GlobError(f"braces are nested more than {MAX_NESTING} deep in `{text}`")
    closed: list[str] = []
    current = [""]
    opening = position
    while position < len(text):
        char = text[position]
        position += 1
        if char == "{":
            inner, position = _expand(text, position, depth + 1)
            current = [before + after for before in current for after in inner]
            if len(current) + len(closed) > MAX_ALTERNATIVES:
                raise GlobError(f"`{text}` stands for more than {MAX_ALTERNATIVES} patterns")
        elif char == "}" and depth:
            if position == opening + 1:
                raise GlobError(f"`{{}}` is empty in `{text}`", "write alternatives as `{a,b}`")
            return closed + current, position
        elif char == "," and depth:
            closed += current
            current = [""]
        elif char == ",":
            raise GlobError(
                f"`{text}` is more than one pattern",
                'write a list, `["a", "b"]`, or alternatives in braces, `{a,b}`',
            )
        elif char == "}":
            raise GlobError(f"`}}` without `{{` in `{text}`", "write alternatives as `{a,b}`")
        else:
            current = [before + char for before in current]
    if depth:
        raise GlobError(f"`{{` is not closed in `{text}`", "write alternatives as `{a,b}`")
    return current, position


class _Compiler:
    """One pass over a pattern without braces; each method consumes a construct and returns the state
    behind it."""

    def __init__(self, text: str, automaton: _Automaton):
        self.text = text
        self.position = 0
        self.automaton = automaton

    def compile(self) -> int:
        state = 0
        while self.position < len(self.text):
            char = self.text[self.position]
            if char == "*":
                state = self._star(state)
            elif char == "[":
                state = self._class(state)
            elif char == "]":
                raise GlobError(f"`]` without `[` in `{self.text}`", "write a class as `[0-4]` or `[abc]`")
            else:
                self.position += 1
                state = self._after(state, _NO_DOT if char == "?" else _Characters(frozenset(char)))
        return state

    def _after(self, state: int, characters: _Characters) -> int:
        target = self.automaton.state()
        self.automaton.edge(state, characters, target)
        return target

    def _star(self, state: int) -> int:
        start = self.position
        self.position += len(self.text[start:]) - len(self.text[start:].lstrip("*"))
        stars = self.position - start
        if stars > 2:
            raise GlobError(f"`{'*' * stars}` is not a wildcard", "write `**`: it crosses segments")
        loop = self.automaton.state()
        self.automaton.silent(state, loop)
        self.automaton.edge(loop, _NO_DOT if stars == 1 else _ANY, loop)
        whole_segment = start == 0 or self.text[start - 1] == "."
        if stars == 2 and whole_segment and self.text.startswith(".", self.position):
            self.position += 1
            behind = self._after(loop, _Characters(frozenset(".")))
            self.automaton.silent(state, behind)
            return behind
        return loop

    def _class(self, state: int) -> int:
        closing = self.text.find("]", self.position)
        if closing < 0:
            raise GlobError(f"`[` is not closed in `{self.text}`", "write a class as `[0-4]` or `[abc]`")
        body = self.text[self.position + 1 : closing]
        self.position = closing + 1
        if re.fullmatch(r"[0-9]+-[0-9]+", body):
            return self._numbers(state, *body.split("-"))
        return self._after(state, _Characters(frozenset(_class_members(body))))

    def _numbers(self, state: int, first: str, last: str) -> int:
        if int(first) > int(last):
            raise GlobError(f"the range `[{first}-{last}]` runs backwards", f"write `[{last}-{first}]`")
        if len(last) > MAX_DIGITS:
            raise GlobError(f"the range `[{first}-{last}]` is too large", "write `*` for any number")
        if any(len(bound) > 1 and bound.startswith("0") for bound in (first, last)):
            raise GlobError(
                f"the range `[{first}-{last}]` has leading zeros",
                "a range counts 0, 1, 2, …; for padded names write digit by digit: `0[0-9]`",
            )
        end = self.automaton.state()
        for length in range(len(first), len(last) + 1):
            low = first if length == len(first) else "1" + "0" * (length - 1)
            high = last if length == len(last) else "9" * length
            self._digits(state, low, high, end)
        return end

    def _digits(self, state: int, low: str, high: str, end: int) -> None:
        """Numbers from ``low`` to ``high``, which have the same length."""
        if not low:
            self.automaton.silent(state, end)
            return
        nines, zeros = "9" * (len(low) - 1), "0" * (len(low) - 1)
        if low[0] == high[0]:
            self._digits(self._after(state, _digit(low[0], low[0])), low[1:], high[1:], end)
            return
        inner_first, inner_last = int(low[0]), int(high[0])
        if low[1:] != zeros:
            self._digits(self._after(state, _digit(low[0], low[0])), low[1:], nines, end)
            inner_first += 1
        if high[1:] != nines:
            self._digits(self._after(state, _digit(high[0], high[0])), zeros, high[1:], end)
            inner_last -= 1
        if inner_first <= inner_last:
            target = self._after(state, _digit(str(inner_first), str(inner_last)))
            for _ in zeros:
                target = self._after(target, _digit("0", "9"))
            self.automaton.silent(target, end)


def _digit(first: str, last: str) -> _Characters:
    return _Characters(frozenset(map(chr, range(ord(first), ord(last) + 1))))


def _class_members(body: str) -> set[str]:
    if not body:
        raise GlobError("`[]` is empty", "write a class as `[0-4]` or `[abc]`")
    members: set[str] = set()
    for first, last in re.findall(r"(.)(?:-(.))?", body, re.DOTALL):
        if not (first.isalnum() or first in "_-") or (
            last and not re.fullmatch(r"[0-9A-Za-z]{2}", first + last)
        ):
            raise GlobError(
                f"`[{body}]` is not a class of letters and digits",
                "write alternatives in braces: `{a,b}`",
            )
        if last and first > last:
            raise GlobError(f"the range `[{first}-{last}]` runs backwards", f"write `[{last}-{first}]`")
        members.update(map(chr, range(ord(first), ord(last or first) + 1)))
    return members
