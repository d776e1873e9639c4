"""Where things stand in a TOML text: every key and value found is the one that tomllib reads."""

import datetime
import json
import random
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.language.places import first_duplicate, places

# --------------------------------------------------------------------------- random documents

text = st.text("aZ09_-é日😀 .'\"\\#=[]{}", max_size=6)
scalars = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    text,
    st.dates(min_value=datetime.date(1900, 1, 1)),
)
keys = st.one_of(st.text("abc", min_size=1, max_size=3), text)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.lists(st.just({}), max_size=2),
    ),
    max_leaves=8,
)
documents = st.dictionaries(keys, values, max_size=5)


class Writer:
    """Writes data as TOML in a style that varies from place to place."""

    def __init__(self, style: random.Random):
        self.style = style

    def document(self, data: dict[str, Any]) -> str:
        written = "\n".join(self.table(data, ())) + self.style.choice(["", "\n"])
        return self.style.choice([written, written.replace("\n", "\r\n")])

    def table(self, data: dict[str, Any], path: tuple[str, ...]) -> list[str]:
        own, below = [], []
        for key, value in data.items():
            here = ".".join(map(self.key, (*path, key)))
            if isinstance(value, dict) and self.style.random() < 0.5:
                below += [f"[{here}]", *self.table(value, (*path, key))]
            elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
                for entry in value:
                    below += [f"[[ {here} ]]  # é", *self.table(entry, (*path, key))]
            elif isinstance(value, dict) and len(value) > 0 and self.style.random() < 0.5:
                own += [f"{self.key(key)}.{self.key(k)} = {self.value(v)}" for k, v in value.items()]
            else:
                own.append(f"  {self.key(key)} = {self.value(value)} # é")
        return [*own, "", *below]

    def key(self, key: str) -> str:
        styles = [json.dumps(key, ensure_ascii=False)]
        if re.fullmatch(r"[A-Za-z0-9_-]+", key):
            styles.append(key)
        if "'" not in key:
            styles.append(f"'{key}'")
        return self.style.choice(styles)

    def value(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{self.key(k)} = {self.inline(v)}" for k, v in value.items()) + " }"
        if isinstance(value, list):
            entries = [self.value(entry) for entry in value]
            if self.style.random() < 0.3:
                return "[\n" + "".join(f"  {entry}, # é\n" for entry in entries) + "]"
            return "[" + ", ".join(entries) + "]"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, str):
            return self.string(value)
        return repr(value)

    def inline(self, value: Any) -> str:
        return self.value(value).replace("\n", " ").replace("# é", "")

    def string(self, value: str) -> str:
        styles = [json.dumps(value, ensure_ascii=False)]
        if "'" not in value:
            styles.append(f"'{value}'")
        if '"' not in value and "\\" not in value:
            styles.append(f'"""{value}"""')
        return self.style.choice(styles)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


@given(documents, st.randoms(use_true_random=False))
def test_every_leaf_stands_where_it_is_said_to(data: dict[str, Any], style: random.Random) -> None:
    written = Writer(style).document(data)
    read = tomllib.loads(written)
    lines = [line.removesuffix("\r") for line in written.split("\n")]
    found = places(written)
    assert first_duplicate(written) is None
    for path, value in leaves(read):
        if not path:
            continue
        place = found[path]
        key, cut = place.key, place.value
        if isinstance(path[-1], str):
            assert tomllib.loads(f"{lines[key.line - 1][key.column - 1 : key.end_column - 1]} = 0") == {
                path[-1]: 0
            }
        source = lines[cut.line - 1][cut.column - 1 : cut.end_column - 1]
        if source.startswith("[") and source.endswith("]") and value == {}:
            assert tomllib.loads(source)  # the header of an empty table
        elif source == "[":
            assert value == []  # an empty list over two lines
        else:
            assert tomllib.loads(f"value = {source}")["value"] == value


def test_a_value_over_several_lines_is_marked_to_the_end_of_its_first() -> None:
    found = places('"é" = [ # list\r\n  1,\r\n]\r\n"ü".x = """a\nb"""\n')
    assert (found["é",].value.line, found["é",].value.column, found["é",].value.end_column) == (1, 7, 15)
    assert (found["ü", "x"].value.column, found["ü", "x"].value.end_column) == (9, 13)


def test_tables_stand_at_their_headers() -> None:
    found = places("[[phase]]\nx = 1\n\n[[phase]]\n[phase.schedule]\nname = 1\n")
    assert found["phase", 1].value.line == 4
    assert found["phase", 1, "schedule"].value.column == 1
    assert found["phase", 1, "schedule"].key.column == 8
    assert found["phase", 1, "schedule", "name"].key.line == 6


# --------------------------------------------------------------------------- duplicates

statements = st.sampled_from(
    [
        *("a = 1", "a.b = 1", "a.c = 1", "b = { a = 1, b.c = 2 }", "b.a = 2", "c = [{ a = 1 }]"),
        *("[a]", "[a.b]", "[a.b.c]", "[b]", "[b.a]", "[c]", "[[a]]", "[[a.b]]", "[[c]]"),
    ]
)


@given(st.lists(statements, max_size=6).map("\n".join))
def test_duplicates_are_found_where_tomllib_finds_them(written: str) -> None:
    try:
        tomllib.loads(written)
    except tomllib.TOMLDecodeError as error:
        duplicate = first_duplicate(written)
        assert duplicate is not None, error
        assert (duplicate.first.line, duplicate.first.column) < (
            duplicate.second.line,
            duplicate.second.column,
        )
    else:
        assert first_duplicate(written) is None


@pytest.mark.parametrize(
    ("written", "path", "first", "second"),
    [
        ("lr = 1\nlr = 2", ("lr",), (1, 1), (2, 1)),
        ("x = { é = 1, é = 2 }".replace("é", '"é"'), ("x", "é"), (1, 7), (1, 16)),
        ("[data]\na = 1\n[data]", ("data",), (1, 2), (3, 2)),
        ("[phase]\n[[phase]]", ("phase",), (1, 2), (2, 3)),
        ("[a]\nb.c = 1\n[a.b]", ("a", "b"), (2, 1), (3, 4)),
    ],
)
def test_duplicates(written: str, path: Any, first: Any, second: Any) -> None:
    duplicate = first_duplicate(written)
    assert duplicate is not None
    assert duplicate.path == path
    assert (duplicate.first.line, duplicate.first.column) == first
    assert (duplicate.second.line, duplicate.second.column) == second
