"""Reading a checkpoint's plain values back: every field, of its type, and nothing else.

A field that were missing and silently got its default would make a resumed run another run. So a value
is taken only where it has exactly the fields of its dataclass, with no conversion and no NaN.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tlrecipe.language.diagnostics import TlrecipeError

T = TypeVar("T")


class Exact:
    """What dataclasses that are restored from a checkpoint have in common."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def exactly(kind: type[T], values: object, what: str) -> T:
    """``values``, plain data from JSON, as the dataclass ``kind``. Raises TLR602."""
    assert is_dataclass(kind)
    keys(values, [field.name for field in fields(kind)], what)
    try:
        restored: T = _adapter(kind).validate_json(json.dumps(values))
        return restored
    except (ValidationError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in (what, *first["loc"]))
            refuse(f"`{place}`: {first['msg']}")
        refuse(f"`{what}` cannot be read: {type(error).__name__}")


def keys(values: object, expected: Collection[str], what: str) -> Mapping[str, Any]:
    """``values`` if it is a table with exactly the keys ``expected``. Raises TLR602."""
    if not isinstance(values, Mapping):
        refuse(f"`{what}` is no table")
    if odd := sorted(values.keys() ^ set(expected)):
        state = "is missing" if odd[0] in expected else "is not known"
        refuse(f"`{odd[0]}` of `{what}` {state} ({len(odd)} in all)")
    return values


def refuse(what: str) -> NoReturn:
    """Raise TLR602: a checkpoint whose bytes are sound says what no run of this plan can have saved."""
    raise TlrecipeError.of("TLR602", f"the checkpoint does not fit: {what}")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
