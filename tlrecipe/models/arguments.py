"""`[backbone] args` against the constructor that they are for.

What a constructor takes is read off its signature, so that every network of both libraries is covered.
What another key of the recipe decides is refused with that key: two places for one value would differ.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tlrecipe.language.diagnostics import Diagnostic, Path, TlrecipeError, did_you_mean

PLACE: Path = ("backbone", "args")

_OWNED = {
    "num_classes": "the classes are those of the data",
    **dict.fromkeys(("img_size", "image_size", "input_size"), "write it as `size` of `[data]`"),
    "in_chans": "every network is given three channels: grey images are expanded to them, which gives "
    "exactly what the weights compute for grey",
    **dict.fromkeys(
        ("weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
        "write them as `weights` of `[backbone]`",
    ),
}
"""Arguments that other keys decide, and which."""

# Of the constructor's machinery, or fixed by what published weights imply.
_HIDDEN = {"self", "cfg", "device", "dtype", "aux_logits", "init_weights", "transform_input"}
# A rate of dropout or stochastic depth under any library's name.
_RATE_WORDS = ("drop", "stochastic_depth")
_PLAIN = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument that a constructor takes."""

    name: str
    kind: type | None
    """``bool``, ``int``, ``float`` or ``str``; None where any value may do."""


def arguments(network: type[nn.Module]) -> dict[str, Argument]:
    """The optional arguments of a network's constructor that a recipe may give, by name.

    A constructor of timm that takes a configuration object has the object's fields as arguments too."""
    found = {item.name: item for item in reversed([*_of_signature(network)])}
    return {name: item for name, item in found.items() if name not in _HIDDEN}


def _of_signature(network: type[nn.Module]) -> Iterator[Argument]:
    for owner in network.__mro__:
        if owner is nn.Module:
            return
        if "__init__" not in vars(owner):
            continue
        constructor = vars(owner)["__init__"]
        parameters = inspect.signature(constructor).parameters.values()
        hints = _hints(constructor)
        takes_more = any(item.kind is item.VAR_KEYWORD for item in parameters)
        for item in parameters:
            configuration = hints.get(item.name)
            if item.default is not item.empty:
                yield Argument(item.name, _kind(configuration, item.default))
            elif takes_more and dataclasses.is_dataclass(configuration):
                inner = _hints(configuration)
                for field in dataclasses.fields(configuration):
                    yield Argument(field.name, _kind(inner.get(field.name), field.default))
        if not takes_more:
            return


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of)
    except (NameError, TypeError):  # a library's annotation that only a type checker can follow
        return {}


def _kind(hint: Any, default: Any) -> type | None:
    if hint in _PLAIN:
        return typing.cast(type, hint)
    return type(default) if hint is None and type(default) in _PLAIN else None


def check_arguments(
    given: Mapping[str, Any], network: type[nn.Module], reserved: Mapping[str, str], name: str
) -> None:
    """Raise TLR114 with every argument that the network ``name`` does not take, and every bad value.

    ``reserved`` are arguments that other keys of the recipe decide for this network, with the cure.
    """
    elsewhere = {**_OWNED, **reserved}
    known = {key: item for key, item in arguments(network).items() if key not in elsewhere}
    mistakes = (_mistake(key, value, known, elsewhere, name) for key, value in given.items())
    if found := [item for item in mistakes if item is not None]:
        raise TlrecipeError(found)


def _mistake(
    key: str, value: Any, known: Mapping[str, Argument], elsewhere: Mapping[str, str], name: str
) -> Diagnostic | None:
    path = (*PLACE, key)
    if key in elsewhere:
        return Diagnostic("TLR114", f"`{key}` is decided elsewhere", path, elsewhere[key], at="key")
    if key not in known:
        help = did_you_mean(key, list(known)) or _listed(known)
        return Diagnostic("TLR114", f"`{key}` is no argument of `{name}`", path, help, at="key")
    kind = known[key].kind
    if kind is not None and not _fits(value, kind):
        what = {bool: "`true` or `false`", int: "a whole number", float: "a number", str: "a text"}[kind]
        return Diagnostic("TLR114", f"`{key}` of `{name}` expects {what}", path)
    if kind is float and any(word in key for word in _RATE_WORDS) and not 0 <= value < 1:
        return Diagnostic("TLR114", f"`{key}` is a probability: from 0 to less than 1", path)
    return None


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _listed(known: Mapping[str, Argument]) -> str:
    return f"it takes {', '.join(f'`{name}`' for name in sorted(known))}" if known else "remove it"


def refused(name: str, given: Mapping[str, Any], reason: str) -> TlrecipeError:
    """The TLR114 for arguments that a constructor does not accept, or whose network cannot be used."""
    listed = ", ".join(f"`{key}`" for key in given)
    said = " ".join(reason.split())
    help = "leave out what it sets itself" if "multiple values for keyword argument" in said else None
    return TlrecipeError.of("TLR114", f"`{name}` with {listed}: {said}", path=PLACE, help=help)
