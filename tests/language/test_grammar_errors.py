"""What is said about each mistake in a recipe, compared with the files in `snapshots/`.

`TLRECIPE_UPDATE_SNAPSHOTS=1 pytest tests/language/test_grammar_errors.py` writes the files anew.
"""

import datetime
import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from tlrecipe.language.diagnostics import CODES, Diagnostic, TlrecipeError
from tlrecipe.language.text import loads

SNAPSHOTS = Path(__file__).with_name("snapshots")

VALID = """\
format = 1
name = "hybrid"

[data]
source = "folder"
path = "photos"
batch_size = 32
val = 0.1
background = [255, 255, 255]

[backbone]
source = "timm"
name = "resnet18"
weights = "pretrained"

[head]
dropout = 0.2

[optimizer]
name = "adamw"
weight_decay = 0.02
betas = [0.9, 0.99]

[[group]]
name = "head"
match = ["@head"]

[[group]]
name = "rest"
match = ["**"]
lr_scale = 0.1

[[phase]]
name = "extract"
freeze = ["@backbone"]
epochs = 30
lr = 3e-3
schedule = { name = "cosine", warmup = 0.1 }

[[phase]]
name = "finetune"
freeze = ["conv1", "layer[1-2]"]
thaw = ["@norm"]
steps = 800
lr = { head = 1e-3, rest = 3e-4 }
augment = { hflip = true, crop = 4 }
stop = { metric = "loss", patience = 3 }
norm = "frozen"
"""

# Each case: what to replace in the valid recipe, and with what.
CASES: dict[str, dict[str, str]] = {
    # the whole
    "R03-empty": {VALID: ""},
    "R03-comment-only": {VALID: "# nothing yet\n"},
    "R03-almost-empty": {VALID: "name = 'x'\n"},
    # missing keys
    "missing-format": {"format = 1\n": ""},
    "missing-name-of-phase": {'[[phase]]\nname = "finetune"\n': "[[phase]]\n"},
    "missing-freeze": {'freeze = ["@backbone"]\n': ""},
    "missing-lr": {"lr = 3e-3\n": ""},
    "missing-table": {'[backbone]\nsource = "timm"\nname = "resnet18"\nweights = "pretrained"\n': ""},
    "missing-weights": {'weights = "pretrained"\n': ""},
    "missing-choice-of-table": {'source = "folder"\n': ""},
    "missing-choice-of-inline-table": {'{ name = "cosine", warmup = 0.1 }': "{ warmup = 0.1 }"},
    "missing-in-dotted-table": {
        "[data]\n": "", 'source = "folder"': "data.val = 0.2", "[head]\ndropout = 0.2\n": "",
    },
    "R19-no-phase": {VALID[VALID.index("[[phase]]") :]: ""},
    "R19-empty-list-of-phases": {VALID[VALID.index("[[group]]") :]: "", "[data]": "phase = []\n[data]"},
    # unknown keys
    "R10-near-miss": {"epochs = 30": "epoch = 30"},
    "R10-other-tools-word": {"lr = 3e-3": "lr = 3e-3\nlearing_rate = 3e-3"},
    "R10-of-another-table": {"[head]": "[head]\nlr = 1e-3"},
    "R10-other-tools-word-in-another-table": {"[head]": "[head]\nlearning_rate = 1e-3"},
    "R10-of-another-optimizer": {"betas =": "nesterov = true\nbetas ="},
    "R10-of-another-schedule": {"warmup = 0.1 }": "warmup = 0.1, milestones = [0.5] }"},
    "R10-unknown-table": {"[optimizer]": "[optimiser]"},
    "R10-nothing-near": {"[head]": "[head]\nzzz = 1"},
    "R10-quoted-key": {"dropout": '"größe von"'},
    "R10-dotted-key": {"dropout = 0.2": "dropout.rate = 0.2"},
    "R10-in-inline-table": {"crop = 4": "crops = 4"},
    # numbers
    "R07-nan": {"lr = 3e-3": "lr = nan"},
    "R07-inf": {"lr_scale = 0.1": "lr_scale = inf"},
    "R07-too-large-for-a-float": {"head = 1e-3": "head = 1e400"},
    "R07-inf-without-upper-bound": {"steps = 800": "steps = 800\nclip_norm = inf"},
    "R07-nan-without-upper-bound": {"patience = 3": "min_delta = nan"},
    "R07-minus-zero": {"lr = 3e-3": "lr = -0.0"},
    "R07-denormal": {"rest = 3e-4": "rest = 1e-320"},
    "R07-zero": {"lr = 3e-3": "lr = 0"},
    "R08-true-for-a-number": {"epochs = 30": "epochs = true"},
    "R08-float-for-a-whole-number": {"epochs = 30": "epochs = 3.0"},
    "R08-text-for-a-number": {"epochs = 30": 'epochs = "3"'},
    "R08-date-for-a-number": {"epochs = 30": "epochs = 2024-01-31"},
    "R08-time-for-a-number": {"epochs = 30": "epochs = 07:30:00"},
    "R08-text-for-a-rate": {"lr = 3e-3": 'lr = "3e-3"'},
    "R08-list-for-a-rate": {"lr = 3e-3": "lr = [3e-3]"},
    "R08-true-for-a-rate": {"lr = 3e-3": "lr = true"},
    "R08-true-for-the-format": {"format = 1": "format = true"},
    "R09-zero-epochs": {"epochs = 30": "epochs = 0"},
    "R09-negative-epochs": {"epochs = 30": "epochs = -1"},
    "R09-absurd-epochs": {"epochs = 30": "epochs = 1_000_000_000_000_000_000"},
    "R09-more-digits-than-fit": {"epochs = 30": f"epochs = 0x{'f' * 99}"},
    "R21-threads": {"[head]": "[compute]\nthreads = -1\n[head]"},
    "val-of-one": {"val = 0.1": "val = 1"},
    "warmup-between": {"warmup = 0.1": "warmup = 1.5"},
    "warmup-text": {"warmup = 0.1": 'warmup = "a tenth"'},
    "later-format": {"format = 1": "format = 2"},
    # truth values
    "one-for-true": {"hflip = true": "hflip = 1"},
    "text-for-true": {"hflip = true": 'hflip = "True"'},
    # texts and choices
    "unknown-choice": {'metric = "loss"': 'metric = "los"'},
    "unknown-choice-nothing-near": {'norm = "frozen"': 'norm = "eval"'},
    "unknown-source": {'source = "folder"': 'source = "foldr"'},
    "unknown-optimizer": {'name = "adamw"': 'name = "adamx"'},
    "unknown-schedule": {'name = "cosine"': 'name = "cos"'},
    "number-for-a-choice": {'norm = "frozen"': "norm = 3"},
    "number-for-the-choice-of-a-table": {'source = "folder"': "source = 3"},
    "number-for-a-text": {'path = "photos"': "path = 3"},
    "empty-text": {'path = "photos"': 'path = ""'},
    "name-with-space": {'name = "hybrid"': 'name = "my recipe"'},
    "digest": {'weights = "pretrained"': 'weights = "pretrained"\nsha256 = "ABC"'},
    "long-text": {'name = "hybrid"': f'name = "hybrid"\ndescription = "{"long " * 500}"'},
    # lists and tables
    "text-for-a-list": {'freeze = ["@backbone"]': 'freeze = "@backbone"'},
    "number-in-a-list": {'"layer[1-2]"': "12"},
    "empty-pattern": {'"layer[1-2]"': '""'},
    "empty-match": {'match = ["**"]': "match = []"},
    "short-list": {"[255, 255, 255]": "[255, 255]"},
    "long-list": {"[0.9, 0.99]": "[0.9, 0.99, 0.999]"},
    "entry-out-of-range": {"[255, 255, 255]": "[\n  255,\n  256, # white\n  255,\n]"},
    "text-for-a-table": {'{ name = "cosine", warmup = 0.1 }': '"cosine"'},
    "near-text-for-a-table": {'{ name = "cosine", warmup = 0.1 }': '"onecycle"'},
    "number-for-a-table": {'[head]\ndropout = 0.2': "", "[data]": "head = 0.2\n[data]"},
    "table-for-a-list-of-tables": {'[[phase]]\nname = "extract"': '[phase]\nname = "extract"'}
    | {VALID[VALID.rindex("[[phase]]") :]: ""},
    "list-of-tables-for-a-table": {"[head]": "[[head]]"},
    "list-of-texts-for-a-list-of-tables": {VALID[VALID.index("[[group]]") : VALID.index("[[phase]]")]: ""}
    | {"[data]": 'group = ["head"]\n[data]'},
    "empty-table-of-rates": {"{ head = 1e-3, rest = 3e-4 }": "{}"},
    "text-in-a-table-of-rates": {"rest = 3e-4": 'rest = "3e-4"'},
    # patterns
    "R12-regular-expression": {'"layer[1-2]"': r'"layer[1-2]\\..*"'},
    "unknown-selector": {'["@norm"]': '["@norms"]'},
    "bad-pattern-in-no-decay": {"betas =": 'no_decay = ["@bias", "bn/*"]\nbetas ='},
    "bad-pattern-in-match": {'["**"]': '["@head", "***"]'},
    "bad-pattern-beside-another-mistake": {'["**"]': '["{a"]', "epochs = 30": "epochs = 0"},
    # names
    "R19-duplicate-phase": {'name = "finetune"': 'name = "extract"'},
    "R19-duplicate-group": {'name = "rest"': 'name = "head"'},
    # together
    "R22-two-tables": {"val = 0.1": "val = 2", "dropout = 0.2": "dropuot = 0.2", "steps = 800": "steps = 0"},
    "R22-everything-in-one-phase": {
        'name = "finetune"\nfreeze = ["conv1", "layer[1-2]"]\nthaw': 'name = "extract"\nthaws',
        "steps = 800": "steps = '8'",
    },
    "R22-unknown-source-hides-its-table-only": {
        'source = "folder"': 'source = "?"', "dropout = 0.2": "dropout = 1",
    },
}  # fmt: skip


def mutated(changes: dict[str, str]) -> str:
    text = VALID
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def rendered(diagnostics: Iterable[Diagnostic]) -> str:
    lines = []
    for found in diagnostics:
        lines.append(
            f"{found.file}:{found.line}:{found.column}: {found.severity}[{found.code}]: {found.message}"
        )
        for at in (found, *found.labels):
            assert at.source is not None and at.column is not None and at.end_column is not None
            carets = "^" * (at.end_column - at.column) if at is found else "-" * (at.end_column - at.column)
            said = "" if at is found else f" {at.text}"
            lines.append(f"  {at.line} | {at.source[:100]}")
            lines.append(f"  {' ' * len(str(at.line))} | {' ' * (at.column - 1)}{carets[:100]}{said}")
        if found.help:
            lines.append(f"help: {found.help}")
        lines.append("")
    return "\n".join(line.rstrip() for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_said(case: str) -> None:
    with pytest.raises(TlrecipeError) as caught:
        loads(mutated(CASES[case]), name="recipe.toml")
    said = rendered(caught.value.diagnostics)
    file = SNAPSHOTS / f"{case}.txt"
    if os.environ.get("TLRECIPE_UPDATE_SNAPSHOTS") == "1":
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(said, encoding="utf-8")
    assert said == file.read_text(encoding="utf-8")


def test_no_snapshot_is_left_over() -> None:
    assert {file.stem for file in SNAPSHOTS.glob("*.txt")} == set(CASES)


def test_the_valid_recipe_is_valid() -> None:
    assert loads(VALID).recipe.name == "hybrid"


@pytest.mark.parametrize("case", CASES)
def test_in_order_with_exit_code_3_and_known_codes(case: str) -> None:
    with pytest.raises(TlrecipeError) as caught:
        loads(mutated(CASES[case]))
    found = caught.value.diagnostics
    assert [(one.line, one.column) for one in found] == sorted((one.line, one.column) for one in found)
    assert {one.exit_code for one in found} == {3}
    assert {one.code for one in found} <= CODES.keys()


# --------------------------------------------------------------------------- whatever is written


def spots(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from spots(inner, (*path, key))


scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["folder", "sgd", "cosine", "@head", "head", "1e3", "true"]),
    st.datetimes(timezones=st.none() | st.just(datetime.UTC)),
    st.times(),
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "source", "lr", "head", "epochs", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.sampled_from(list(spots(tomllib.loads(VALID)))), anything)
@example(("data", "source"), ["folder"])
@example(("optimizer", "name"), {"name": "sgd"})
@example(("phase", 0, "schedule"), [{"name": "cosine"}])
@example(("phase",), [])
@example(("group", 0), 3)
@example(("data",), datetime.date(2024, 1, 31))
def test_any_value_anywhere_is_taken_or_explained(path: tuple[str | int, ...], value: Any) -> None:
    data = tomllib.loads(VALID)
    inner: Any = data
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    text = tomli_w.dumps(data)
    try:
        loads(text)
    except TlrecipeError as error:
        lines = text.split("\n")
        for found in error.diagnostics:
            assert found.line is not None and found.column is not None and found.end_column is not None
            assert found.source == lines[found.line - 1]
            assert 1 <= found.column < found.end_column <= len(found.source) + 2
            assert found.message
