"""What is shown while a run goes on."""

from __future__ import annotations

import io
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import Screen, in_terminal, seen

from tlrecipe.cli import progress as module
from tlrecipe.cli.progress import Lines, progress, rates

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
    receive = Lines()
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


def test_long_epochs_give_a_line_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    receive = Lines()
    for step in range(1, 12):
        receive("step", **STEP | {"step": step})
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert lines[0] == "  step 3 of 30, epoch 1/2, loss 1.5000, lr 0.003, 123 images/s"


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


def test_in_80_columns_a_bar_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress(plain=False) as receive:
        receive("phase", **PHASE)
        receive("epoch", **EPOCH)
        receive(
            "step", **STEP | {"phase": "a-phase-with-a-long-name", "epochs": 30, "images_per_second": 1234}
        )
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    line = [line.strip() for line in re.split(r"[\r\n]", shown) if "loss" in line][-1]
    assert len(line) <= 80
    assert re.fullmatch(
        r"a-phase-with-a-l \S+ +23% -?-?[\d:-]+ 1/30 loss 1\.500 acc 25\.0 % lr 3\.0e-03 1234/s", line
    )


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
