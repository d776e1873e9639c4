"""Real processes of tlrecipe at the price of a fork: a process that has everything imported starts them.

Reads a command as JSON from stdin, forks, and lets the child be `tlrecipe` with these arguments; prints the
child's process id, and its exit code once it is gone (minus the signal that ended it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


class Zygote:
    """The other end of the pipe. Use as a context manager; one child at a time."""

    def __enter__(self) -> Zygote:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)

    def start(self, *arguments: Any) -> int:
        """Start `tlrecipe` in a process group of its own; gives its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The exit code of the child that runs."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def main() -> None:
    # All that a run imports, so that a child starts at once. Nothing is computed: torch's autograd does not
    # survive a fork once it has run.
    import timm
    import torchvision

    import tlrecipe.artifacts.bundle
    import tlrecipe.artifacts.checkpoint
    import tlrecipe.artifacts.rundir
    import tlrecipe.data.sources
    import tlrecipe.planning.compile
    import tlrecipe.training.interpreter  # noqa: F401
    from tlrecipe.cli.app import cli

    assert timm and torchvision
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            cli(json.loads(line), prog_name="tlrecipe")
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
