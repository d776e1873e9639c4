"""How long a run still takes: by what was foreseen and, as soon as there is any, by what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

# Seconds after which what was seen weighs 1/e: a machine that others slow down now may be free later.
_MEMORY = 60.0
# What was seen for fewer seconds says less than what was foreseen.
_ENOUGH = 0.2
# More than this times the usual, and the process was asleep; at this, a pace still follows a real change.
_ASLEEP = 10.0

_Key = tuple[str, str | None]


@dataclass
class _Pace:
    """What units of one kind of work took lately."""

    units: float = 0.0
    seconds: float = 0.0

    def add(self, units: int, seconds: float) -> None:
        if units and self.each is not None:
            seconds = min(seconds, _ASLEEP * units * self.each)
        kept = math.exp(-seconds / _MEMORY)
        self.units = self.units * kept + units
        self.seconds = self.seconds * kept + seconds

    @property
    def each(self) -> float | None:
        return self.seconds / self.units if self.units and self.seconds >= _ENOUGH else None


@dataclass
class _Part:
    """A part of the work ahead, as the event ``outlook`` lists it."""

    kind: str
    phase: str | None
    units: int
    done: int
    seconds_each: float | None
    may_end: bool

    @property
    def key(self) -> _Key:
        # An image takes as long to decode for one phase as for another.
        return (self.kind, None if self.kind == "data" else self.phase)

    @property
    def left(self) -> int:
        return max(0, self.units - self.done)


class TimeLeft:
    """Follows the events of a run, and says how many seconds are left of it.

    The time between two events is that of the work which the second one counts, or of the work before
    where the second one says that another begins.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._started = self._last = clock()
        self._paces: dict[_Key, _Pace] = {}
        self._current: _Key | None = None
        self._seen: dict[Any, int] = {}
        self._parts: list[_Part] | None = None

    def __call__(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take an event into account."""
        now = self._clock()
        seconds, self._last = now - self._last, now
        if kind == "outlook":
            self._parts = [_Part(**work) for work in fields["work"]]
            self._seen |= {part.key: part.done for part in self._parts if part.kind == "step"}
        elif kind == "data":
            self._count(("data", None), ("data", fields["split"]), fields["done"], seconds)
        elif kind == "features":
            # Features of the test split are the most of its evaluation.
            key = ("evaluation", None) if fields["split"] == "test" else ("features", fields["phase"])
            self._count(key, (key, fields["split"], fields["view"]), fields["done"], seconds)
        elif kind == "evaluation":
            key = ("evaluation", fields["phase"])
            self._count(key, key, fields["done"], seconds)
        elif kind == "step":
            key = ("step", fields["phase"])
            self._count(key, key, fields["step"], seconds)
        elif kind == "phase":
            self._end(fields["name"], ("data", "features"))
        elif kind == "phase_end":
            self._end(fields["name"], ("step", "evaluation"))

    def seconds(self) -> float | None:
        """What is left of the whole run now; None while there is work of which nobody knows what it takes."""
        total = 0.0
        for part in self._parts or ():
            pace = self._paces.get(part.key)
            each = (pace and pace.each) or part.seconds_each
            if part.left and each is None:
                return None
            total += part.left * (each or 0.0)
        return None if self._parts is None else max(0.0, total - (self._clock() - self._last))

    @property
    def at_most(self) -> bool:
        """Whether a stop rule may end the run before."""
        return any(part.may_end and part.left for part in self._parts or ())

    def share(self) -> float:
        """How much of the run's time is over, from 0 to 1; 0 while that is not known."""
        left, over = self.seconds(), self._clock() - self._started
        return 0.0 if left is None or not over else over / (over + left)

    def _count(self, key: _Key, series: Any, done: int, seconds: float) -> None:
        """``series`` is what ``done`` counts within; it begins again where the number falls."""
        before = self._seen.get(series, 0)
        units = done - before if done >= before else done
        self._seen[series] = done
        first = key not in self._paces
        pace = self._paces.setdefault(key, _Pace())
        if units and not first:
            pace.add(units, seconds)
        elif not units and self._current is not None:
            # What goes before the first count is not its work.
            self._paces[self._current].add(0, seconds)
        self._current = key
        for part in self._parts or ():
            if part.key == key and part.left:
                part.done += units
                break

    def _end(self, phase: str, kinds: Collection[str]) -> None:
        """Nothing more of these kinds comes in ``phase``: it was found, or a stop rule ended it."""
        self._current = None
        for part in self._parts or ():
            if part.phase == phase and part.kind in kinds:
                part.done = part.units
