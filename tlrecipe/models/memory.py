"""How much memory a network's work takes, found on the meta device, where tensors have no memory."""

from __future__ import annotations

import ctypes
import resource
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made while it is entered, as they come and go.

    Views share the bytes of what they look at. Scratch memory inside a kernel is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.add(value.untyped_storage())
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return output

    def _count(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)


def process_bytes() -> int:
    """The most memory that this process has held so far, in bytes.

    From ``/proc`` where there is one: ``ru_maxrss`` starts with what the parent held when it forked.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors on the CPU free, for those that come next.

    glibc gives blocks of some megabytes back to the system at once, and gets new ones for the next layer,
    which the system clears page by page: up to half of a training step. Does nothing where the C library
    is another. The peak stays what it is; between peaks the process does not shrink.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def forward_bytes(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Most bytes alive at once in a forward pass without gradients, beside the inputs and the weights."""
    with torch.no_grad(), LiveBytes() as live:
        network(*inputs)
    return int(live.peak)


def step_bytes(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Most bytes alive at once in a forward and backward pass, beside the inputs and the weights.

    Gradients of the weights are among them. Those that the network holds are dropped.
    """
    network.zero_grad(set_to_none=True)
    with LiveBytes() as live:
        logits = network(*inputs)
        labels = logits.new_zeros(len(logits), dtype=torch.int64)
        torch.nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    return int(live.peak)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers; shared ones count once."""
    tensors = {id(value): value for value in (*network.parameters(), *network.buffers())}
    return sum(value.nbytes for value in tensors.values())
