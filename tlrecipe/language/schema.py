"""The JSON Schema of recipe files, for editors and linters: ``recipe-1.schema.json`` beside this module.

``python -m tlrecipe.language.schema`` writes the file anew after a change of the grammar.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tlrecipe.language import grammar

FILE = Path(__file__).with_name("recipe-1.schema.json")
ID = "urn:tlrecipe:recipe-1"

_EXTENDS = {
    "type": "string",
    "minLength": 1,
    "description": "Another recipe that this one builds on, relative to this file. Tables merge, groups and\n"
    "phases merge by `name`.",
    "examples": ["base.toml"],
}


def schema() -> str:
    """JSON Schema (draft 2020-12) of a recipe file, as text.

    A file that `extends` another may leave anything out; all others are held to the whole grammar. Null
    is left out, because TOML does not have it.
    """
    whole = _without_null(grammar.schema())
    tables = whole.pop("$defs")
    tables["Recipe"] = whole
    partial = {f"{name}Part": _part(table) for name, table in tables.items()}
    partial["RecipePart"]["properties"] = {"extends": _EXTENDS, **partial["RecipePart"]["properties"]}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "tlrecipe recipe, format 1",
        "description": "What a transfer-learning run trains, when, and at which rates.",
        "type": "object",
        # Unknown keys are refused by the branches; linters that are strict by default want this said twice.
        "additionalProperties": True,
        "if": {"required": ["extends"], "additionalProperties": True},
        "then": {"$ref": "#/$defs/RecipePart"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": {**tables, **partial},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _without_null(node: Any) -> Any:
    """A copy without null, and without the titles that pydantic makes from the names of keys."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _without_null(value)
        for key, value in node.items()
        if value is not None and not (key == "title" and isinstance(value, str))
    }
    if "const" in kept and "description" in kept:
        # A key that chooses among tables has one value in each: that is its example.
        kept.setdefault("examples", [kept["const"]])
    branches = [branch for branch in kept.get("anyOf", []) if branch != {"type": "null"}]
    if len(branches) == 1:
        del kept["anyOf"]
        return {**branches[0], **kept}
    return {**kept, "anyOf": branches} if branches else kept


def _part(node: Any) -> Any:
    """A copy in which every key may be left out, also those that choose among tables."""
    if isinstance(node, list):
        return [_part(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in ("required", "discriminator", "default")}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    part = {key: _part(value) for key, value in kept.items()}
    if "$ref" in part:
        part["$ref"] += "Part"
    return part


if __name__ == "__main__":
    FILE.write_text(schema(), encoding="utf-8")
