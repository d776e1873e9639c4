"""Help, usage, exit codes, and what the light commands say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from project import RECIPE, invoke, write_images

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.app import cli
from tlrecipe.language.diagnostics import CODES, Diagnostic, TlrecipeError
from tlrecipe.planning.patterns import Matcher
from tlrecipe.workflow import checking

# Frozen layers need trained weights; explaining them does not need the weights to be there.
FROZEN = [
    *("--set", 'backbone.name="tf_efficientnet_lite0"', "--set", 'backbone.weights="pretrained"'),
    *("--set", 'phase.all.freeze=["@backbone"]'),
]

SHIPPED = Path(__file__).parents[2] / "recipes"

HEAVY = ("torch", "torchvision", "timm", "numpy", "structlog", "matplotlib", "jinja2", "PIL")

LIGHTLY = """
import sys
from tlrecipe.__main__ import main
sys.argv = ["tlrecipe", *sys.argv[1:]]
try:
    main()
finally:
    print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


# A command that takes a minute, interrupted after a second.
SLOW = """
import os, signal, threading, time
from tlrecipe import files
files.cache_dir = lambda: time.sleep(60)
# A process that was started in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
"""


def commands(group: click.Group, *above: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [above]
    for name, command in group.commands.items():
        inside = isinstance(command, click.Group)
        found += commands(command, *above, name) if inside else [(*above, name)]
    return found


def process(
    *arguments: object, code: str = LIGHTLY, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        timeout=120,
    )


def recipe(folder: Path, *changes: tuple[str, str], name: str = "tiny.toml") -> Path:
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return folder / name


# --------------------------------------------------------------------------- help and usage


@pytest.mark.parametrize("command", commands(cli), ids=" ".join)
def test_every_command_has_help_and_documents_each_option(command: tuple[str, ...]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    target: click.Command = cli
    for name in command:
        assert isinstance(target, click.Group)
        target = target.commands[name]
    assert target.help
    assert all(option.help for option in target.params if isinstance(option, click.Option))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "r.toml", "--nonsense"],
        ["validate"],
        ["predict", "model"],
        ["predict", "model", "x.png", "--top", "0"],
        ["list", "nonsense"],
        ["explain", "TLR999"],
        ["cache", "nonsense"],
        ["run", "r.toml", "--device", "quantum"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2_and_leave_stdout_free(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_a_near_command_is_suggested() -> None:
    assert "validate" in invoke("validat").stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["--version"], 0),
        (["schema"], 0),
        (["explain", "TLR104"], 0),
        (["list", "optimizers"], 0),
        (["validate", "bad.toml"], 3),
        (["run", "bad.toml"], 3),
        (["validate", "missing.toml"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_needs_no_network_loads_no_heavy_library(
    arguments: list[str], exit_code: int, tmp_path: Path
) -> None:
    recipe(tmp_path, ("epochs", "epoch"), name="bad.toml")
    result = process(*arguments, cwd=tmp_path)
    assert result.returncode == exit_code
    loaded = result.stderr.partition("LOADED")[2].split()
    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


# --------------------------------------------------------------------------- validate


def test_a_valid_recipe_gets_a_line(project: Path) -> None:
    result = invoke("validate", project / "tiny.toml")
    assert result.exit_code == 0
    expected = "ok, 1 phase, 3 classes, 18 training images, 6 validation images, 12 test images\n"
    assert result.stdout == f"{project / 'tiny.toml'}: {expected}"
    assert result.stderr == ""


def test_all_recipes_are_checked_and_the_first_error_decides(project: Path, tmp_path: Path) -> None:
    good, bad = project / "tiny.toml", recipe(tmp_path, ("lr = 1e-3", "lr = nan"))
    result = invoke("validate", tmp_path / "missing.toml", good, bad)
    assert result.exit_code == 2
    assert result.stdout.startswith(f"{good}: ok")
    assert "error[TLR001]" in result.stderr
    assert "error[TLR102]" in result.stderr
    assert result.stderr.endswith("2 errors\n")
    assert invoke("validate", good, bad).exit_code == 3


def test_independent_mistakes_of_recipe_and_data_come_together(tmp_path: Path) -> None:
    (tmp_path / "colours").mkdir()
    path = recipe(tmp_path, ('match = ["@head"]', 'match = ["haed"]'))
    result = invoke("validate", path)
    assert result.exit_code == 3
    assert "error[TLR104]" in result.stderr
    assert "error[TLR402]" in result.stderr
    assert f"{path}:19:10: error" in result.stderr


def test_absent_data_is_a_warning_to_validate_and_an_error_to_run(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    result = invoke("validate", path)
    assert result.exit_code == 0
    assert "its data is not there" in result.stdout
    assert f"{path}:7:8: warning[TLR401]" in result.stderr
    for arguments in (["run", path], ["validate", "--data", path]):
        result = invoke(*arguments)
        assert result.exit_code == 4
        assert "error[TLR401]" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_data_is_opened_when_asked(project: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "colours" / "train", 8)
    write_images(tmp_path / "colours" / "test", 2)
    for split, name in (("train", "red"), ("test", "blue")):
        (tmp_path / "colours" / split / name / "0.png").write_text("no image")
    path = recipe(tmp_path)
    assert invoke("validate", path).exit_code == 0
    result = invoke("validate", "--data", path)
    assert result.exit_code == 4
    assert result.stderr.count("error[TLR404]") == 2
    skipping = recipe(tmp_path, ('path = "colours"', 'path = "colours"\non_bad = "skip"'))
    result = invoke("validate", "--data", skipping)
    assert result.exit_code == 0
    assert "0.png` is left out" in result.stderr
    assert invoke("validate", "--data", project / "tiny.toml").stderr == ""


def test_overrides_reach_the_recipe(project: Path) -> None:
    path = project / "tiny.toml"
    result = invoke("validate", path, "--set", "data.val=0")
    assert "24 training images, 12 test" in result.stdout
    assert invoke("validate", path, "--set", "phase.all.epoch=3").exit_code == 3


def test_mistakes_as_json_are_a_list_on_stdout(project: Path, tmp_path: Path) -> None:
    assert json.loads(invoke("validate", "--errors", "json", project / "tiny.toml").stdout) == []
    path = recipe(tmp_path, ("epochs = 2", "epoch = 2"))
    result = invoke("validate", project / "tiny.toml", path, "--errors", "json")
    assert result.exit_code == 3
    assert result.stderr == ""
    (mistake,) = json.loads(result.stdout)
    assert {"file", "line", "column", "code", "path", "message", "help"} <= mistake.keys()
    assert (mistake["file"], mistake["line"], mistake["code"]) == (str(path), 29, "TLR101")
    assert mistake["path"] == ["phase", 0, "epoch"]


def test_mistakes_as_annotations(tmp_path: Path) -> None:
    path = recipe(tmp_path, ("epochs = 2", "epoch = 2"))
    result = invoke("validate", path, "--errors", "github")
    assert result.stdout.startswith(f"::error file={path},line=29,col=1,")


# --------------------------------------------------------------------------- explain, params, list


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code: str) -> None:
    result = invoke("explain", code.lower())
    assert result.exit_code == 0
    assert CODES[code] in result.stdout
    facts = json.loads(invoke("explain", code, "--json").stdout)
    assert facts["exit_code"] == Diagnostic(code, "").exit_code


def test_a_recipe_is_explained_in_80_columns(project: Path) -> None:
    result = invoke("explain", project / "tiny.toml")
    assert result.exit_code == 0
    assert "phase 1 of 1: all" in result.stdout
    assert "computed once: nothing" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_explained_in_80_columns(path: Path) -> None:
    hostile = 'description="\\u202e<img src=x onerror=alert(1)>\\u001b[31m \\n' + "x" * 200 + '"'
    printed = invoke("explain", path, "--set", hostile)
    assert printed.exit_code == 0, printed.output
    assert max(map(len, printed.stdout.splitlines())) <= 80
    assert all(char.isprintable() or char == "\n" for char in printed.stdout)


def test_a_plan_is_explained_as_json(project: Path) -> None:
    result = invoke("explain", project / "tiny.toml", "--json", *FROZEN)
    facts = json.loads(result.stdout)
    assert facts["classes"] == ["blue", "green", "red"]
    (phase,) = facts["phases"]
    assert [group["trainable"] > 0 for group in phase["groups"]] == [True, False]
    assert phase["computed_once"]["bytes_per_image"] == 4 * 1280


def test_parameters_are_shown_with_counts_and_groups(project: Path) -> None:
    result = invoke("params", project / "tiny.toml")
    assert result.exit_code == 0
    first, *rows = result.stdout.splitlines()
    assert first == "test_resnet: 372,979 values"
    assert ["fc.weight", "3×96", "288", "stage", "5", "head"] in [row.split() for row in rows]
    deep = invoke("params", project / "tiny.toml", "--depth", "9").stdout
    assert "layer4.0.bn2.weight" in deep
    assert "layer4.0.bn2.weight" not in result.stdout


def test_a_pattern_shows_what_it_matches(project: Path) -> None:
    result = invoke("params", project / "tiny.toml", "layer1", "@bias")
    names = [row.split()[0] for row in result.stdout.splitlines()[1:-4]]
    assert "layer1.0.conv1.weight" in names
    assert "fc.bias" in names
    assert "fc.weight" not in names
    assert result.stdout.splitlines()[-4].startswith("`layer1` matches 6 of 47 parameters")


def test_patterns_that_match_nothing_or_are_none_are_reported_together(project: Path) -> None:
    result = invoke("params", project / "tiny.toml", "layerr1", "layer[1")
    assert result.exit_code == 3
    assert "TLR104" in result.stderr
    assert "did you mean `layer1`?" in result.stderr
    assert "TLR106" in result.stderr


def test_params_works_on_a_recipe_whose_patterns_are_wrong(project: Path) -> None:
    result = invoke("params", project / "tiny.toml", "--set", 'group.head.match=["claasifier"]')
    assert result.exit_code == 0
    assert "fc.weight" in result.stdout


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("data", "folder"),
        ("data", "sample"),
        ("optimizers", "adamw"),
        ("schedules", "one_cycle"),
        ("augmentations", "hflip"),
    ],
)
def test_lists_name_what_the_grammar_knows_with_a_word_on_each(kind: str, name: str) -> None:
    rows = [line.split(maxsplit=1) for line in invoke("list", kind).stdout.splitlines()]
    assert name in [row[0] for row in rows]
    assert all(len(row) == 2 for row in rows)


def test_backbones_are_filtered() -> None:
    rows = invoke("list", "backbones", "LITE0").stdout.splitlines()
    assert "tf_efficientnet_lite0  timm" in rows
    assert all("lite0" in row for row in rows)


def test_the_schema_is_written_to_stdout_or_a_file(here: Path) -> None:
    schema = json.loads(invoke("schema").stdout)
    assert "$defs" in schema
    assert invoke("schema", "-o", "schema.json").stdout == ""
    assert json.loads((here / "schema.json").read_text()) == schema


# --------------------------------------------------------------------------- cache and doctor


def test_clearing_the_cache_touches_only_what_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLRECIPE_CACHE_DIR", str(tmp_path))
    (tmp_path / "features" / "0").mkdir(parents=True)
    (tmp_path / "features" / "0" / "0.bin").write_bytes(bytes(2000))
    (tmp_path / "thesis.doc").touch()
    assert invoke("cache", "path").stdout == f"{tmp_path}\n"
    assert "2.0 kB" in invoke("cache", "list").stdout
    assert "removed 2.0 kB" in invoke("cache", "clear").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_the_doctor_names_versions_and_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(invoke("doctor", "--json").stdout)["cache_problem"] is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("TLRECIPE_CACHE_DIR", str(tmp_path / "file" / "below"))
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "torch " in result.stdout
    assert "ENOTDIR" in result.stdout


# --------------------------------------------------------------------------- how commands end


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str, str]:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(files, "cache_dir", fail)
    result = invoke("cache", "path", *options)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (TlrecipeError.of("TLR701", "nan"), 7, "error[TLR701]: nan"),
        (TlrecipeError.of("TLR601", "used"), 6, "error[TLR601]: used"),
        (MemoryError(), 8, "error[TLR801]: out of memory"),
        (OSError(28, "No space left on device", "/mnt/x"), 9, "ENOSPC"),
        (OSError(2, "No such file"), 70, "bug of tlrecipe: FileNotFoundError"),
        (ValueError("first\nsecond"), 70, "bug of tlrecipe: ValueError: first;"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_errors_end_with_their_code_and_without_a_traceback(
    error: BaseException, exit_code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, stdout, stderr = failing(error, monkeypatch)
    assert code == exit_code
    assert said in stderr
    assert stdout == ""
    assert "Traceback" not in stderr


def test_debug_shows_the_traceback_and_keeps_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, stderr = failing(ValueError("x"), monkeypatch, "--debug")
    assert code == 70
    assert "Traceback" in stderr
    code, _, stderr = failing(TlrecipeError.of("TLR701", "nan"), monkeypatch, "--debug")
    assert code == 7
    assert "Traceback" in stderr


def test_an_interrupt_ends_a_process_with_130() -> None:
    result = process("cache", "path", code=f"{SLOW}\n{LIGHTLY}")
    assert result.returncode == 130
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["schema"], ["explain", "TLR104"]], ids=" ".join)
def test_a_full_stdout_is_a_disk_error(arguments: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tlrecipe", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=120,
        )
    assert result.returncode == 9
    assert "ENOSPC" in result.stderr


def test_colour_follows_no_color_and_force_color(tmp_path: Path) -> None:
    path = recipe(tmp_path, ("epochs = 2", "epoch = 2"))
    coloured = process("validate", path, FORCE_COLOR="1").stderr
    assert "\x1b[1;31m" in coloured
    plain = process("validate", path, FORCE_COLOR="1", NO_COLOR="1").stderr
    assert "\x1b" not in plain


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "caf\u00e9-\u20ac"
    folder.mkdir()
    result = process("validate", recipe(folder), PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert r"caf\xe9-\u20ac" in result.stdout


def test_checking_is_one_function_for_all_commands(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def plan(path: Path, overrides: object, *, needs_data: bool = False) -> object:
        asked.append(needs_data)
        raise TlrecipeError.of("TLR104", "stop here")

    monkeypatch.setattr(checking, "plan", plan)
    for command in ("validate", "explain", "run"):
        assert invoke(command, project / "tiny.toml").exit_code == 3
    assert asked == [False, False, True]


def test_notes_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("checkpoint of \x1b[2J\u202e\x9b31m\nsecond line")
    assert capsys.readouterr().err == "checkpoint of \\x1b[2J\\u202e\\x9b31m\nsecond line\n"


def test_results_for_programs_are_escaped_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.data("\x1b[2J.png,cat")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    console.data("\x1b[2J.png,cat")
    assert capsys.readouterr().out == "\x1b[2J.png,cat\n\\x1b[2J.png,cat\n"


def test_modules_in_the_working_directory_are_not_run(project: Path, tmp_path: Path) -> None:
    for name in ("torch", "numpy", "timm", "pydantic", "tomli_w", "rich", "json", "tlrecipe_extra"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was here')")
    result = subprocess.run(
        [sys.executable, "-m", "tlrecipe", "explain", project / "tiny.toml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(checking.__file__).parents[2])},
    )
    assert result.returncode == 0, result.stderr
    assert "a stranger" not in result.stderr


@pytest.mark.case("I14")
def test_i14_a_command_ends_although_a_decoder_hangs(project: Path, tmp_path: Path) -> None:
    code = (
        "import threading\n"
        "from tlrecipe.data import parallel, pixels\n"
        "parallel.TIMEOUT = 1\n"
        "pixels.decode_with_facts = lambda data, p: threading.Event().wait()\n"
        "from tlrecipe.__main__ import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "validate", "--data", project / "tiny.toml"],
        capture_output=True,
        text=True,
        timeout=300,
        # Of its own: what was decoded once is not decoded again.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TLRECIPE_CACHE_DIR": str(tmp_path)},
    )
    assert result.returncode == 10, result.stderr
    assert "error[TLR1001]: `train/blue/" in result.stderr


def test_a_code_of_four_digits_is_explained() -> None:
    assert "exit code 10: a worker or peer died" in invoke("explain", "tlr1001").stdout


# --------------------------------------------------------------------------- preview


def test_preview_writes_a_sheet_for_all_phases(project: Path, here: Path) -> None:
    from PIL import Image

    result = invoke("preview", project / "tiny.toml", "--set", "phase.all.augment={mixup=0.4}", "--images", 5)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "contact sheet: tiny-preview.png\n"
    with Image.open(here / "tiny-preview.png") as sheet:
        assert sheet.format == "PNG"
        plain = invoke("preview", project / "tiny.toml", "-o", here / "plain.png")
        assert plain.exit_code == 0
        with Image.open(here / "plain.png") as smaller:
            assert smaller.height < sheet.height


def test_the_recipes_of_methods_are_sound_and_use_their_method() -> None:
    folder = Path(checking.__file__).parents[2] / "recipes/methods"
    for name in ("wise_ft", "l2_sp", "test_flip"):
        plan = checking.plan(folder / f"{name}.toml", needs_data=True).plan
        assert plan.counts["train"] == 100
        assert getattr(plan if name == "test_flip" else plan.phases[1], name)


@pytest.mark.parametrize(
    ("name", "role"), [("lora", "@adapter"), ("norm_only", "@norm"), ("bias_only", "@bias")]
)
def test_the_recipes_of_few_parameters_train_these_and_the_head(name: str, role: str) -> None:
    folder = Path(checking.__file__).parents[2] / "recipes/methods"
    checked = checking.plan(folder / f"{name}.toml", needs_data=True)
    matcher = Matcher(checked.table)
    head, few = matcher("@head"), matcher(role)
    assert [phase.trainable for phase in checked.plan.phases] == [head, head | few]
    assert checked.plan.counts["train"] == 300
    assert not checked.warnings
