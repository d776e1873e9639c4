"""Named tensors as the bytes of a safetensors file, piece by piece."""

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


def pieces(tensors: Mapping[str, Tensor]) -> tuple[int, Iterator[bytes | memoryview]]:
    """The size of the file in bytes, and its content as one piece for the header and one per tensor.

    The library's own writer goes to the disk by itself, or builds the whole file in memory; a save must
    do neither. The format is at https://huggingface.co/docs/safetensors. Values are written row by row,
    whatever their layout in memory; tensors that share memory are written once each.
    """
    # Widest types first, so that every tensor is aligned to its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def parts() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield memoryview(flat.view(torch.uint8).numpy())

    return 8 + len(text) + end, parts()
