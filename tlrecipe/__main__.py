"""``python -m tlrecipe``."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """The command line. Does not return: ends the process with the exit code."""
    from tlrecipe.cli.app import cli

    for stream in (sys.stdout, sys.stderr):
        # Names from outside may have no form in the terminal's encoding; that is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="tlrecipe")


if __name__ == "__main__":
    # `python -m` looks for modules in the working directory first. That may be a stranger's data folder,
    # whose `numpy.py` is not to be run; this package is found already.
    if not sys.flags.safe_path:
        del sys.path[0]
    main()
