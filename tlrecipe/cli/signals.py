"""Stopping a run so that it can go on later, and saving it on request."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# SIGHUP is a terminal that went away. Windows has fewer signals.
_STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAVE = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))

EXIT_ON = tuple(name for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that ``run --exit-on`` can be given: batch systems send one some time before they kill."""


class Signals:
    """What signals have asked for since the last time that somebody looked."""

    def __init__(self, stopped: type[Exception]):
        self._stopped = stopped
        self._at_once = True
        self._asked_to_stop = False
        self._asked_to_save = False

    def stop(self) -> bool:
        """Whether the run was asked to stop."""
        return self._asked_to_stop

    def save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked, self._asked_to_save = self._asked_to_save, False
        return asked

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """In the block, stopping waits for somebody to call :meth:`stop`; outside it interrupts at once."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True

    def receive_stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True
        if self._at_once:
            raise self._stopped

    def receive_save(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_save = True


@contextmanager
def signals(stopped: type[Exception], exit_on: Sequence[str] = ()) -> Iterator[Signals]:
    """Take signals in the block: the first SIGINT, SIGTERM or SIGHUP asks the run to stop (``exit_on`` names
    more), SIGUSR1 to save and go on. ``stopped`` is raised where nothing waits for the next step.

    A second one to stop interrupts at once. A signal that was ignored before stays ignored: a run under
    ``nohup`` outlives its terminal.
    """
    received = Signals(stopped)
    wanted = dict.fromkeys(_SAVE, received.receive_save)
    wanted |= dict.fromkeys((*_STOP, *(getattr(signal, name) for name in exit_on)), received.receive_stop)
    before = {}
    try:
        for number, handler in wanted.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
