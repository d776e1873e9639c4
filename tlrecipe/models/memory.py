"""How much memory a network's work takes, found on the meta device, where tensors have no memory."""

from __future__ import annotations

import ctypes
import os
import resource
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

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
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """The memory that this process holds now, in bytes; the most so far where the system does not say."""
    return _status("VmRSS") or process_bytes()


def _status(field: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def limit_bytes() -> tuple[int, str]:
    """The most memory that this process could ever hold, in bytes, and what says so.

    The smallest of the machine's memory, the limits of the control groups that the process is in, and
    what ``RLIMIT_AS`` leaves beside addresses that are taken without memory behind them.
    """
    limits = [(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")]
    if (group := control_group_bytes()) is not None:
        limits.append((group, "the limit of the control group"))
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        unused = (_status("VmSize") or 0) - (_status("VmRSS") or 0)
        limits.append((max(0, addresses - unused), "the limit of addresses, RLIMIT_AS"))
    return min(limits)


def control_group_bytes(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """The smallest memory limit of the control groups (version 1 or 2) that the process is in, or None."""
    limits = []
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                base, name = root, "memory.max"
            elif "memory" in controllers.split(","):
                base, name = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = base / path.lstrip("/")
            # Inside a container the path may be that of the host: the container's own group is the root.
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))
                if folder == base:
                    break
    return min(limits, default=None)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out. PyTorch has no type of its own for it on CPUs."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "can't start new thread", "mmap")


@contextmanager
def on_meta(*networks: nn.Module) -> Iterator[None]:
    """Take the memory away from behind the weights of networks, which may share modules, for a block in
    which sizes are all that counts. They come back as they were."""
    places: dict[tuple[int, str], tuple[dict[str, Any], str, Tensor]] = {
        (id(kept), name): (kept, name, tensor)
        for network in networks
        for module in network.modules()
        for kept in cast(Iterable[dict[str, Any]], (module._parameters, module._buffers))
        for name, tensor in kept.items()
        if tensor is not None
    }
    empty = {id(tensor): _emptied(tensor) for _, _, tensor in places.values()}
    try:
        for kept, name, tensor in places.values():
            kept[name] = empty[id(tensor)]
        yield
    finally:
        for kept, name, tensor in places.values():
            kept[name] = tensor


def _emptied(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


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
