"""The time left of a run, on a clock that only moves when a test moves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tlrecipe.cli.timeleft import TimeLeft


@dataclass
class Simulated:
    """A run of which each unit takes what it is told to, and the time left after each event."""

    now: float = 0.0
    left: list[tuple[float, float | None]] = field(default_factory=list)
    """Clock and seconds left."""

    def __post_init__(self) -> None:
        self.time_left = TimeLeft(lambda: self.now)

    def __call__(self, kind: str, /, **fields: Any) -> None:
        self.time_left(kind, fields)
        self.left.append((self.now, self.time_left.seconds()))

    def features(self, phase: str, images: int, each: float, split: str = "train") -> None:
        for done in range(10, images + 1, 10):
            self.now += 10 * each
            self("features", phase=phase, split=split, view=0, done=done, total=images)

    def evaluation(self, phase: str | None, images: int, each: float) -> None:
        self("evaluation", phase=phase, split="val", done=0, total=images)
        for done in range(10, images + 1, 10):
            self.now += 10 * each
            self("evaluation", phase=phase, split="val", done=done, total=images)

    def phase(self, name: str, epochs: int, each: float, val: int = 0, val_each: float = 0.0) -> None:
        """Epochs of 20 steps; a step is told at most each tenth of a second."""
        told = self.now
        self("phase", name=name)
        for step in range(1, 20 * epochs + 1):
            self.now += each
            if self.now - told > 0.1:
                told = self.now
                self("step", phase=name, step=step)
            if val and step % 20 == 0:
                self.evaluation(name, val, val_each)
        self("phase_end", name=name)

    def steps(self, count: int, foreseen: float, seconds: Callable[[int], float]) -> None:
        """A run of one phase, whose steps were foreseen to take ``foreseen`` each and take ``seconds``."""
        self("outlook", work=[work("step", "one", count, foreseen)])
        self("phase", name="one")
        for step in range(1, count + 1):
            self.now += seconds(step)
            self("step", phase="one", step=step)

    @property
    def errors(self) -> Iterator[float]:
        """By how much each time left was off, as a share of the truth."""
        for now, left in self.left:
            assert left is not None
            if now < self.now:
                yield abs(left - (self.now - now)) / (self.now - now)


def work(kind: str, phase: str | None, units: int, each: float | None, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "phase": phase,
        "units": units,
        "done": 0,
        "seconds_each": each,
        "may_end": False,
        **more,
    }


def test_what_was_foreseen_rightly_counts_down_to_nothing() -> None:
    run = Simulated()
    run(
        "outlook",
        work=[
            work("features", "head", 100, 0.05),
            work("step", "head", 60, 0.01),
            work("step", "all", 40, 0.5),
            work("evaluation", "all", 40, 0.1),
            work("evaluation", None, 50, 0.2),
        ],
    )
    run.features("head", 100, 0.05)
    run.phase("head", 3, 0.01)
    run.phase("all", 2, 0.5, val=20, val_each=0.1)
    run.evaluation(None, 50, 0.2)
    assert run.now == pytest.approx(5 + 0.6 + 24 + 10)
    assert max(run.errors) < 0.02
    assert run.left[-1] == (run.now, 0.0)


def test_what_is_seen_corrects_what_was_foreseen() -> None:
    run = Simulated()
    run("outlook", work=[work("step", "all", 200, 0.1), work("evaluation", "all", 100, 0.1)])
    run.phase("all", 10, 0.4, val=10, val_each=0.8)
    errors = list(run.errors)
    assert errors[0] > 0.6, "foreseen at a quarter of what it takes"
    assert max(errors[30:]) < 0.1, "known after the first epoch and its validation"


def test_a_machine_that_is_slowed_down_is_followed() -> None:
    run = Simulated()
    run.steps(400, 1.0, lambda step: 1.0 if step <= 100 else 3.0)
    assert max(list(run.errors)[220:]) < 0.1


def test_a_process_that_slept_goes_on_at_its_pace() -> None:
    run = Simulated()
    run.steps(100, 1.0, lambda step: 600.0 if step == 50 else 1.0)
    assert max(list(run.errors)[52:]) < 0.3, "after the pause, of which nobody could know"


def test_a_pace_that_changes_for_good_is_found_however_much_it_changes() -> None:
    run = Simulated()
    run.steps(200, 0.1, lambda step: 0.1 if step <= 50 else 10.0)
    assert max(list(run.errors)[100:]) < 0.1


def test_features_that_are_found_take_no_time() -> None:
    run = Simulated()
    run("outlook", work=[work("features", "one", 1000, 0.5), work("step", "one", 20, 1.0)])
    assert run.left[-1][1] == pytest.approx(520)
    run("phase", name="one")
    assert run.left[-1][1] == pytest.approx(20)


def test_test_features_are_the_evaluation() -> None:
    run = Simulated()
    run("outlook", work=[work("step", "one", 20, 1.0), work("evaluation", None, 100, 0.5)])
    run.phase("one", 1, 1.0)
    run.features("one", 100, 0.5, split="test")
    assert max(run.errors) < 0.01


def test_a_phase_that_a_stop_rule_ends_leaves_the_rest() -> None:
    run = Simulated()
    run("outlook", work=[work("step", "one", 200, 1.0, may_end=True), work("step", "two", 20, 1.0)])
    assert run.time_left.at_most
    run.phase("one", 3, 1.0)
    assert run.left[-1][1] == pytest.approx(20)
    assert not run.time_left.at_most


def test_nothing_is_said_while_there_is_work_that_nobody_measured() -> None:
    run = Simulated()
    run("data", split="train", done=10, total=10)
    assert run.left[-1][1] is None, "before the network was looked at"
    run("outlook", work=[work("step", "one", 20, None), work("step", "two", 20, 2.0)])
    assert run.left[-1][1] is None
    run("phase", name="one")
    run("step", phase="one", step=1)
    assert run.left[-1][1] is None, "the first step also warms up"
    run.now += 1.0
    run("step", phase="one", step=2)
    assert run.left[-1][1] == pytest.approx(18 + 40)


def test_images_to_decode_anew_take_what_decoding_took() -> None:
    run = Simulated()
    for done in range(0, 101, 10):
        run.now += 1.0
        run("data", split="train", done=done, total=100)
    run("outlook", work=[work("data", "large", 50, None), work("step", "large", 10, 1.0)])
    assert run.left[-1][1] == pytest.approx(5 + 10)


def test_a_resumed_phase_has_less_before_it() -> None:
    run = Simulated()
    run("outlook", work=[work("step", "one", 100, 1.0, done=60)])
    assert run.left[-1][1] == pytest.approx(40)
    run("phase", name="one")
    for step in range(61, 101):
        run.now += 1.0
        run("step", phase="one", step=step)
    assert max(run.errors) < 0.01


def test_it_counts_down_between_two_events_and_never_below_nothing() -> None:
    run = Simulated()
    run("outlook", work=[work("step", "one", 10, 1.0)])
    run.now += 4
    assert run.time_left.seconds() == pytest.approx(6)
    assert run.time_left.share() == pytest.approx(0.4)
    run.now += 100
    assert run.time_left.seconds() == 0.0
