"""``python -m tlrecipe``."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    """The command line. Does not return: ends the process with the exit code."""
    from tlrecipe.cli.app import cli
    from tlrecipe.cli.reporting import EXIT_WORKER

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # Ends the process as the signal would, but after what is half-written is removed.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        # Names from outside may have no form in the terminal's encoding; that is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="tlrecipe")
    except SystemExit as end:
        if end.code == EXIT_WORKER:
            # A thread that does not answer cannot be ended, and Python would wait for it.
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(EXIT_WORKER)
        raise


if __name__ == "__main__":
    # `python -m` looks for modules in the working directory first. That may be a stranger's data folder,
    # whose `numpy.py` is not to be run; this package is found already.
    if not sys.flags.safe_path:
        del sys.path[0]
    main()
