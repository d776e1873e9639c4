"""Patterns against a parameter table: what each one matches, and what to say when it matches nothing."""

from __future__ import annotations

from functools import cache

from tlrecipe.language.diagnostics import Diagnostic, Path, did_you_mean
from tlrecipe.language.globs import Glob, Selector, parse_pattern
from tlrecipe.planning.facts import ParamFact, ParamTable


class Matcher:
    """Resolves patterns to parameters of one table, each pattern once."""

    def __init__(self, table: ParamTable):
        self._table = table
        self._matched: dict[str, frozenset[str]] = {}

    def __call__(self, pattern: str) -> frozenset[str]:
        """Names of the parameters that ``pattern`` matches (tied ones under their first name)."""
        if pattern not in self._matched:
            parsed = parse_pattern(pattern)
            self._matched[pattern] = frozenset(
                param.name for param in self._table if self.names(parsed, param)
            )
        return self._matched[pattern]

    @staticmethod
    def names(parsed: Glob | Selector, param: ParamFact) -> tuple[str, ...]:
        """Those names of ``param``, aliases included, that the pattern matches."""
        every = (param.name, *param.aliases)
        if isinstance(parsed, Glob):
            return tuple(name for name in every if parsed.matches(name))
        return every if _selects(parsed, param) else ()

    def nothing(self, pattern: str, path: Path) -> Diagnostic:
        """The error for a pattern that matches nothing, with the nearest names."""
        parsed = parse_pattern(pattern)
        message = f"`{pattern}` matches no parameter"
        if isinstance(parsed, Selector):
            if parsed.kind == "stage":
                last = max(param.stage for param in self._table)
                return Diagnostic(
                    "TLR104",
                    message,
                    path,
                    f"this backbone has the stages 0 to {last}; see `tlrecipe params`",
                )
            if parsed.kind == "adapter":
                cure = 'give the backbone one: adapter = { name = "lora", match = […] } of [backbone]'
                return Diagnostic("TLR104", message, path, cure)
            return Diagnostic("TLR104", message, path, f"this backbone has no {parsed.kind} parameters")
        hint = did_you_mean(pattern.removesuffix(".**").removesuffix(".*"), _places(self._table))
        return Diagnostic(
            "TLR104", message, path, hint or "see `tlrecipe params RECIPE` for the names of this backbone"
        )


def _selects(selector: Selector, param: ParamFact) -> bool:
    match selector.kind:
        case "head":
            return param.head
        case "backbone":
            return not param.head and not param.adapter
        case "adapter":
            return param.adapter
        case "norm":
            return param.norm
        case "bias":
            return param.bias
        case "stage":
            return selector.first <= param.stage <= selector.last


@cache
def _places(table: ParamTable) -> tuple[str, ...]:
    """Names of all parameters and of all modules that hold some, outermost first."""
    names: dict[str, None] = {}
    for param in table:
        parts = param.name.split(".")
        names.update(dict.fromkeys(".".join(parts[: end + 1]) for end in range(len(parts))))
    return tuple(sorted(names, key=lambda name: name.count(".")))
