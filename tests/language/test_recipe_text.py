"""Reading recipe files, their syntax, places of diagnostics, and writing a recipe back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.language.diagnostics import Diagnostic, Label, TlrecipeError
from tlrecipe.language.spec import (
    AdamSpec,
    AdamWSpec,
    Augment,
    ComputeSpec,
    ConstantSchedule,
    CosineSchedule,
    FolderData,
    GroupSpec,
    HeadSpec,
    LinearSchedule,
    OneCycleSchedule,
    PhaseSpec,
    Recipe,
    RMSpropSpec,
    SampleData,
    SGDSpec,
    StepSchedule,
    StopRule,
    TimmBackbone,
)
from tlrecipe.language.text import load, loads

MINIMAL = """\
format = 1
name = "minimal"

[data]
source = "sample"

[backbone]
source = "timm"
name = "resnet18"
weights = "none"

[[phase]]
name = "all"
freeze = []
epochs = 1
lr = 1e-3
"""


def only(call, *arguments) -> Diagnostic:
    with pytest.raises(TlrecipeError) as caught:
        call(*arguments)
    (found,) = caught.value.diagnostics
    return found


# --------------------------------------------------------------------------- files (R01 to R05)


@pytest.mark.parametrize(
    ("name", "code", "exit_code", "message", "help"),
    [
        pytest.param(
            "recip.toml", "TLR001", 2, "no such file", "did you mean `recipe.toml`?", id="R01-missing"
        ),
        pytest.param("no/recipe.toml", "TLR001", 2, "no such file", "there is no folder", id="R01-no-folder"),
        pytest.param("recipe.toml/x", "TLR001", 2, "not a directory", None, id="R01-not-a-folder"),
        pytest.param("a\0b", "TLR001", 2, "null", None, id="R01-impossible-name"),
        pytest.param(".", "TLR002", 3, "is a directory", "name the recipe's file", id="R01-directory"),
        pytest.param("pipe", "TLR002", 3, "not a regular file", None, id="R02-fifo"),
        pytest.param("/dev/zero", "TLR002", 3, "not a regular file", None, id="R02-device"),
        pytest.param("large.toml", "TLR002", 3, "larger than 1 MiB", None, id="R02-large"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, monkeypatch, name, code, exit_code, message, help) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(MINIMAL)
    os.mkfifo("pipe")
    Path("large.toml").write_bytes(b"#" * (2 << 20))
    found = only(load, Path(name))
    assert (found.code, found.exit_code, found.file, found.line) == (code, exit_code, str(Path(name)), None)
    assert message in found.message
    assert name in found.message
    assert (help or "") in (found.help or "")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to become another user")
def test_R01_unreadable_by_this_user(tmp_path: Path) -> None:  # noqa: N802
    file = tmp_path / "recipe.toml"
    file.write_text(MINIMAL)
    file.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from tlrecipe.language.text import load\n"
        "from tlrecipe.language.diagnostics import TlrecipeError\n"
        "os.setuid(65534)\n"
        "try: load(Path(sys.argv[1]))\n"
        "except TlrecipeError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert printed.stdout == f"TLR001: cannot open `{file}`: permission denied\n"


@pytest.mark.parametrize(
    ("content", "message", "line", "column", "help"),
    [
        pytest.param(
            b"format = 1\nx = '\xe9'\n", "not UTF-8 at byte 16 (line 2)", 2, 6, "as UTF-8", id="R04-latin-1"
        ),
        pytest.param(
            MINIMAL.encode("utf-16"), "not UTF-8 at byte 0 (line 1)", 1, 1, "UTF-16", id="R04-utf-16"
        ),
        pytest.param(
            MINIMAL.encode("utf-16-le"),
            "a zero byte at byte 1 (line 1)",
            1,
            2,
            "UTF-16",
            id="R04-utf-16-no-mark",
        ),
        pytest.param(
            "\ufeffä = 1\r\n".encode() + b"\xff",
            "not UTF-8 at byte 11 (line 2)",
            2,
            1,
            "UTF-8",
            id="R04-mark",
        ),
    ],
)
def test_bytes_that_are_no_text(tmp_path, content, message, line, column, help) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(content)
    found = only(load, file)
    assert (found.code, found.message, found.line, found.column) == ("TLR003", message, line, column)
    assert help in (found.help or "")


def test_R04_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:  # noqa: N802
    file = tmp_path / "recipe.toml"
    content = b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()
    file.write_bytes(content)
    document = load(file)
    assert document.recipe == loads(MINIMAL).recipe
    assert document.text.encode() == content
    (found,) = document.locate([Diagnostic("TLR104", "x", ("format",), at="key")])
    assert (found.line, found.column, found.source) == (1, 1, "format = 1")


@pytest.mark.parametrize(
    ("text", "line", "columns", "message", "help"),
    [
        pytest.param(
            MINIMAL.replace("\n", "\r"), 1, (11, 12), "carriage return", "LF or CR LF", id="R04-cr-only"
        ),
        pytest.param("lr = ", 1, (5, 6), "value is missing", "take the key out", id="R05-no-value"),
        pytest.param("x = [1,\nlr = 1", 2, (1, 3), "`lr` is not a value", "quotes", id="R05-open-list"),
        pytest.param("x = [1 2]", 1, (8, 10), "list is not closed", "separated by `,`", id="R05-no-comma"),
        pytest.param("lr = None # x", 1, (6, 10), "`None` is not a value", "no null", id="R05-null"),
        pytest.param("lr = True", 1, (6, 10), "`True` is not a value", "`true` or `false`", id="R05-capital"),
        pytest.param("lr = .5", 1, (6, 8), "`.5` is not a number", "`0.5`", id="R05-dot"),
        pytest.param("lr = +x", 1, (6, 8), "`+x` is not a value", None, id="R05-sign"),
        pytest.param("é = 1", 1, (1, 2), "`é` cannot begin a line", "in quotes", id="R05-bare-key"),
        pytest.param("= 1", 1, (1, 2), "no key before `=`", None, id="R05-no-key"),
        pytest.param("a b = 1", 1, (3, 4), "expected `=`", "quotes", id="R05-space-in-key"),
        pytest.param("a = 1 b = 2", 1, (7, 12), "unexpected `b = 2`", "one key", id="R05-two-keys"),
        pytest.param("a = 01", 1, (6, 7), "unexpected `1`", "leading zeros", id="R05-leading-zero"),
        pytest.param("[data\nx = 1", 1, (6, 7), "header is not closed", "[data]", id="R05-header"),
        pytest.param(
            "[[phase]\nx = 1", 1, (8, 9), "header is not closed", "[[phase]]", id="R05-array-header"
        ),
        pytest.param(
            "a = { b = 1,\n}", 1, (13, 14), "expected another key", "one line", id="R05-inline-lines"
        ),
        pytest.param("a = { b = 1", 1, (12, 13), "inline table is not closed", "`}`", id="R05-inline-open"),
        pytest.param('a = "é\nb = 1', 1, (7, 8), "text is not closed", "quote", id="R05-open-text"),
        pytest.param("a = 'b\nc = 1", 1, (5, 7), "text is not closed", "quote", id="R05-open-literal"),
        pytest.param(
            'x = 1\na = """b\nc\n', 2, (5, 9), "text is not closed", "quote", id="R05-open-long-text"
        ),
        pytest.param(
            'a = "C:\\photos"', 1, (8, 10), "`\\p` is no known escape", "single quotes", id="R05-backslash"
        ),
        pytest.param("a = 2024-02-30", 1, (5, 15), "`2024-02-30` is not a date", None, id="R05-date"),
        pytest.param("a = 1\0", None, (), "zero byte", None, id="R05-zero-byte"),
        pytest.param("a = " + "[" * 20_000, 1, (1, 2), "nested too deeply", None, id="R05-deep-list"),
        pytest.param("a." * 50 + "a = 1", 1, None, "more than 40 deep", None, id="R05-deep-key"),
        pytest.param("x = 1\na = " + "1" * 5000, 2, (5, 6), "too many digits", None, id="R05-digits"),
    ],
)
def test_syntax_errors(tmp_path, text, line, columns, message, help) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(text.encode())
    found = only(load, file)
    assert found.code in ("TLR003", "TLR004")
    assert found.exit_code == 3
    assert message in found.message
    assert (help or "") in (found.help or "")
    if found.code == "TLR004":
        assert found.line == line
        assert columns is None or (found.column, found.end_column) == columns


@pytest.mark.parametrize(
    ("text", "what", "first", "second"),
    [
        pytest.param("seed = 1\nseed = 2", "seed", (1, 1, "seed = 1"), (2, 1, "seed = 2"), id="R05-key"),
        pytest.param("[data]\n[data]", "data", (1, 2, "[data]"), (2, 2, "[data]"), id="R05-table"),
        pytest.param("[phase]\n[[phase]]", "phase", (1, 2, "[phase]"), (2, 3, "[[phase]]"), id="R05-list"),
        pytest.param("a={b=1,b=2}", "a.b", (1, 4, "a={b=1,b=2}"), (1, 8, "a={b=1,b=2}"), id="R05-inline"),
    ],
)
def test_both_places_of_a_duplicate_are_shown(text, what, first, second) -> None:
    found = only(loads, text)
    assert (found.code, found.message) == ("TLR004", f"`{what}` is defined twice")
    assert (found.line, found.column, found.source) == second
    (label,) = found.labels
    assert (label.line, label.column, label.source) == first
    assert label.text == "first defined here"


@given(st.one_of(st.text(max_size=80), st.text("ab=[]{}\"'.,#\n\r0 1_-\\", max_size=60)))
def test_reading_raises_nothing_but_recipe_errors(text: str) -> None:
    with pytest.raises(TlrecipeError) as caught:
        loads(text)
    for found in caught.value.diagnostics:
        assert found.code.startswith(("TLR003", "TLR004", "TLR005", "TLR10"))
        assert found.line is None or 1 <= found.line <= text.count("\n") + 1


# --------------------------------------------------------------------------- places


def test_what_is_not_written_is_placed_at_its_table() -> None:
    document = loads(MINIMAL, name="r.toml")
    found = document.locate(
        [
            Diagnostic("TLR123", "x", ("phase", 0, "steps")),
            Diagnostic("TLR122", "x", ("phase", 0, "schedule", "name"), at="key"),
            Diagnostic("TLR104", "x", ("optimizer", "no_decay", 0)),
            Diagnostic("TLR104", "x", ("phase", 0, "lr"), labels=(Label(("data", "source"), "here"),)),
        ]
    )
    assert [(one.file, one.line, one.column, one.end_column) for one in found] == [
        ("r.toml", 12, 1, 10),
        ("r.toml", 12, 1, 10),
        ("r.toml", 1, 1, 2),
        ("r.toml", 16, 6, 10),
    ]
    (label,) = found[3].labels
    assert (label.line, label.column, label.source) == (5, 10, 'source = "sample"')


def test_what_has_a_place_or_concerns_no_place_is_left_alone() -> None:
    elsewhere = Diagnostic("TLR404", "x", ("data", "source"), file="image.png")
    nowhere = Diagnostic("TLR801", "x")
    assert loads(MINIMAL).locate([elsewhere, nowhere]) == (elsewhere, nowhere)


# --------------------------------------------------------------------------- writing back

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
rates = st.floats(1e-12, 1e6)
halves = st.floats(0, 0.99)
patterns = st.lists(
    st.sampled_from(["@head", "@stage:0..2", "**", "blocks.[0-12]", "{a,b}.c"]), max_size=3
).map(tuple)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
warmups = st.one_of(st.integers(0, 100), halves)
decay = {"weight_decay": st.floats(0, 10), "no_decay": patterns}
betas = st.tuples(halves, halves)
optimizers = st.one_of(
    st.builds(SGDSpec, name=st.just("sgd"), momentum=halves, nesterov=st.booleans(), **decay),
    st.builds(AdamSpec, name=st.just("adam"), betas=betas, eps=st.floats(1e-12, 1), **decay),
    st.builds(AdamWSpec, name=st.just("adamw"), betas=betas, **decay),
    st.builds(RMSpropSpec, name=st.just("rmsprop"), alpha=halves, **decay),
)
schedules = st.one_of(
    st.builds(ConstantSchedule, warmup=warmups),
    st.builds(LinearSchedule, name=st.just("linear"), warmup=warmups, final=halves),
    st.builds(CosineSchedule, name=st.just("cosine"), warmup=warmups, final=halves),
    st.builds(
        StepSchedule,
        name=st.just("step"),
        milestones=st.lists(st.floats(0.1, 0.9), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(OneCycleSchedule, name=st.just("one_cycle"), warmup=warmups, start=st.floats(0.01, 1)),
)
data = st.one_of(
    st.builds(SampleData, source=st.just("sample"), size=st.none() | st.integers(8, 4096), val=halves),
    st.builds(
        FolderData,
        source=st.just("folder"),
        path=st.sampled_from(["/data/photos", "/data/a b.zip"]),
        background=st.tuples(*[st.integers(0, 255)] * 3),
    ),
)
phases = st.builds(
    PhaseSpec,
    name=names,
    freeze=patterns,
    thaw=patterns,
    epochs=st.none() | st.integers(1, 10**9),
    lr=st.one_of(rates, st.dictionaries(st.one_of(names, texts), rates, min_size=1, max_size=3)),
    schedule=schedules,
    augment=st.builds(Augment, hflip=st.booleans(), views=st.none() | st.integers(1, 64)),
    optimizer=st.none() | optimizers,
    norm=st.sampled_from(["follow", "frozen", "train"]),
    stop=st.none() | st.builds(StopRule, min_delta=st.floats(0, 1e300)),
    clip_norm=st.none() | st.floats(1e-300, 1e300),
)
recipes = st.builds(
    Recipe,
    format=st.just(1),
    name=names,
    description=texts,
    seed=st.integers(0, 2**63 - 1),
    data=data,
    backbone=st.builds(
        TimmBackbone,
        source=st.just("timm"),
        name=st.text("abé", min_size=1),
        weights=st.sampled_from(["pretrained", "/w/best.pt", "a1_in1k"]),
        sha256=st.none() | st.just("0" * 64),
        args=st.dictionaries(names, st.booleans() | st.integers(-9, 9) | halves | texts | st.tuples(halves)),
    ),
    head=st.builds(HeadSpec, dropout=halves),
    optimizer=optimizers,
    compute=st.builds(ComputeSpec, threads=st.none() | st.integers(1, 1024)),
    group=st.lists(
        st.builds(GroupSpec, name=names, match=patterns.filter(bool), lr_scale=rates),
        max_size=3,
        unique_by=lambda g: g.name,
    ).map(tuple),
    phase=st.lists(phases, min_size=1, max_size=3, unique_by=lambda p: p.name).map(tuple),
)


@given(recipes)
def test_the_resolved_text_loads_to_an_equal_recipe(recipe: Recipe) -> None:
    document = loads(MINIMAL)
    object.__setattr__(document, "recipe", recipe)
    again = loads(document.resolved())
    assert again.recipe == recipe
    assert again.resolved() == document.resolved()


def test_the_resolved_text_writes_out_defaults_extends_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(MINIMAL.replace('"none"', '"w/best.pt"'))
    (tmp_path / "child.toml").write_text('extends = "base.toml"\nname = "child"\n')
    document = load(tmp_path / "child.toml", ["seed=3"])
    resolved = document.resolved()
    assert resolved.startswith('format = 1\nname = "child"\n')
    assert "extends" not in resolved
    for line in ("seed = 3", f'weights = "{tmp_path}/w/best.pt"', "label_smoothing = 0.0", 'norm = "follow"'):
        assert f"{line}\n" in resolved
    assert loads(resolved, base=Path("/elsewhere")).recipe == document.recipe
    assert document.text == 'extends = "base.toml"\nname = "child"\n'


def test_neither_reading_nor_grammar_errors_import_torch_or_rich() -> None:
    code = (
        "import sys; from tlrecipe.language.text import loads\n"
        "try: loads('format = true')\n"
        "except Exception as error: assert len(error.diagnostics) == 5, error\n"
        "print([name for name in ('torch', 'rich', 'numpy', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_recipe_without_mistakes_is_read_without_the_parser_for_places() -> None:
    code = (
        "import sys; from tlrecipe.language.text import loads\n"
        f"loads({MINIMAL!r}); print('tree_sitter' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
