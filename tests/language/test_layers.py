"""Inheritance and overrides: what comes out, where mistakes are shown, what is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tlrecipe.language import grammar
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.language.layers import TAGS
from tlrecipe.language.text import Document, load

BASE = """\
format = 1
name = "base"

[data]
source = "folder"
path = "photos"
batch_size = 32

[backbone]
source = "timm"
name = "resnet18"
weights = "none"

[optimizer]
name = "adamw"
weight_decay = 0.02
betas = [0.9, 0.98]

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

[[phase]]
name = "finetune"
freeze = ["conv1", "bn1"]
steps = 100
lr = { head = 1e-3, rest = 1e-4 }
schedule = { name = "cosine", warmup = 0.1, final = 0.01 }
"""


@pytest.fixture
def extend(tmp_path: Path):
    (tmp_path / "base.toml").write_text(BASE)

    def extend(child: str, *overrides: str) -> Document:
        file = tmp_path / "child.toml"
        file.write_text(f'extends = "base.toml"\n{child}')
        return load(file, overrides)

    return extend


def refused(call, *arguments: str) -> Sequence[Diagnostic]:
    with pytest.raises(TlrecipeError) as caught:
        call(*arguments)
    return caught.value.diagnostics


def place(found: Diagnostic) -> str:
    assert found.file is not None
    return f"{Path(found.file).name}:{found.line}:{found.column}"


def marked(found: Diagnostic) -> str:
    assert found.source is not None and found.column is not None and found.end_column is not None
    return found.source[found.column - 1 : found.end_column - 1]


# --------------------------------------------------------------------------- extends


def test_an_empty_child_is_its_base(extend, tmp_path: Path) -> None:
    assert extend("").recipe == load(tmp_path / "base.toml").recipe


def test_tables_merge_and_lists_are_replaced(extend) -> None:
    recipe = extend('name = "child"\n[data]\nbatch_size = 8\n[optimizer]\nbetas = [0.5, 0.6]').recipe
    assert (recipe.name, recipe.format) == ("child", 1)
    assert (recipe.data.batch_size, Path(recipe.data.path).name) == (8, "photos")
    assert (recipe.optimizer.betas, recipe.optimizer.weight_decay) == ((0.5, 0.6), 0.02)


def test_groups_and_phases_merge_by_name(extend) -> None:
    recipe = extend(
        """
        [[phase]]
        name = "finetune"
        freeze = []
        lr = { head = 1.0 }
        [[phase]]
        name = "last"
        freeze = []
        epochs = 1
        lr = 1e-5
        [[group]]
        name = "rest"
        lr_scale = 0.5
        """
    ).recipe
    assert [phase.name for phase in recipe.phase] == ["extract", "finetune", "last"]
    finetune = recipe.phase[1]
    assert finetune.freeze == ()
    assert finetune.lr == {"head": 1.0, "rest": 1e-4}
    assert finetune.steps == 100
    assert [(group.name, group.match, group.lr_scale) for group in recipe.group] == [
        ("head", ("@head",), 1.0),
        ("rest", ("**",), 0.5),
    ]


@pytest.mark.parametrize(
    ("child", "table", "expected"),
    [
        (
            '[optimizer]\nname = "sgd"',
            "optimizer",
            {"name": "sgd", "weight_decay": 0.0, "no_decay": ("@norm", "@bias")},
        ),
        ('[data]\nsource = "sample"', "data", {"source": "sample", "batch_size": 64}),
        ('[optimizer]\nname = "adamw"', "optimizer", {"weight_decay": 0.02, "betas": (0.9, 0.98)}),
    ],
)
def test_a_changed_choice_leaves_the_old_table_behind(extend, child, table, expected) -> None:
    found = getattr(extend(child).recipe, table)
    assert {key: getattr(found, key) for key in expected} == expected


def test_a_changed_schedule_leaves_the_old_one_behind(extend) -> None:
    recipe = extend('[[phase]]\nname = "finetune"\nschedule = { name = "linear" }').recipe
    assert recipe.phase[1].schedule.model_dump() == {"name": "linear", "warmup": 0, "final": 0.0}


def test_the_choices_are_those_of_the_grammar() -> None:
    chosen = {table.path: tag[0] for table in grammar.tables() if (tag := grammar.tag(table.shape))}
    assert chosen == TAGS


@pytest.mark.parametrize(
    ("phase", "length", "expected"),
    [("finetune", "epochs = 3", (3, None)), ("extract", "steps = 7", (None, 7))],
)
def test_epochs_and_steps_replace_each_other(extend, phase, length, expected) -> None:
    recipe = extend(f'[[phase]]\nname = "{phase}"\n{length}').recipe
    (changed,) = [one for one in recipe.phase if one.name == phase]
    assert (changed.epochs, changed.steps) == expected


def test_a_chain_reads_each_file_relative_to_the_one_that_names_it(tmp_path: Path) -> None:
    inner = tmp_path / "shared" / "deep"
    inner.mkdir(parents=True)
    (inner / "base.toml").write_text(BASE.replace('weights = "none"', 'weights = "w/best.pt"'))
    (tmp_path / "shared" / "middle.toml").write_text('extends = "deep/base.toml"\nname = "middle"\nseed = 1')
    (tmp_path / "child.toml").write_text('extends = "shared/middle.toml"\nname = "child"\n')
    recipe = load(tmp_path / "child.toml").recipe
    assert (recipe.name, recipe.seed) == ("child", 1)
    assert recipe.data.path == str(inner / "photos")
    assert recipe.backbone.weights == str(inner / "w" / "best.pt")


def test_paths_are_relative_to_the_file_that_writes_them(extend, tmp_path: Path, monkeypatch) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    assert extend('[data]\npath = "../photos"').recipe.data.path == str(tmp_path.parent / "photos")
    assert extend("", "data.path=photos").recipe.data.path == str(here / "photos")
    assert extend('[backbone]\nweights = "a1_in1k"').recipe.backbone.weights == "a1_in1k"
    assert extend('[backbone]\nweights = "best.pt"').recipe.backbone.weights == str(tmp_path / "best.pt")
    assert extend('[backbone]\nweights = "/best"').recipe.backbone.weights == "/best"


def test_mistakes_are_shown_in_the_file_that_has_them(extend, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(BASE.replace("batch_size = 32", "batch_sise = 32"))
    child = '[backbone]\nnane = 1\n[[phase]]\nname = "finetune"\nlr = { head = -1.0 }'
    found = refused(extend, child)
    assert [(one.code, place(one), marked(one)) for one in found] == [
        ("TLR101", "child.toml:3:1", "nane"),
        ("TLR102", "child.toml:6:15", "-1.0"),
        ("TLR101", "base.toml:7:1", "batch_sise"),
    ]


def test_places_in_merged_lists_are_those_in_the_file(extend) -> None:
    document = extend('[[phase]]\nname = "finetune"\nfreeze = ["conv9"]')
    child, base = document.locate(
        [
            Diagnostic("TLR104", "x", ("phase", 1, "freeze", 0)),
            Diagnostic("TLR104", "x", ("phase", 1, "lr", "rest")),
        ]
    )
    assert (place(child), marked(child)) == ("child.toml:4:11", '"conv9"')
    assert (place(base), marked(base)) == ("base.toml:38:28", "1e-4")


def test_two_phases_of_one_name_in_the_child_are_not_merged(extend) -> None:
    (found,) = refused(
        extend, '[[phase]]\nname = "finetune"\n[[phase]]\nname = "finetune"\nfreeze = []\nlr = 1.0'
    )
    assert (found.code, place(found)) == ("TLR109", "child.toml:5:8")
    assert found.labels[0].line == 3


def test_names_that_are_no_text_merge_with_nothing(extend) -> None:
    found = refused(extend, '[[phase]]\nname = ["finetune"]\nfreeze = []\nlr = 1.0')
    assert [(one.code, place(one)) for one in found] == [("TLR102", "child.toml:3:8")]


@pytest.mark.parametrize(
    ("child", "message", "help"),
    [
        ('extends = "bse.toml"', "cannot open `bse.toml`: no such file", "did you mean `base.toml`?"),
        ('extends = "no/base.toml"', "cannot open `no/base.toml`: no such file", "there is no folder `"),
        ("extends = 3", "not the path of a recipe", 'write `extends = "base.toml"`'),
        ('extends = ""', "not the path of a recipe", 'write `extends = "base.toml"`'),
        ('extends = "."', "`.` is a directory", "name the recipe's file"),
        ('extends = "child.toml"', "circle: child.toml → child.toml", "stand alone"),
        ('extends = "a.toml"', "circle: a.toml → b.toml → a.toml", "stand alone"),
    ],
)
def test_extends_that_cannot_be_followed(tmp_path: Path, monkeypatch, child, message, help) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(BASE)
    Path("a.toml").write_text('extends = "b.toml"')
    Path("b.toml").write_text('extends = "a.toml"')
    Path("child.toml").write_text(child)
    (found,) = refused(load, Path("child.toml"))
    assert found.code == "TLR005"
    assert message in found.message
    assert help in (found.help or "")
    assert found.line == 1 and found.column == 11


def test_syntax_errors_in_a_base_are_shown_in_it(extend, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("format = \n")
    (found,) = refused(extend, "")
    assert (found.code, place(found)) == ("TLR004", "base.toml:1:10")


# --------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("phase.finetune.epochs=3", lambda r: (r.phase[1].epochs, r.phase[1].steps) == (3, None)),
        ("phase.1.epochs=3", lambda r: r.phase[1].epochs == 3),
        ("phase.extract.steps=3", lambda r: (r.phase[0].epochs, r.phase[0].steps) == (None, 3)),
        (" seed = 7 ", lambda r: r.seed == 7),
        ("backbone.name=resnet50", lambda r: r.backbone.name == "resnet50"),
        ('backbone.name="resnet50"', lambda r: r.backbone.name == "resnet50"),
        ("description=a b = c", lambda r: r.description == "a b = c"),
        ('description=""', lambda r: r.description == ""),
        ("description=a\nseed = 9", lambda r: (r.description, r.seed) == ("a\nseed = 9", 0)),
        ('phase.extract.freeze=["conv1"]', lambda r: r.phase[0].freeze == ("conv1",)),
        ("phase.finetune.lr.rest=0.5", lambda r: r.phase[1].lr == {"head": 1e-3, "rest": 0.5}),
        ("phase.finetune.lr=0.5", lambda r: r.phase[1].lr == 0.5),
        ("phase.finetune.schedule.final=0.5", lambda r: r.phase[1].schedule.warmup == 0.1),
        ("phase.extract.stop.patience=9", lambda r: r.phase[0].stop.patience == 9),
        ("phase.extract.augment={crop = 3}", lambda r: r.phase[0].augment.crop == 3),
        ("group.rest.lr_scale=0.5", lambda r: r.group[1].lr_scale == 0.5),
        ("head.dropout=0.5", lambda r: r.head.dropout == 0.5),
        ("phase.extract.name=first", lambda r: r.phase[0].name == "first"),
    ],
)
def test_overrides(extend, override, read) -> None:
    assert read(extend("", override).recipe)


def test_later_overrides_win_and_see_earlier_ones(extend) -> None:
    recipe = extend("", "seed=1", "seed=2", "phase.extract.name=first", "phase.first.epochs=4").recipe
    assert (recipe.seed, recipe.phase[0].epochs) == (2, 4)


def test_overriding_a_choice_keeps_what_the_new_table_takes(extend) -> None:
    optimizer = extend("", "optimizer.name=sgd", "optimizer.momentum=0.5").recipe.optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.momentum) == ("sgd", 0.02, 0.5)
    schedule = extend("", "phase.finetune.schedule.name=constant").recipe.phase[1].schedule
    assert (schedule.name, schedule.warmup) == ("constant", 0.1)


def test_contradicting_overrides_are_refused(extend) -> None:
    (found,) = refused(extend, "", "optimizer.momentum=0.5", "optimizer.name=adam")
    assert (found.code, place(found), marked(found)) == ("TLR101", "<--set>:1:1", "optimizer.momentum")


@pytest.mark.parametrize(
    ("override", "message", "help", "span"),
    [
        (
            "phase.finetune.epoch=3",
            "no `phase.finetune.epoch`",
            "`phase.finetune.epochs`",
            "phase.finetune.epoch",
        ),
        ("phase.finetun.epochs=3", "no `phase.finetun.epochs`", "`phase.finetune.epochs`", None),
        ("finetune.epochs=3", "no `finetune.epochs`", "`phase.finetune.epochs`", None),
        ("phase.2.epochs=3", "no `phase.2.epochs`", "did you mean `phase.", None),
        ("optimiser.name=sgd", "no `optimiser.name`", "`optimizer.name`", None),
        ("phase.extract.freeze.0=a", "no `phase.extract.freeze.0`", "`phase.extract.freeze`", None),
        ("extends=x.toml", "no `extends`", None, "extends"),
        ("lr=3", "no `lr`", "did you mean `phase.extract.lr`?", "lr"),
        ("lr.=3", "no `lr.`", None, "lr."),
        ("seed", "set to nothing", "`seed=VALUE`", "seed"),
        ("=3", "no ``", None, None),
        ("seed=", "set to nothing", '`""`', "seed"),
        ("phase.extract.freeze=[conv1]", "is not TOML: `conv1` is not a value", '`"conv1"`', "[conv1]"),
        ('name="x', "is not TOML: the text is not closed", "quote", '"x'),
    ],
)
def test_overrides_that_cannot_be_applied(extend, override, message, help, span) -> None:
    (found,) = refused(extend, "", "seed=1", override)
    assert (found.code, found.file, found.line, found.source) == ("TLR006", "<--set>", 2, override)
    assert message in found.message
    assert (help or "") in (found.help or "")
    assert span is None or marked(found) == span


@pytest.mark.parametrize(
    ("override", "code", "span"),
    [
        ("phase.finetune.epochs = true", "TLR102", "true"),
        ("phase.finetune.lr={head = nan}", "TLR102", "{head = nan}"),
        ("phase.extract.lr=nan", "TLR102", "nan"),
        ("seed=1\nname = 'y'", "TLR102", "1"),
        ("phase.extract.augment={crops = 1}", "TLR101", "{crops = 1}"),
        ("phase.extract.freeze=@backbone", "TLR102", "@backbone"),
        ('phase.extract.freeze=["a/b"]', "TLR106", '["a/b"]'),
        ("phase.extract.schedule.warmup=0.1", "TLR103", "0.1"),
        ("phase.extract.name=finetune", "TLR109", None),
    ],
)
def test_mistakes_in_overrides_are_shown_there(extend, override, code, span) -> None:
    (found,) = refused(extend, "", override)
    assert found.code == code
    if span is not None:
        assert (found.file, marked(found)) == ("<--set>", span)
    else:
        assert found.labels[0].file == "<--set>"


def test_all_mistakes_come_together(extend) -> None:
    found = refused(extend, "sed = 3", "phase.x.lr=1", "seed=true")
    assert [one.code for one in found] == ["TLR101", "TLR006", "TLR102"]
