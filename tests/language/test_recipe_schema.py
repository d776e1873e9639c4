"""The JSON Schema, the reference and the models say the same."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tlrecipe.language import grammar, schema, spec
from tlrecipe.language.reference import renewed
from tlrecipe.language.text import loads

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs" / "recipe.md"
TOMBI = shutil.which("tombi") or shutil.which("tombi", path=str(Path(sys.executable).parent))

VALID = """\
format = 1
name = "x"

[data]
source = "sample"

[backbone]
source = "timm"
name = "resnet18"
weights = "none"

[optimizer]
name = "sgd"
momentum = 0.5

[[phase]]
name = "all"
freeze = []
epochs = 1
lr = { head = 1e-3 }
schedule = { name = "cosine", warmup = 10 }
"""


def test_the_committed_schema_is_the_generated_one() -> None:
    assert schema.FILE.read_text(encoding="utf-8") == schema.schema(), (
        "run python -m tlrecipe.language.schema"
    )


def test_the_reference_in_the_docs_is_the_generated_one() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert page == renewed(page), "run python -m tlrecipe.language.reference docs/recipe.md"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="marks"):
        renewed("# Recipes")


def test_the_example_in_the_docs_is_a_recipe() -> None:
    example = re.search(r"```toml\n(#:schema.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    recipe = loads(example[1]).recipe
    assert [phase.name for phase in recipe.phase] == ["extract", "finetune"]


TABLES = {
    f"{table.title} {key}": (table, key) for table in grammar.tables() for key in table.shape["properties"]
}


def examples(node: grammar.Shape) -> list[object]:
    return list(node["examples"]) if "examples" in node else [node["const"]]


@pytest.mark.parametrize("key", TABLES)
def test_every_key_has_a_description_and_valid_examples(key: str) -> None:
    table, name = TABLES[key]
    keys = table.shape["properties"]
    assert keys[name]["description"].strip()
    required = {other: examples(keys[other])[0] for other in table.shape.get("required", [])}
    model = getattr(spec, table.shape["title"])
    for example in examples(keys[name]):
        model.model_validate({**required, name: example})


def test_every_key_of_the_schema_file_has_a_description_and_an_example() -> None:
    document = json.loads(schema.FILE.read_text(encoding="utf-8"))
    bare = [
        f"{name}.{key}"
        for name, table in document["$defs"].items()
        for key, node in table["properties"].items()
        if not (node.get("description") and node.get("examples"))
    ]
    assert bare == []


def test_every_table_of_the_schema_forbids_unknown_keys_and_null() -> None:
    document = json.loads(schema.FILE.read_text(encoding="utf-8"))
    for name, table in document["$defs"].items():
        assert table["additionalProperties"] is False, name
    assert '"null"' not in schema.FILE.read_text(encoding="utf-8")


def test_every_text_pattern_of_the_grammar_can_be_said_in_words() -> None:
    used = set(re.findall(r"'pattern': '([^']*)'", str(grammar.schema())))
    assert used == set(grammar._NAMED_PATTERNS)


@pytest.mark.skipif(TOMBI is None, reason="tombi is not installed")
@pytest.mark.parametrize(
    ("recipe", "errors"),
    [
        pytest.param(VALID, [], id="valid"),
        pytest.param(VALID.replace("epochs = 1", "epoch = 1"), ['"epoch" is not allowed'], id="unknown-key"),
        pytest.param(VALID.replace("epochs = 1", "epochs = true"), ["Integer, but found Boolean"], id="type"),
        pytest.param(VALID.replace("momentum", "nesterof"), ['"nesterof" is not allowed'], id="chosen-table"),
        pytest.param(VALID.replace("freeze = []\n", ""), ['"freeze" is required'], id="missing"),
        pytest.param(VALID.replace("warmup = 10", "warmup = 1.5"), ["must be < 1"], id="range"),
        pytest.param("seed = 1\n", ['"format" is required', '"phase" is required'], id="missing-tables"),
        pytest.param('extends = "b.toml"\n[optimizer]\nmomentum = 0.5\n', [], id="extends"),
        pytest.param('extends = "b.toml"\n[[phase]]\nname = "x"\nlr = 1.0\n', [], id="extends-phase"),
        pytest.param(
            'extends = "b.toml"\n[data]\nsise = 3\n', ['"sise" is not allowed'], id="extends-unknown"
        ),
    ],
)
def test_an_editor_agrees(tmp_path: Path, recipe: str, errors: list[str]) -> None:
    shutil.copy(schema.FILE, tmp_path / "schema.json")
    file = tmp_path / "recipe.toml"
    file.write_text(f"#:schema ./schema.json\n{recipe}")
    command = [str(TOMBI), "lint", "--offline", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert "Warning" not in said
    assert (done.returncode == 0) == (not errors), said
    for error in errors:
        assert error in said
