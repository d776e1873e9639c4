"""Signals at chosen moments of a run: they end it in order, and what is resumed ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from project import Finished, invoke
from test_resume import assert_same

from tlrecipe import files
from tlrecipe.cli import progress
from tlrecipe.training import interpreter

Send = Callable[[], None]


def send(*numbers: int) -> Send:
    """Something that sends this process signals, the first time that it is called."""
    waiting = list(numbers)

    def fire() -> None:
        while waiting:
            os.kill(os.getpid(), waiting.pop(0))

    return fire


def at_event(kind: str, fire: Send, patch: pytest.MonkeyPatch) -> None:
    told = progress.Lines.__call__

    def tell(self: progress.Lines, name: str, /, **fields: Any) -> None:
        if name == kind:
            fire()
        told(self, name, **fields)

    patch.setattr(progress.Lines, "__call__", tell)


def at_validation(fire: Send, patch: pytest.MonkeyPatch) -> None:
    evaluate = interpreter.evaluate

    def evaluated(*arguments: Any, **options: Any) -> Any:
        fire()
        return evaluate(*arguments, **options)

    patch.setattr(interpreter, "evaluate", evaluated)


def at_file(part: str, fire: Send, patch: pytest.MonkeyPatch) -> None:
    """When a file or folder with ``part`` in its path is made."""

    class Watched(files.Operations):
        def open(self, path: Path, flags: int) -> int:
            if part in str(path) and flags & os.O_CREAT:
                fire()
            return super().open(path, flags)

    patch.setattr(files, "operations", Watched())


MOMENTS: dict[str, Callable[[Send, pytest.MonkeyPatch], None]] = {
    "P05-decoding": lambda fire, patch: at_event("data", fire, patch),
    "P01-training": lambda fire, patch: at_event("step", fire, patch),
    "P05-validation": at_validation,
    "P04-save": lambda fire, patch: at_file("/checkpoints/.", fire, patch),
    "P05-bundle": lambda fire, patch: at_file("/.model.tmp-", fire, patch),
}


def interrupted(
    project: Path, directory: Path, moment: str, fire: Send, monkeypatch: pytest.MonkeyPatch, *more: object
) -> Result:
    with monkeypatch.context() as patch:
        MOMENTS[moment](fire, patch)
        command = ("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu", "--plain")
        return invoke(*command, *more)


def hidden(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if ".tmp-" in path.name]


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_at_any_moment_exits_with_75_and_leaves_nothing_half_written(
    moment: str, project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    stopped = interrupted(project, directory, moment, send(signal.SIGTERM), monkeypatch)
    assert stopped.exit_code == 75, stopped.output
    assert json.loads((directory / "result.json").read_text())["status"] == "stopped"
    assert not (directory / "model").exists()
    assert hidden(directory) == []
    resumed = invoke("resume", directory, "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    assert_same(directory, finished.directory)


@pytest.mark.case("P03")
def test_a_second_interrupt_exits_at_once_with_130(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    fire = send(signal.SIGINT, signal.SIGINT)
    stopped = interrupted(project, directory, "P01-training", fire, monkeypatch)
    assert stopped.exit_code == 130
    assert hidden(directory) == []
    assert invoke("resume", directory, "--device", "cpu").exit_code == 0
    assert_same(directory, finished.directory)


@pytest.mark.case("P06")
def test_sigusr1_saves_and_goes_on(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    through = interrupted(project, directory, "P01-training", send(signal.SIGUSR1), monkeypatch)
    assert through.exit_code == 0, through.output
    events = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "saved"]
    assert_same(directory, finished.directory)


@pytest.mark.case("P06")
def test_exit_on_makes_sigusr1_end_the_run(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fire = send(signal.SIGUSR1)
    more = ("--exit-on", "SIGUSR1")
    stopped = interrupted(project, tmp_path / "run", "P01-training", fire, monkeypatch, *more)
    assert stopped.exit_code == 75


def test_a_signal_that_is_ignored_stays_ignored(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        through = interrupted(project, tmp_path / "run", "P01-training", send(signal.SIGHUP), monkeypatch)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert through.exit_code == 0


def test_handlers_are_put_back(finished: Finished) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
