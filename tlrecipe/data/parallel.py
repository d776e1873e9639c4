"""Work on many inputs, on threads, with the results in the order of the inputs."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

from tlrecipe.language.diagnostics import TlrecipeError

TIMEOUT = 120
"""Seconds after which an input that is still being worked on is given up."""

_AHEAD = 4
_CHUNK_SECONDS = 0.02
_LARGEST_CHUNK = 64

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class _Chunk(Generic[_In, _Out]):
    """Inputs that one thread takes together, and what it has of them so far."""

    def __init__(self, inputs: list[_In]):
        self.inputs = inputs
        self.results: list[_Out] = []
        self.seconds = 0.0

    def run(self, work: Callable[[_In], _Out]) -> None:
        started = time.perf_counter()
        for item in self.inputs:
            self.results.append(work(item))
        self.seconds = time.perf_counter() - started

    @property
    def in_flight(self) -> _In:
        return self.inputs[min(len(self.results), len(self.inputs) - 1)]

    @property
    def next_size(self) -> int:
        """How many inputs are worth handing to a thread at once: one where each takes its time."""
        each = self.seconds / len(self.inputs)
        return max(1, min(_LARGEST_CHUNK, int(_CHUNK_SECONDS / max(each, 1e-9))))


def in_order(
    work: Callable[[_In], _Out],
    inputs: Iterable[_In],
    threads: int | None,
    named: Callable[[_In], str] | None = None,
) -> Iterator[tuple[_In, _Out]]:
    """Inputs with their results, in order. Threads run ahead by a few inputs only, to bound the memory.

    Where inputs are ``named``, one that has no result after :data:`TIMEOUT` raises TLR1001.
    """
    count = threads or min(os.cpu_count() or 1, 16)
    running: deque[tuple[_Chunk[_In, _Out], Future[None]]] = deque()
    own_threads = torch.get_num_threads()
    # One image is too little work for torch's threads, which would wait for each other most of the time.
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    waiting, size = iter(inputs), 1
    hangs = False
    try:
        while True:
            if len(running) <= _AHEAD * count and (taken := list(itertools.islice(waiting, size))):
                chunk = _Chunk[_In, _Out](taken)
                running.append((chunk, pool.submit(chunk.run, work)))
                continue
            if not running:
                return
            chunk, future = running.popleft()
            if named is not None and not _ends(chunk, future):
                hangs = True
                raise TlrecipeError.of(
                    "TLR1001",
                    f"`{named(chunk.in_flight)}` is being read or decoded for more than {TIMEOUT} seconds",
                    help="the file or its disk does not answer: remove the file or see to the disk",
                )
            future.result()
            size = chunk.next_size
            yield from zip(chunk.inputs, chunk.results, strict=True)
    finally:
        pool.shutdown(wait=not hangs, cancel_futures=True)
        # What a thread sets for itself is also what later threads begin with.
        torch.set_num_threads(own_threads)


def _ends(chunk: _Chunk[_In, _Out], future: Future[None]) -> bool:
    """Waits for a chunk; False as soon as it has stood still for :data:`TIMEOUT` seconds."""
    done, still = 0, 0
    # Second by second, so that the time in which the process is stopped does not count.
    while not wait([future], timeout=1).done:
        still = still + 1 if len(chunk.results) == done else 0
        done = len(chunk.results)
        if still == TIMEOUT:
            return False
    return True
