"""Named tensors as a safetensors file, piece by piece.

The library's own writer goes to the disk by itself, or builds the whole file in memory; a save must do
neither. The format is described at https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def file_size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that :func:`pieces` gives."""
    return len(_header(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors.values())


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The content of the file: its header, then the values of one tensor after the other.

    Values are written row by row, whatever their layout in memory. Tensors on the CPU that lie in rows
    are not copied.
    """
    yield _header(tensors, metadata)
    for name in _order(tensors):
        flat = tensors[name].detach().cpu().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Widest types first, so that every tensor is aligned to its own width."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
