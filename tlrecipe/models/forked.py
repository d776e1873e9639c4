"""Whether a process that was forked can compute.

Threads do not come along in a fork. Where PyTorch had computed before it, GNU's OpenMP waits in the child for
threads that are not there, without end, and autograd refuses
(https://github.com/pytorch/pytorch/wiki/Autograd-and-Fork).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import cache

import torch

_IMPORTED_BY = os.getpid()
# A processor that is busy with other work gets there too.
_PATIENCE = 10.0


def refuse_dead_threads() -> None:
    """Raise RuntimeError where this process could only hang: it was forked after PyTorch had computed.

    Whether that is so nobody can be asked, so a child of this process tries it.
    """
    forked = os.getpid() != _IMPORTED_BY or multiprocessing.parent_process() is not None
    if forked and hasattr(os, "fork") and not _computes(os.getpid()):
        raise RuntimeError(
            "this process was forked after PyTorch had computed in its parent, whose threads did not come"
            " along: start it by multiprocessing's `spawn`, or before anything is computed"
        )


@cache
def _computes(pid: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            # More numbers than one thread takes.
            numbers = torch.ones(1 << 18, requires_grad=True)
            (numbers * 2).sum().backward()  # type: ignore[no-untyped-call]
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _PATIENCE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)
