"""The safetensors writer against the library's reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tlrecipe.artifacts import tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
shapes = st.lists(st.integers(0, 4), max_size=3)
entries = st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(DTYPES), shapes), max_size=6)


@given(entries)
def test_the_library_reads_back_every_type_shape_and_name(
    described: dict[str, tuple[torch.dtype, list[int]]],
) -> None:
    values = {name: (torch.rand(shape) * 100).to(dtype) for name, (dtype, shape) in described.items()}
    values.pop("__metadata__", None)
    content = b"".join(bytes(piece) for piece in tensors.pieces(values, {"key": "välue"}))
    assert len(content) == tensors.file_size(values, {"key": "välue"})
    read = safetensors.torch.load(content)
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_layout_in_memory_does_not_matter() -> None:
    image = torch.rand(2, 3, 4, 5)
    layouts = {
        "channels last": image.to(memory_format=torch.channels_last),
        "transposed": image.transpose(1, 2),
        "part": image[:, 1:, ::2],
        "scalar": torch.tensor(3),
    }
    read = safetensors.torch.load(b"".join(bytes(piece) for piece in tensors.pieces(layouts, {})))
    assert all(torch.equal(read[name], tensor) for name, tensor in layouts.items())


def test_metadata_is_kept(tmp_path: Path) -> None:
    content = b"".join(bytes(piece) for piece in tensors.pieces({"a": torch.zeros(1)}, {"x": "1"}))
    (tmp_path / "file").write_bytes(content)
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"x": "1"}


def test_values_are_not_copied() -> None:
    weight = torch.zeros(8)
    header, piece = tensors.pieces({"weight": weight}, {})
    assert json.loads(bytes(header[8:]))["weight"]["shape"] == [8]
    weight[0] = 1.0
    assert bytes(piece) != bytes(32)


def test_a_type_without_a_name_is_refused() -> None:
    with pytest.raises(KeyError):
        list(tensors.pieces({"a": torch.zeros(1, dtype=torch.complex64)}, {}))
