"""A run that is stopped or killed, and resumed, ends with the bytes of one that ran through."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from project import Finished, invoke

from tlrecipe.cli.signals import Signals


def _stop_at(k: int) -> Callable[[Signals], bool]:
    asked = [0]

    def stop(self: Signals) -> bool:
        asked[0] += 1
        return asked[0] >= k

    return stop


def stopped_run(project: Path, directory: Path, k: int, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Run the tiny recipe, with a request to stop the k-th time that the interpreter asks."""
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "stop", _stop_at(k))
        return invoke("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu")


def metrics(directory: Path) -> str:
    return re.sub(r'"seconds": [0-9.e-]+', "", (directory / "metrics.jsonl").read_text())


def assert_same(directory: Path, finished: Finished) -> None:
    for name in ("model.safetensors", "bundle.json", "config.json", "README.md"):
        assert (directory / "model" / name).read_bytes() == (finished.directory / "model" / name).read_bytes()
    assert metrics(directory) == metrics(finished.directory)


def test_stopped_at_any_time_and_resumed(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(1, 30):
        directory = tmp_path / f"run-{k}"
        result = stopped_run(project, directory, k, monkeypatch)
        if result.exit_code == 0:
            break
        assert result.exit_code == 75
        assert json.loads((directory / "result.json").read_text())["status"] == "stopped"
        resumed = invoke("resume", directory, "--device", "cpu")
        assert resumed.exit_code == 0, resumed.output
        assert_same(directory, finished)
    assert k > 6


def test_c15_resuming_a_finished_run_writes_nothing(finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*")}
    result = invoke("resume", finished.directory)
    assert result.exit_code == 0
    assert "already complete" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*")} == before


def test_c09_a_run_directory_may_be_moved(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run(project, tmp_path / "here", 3, monkeypatch)
    (tmp_path / "here").rename(tmp_path / "there")
    assert invoke("resume", tmp_path / "there", "--device", "cpu").exit_code == 0
    assert_same(tmp_path / "there", finished)


def test_c02_a_damaged_checkpoint_is_named_and_passed_over(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    stopped_run(project, directory, 5, monkeypatch)
    _, newest = sorted((directory / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    result = invoke("resume", directory, "--device", "cpu")
    assert result.exit_code == 0
    assert newest.name[:20] in result.stderr and "damaged" in result.stderr
    assert_same(directory, finished)


def test_c17_rows_after_the_checkpoint_are_cut_and_kept_aside(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    stopped_run(project, directory, 6, monkeypatch)
    rows = (directory / "metrics.jsonl").read_text()
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "all", "epoch": 99}\n')
    assert invoke("resume", directory, "--device", "cpu").exit_code == 0
    assert rows and (directory / "metrics.jsonl").read_text().startswith(rows)
    assert "99" in (directory / "metrics.cut.jsonl").read_text()
    assert_same(directory, finished)


@pytest.mark.parametrize("case", ["R24-recipe", "D05-class", "D10-image", "C04-checkpoints", "lost"])
def test_what_is_not_the_same_run_is_refused(
    case: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(project, tmp_path / "project", ignore=shutil.ignore_patterns("run*"))
    directory = tmp_path / "run"
    stopped_run(own, directory, 6, monkeypatch)
    resolved = directory / "recipe.resolved.toml"
    if case == "R24-recipe":
        resolved.write_text(resolved.read_text().replace("epochs = 2", "epochs = 3"))
    elif case == "D05-class":
        shutil.rmtree(own / "colours" / "train" / "red")
        shutil.rmtree(own / "colours" / "test" / "red")
    elif case == "D10-image":
        shutil.copy(own / "colours/train/red/0.png", own / "colours/train/red/1.png")
    elif case == "C04-checkpoints":
        for path in (directory / "checkpoints").iterdir():
            path.write_bytes(b"")
    else:
        shutil.rmtree(directory / "checkpoints")
    result = invoke("resume", directory, "--device", "cpu")
    assert result.exit_code == 6, result.output
    assert "TLR602" in result.stderr
    assert not (directory / "model").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = invoke("resume", tmp_path)
    assert result.exit_code == 6
    assert "TLR601" in result.stderr


LONG = ("--set", "phase.all.epochs=100")


@pytest.fixture(scope="module")
def long_run(project: Path) -> Finished:
    """A run that takes long enough to be hit by a signal, undisturbed."""
    directory = project / "run-long"
    through = invoke("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu", *LONG)
    assert through.exit_code == 0
    return Finished(directory, through)


def _process(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tlrecipe", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for_checkpoint(directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list((directory / "checkpoints").glob("[0-9]*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "P01-term"])
def test_a_process_that_gets_a_signal_leaves_a_run_that_can_be_resumed(
    number: signal.Signals, project: Path, long_run: Finished, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    process = _process("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu", *LONG)
    _wait_for_checkpoint(directory, process)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(60) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not (directory / "model").exists()
    resumed = invoke("resume", directory, "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    assert_same(directory, long_run)


@pytest.mark.slow
def test_fifty_random_kills_of_a_real_run(tmp_path: Path) -> None:
    """The sample and its pretrained network, killed until fifty kills have hit, then compared."""
    import random

    recipe = Path(__file__).parents[2] / "recipes" / "hybrid.toml"
    small = ("--set", "data.size=32", "--set", "data.per_class=10", "--device", "cpu")
    reference = _process("run", recipe, "--run-dir", tmp_path / "through", *small)
    assert reference.wait(600) == 0
    rng, kills = random.Random(0), 0
    directory = tmp_path / "run"
    process = _process("run", recipe, "--run-dir", directory, *small)
    while True:
        _wait_for_checkpoint(directory, process)
        time.sleep(rng.uniform(0, 8))
        if kills < 50 and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        code = process.wait(600)
        if code == 0 and kills >= 50:
            break
        if code == 0:
            shutil.rmtree(directory)
            process = _process("run", recipe, "--run-dir", directory, *small)
        else:
            assert code == -signal.SIGKILL
            process = _process("resume", directory, "--device", "cpu")
    assert_same(directory, Finished(tmp_path / "through", None))  # type: ignore[arg-type]
