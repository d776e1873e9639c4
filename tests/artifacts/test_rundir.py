"""The run directory: never overwritten, locked, and with nothing private in it."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tlrecipe.artifacts.environment import environment
from tlrecipe.artifacts.rundir import RunDirectory
from tlrecipe.language.diagnostics import TlrecipeError

HOLD = """
import sys, time
from pathlib import Path
from tlrecipe.artifacts.rundir import RunDirectory
run = RunDirectory.create("r", path=Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that has a run directory open."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_name_is_recipe_time_and_id(tmp_path: Path) -> None:
    with RunDirectory.create("hybrid", runs=tmp_path) as run:
        assert re.fullmatch(r"hybrid/\d{8}-\d{6}-[0-9a-f]{4}", str(run.path.relative_to(tmp_path)))
        assert run.checkpoints.is_dir()
        assert not run.model.exists()


@pytest.mark.case("C07")
def test_an_empty_folder_is_taken_and_a_used_one_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunDirectory.create("r", path=tmp_path / "empty").close()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.doc").write_text("dear")
    with pytest.raises(TlrecipeError, match="nothing is overwritten") as caught:
        RunDirectory.create("r", path=tmp_path / "used")
    assert caught.value.exit_code == 6
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.doc"]
    with pytest.raises(TlrecipeError, match="is a file"):
        RunDirectory.create("r", path=tmp_path / "used" / "thesis.doc")


@pytest.mark.case("C08")
def test_a_second_process_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    try:
        with pytest.raises(TlrecipeError, match=f"process {process.pid} on .* is working") as caught:
            RunDirectory.create("r", path=tmp_path / "run")
        assert caught.value.exit_code == 6
        with pytest.raises(TlrecipeError, match=f"process {process.pid} on .* is working"):
            RunDirectory(tmp_path / "run")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.case("C08")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / "lock").exists()
    with RunDirectory(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "log.jsonl", "checkpoints", "model", "x"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_directory_with_links_or_pipes_is_not_written_into(
    kind: str, name: str, tmp_path: Path
) -> None:
    RunDirectory.create("r", path=tmp_path / "run").close()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "diary").write_text("dear")
    if (tmp_path / "run" / name).is_dir():
        (tmp_path / "run" / name).rmdir()
    if kind == "link":
        (tmp_path / "run" / name).symlink_to(
            outside if name in ("checkpoints", "model") else outside / "diary"
        )
    else:
        os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(TlrecipeError, match="files and folders only") as caught:
        RunDirectory(tmp_path / "run")
    assert caught.value.exit_code == 6
    assert (outside / "diary").read_text() == "dear"
    assert [path.name for path in outside.iterdir()] == ["diary"]


def test_a_link_that_appears_while_a_run_goes_on_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear")
    with RunDirectory.create("r", path=tmp_path / "run") as run:
        (run.path / "metrics.jsonl").symlink_to(tmp_path / "diary")
        with pytest.raises(TlrecipeError) as caught:
            run.append_metrics({"epoch": 1})
    assert caught.value.exit_code == 9
    assert (tmp_path / "diary").read_text() == "dear"


def test_lines_are_added_and_parse(tmp_path: Path) -> None:
    with RunDirectory.create("r", runs=tmp_path) as run:
        run.append_metrics({"phase": "a", "epoch": 1, "train": {"loss": 0.5}})
        run.append_metrics({"phase": "a", "epoch": 2, "train": {"loss": 0.25}})
        run.log("phase", name="line\nfeed", event_of="x")
        metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in metrics] == [1, 2]
        (entry,) = (run.path / "log.jsonl").read_text().splitlines()
        assert json.loads(entry)["name"] == "line\nfeed"
        with pytest.raises(ValueError, match="JSON"):
            run.append_metrics({"loss": float("nan")})


def test_text_is_written_as_it_was(tmp_path: Path) -> None:
    with RunDirectory.create("r", runs=tmp_path) as run:
        run.write_text("recipe.toml", "a = 1\r\n# é\n")
        assert (run.path / "recipe.toml").read_bytes() == b"a = 1\r\n# \xc3\xa9\n"


def test_the_environment_names_neither_host_nor_user_nor_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-hunter2")
    text = json.dumps(environment(torch.device("cpu")))
    assert "hunter2" not in text
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert torch.__version__.partition("+")[0] in text
