"""What is shown while a run goes on."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from project import Finished, invoke
from rich.progress import Progress
from terminal import Screen, in_terminal, seen, show

from tlrecipe.cli.app import cli
from tlrecipe.cli.progress import Lines, Receiver, progress, rates

PHASE = {
    "name": "extract",
    "index": 0,
    "phases": 2,
    "steps": 30,
    "epochs": 2.0,
    "trainable": 1000,
    "frozen": 200_000,
    "prefix": "store: 2 MB",
}
STEP = {
    "phase": "extract",
    "step": 7,
    "steps": 30,
    "epoch": 1,
    "epochs": 2,
    "lr": {"head": 0.003, "rest": 0.003},
    "loss": 1.5,
    "images_per_second": 123.4,
}
EPOCH = {
    "phase": "extract",
    "epoch": 1,
    "step": 15,
    "lr": {"head": 0.003, "rest": 0.0003},
    "train": {"loss": 1.25, "accuracy": 0.5},
    "val": {"loss": 1.5, "accuracy": 0.25},
    "seconds": 2.5,
}
END = {"name": "extract", "seconds": 5.0, "best": {"epoch": 1, "metric": "accuracy", "value": 0.25}}
RUN: list[tuple[str, dict[str, Any]]] = [
    ("data", {"split": "train", "done": 20, "total": 20}),
    ("features", {"phase": "extract", "split": "train", "view": 0, "done": 20, "total": 20}),
    ("phase", PHASE),
    ("step", STEP),
    ("epoch", EPOCH),
    ("epoch", {**EPOCH, "epoch": 2, "val": None}),
    ("phase_end", END),
    ("warning", {"message": "odd \x1b[31mname"}),
    ("test", {"loss": 1.0, "accuracy": 0.75, "count": 8, "precision": "fp32"}),
    ("a kind of a later version", {}),
]


def test_lines_say_each_phase_and_epoch_once(capsys: pytest.CaptureFixture[str]) -> None:
    receive = Lines(Clock())
    for kind, fields in RUN:
        receive(kind, **fields)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "phase 1/2 extract: 2 epochs, 30 steps, trains 1,000 of 201,000 parameters",
        "  frozen part: store: 2 MB",
        "  epoch   1  train loss 1.2500, accuracy 50.0 %  val loss 1.5000, accuracy 25.0 %"
        "  lr head 0.003, rest 0.0003  2.5 s",
        "  epoch   2  train loss 1.2500, accuracy 50.0 %  lr head 0.003, rest 0.0003  2.5 s",
        "  extract took 5.0 s, best accuracy 0.2500 in epoch 1",
        r"warning: odd \x1b[31mname",
        "test loss 1.0000, accuracy 75.0 %",
    ]


def test_long_epochs_give_a_line_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    receive = Lines(clock)
    for step in range(1, 12):
        clock.now += 10
        receive("step", **STEP | {"step": step})
    assert capsys.readouterr().err.splitlines() == [
        f"  step {step} of 30, epoch 1/2, loss 1.5000, lr 0.003, 123 images/s" for step in (3, 6, 9)
    ]


def test_lines_say_what_is_left_of_the_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    receive = Lines(clock)
    receive("outlook", **OUTLOOK)
    for step in range(1, 16):
        clock.now += 4
        receive("step", **STEP | {"step": step})
    receive("epoch", **EPOCH)
    clock.now += 31
    receive("evaluation", phase=None, split="test", done=100, total=1000)
    first, *_, epoch, test = capsys.readouterr().err.splitlines()
    assert first == "  step 8 of 30, epoch 1/2, loss 1.5000, lr 0.003, 123 images/s, 1:45:28 left"
    assert epoch.endswith("2.5 s, 1:45:00 left")
    assert test.startswith("evaluation on test: 100 of 1000, ")


def test_lines_are_wrapped_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Lines(Clock())("epoch", **EPOCH)
    assert len(capsys.readouterr().err.splitlines()) == 1
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    Lines(Clock())("epoch", **EPOCH)
    assert screen.lines == [
        "  epoch   1  train loss 1.2500, accuracy 50.0 %  val loss 1.5000, accuracy 25.0",
        "      %  lr head 0.003, rest 0.0003  2.5 s",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_and_no_line_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress(plain=False) as receive:
        for kind, fields in RUN:
            receive(kind, **fields)
    shown = terminal.getvalue()
    assert "phase 1/2 extract: 2 epochs" in shown
    assert "extract took 5.0 s" in shown
    assert "epoch   1" not in shown
    assert "\x1b[31mname" not in shown
    assert r"\x1b[31mname" in shown


def test_in_80_columns_the_bars_have_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a-phase-with-a-long-name"
    with on_a_terminal(monkeypatch) as (clock, receive, bars):
        receive("outlook", work=[work("step", name, 30, 2.0), work("evaluation", None, 100, 36.0)])
        receive("phase", **PHASE)
        receive("epoch", **EPOCH)
        for step in range(1, 8):
            clock.now += 1.0
            receive("step", **STEP | {"phase": name, "step": step, "epochs": 30, "images_per_second": 1234})
        whole, phase = bars()
    assert re.fullmatch(r"whole run +0% 1:00:23 left", whole)
    assert re.fullmatch(
        r"a-phase-with- \S+ +23% +00:23 +1/30 loss 1\.500 acc 25\.0 % lr 3\.0e-03 1234/s", phase
    )


def test_the_bar_of_the_whole_run_goes_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_terminal(monkeypatch) as (clock, receive, bars):
        receive("outlook", work=[work("step", "one", 30, 2.0, may_end=True), work("step", "two", 10, None)])
        assert re.fullmatch(r"whole run +0% +--:-- left at most", bars()[0])
        receive("phase_end", **END | {"name": "one"})
        for step in range(4):
            clock.now += 1.0
            receive("step", **STEP | {"phase": "two", "step": step, "steps": 10})
        assert re.fullmatch(r"whole run \S+ +36% +00:07 left", bars()[0])


def test_only_an_evaluation_that_takes_a_while_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_terminal(monkeypatch) as (clock, receive, bars):
        for done in range(0, 40, 10):
            clock.now += 0.1
            receive("evaluation", phase="one", split="val", done=done, total=40)
        assert bars() == []
        for done in range(0, 40, 10):
            clock.now += 0.4
            receive("evaluation", phase=None, split="test", done=done, total=40)
        assert re.fullmatch(r"evaluate test \S+ +75% +\S+", bars()[0])
        receive("evaluation", phase=None, split="test", done=40, total=40)
        assert bars() == []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Clock, Receiver, Callable[[], list[str]]]]:
    """A clock, a receiver with it, and what its bars show now in 80 columns without colour."""
    screen, clock, made = Screen(), Clock(), []

    class Still(Progress):
        """Draws itself when it is told to."""

        def __init__(self, *columns: Any, **options: Any):
            super().__init__(*columns, **options, auto_refresh=False)
            made.append(self)

    monkeypatch.setattr("rich.progress.Progress", Still)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    with progress(clock=clock) as receive:

        def bars() -> list[str]:
            made[0].refresh()
            return [line.strip() for line in screen.lines if "%" in line]

        yield clock, receive, bars


def work(kind: str, phase: str | None, units: int, each: float | None, **more: Any) -> dict[str, Any]:
    """A part of the event ``outlook``."""
    plain = {"kind": kind, "phase": phase, "units": units, "seconds_each": each}
    return {"done": 0, "may_end": False} | plain | more


OUTLOOK = {"work": [work("step", "extract", 30, 4.0), work("evaluation", None, 1000, 6.24)]}


def test_plain_lines_are_given_on_a_terminal_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(plain=True) as receive:
        receive("phase", **PHASE)
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_lines_between_bars_are_whole_and_no_bar_is_left(
    monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", no_color)
    with progress() as receive:
        receive("phase", **PHASE)
        for step in range(1, 31):
            receive("step", **STEP | {"step": step})
            if step % 10 == 0:
                receive("warning", message=f"odd thing {step}")
        receive("phase_end", **END)
    assert screen.lines == [
        "phase 1/2 extract: 2 epochs, 30 steps, trains 1,000 of 201,000 parameters",
        "  frozen part: store: 2 MB",
        *(f"warning: odd thing {step}" for step in (10, 20, 30)),
        "  extract took 5.0 s, best accuracy 0.2500 in epoch 1",
    ]
    if no_color:
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", screen.written)


def test_quiet_leaves_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as receive:
        for kind, fields in RUN:
            receive(kind, **fields)
    assert capsys.readouterr().err == "warning: odd \\x1b[31mname\n"


def test_a_run_in_a_real_terminal_shows_whole_lines(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlrecipe", "run", str(project / "tiny.toml"), "--device", "cpu"]
    code, screen, written = in_terminal([*command, "--run-dir", "run"], tmp_path)
    assert code == 0, written
    # Bars moved while it ran, and are gone.
    assert "\x1b[2K" in written
    lines = [line for line in seen(screen) if line]
    assert lines[0].startswith("phase 1/1 all: 2 epochs, 6 steps")
    assert [line.split()[0] for line in lines[-3:]] == ["run", "report:", "next:"]
    assert not any("━" in line for line in lines)


def test_equal_rates_are_said_once() -> None:
    assert rates({"a": 0.1, "b": 0.1}) == "lr 0.1"
    assert rates({"a": 0.1, "b": 0.05}) == "lr a 0.1, b 0.05"


def test_rows_on_stdout_are_whole_while_a_bar_moves_on_stderr(
    finished: Finished, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    invocation = ["predict", str(finished.directory), str(project / "colours" / "test")]
    cli.main(invocation, prog_name="tlrecipe", standalone_mode=False)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "file,label,probability,error"
    assert len(rows) == 13
    assert "images" in screen.written
    assert screen.lines == []


def test_rows_on_a_terminal_need_no_bar(
    finished: Finished, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show(monkeypatch, "predict", finished.directory, project / "colours" / "test", columns=200)
    assert len(screen.lines) == 13
    assert "%" not in screen.written


@pytest.mark.parametrize("command", ["evaluate", "predict", "validate"])
@pytest.mark.parametrize("option", ["--plain", "--quiet"])
def test_other_long_commands_have_lines_or_nothing_too(
    finished: Finished,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    option: str,
) -> None:
    monkeypatch.setattr("tlrecipe.cli.progress._EVERY_SECONDS", 0.0)
    arguments = {
        "evaluate": [finished.directory],
        "predict": [finished.directory, project / "colours" / "test", "-o", tmp_path / "rows.csv"],
        "validate": [project / "tiny.toml", "--data"],
    }
    done = invoke(command, *arguments[command], option)
    assert done.exit_code == 0
    said = {"evaluate": "evaluation on test: 12 of 12", "predict": "images: 12 of 12", "validate": "decoded"}
    assert (said[command] in done.stderr) == (option == "--plain")
    assert (done.stderr == "") == (option == "--quiet")
