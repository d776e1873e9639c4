import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import folder_spec, pets, plant

from tlrecipe.data.folders import class_folders
from tlrecipe.data.listing import Tree
from tlrecipe.data.sources import list_data
from tlrecipe.data.splits import few, hold_out
from tlrecipe.language.diagnostics import TlrecipeError

SIZES = st.lists(st.integers(2, 40), min_size=2, max_size=5)
SHARES = st.floats(0.001, 0.999)
SEEDS = st.integers(0, 2**63 - 1)


def train_of(sizes, **others):
    """A training split with ``sizes[k]`` images of class ``k``, and its classes."""
    sizes = {f"class-{k}": size for k, size in enumerate(sizes)} | others
    folders = {name: [f"{n}.png" for n in range(size)] for name, size in sizes.items()}
    meaning = class_folders(Tree.of({"": [], **folders}), "here", ("data", "path"))
    return meaning.splits["train"], meaning.classes


def names(split, label=None):
    return [item.name for item in split if label in (None, item.label)]


@given(SIZES, SHARES, SEEDS)
def test_the_validation_split_is_stratified_and_a_partition(sizes, share, seed):
    train, classes = train_of(sizes)
    rest, held = hold_out(train, share, seed, classes)
    assert sorted(names(rest) + names(held)) == sorted(names(train))
    for label, size in enumerate(sizes):
        count = len(names(held, label))
        assert 1 <= count <= size - 1
        assert abs(count - share * size) <= 1
    for split in (rest, held):
        assert split.labels.tolist() == sorted(split.labels.tolist())


@given(SIZES, SHARES, SEEDS)
def test_other_classes_have_no_say_in_a_split(sizes, share, seed):
    train, classes = train_of(sizes)
    alone = hold_out(train, share, seed, classes)[1]
    train, classes = train_of(sizes, aardvark=7)
    together = hold_out(train, share, seed, classes)[1]
    assert names(alone) == [name for name in names(together) if not name.startswith("aardvark")]


@given(SIZES, st.integers(1, 20), st.integers(1, 20), SEEDS)
def test_a_smaller_subset_is_part_of_a_larger_one(sizes, less, more, seed):
    train, _ = train_of(sizes)
    less, more = sorted((less, more))
    assert set(names(few(train, less, seed))) <= set(names(few(train, more, seed)))
    for label, size in enumerate(sizes):
        assert len(names(few(train, less, seed), label)) == min(less, size)


def test_seeds_choose_different_images_equally_often():
    train, classes = train_of([10, 10])
    counts = dict.fromkeys(names(train), 0)
    for seed in range(2000):
        for name in names(hold_out(train, 0.3, seed, classes)[1]):
            counts[name] += 1
    assert all(abs(count - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for count in counts.values())


def test_d12_every_class_that_is_too_small_is_named():
    train, classes = train_of([1, 5, 1])
    with pytest.raises(TlrecipeError) as caught:
        hold_out(train, 0.1, 0, classes)
    assert [problem.code for problem in caught.value.diagnostics] == ["TLR405", "TLR405"]
    assert [problem.path for problem in caught.value.diagnostics] == [("data", "val")] * 2
    assert [problem.message[7:14] for problem in caught.value.diagnostics] == ["class-0", "class-2"]


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ({"val": 0.0}, {"train": 20}),
        ({"val": 0.2}, {"train": 16, "val": 4}),
        ({"val": 0.2, "per_class": 3}, {"train": 6, "val": 4}),
        ({"val": 0.2, "per_class": 100}, {"train": 16, "val": 4}),
    ],
)
def test_the_recipe_decides_about_validation_and_subset(tmp_path, keys, counts):
    listing = list_data(folder_spec(plant(tmp_path, pets(10)), **keys), seed=0)
    assert listing.info.counts == counts


def test_a_validation_split_of_the_source_is_kept(tmp_path):
    root = plant(tmp_path, pets(1, "train/") + pets(2, "val/"))
    listing = list_data(folder_spec(root, val=0.5), seed=0)
    assert listing.info.counts == {"train": 2, "val": 4}
