"""The table as JSON and its cache: exact, and never worse than making the table anew."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import HeadSpec, TimmBackbone
from tlrecipe.models import backbones, table
from tlrecipe.models.table import described, from_json, to_json, weights_kind
from tlrecipe.planning.facts import ModuleFact, ParamFact, ParamTable, Preprocessing

NET = TimmBackbone(source="timm", name="test_resnet", weights="none")
HEAD = HeadSpec()

sizes = st.integers(1, 4096)
names = st.text(max_size=20)
triples = st.tuples(*[st.floats(-10, 10, allow_nan=False)] * 3)
tables = st.builds(
    ParamTable,
    params=st.lists(
        st.builds(ParamFact, name=names, shape=st.lists(sizes).map(tuple), aliases=st.lists(names).map(tuple))
    ).map(tuple),
    modules=st.lists(st.builds(ModuleFact, name=names, buffers=st.lists(names).map(tuple))).map(tuple),
    preprocessing=st.builds(Preprocessing, size=sizes, mean=triples, std=triples),
    built_size=st.none() | sizes,
)


@given(tables)
def test_json_gives_back_an_equal_table(made: ParamTable) -> None:
    assert from_json(to_json(made)) == made


def test_json_of_a_real_network() -> None:
    made = backbones.describe(NET, HEAD, 3)
    again = from_json(to_json(made))
    assert again == made
    assert hash(again) == hash(made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Each call of describe, which gives a table that tells one call from the next."""
    seen: list[Any] = []

    def describe(*arguments: Any) -> ParamTable:
        seen.append(arguments)
        return ParamTable((ParamFact("w", (len(seen),), ""),), (), Preprocessing(32))

    monkeypatch.setattr(backbones, "describe", describe)
    return seen


def test_a_table_is_made_once(calls: list[Any], tmp_path: Path) -> None:
    first = described(NET, HEAD, 3, tmp_path)
    assert described(NET, HEAD, 3, tmp_path) == first
    assert len(calls) == 1
    assert len(list((tmp_path / "tables").iterdir())) == 1


def test_without_a_cache_it_is_made_each_time(calls: list[Any]) -> None:
    described(NET, HEAD, 3, None)
    described(NET, HEAD, 3, None)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"spec": NET.model_copy(update={"name": "test_vit"})},
        {"spec": NET.model_copy(update={"source": "torchvision"})},
        {"spec": NET.model_copy(update={"weights": "pretrained"})},
        {"spec": NET.model_copy(update={"weights": "r160_in1k"})},
        {"spec": NET.model_copy(update={"sha256": "0" * 64})},
        {"head": HeadSpec(dropout=0.1)},
        {"classes": 4},
        {"size": 96},
    ],
    ids=str,
)
def test_every_part_of_the_request_counts(calls: list[Any], tmp_path: Path, change: dict[str, Any]) -> None:
    request: dict[str, Any] = {"spec": NET, "head": HEAD, "classes": 3, "cache": tmp_path, "size": None}
    described(**request)
    described(**request | change)
    assert len(calls) == 2


def test_where_a_weights_file_lies_does_not_count(calls: list[Any], tmp_path: Path) -> None:
    for place in ("/a/net.pth", "/b/net.pth"):
        described(NET.model_copy(update={"weights": place}), HEAD, 3, tmp_path)
    assert len(calls) == 1


@pytest.mark.parametrize("changed", ["format", "libraries"])
def test_other_versions_are_made_anew(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    described(NET, HEAD, 3, tmp_path)
    if changed == "format":
        monkeypatch.setattr(table, "FORMAT", table.FORMAT + 1)
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    described(NET, HEAD, 3, tmp_path)
    assert len(calls) == 2


def test_any_damaged_byte_is_noticed(calls: list[Any], tmp_path: Path) -> None:
    made = described(NET, HEAD, 3, tmp_path)
    (file,) = (tmp_path / "tables").iterdir()
    sound = file.read_bytes()
    for place in range(0, len(sound), 7):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        before = len(calls)
        described(NET, HEAD, 3, tmp_path)
        assert len(calls) == before + 1, place
        file.write_bytes(sound)
    for content in (b"", sound[:-1], b"\xff\xfe", b"{}"):
        file.write_bytes(content)
        before = len(calls)
        rewritten = described(NET, HEAD, 3, tmp_path)
        assert len(calls) == before + 1
        assert described(NET, HEAD, 3, tmp_path) == rewritten != made


def test_a_cache_that_cannot_be_written_is_no_error(calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    described(NET, HEAD, 3, tmp_path / "cache")
    assert len(calls) == 1


def test_mistakes_are_not_remembered(tmp_path: Path) -> None:
    unknown = NET.model_copy(update={"name": "test_resnot"})
    for _ in range(2):
        with pytest.raises(TlrecipeError, match="TLR112"):
            described(unknown, HEAD, 3, tmp_path)
    assert not (tmp_path / "tables").exists()


def test_a_known_table_needs_no_torch(tmp_path: Path) -> None:
    described(NET, HEAD, 3, tmp_path)
    program = f"""
import sys
from pathlib import Path
from tlrecipe.language.spec import HeadSpec, TimmBackbone
from tlrecipe.models.table import described
spec = TimmBackbone(source="timm", name="test_resnet", weights="none")
described(spec, HeadSpec(), 3, Path({str(tmp_path)!r}))
print(sorted({{"torch", "timm", "torchvision"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("none", "none"),
        ("pretrained", "pretrained"),
        ("a1_in1k", "a1_in1k"),
        ("IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("net.safetensors", "path"),
        ("net.pth", "path"),
        ("runs/best", "path"),
    ],
)
def test_kinds_of_weights(text: str, kind: str) -> None:
    assert weights_kind(text) == kind
