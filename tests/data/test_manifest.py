import csv
import json

import numpy as np
import pytest
from image_files import plant

from tlrecipe.data.sources import list_data
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import ManifestData

ROWS = [
    ("a/1.png", "cat", "train", "p1"),
    ("a/2.png", "cat", "train", "p2"),
    ("b/1.png", "ape", "train", "p1"),
    ("b/2.png", "ape", "val", "p3"),
    ("3.png", "cat", "test", "p4"),
    ("ü, 4.png", "ape", "Test", "p4"),
]
COLUMNS = ("file_name", "label", "split", "group")


@pytest.fixture
def table(tmp_path):
    """Writes a table in one of the formats, and its images, and gives its path."""

    def table(rows=ROWS, columns=COLUMNS, ending=".csv", missing=()):
        names = [str(row[0]) for row in rows if "file_name" in columns]
        plant(
            tmp_path / "images", [name for name in names if name and name not in missing and ".." not in name]
        )
        path = tmp_path / f"labels{ending}"
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        if ending == ".csv":
            with path.open("w", newline="", encoding="utf-8-sig") as file:
                csv.writer(file).writerows([columns, *rows])
        elif ending == ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.Table.from_pylist(records), path)
        else:
            path.write_text("\n".join(json.dumps(record) for record in records), "utf-8")
        return path

    return table


def listed(path, seed=0, **keys):
    keys = {"val": 0.0, "root": str(path.parent / "images")} | keys
    return list_data(ManifestData(source="manifest", path=str(path), **keys), seed)


def complaints(path, **keys):
    with pytest.raises(TlrecipeError) as caught:
        listed(path, **keys)
    return [(problem.code, problem.line, problem.message) for problem in caught.value.diagnostics]


# --------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_gives_the_same_data_set(table, ending):
    listing = listed(table(ending=ending))
    assert listing.info.classes == ("ape", "cat")
    found = {
        split: [(item.name, listing.info.classes[item.label]) for item in items]
        for split, items in listing.splits.items()
    }
    assert found == {
        "train": [("b/1.png", "ape"), ("a/1.png", "cat"), ("a/2.png", "cat")],
        "val": [("b/2.png", "ape")],
        "test": [("ü, 4.png", "ape"), ("3.png", "cat")],
    }


def test_the_bytes_are_those_of_the_named_files(table, tmp_path):
    listing = listed(table())
    for item in listing.splits["train"]:
        assert listing.read(item) == (tmp_path / "images" / item.name).read_bytes()


def test_a_class_that_a_split_lacks_is_a_warning(table):
    assert [w.message for w in listed(table()).warnings] == ["`val` has no images of `cat`"]


def test_without_a_split_column_all_is_for_training(table):
    listing = listed(table([row[:2] for row in ROWS], COLUMNS[:2]))
    assert listing.info.counts == {"train": 6}


def test_file_names_start_from_the_folder_of_the_table_by_default(table, tmp_path):
    rows = [(f"images/{row[0]}", *row[1:]) for row in ROWS]
    path = table()
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    assert listed(path, root=None).info.counts == {"train": 3, "val": 1, "test": 2}


def test_whole_numbers_are_labels_and_classes_are_in_order_of_their_names(table):
    rows = [(f"{n}.png", n % 3 + 9) for n in range(6)]
    assert listed(table(rows, COLUMNS[:2], ".jsonl")).info.classes == ("10", "11", "9")


def test_other_columns_are_left_alone(table):
    rows = [(*row, "x") for row in ROWS]
    assert listed(table(rows, (*COLUMNS, "note"))).info.counts["train"] == 3


# --------------------------------------------------------------------------- what is refused


def test_all_mistakes_are_reported_at_once_with_their_lines(table):
    rows = [
        *ROWS,
        ("", "cat", "train", "p5"),
        ("../7.png", "cat", "train", "p5"),
        ("/etc/8.png", "cat", "train", "p5"),
        ("9.png", "", "train", "p5"),
        ("10.png", "cat", "trian", "p5"),
        ("gone.png", "cat", "train", "p5"),
        ("a/1.png", "cat", "train", "p1"),
        ("12.png", "cat", "test", "p1"),
    ]
    path = table(rows, missing=("gone.png", "/etc/8.png"))
    found = complaints(path)
    assert [(code, line) for code, line, _ in found] == [("TLR406", line) for line in range(8, 16)]
    messages = [message for _, _, message in found]
    assert messages[0] == "no `file_name`"
    assert messages[1] == "`../7.png` leads out of the data folder"
    assert messages[2] == "`/etc/8.png` leads out of the data folder"
    assert messages[3] == "no `label`"
    assert messages[4] == "`trian` is no split"
    assert messages[5].startswith("`gone.png` is not there")
    assert messages[6] == "`a/1.png` is in line 2 already"
    assert messages[7] == "group `p1` is in test here and in train in line 2"


def test_mistakes_stand_in_the_table_and_not_in_the_recipe(table):
    path = table([*ROWS, ("9.png", "", "train", "")])
    with pytest.raises(TlrecipeError) as caught:
        listed(path)
    (problem,) = caught.value.diagnostics
    assert (problem.file, problem.line, caught.value.exit_code) == (str(path), 8, 4)


def test_a_link_out_of_the_folder_is_refused(table, tmp_path):
    path = table()
    (tmp_path / "secret.png").write_bytes((tmp_path / "images/3.png").read_bytes())
    (tmp_path / "images/3.png").unlink()
    (tmp_path / "images/3.png").symlink_to(tmp_path / "secret.png")
    assert complaints(path) == [("TLR406", 6, "`3.png` is a link out of the data folder")]


def test_a_folder_that_is_a_link_out_is_refused(table, tmp_path):
    path = table()
    (tmp_path / "images/a").rename(tmp_path / "elsewhere")
    (tmp_path / "images/a").symlink_to(tmp_path / "elsewhere")
    assert [line for _, line, _ in complaints(path)] == [2, 3]


def test_several_labels_for_one_image_are_refused(table):
    rows = [("1.png", ["cat", "dog"]), ("2.png", ["ape"])]
    (code, line, message), _ = complaints(table(rows, COLUMNS[:2], ".jsonl"))
    assert (code, line, message) == ("TLR406", 1, "`label` is not one value")


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (("cat|dog", "cat", "dog"), ["cat|dog"]),
        (("cat, dog", "dog, ape", "ape, cat"), ["ape, cat", "cat, dog", "dog, ape"]),
        (("cat;dog", "cat;ape", "cat"), []),
        (('["cat", "dog"]', "cat"), ['["cat", "dog"]']),
        (("['cat', 'dog']", "cat"), ["['cat', 'dog']"]),
        (("[unknown]", "cat"), []),
        (("salt|pepper", "salt and vinegar", "projectile, missile", "missile"), []),
    ],
)
def test_labels_that_mean_several_classes_are_refused(table, labels, refused):
    path = table([(f"{n}.png", label) for n, label in enumerate(labels)], COLUMNS[:2])
    if not refused:
        assert set(listed(path).info.classes) == set(labels)
        return
    assert complaints(path) == [
        ("TLR406", labels.index(label) + 2, f"`label` is several classes at once: `{label}`")
        for label in refused
    ]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_more_columns_of_labels_are_refused(table, ending):
    path = table(
        [("1.png", "cat", "dog"), ("2.png", "ape", "cat")], ("file_name", "label", "label_2"), ending
    )
    assert complaints(path) == [("TLR406", 1, "more columns of labels beside `label`: `label_2`")]


def test_a_column_for_each_class_is_refused_with_what_is_wanted(table):
    with pytest.raises(TlrecipeError) as caught:
        listed(table([("1.png", 1, 0), ("2.png", 1, 1)], ("file_name", "cat", "dog")))
    (problem,) = caught.value.diagnostics
    assert problem.message == "no column `label`"
    assert (
        problem.help == "it has file_name, cat, dog; tlrecipe learns one class per image, which `label` names"
    )


def test_an_image_with_two_labels_in_two_rows_is_refused(table):
    path = table([("1.png", "cat"), ("2.png", "ape"), ("1.png", "ape")], COLUMNS[:2])
    assert complaints(path) == [("TLR406", 4, "`1.png` is `ape` here and `cat` in line 2")]


@pytest.mark.parametrize("label", [1.5, True, None, "  "])
def test_labels_that_are_no_class_are_refused(table, label):
    rows = [("1.png", label), ("2.png", "ape"), ("3.png", "cat")]
    assert [line for _, line, _ in complaints(table(rows, COLUMNS[:2], ".jsonl"))] == [1]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_missing_column_is_named(table, ending):
    path = table([(row[0], row[1]) for row in ROWS], ("file_name", "class"), ending)
    ((code, line, message),) = complaints(path)
    assert (code, line, message) == ("TLR406", 1, "no column `label`")


@pytest.mark.parametrize(
    ("name", "content", "code", "line"),
    [
        ("x.csv", b"", "TLR406", 1),
        ("x.csv", b"file_name,label\na.png,cat,dog\n", "TLR406", 2),
        ("x.csv", b"file_name,label\na.png\n", "TLR406", 2),
        ("x.csv", b"file_name,label\n\xff\xfe,cat\n", "TLR401", None),
        ("x.jsonl", b'{"file_name": "a.png"}\n{nonsense\n', "TLR406", 2),
        ("x.jsonl", b"[1]\n", "TLR406", 1),
        ("x.parquet", b"PAR1 not really", "TLR401", None),
        ("x.xlsx", b"PK", "TLR401", None),
    ],
)
def test_broken_tables(tmp_path, name, content, code, line):
    path = tmp_path / name
    path.write_bytes(content)
    assert (code, line) in [found[:2] for found in complaints(path)]


def test_a_table_that_is_not_there(tmp_path):
    assert complaints(tmp_path / "gone.csv")[0][0] == "TLR401"


def test_a_row_over_several_lines_is_where_it_begins(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('file_name,label,note\na.png,cat,"two\nlines"\n,dog,\n')
    assert [line for _, line, _ in complaints(path)] == [2, 4]


# --------------------------------------------------------------------------- groups


def grouped(table, count=200, per_group=5, classes=3):
    """Images of groups (patients) that each have images of one or two classes."""
    draws = np.random.default_rng(0)
    rows = []
    for group in range(count // per_group):
        usual = draws.integers(classes)
        for image in range(per_group):
            label = usual if image else draws.integers(classes)
            rows.append((f"{group}-{image}.png", f"c{label}", f"g{group}"))
    return table(rows, ("file_name", "label", "group")), {row[0]: row[2] for row in rows}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_validation_split_tears_no_group_apart_and_is_near_its_share(table, seed, share):
    path, group_of = grouped(table)
    listing = listed(path, seed, val=share)
    groups = {split: {group_of[item.name] for item in items} for split, items in listing.splits.items()}
    assert not groups["train"] & groups["val"]
    for label in range(3):
        held = (listing.splits["val"].labels == label).sum()
        left = (listing.splits["train"].labels == label).sum()
        assert held > 0
        assert left > 0
        assert abs(held - share * (held + left)) <= 6  # a group has five images


def test_the_validation_split_depends_on_the_seed(table):
    path, _ = grouped(table)
    first, again, other = (
        [item.name for item in listed(path, seed, val=0.2).splits["val"]] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_class_that_is_in_one_group_only_cannot_be_validated(table):
    rows = [("1.png", "ape", "p1"), ("2.png", "ape", "p1"), ("3.png", "cat", "p2"), ("4.png", "cat", "p3")]
    path = table(rows, ("file_name", "label", "group"))
    ((code, _, message),) = complaints(path, val=0.5)
    assert code == "TLR405"
    assert "`ape`" in message


def test_images_without_a_group_stand_alone(table):
    rows = [(f"{n}.png", "ape" if n % 2 else "cat", "") for n in range(8)]
    listing = listed(table(rows, ("file_name", "label", "group")), val=0.25)
    assert listing.info.counts == {"train": 6, "val": 2}
