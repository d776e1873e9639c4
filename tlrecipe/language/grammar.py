"""Plain data against the grammar: a :class:`Recipe`, or all that keeps it from being one.

The models' own JSON Schema says what may stand at a place, so that messages, suggestions, overrides and
the reference describe one grammar. It is computed only when one of them is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tlrecipe.language.diagnostics import Diagnostic, Label, Path, did_you_mean, nearest
from tlrecipe.language.globs import MAX_LENGTH, GlobError, parse_pattern
from tlrecipe.language.spec import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Shape = Mapping[str, Any]
"""One way to write a value: a JSON Schema that is neither a reference nor a union."""


def check(data: Mapping[str, Any]) -> tuple[Recipe | None, list[Diagnostic]]:
    """The recipe that ``data`` spells, or None and every mistake in it (codes TLR101, TLR102, TLR103,
    TLR106 and TLR109), without places."""
    if not data:
        return None, [_empty_recipe()]
    mistakes = [*_bad_patterns(data), *_duplicate_names(data)]
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        return None, [*_grammar_mistakes(error), *mistakes]
    return (None if mistakes else recipe), mistakes


# --------------------------------------------------------------------------- shapes


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a whole recipe, as pydantic writes it."""
    return Recipe.model_json_schema()


def shapes(node: Shape) -> list[Shape]:
    """The ways to write a value that a schema node allows. Null is none: TOML does not have it."""
    if "$ref" in node:
        return shapes(schema()["$defs"][node["$ref"].rpartition("/")[2]])
    union = node.get("anyOf") or node.get("oneOf")
    if union:
        return [shape for branch in union for shape in shapes(branch)]
    return [] if node.get("type") == "null" else [node]


def tag(shape: Shape) -> tuple[str, str] | None:
    """The key and value that choose this table among others: ``("name", "sgd")``."""
    for key in ("source", "name"):
        value = shape.get("properties", {}).get(key, {}).get("const")
        if value is not None:
            return key, value
    return None


_FRONT = ("format", "source", "name")


def as_written(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the keys that say which one it is in front, as people write it."""
    front = {key: table[key] for key in _FRONT if key in table}
    return {**front, **table}


@dataclass(frozen=True)
class Table:
    """One table of the grammar. Tables that a key chooses among count one by one."""

    path: tuple[str, ...]
    """Keys from the top, without positions: ``("phase", "schedule")``."""
    shape: Shape
    repeated: bool = False
    """Written as ``[[phase]]``."""

    @property
    def header(self) -> str:
        """How it is written, in backticks."""
        name = ".".join(self.path)
        if not name:
            return "the top level"
        return f"`[[{name}]]`" if self.repeated else f"`[{name}]`" if len(self.path) == 1 else f"`{name}`"

    @property
    def title(self) -> str:
        """The header and what chooses the table: ``[data]`` with ``source = "folder"``, in backticks."""
        chosen = tag(self.shape)
        return f"{self.header} with `{chosen[0]} = {inline(chosen[1])}`" if chosen else self.header


def tables(
    node: Shape | None = None, path: tuple[str, ...] = (), *, repeated: bool = False
) -> Iterator[Table]:
    """All tables of the grammar below a node (default: of the whole recipe), outer ones first."""
    for shape in shapes(schema() if node is None else node):
        if "properties" in shape:
            yield Table(path, shape, repeated)
            for key, value in shape["properties"].items():
                yield from tables(value, (*path, key))
        elif "items" in shape:
            yield from tables(shape["items"], path, repeated=True)


def _inside(shape: Shape, part: str | int) -> Shape:
    """The schema of an entry of a list or a key of a table; empty where the grammar knows none."""
    if isinstance(part, int):
        fixed = shape.get("prefixItems", [])
        found = fixed[part] if part < len(fixed) else shape.get("items")
    else:
        found = shape.get("properties", {}).get(part, shape.get("additionalProperties"))
    return found if isinstance(found, dict) else {}


def _resolve(location: Sequence[str | int]) -> tuple[Path, Shape, list[Shape]]:
    """A location as pydantic gives it: the path in the recipe, the shape around it, and its own shapes.

    Pydantic names the tried branch of each union on the way; these names are no part of the path.
    """
    path: Path = ()
    around: Shape = {}
    options = shapes(schema())
    for position, part in enumerate(location):
        if len(options) > 1:
            chosen = [shape for shape in options if (tag(shape) or ("", None))[1] == part]
            inner = position + 1 < len(location)
            options = chosen or [
                shape for shape in options if not inner or shape.get("type") in ("object", "array")
            ]
        else:
            around = options[0] if options else {}
            options = shapes(_inside(around, part))
            path = (*path, part)
    return path, around, options


# --------------------------------------------------------------------------- mistakes in the grammar


def _grammar_mistakes(error: ValidationError) -> list[Diagnostic]:
    found = {(item.path, item.message): item for item in map(_mistake, error.errors(include_url=False))}
    inner = {path[:length] for path, _ in found for length in range(len(path))}
    # A list or a branch of a union also fails when something inside it does: only that is the mistake.
    return [item for item in found.values() if item.code != "TLR102" or item.path not in inner]


def _mistake(error: ErrorDetails) -> Diagnostic:
    path, around, options = _resolve(error["loc"])
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(path, around)
        case "missing" if isinstance(path[-1], str):
            return _missing_key(path, around)
        case "missing":
            return _unexpected(path[:-1], [around], value, None)
        case "union_tag_not_found":
            key = error["ctx"]["discriminator"].strip("'")
            return _missing_key((*path, key), {"properties": {key: _choices(options, key)}})
        case "union_tag_invalid":
            key = error["ctx"]["discriminator"].strip("'")
            return _unexpected((*path, key), [_choices(options, key)], value[key], None)
    return _unexpected(path, options, value, _example(around, path))


def _choices(options: list[Shape], key: str) -> Shape:
    values = [shape["properties"][key]["const"] for shape in options]
    return {"type": "string", "enum": values, "examples": values[:1]}


def _example(around: Shape, path: Path) -> Any:
    examples = _inside(around, path[-1]).get("examples", []) if path else []
    return examples[0] if examples else None


def _title(path: Path, shape: Shape) -> str:
    keys = tuple(part for part in path if isinstance(part, str))
    return Table(keys, shape, repeated=bool(path) and isinstance(path[-1], int)).title


_SYNONYMS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "lr_scheduler": "schedule",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "warmup_steps": "warmup",
    "unfreeze": "thaw",
    "trainable": "thaw",
    "image_size": "size",
    "bs": "batch_size",
    "dataset": "data",
    "model": "backbone",
    "pretrained": "weights",
    "checkpoint": "weights",
    "classifier": "head",
    "stage": "phase",
    "param_group": "group",
    "patterns": "match",
    "grad_clip": "clip_norm",
    "gradient_accumulation": "accumulate",
    "early_stopping": "stop",
    "min_lr": "final",
    "lr_mult": "lr_scale",
    "random_seed": "seed",
}
"""What other tools call our keys."""


def _unknown_key(path: Path, around: Shape) -> Diagnostic:
    key = str(path[-1])
    known = list(around.get("properties", {}))
    here = f"in {_title(path[:-1], around)}" if len(path) > 1 else "at the top level"
    owners = _owners(key, path)
    alike = _SYNONYMS.get(next(iter(nearest(key, list(_SYNONYMS))), ""))
    if _SYNONYMS.get(key) in known:
        help = f"did you mean `{_SYNONYMS[key]}`?"
    elif owners:
        help = f"`{key}` is a key of {owners}"
    elif hint := did_you_mean(key, known):
        help = hint
    elif alike in known:
        help = f"did you mean `{alike}`?"
    elif alike and (owners := _owners(alike, path)):
        help = f"did you mean `{alike}`? It is a key of {owners}"
    else:
        help = f"the keys are {_listed([f'`{name}`' for name in known], 'and')}"
    return Diagnostic("TLR101", f"unknown key `{key}` {here}", path, help, at="key")


def _owners(key: str, path: Path) -> str | None:
    """The tables that take ``key``, where they are few enough to be of help."""
    choices: dict[tuple[str, ...], list[Table]] = {}
    for table in tables():
        choices.setdefault(table.path, []).append(table)
    titles: dict[tuple[str, ...], list[str]] = {}
    for place, choice in choices.items():
        owners = [table for table in choice if key in table.shape["properties"]]
        if len(owners) == len(choice):
            titles[place] = [choice[0].header]
        elif owners:
            titles[place] = [table.title for table in owners]
    beside = titles.get(tuple(part for part in path[:-1] if isinstance(part, str)))
    said = beside or [title for place in titles.values() for title in place]
    return _listed(said, "and") if 0 < len(said) <= 3 else None


def _missing_key(path: Path, around: Shape) -> Diagnostic:
    *table, key = path
    node = _inside(around, key)
    said = node.get("description", "").replace("\n", " ").partition(". ")[0].rstrip(".")
    if all("properties" in shape for shape in shapes(node)):
        line = f"[{key}]"
    elif any("properties" in inner.shape for inner in tables(node)):
        line = f"[[{key}]]"
    else:
        line = f"{key} = {inline(node['examples'][0])}"
    choices = [f"`{inline(value)}`" for value in node.get("enum", [])]
    help = f"add `{line}`" + (f": {said}" if said else f"; it is {_listed(choices, 'or')}" if choices else "")
    where = _title(tuple(table), around) if table else "the recipe"
    return Diagnostic("TLR103", f"{where} has no `{key}`", tuple(table), help)


def _unexpected(path: Path, options: list[Shape], value: Any, example: Any) -> Diagnostic:
    message = f"expected {expected(options)}, found {_found(value)}"
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    help = _cure(key, options, value)
    kinds = {shape.get("type") for shape in options}
    fits = _kind(value) in kinds or (_kind(value) == "integer" and "number" in kinds)
    if help is None and example is not None and not fits:
        help = f"for example `{key} = {inline(example)}`"
    return Diagnostic("TLR102", message, path, help)


def _cure(key: str, options: list[Shape], value: Any) -> str | None:
    """What to write instead, where that can be told from what was found."""
    if key == "format":
        return "this version of tlrecipe reads `format = 1`"
    kinds = {shape.get("type") for shape in options}
    rows = [shape for shape in options if "items" in shape]
    if isinstance(value, str):
        chosen = [pair for shape in options if (pair := tag(shape))]
        choices = [str(choice) for shape in options for choice in shape.get("enum", [])]
        name = next(iter(nearest(value, [word for _, word in chosen])), None)
        if name:
            return f"write `{key} = {{ {chosen[0][0]} = {inline(name)} }}`"
        if choices:
            return did_you_mean(value, choices)
        if any(shape["items"].get("type") == "string" for shape in rows):
            return f"write `{key} = [{inline(value)}]`"
        if "boolean" in kinds and value.lower() in ("true", "false"):
            return f"write `{value.lower()}`, without quotes"
        if kinds & {"integer", "number"} and re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", value):
            return f"write `{value}`, without quotes"
    if isinstance(value, float) and kinds == {"integer"} and value.is_integer():
        return f"write `{int(value)}`"
    if isinstance(value, int) and kinds == {"boolean"} and value in (0, 1):
        return f"write `{inline(bool(value))}`"
    if isinstance(value, dict) and any("$ref" in shape["items"] for shape in rows):
        return f"write `[[{key}]]` instead of `[{key}]`"
    if _kind(value) == "array" and value and isinstance(value[0], dict) and "object" in kinds:
        return f"write `[{key}]` instead of `[[{key}]]`"
    return None


def _empty_recipe() -> Diagnostic:
    required = []
    for key in schema()["required"]:
        node = schema()["properties"][key]
        line = f"[[{key}]]" if node.get("type") == "array" else f"[{key}]" if any(tables(node)) else key
        required.append(f"`{line}`")
    help = f"a recipe needs {_listed(required, 'and')}; `tlrecipe new` writes one"
    return Diagnostic("TLR103", "the recipe is empty", help=help)


# --------------------------------------------------------------------------- mistakes beyond types


_PATTERN_KEYS: tuple[tuple[str | None, ...], ...] = (
    ("backbone", "adapter", "match", None),
    ("optimizer", "no_decay", None),
    ("group", None, "match", None),
    ("phase", None, "freeze", None),
    ("phase", None, "thaw", None),
    ("phase", None, "optimizer", "no_decay", None),
)
"""Where patterns stand; None is every entry of a list."""


def _each(data: Any, keys: Sequence[str | None], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value at ``keys``, as far as the data, which may be invalid, goes there."""
    if not keys:
        yield path, data
    elif keys[0] is None:
        for index, entry in enumerate(data if isinstance(data, list) else []):
            yield from _each(entry, keys[1:], (*path, index))
    elif isinstance(data, Mapping) and keys[0] in data:
        yield from _each(data[keys[0]], keys[1:], (*path, keys[0]))


def _bad_patterns(data: Mapping[str, Any]) -> Iterator[Diagnostic]:
    for keys in _PATTERN_KEYS:
        for path, text in _each(data, keys):
            if isinstance(text, str) and 0 < len(text) <= MAX_LENGTH:
                try:
                    parse_pattern(text)
                except GlobError as error:
                    yield Diagnostic("TLR106", error.message, path, error.help)


def _duplicate_names(data: Mapping[str, Any]) -> Iterator[Diagnostic]:
    for kind in ("group", "phase"):
        first: dict[str, Path] = {}
        for path, name in _each(data, (kind, None, "name")):
            if isinstance(name, str) and first.setdefault(name, path) != path:
                label = Label(first[name], "first used here")
                message = f"two {kind}s are named `{name}`"
                yield Diagnostic("TLR109", message, path, "give each its own name", (label,), "used again")


# --------------------------------------------------------------------------- in words


def inline(value: Any) -> str:
    """A plain value as TOML on one line."""
    if isinstance(value, Mapping):
        bare = re.compile(r"[A-Za-z0-9_-]+")
        pairs = ", ".join(
            f"{key if bare.fullmatch(key) else json.dumps(key)} = {inline(item)}"
            for key, item in as_written(value).items()
        )
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, float):
        return re.sub(r"e([+-]?)0*", lambda found: "e" + found[1].strip("+"), repr(value))
    return json.dumps(value, ensure_ascii=False)


def _listed(items: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


_NAMED_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$": "a name of at most 64 letters, digits, `_` and `-`",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
}


def expected(options: Sequence[Shape]) -> str:
    """What may be written, in words."""
    return _listed([_expected_one(shape) for shape in _without_repeats(options)], "or")


def _without_repeats(options: Sequence[Shape]) -> list[Shape]:
    """Tables that a key chooses among are one way to write a value."""
    plain = [shape for shape in options if "properties" not in shape]
    return [*plain, *[shape for shape in options if "properties" in shape][:1]]


def _expected_one(shape: Shape) -> str:
    if "enum" in shape or "const" in shape:
        return _listed([f"`{inline(choice)}`" for choice in shape.get("enum", [shape.get("const")])], "or")
    match shape.get("type"):
        case "boolean":
            return "`true` or `false`"
        case "integer":
            return _in_range("a whole number", shape)
        case "number":
            return _in_range("a finite number", shape)
        case "string":
            return _NAMED_PATTERNS.get(shape.get("pattern", ""), _text_of_length(shape))
        case "array" if "prefixItems" in shape:
            entries = shape["prefixItems"]
            return f"a list of {len(entries)} entries, each {expected(shapes(entries[0]))}"
        case "array" if any(tables(shape["items"])):
            return "one or more tables" if shape.get("minItems") else "tables"
        case "array":
            return "a list with at least one entry" if shape.get("minItems") else "a list"
        case "object" if "properties" not in shape:
            simple = shapes(shape["additionalProperties"])
            return "a table of numbers" if len(simple) == 1 else "a table of values"
    return "a table"


def _in_range(what: str, shape: Shape) -> str:
    low, high = shape.get("minimum"), shape.get("maximum")
    above, below = shape.get("exclusiveMinimum"), shape.get("exclusiveMaximum")
    if low is not None and low == high:
        return _number(low)
    if low is not None and 0 < low < 1e-6 and high is not None:
        return f"{what} greater than 0 ({_number(low)} to {_number(high)})"
    if low is not None and high is not None:
        return f"{what} from {_number(low)} to {_number(high)}"
    bounds = {"at least": low, "greater than": above, "at most": high, "less than": below}
    said = [f"{words} {_number(bound)}" for words, bound in bounds.items() if bound is not None]
    return " ".join([what, *filter(None, [" and ".join(said)])])


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else inline(value)


def _text_of_length(shape: Shape) -> str:
    most = f"a text of at most {shape['maxLength']} characters" if "maxLength" in shape else "a text"
    return f"{most} that is not empty" if shape.get("minLength") else most


_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def _kind(value: Any) -> str | None:
    """The JSON Schema type of a TOML value; None for dates and times."""
    return _KINDS.get(type(value))


def _found(value: Any) -> str:
    """What stands in the recipe, in words and cut to a length that fits into a sentence."""
    match value:
        case bool() | float():
            return f"`{inline(value)}`"
        case int():
            return f"`{value}`" if abs(value) < 10**30 else "a number of more than 30 digits"
        case str():
            return f"the text `{inline(value if len(value) <= 40 else value[:40] + '…')}`"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case dict():
            return "a table" if value else "an empty table"
        case _:
            return f"the {type(value).__name__} `{value.isoformat()}`"
