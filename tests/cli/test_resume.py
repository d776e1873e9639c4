"""A run that is stopped or killed, and resumed, ends with the bytes of one that ran through."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from project import Finished, invoke
from safetensors.torch import load_file
from zygote import Zygote

from tlrecipe import files
from tlrecipe.artifacts import checkpoint
from tlrecipe.cli.signals import Signals
from tlrecipe.workflow.running import run


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


def assert_same(directory: Path, through: Path) -> None:
    for name in ("model.safetensors", "bundle.json", "config.json", "README.md"):
        assert (directory / "model" / name).read_bytes() == (through / "model" / name).read_bytes()
    for name in ("plan.json", "data.json", "evaluation.json", "predictions.csv"):
        assert (directory / name).read_bytes() == (through / name).read_bytes()
    assert metrics(directory) == metrics(through)
    assert names(directory) == names(through)


def names(directory: Path) -> set[Path]:
    """All files of a run but those of which an interruption leaves another number."""
    found = {path.relative_to(directory) for path in directory.rglob("*")}
    return {path for path in found if path.parts[0] != "checkpoints" and path.name != "metrics.cut.jsonl"}


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
        assert_same(directory, finished.directory)
    assert k > 6


ADAPTED = """\
extends = "tiny.toml"
name = "adapted"

[backbone]
source = "bundle"
path = "run"
adapter = { name = "lora", match = ["layer[3-4]"], rank = 2 }

[[phase]]
name = "all"
freeze = ["@backbone"]

[compute]
features = "store"
precision = "bf16"
"""


def test_a_run_with_adapters_is_stopped_and_resumed_and_leaves_plain_weights(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project / "adapted.toml"
    recipe.write_text(ADAPTED)
    runs = [tmp_path / name for name in ("whole", "stopped")]
    assert invoke("run", recipe, "--run-dir", runs[0], "--device", "cpu").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "stop", _stop_at(8))
        assert invoke("run", recipe, "--run-dir", runs[1], "--device", "cpu").exit_code == 75
    assert invoke("resume", runs[1], "--device", "cpu").exit_code == 0
    assert_same(runs[1], runs[0])
    start = load_file(finished.directory / "model" / "model.safetensors")
    end = load_file(runs[0] / "model" / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert start.keys() == end.keys()
    assert {name.split(".")[0] for name in changed} == {"layer3", "layer4", "fc"}
    assert all(name.endswith("weight") and "bn" not in name for name in changed - {"fc.bias"})
    assert json.loads((runs[0] / "model" / "bundle.json").read_text())["adapter"]["rank"] == 2


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
    assert_same(tmp_path / "there", finished.directory)


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
    assert_same(directory, finished.directory)


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
    assert_same(directory, finished.directory)


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


def rewritten(directory: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Put a checkpoint with other values and facts, but sound bytes, in the place of all there are."""
    saved, _ = checkpoint.newest(directory / "checkpoints")
    assert saved is not None
    values, run = json.loads(json.dumps([saved.values, saved.run]))
    change(values, run)
    for path in (directory / "checkpoints").iterdir():
        path.unlink()
    checkpoint.save(directory / "checkpoints", saved.tensors, values, run)


def test_c23_what_may_change_the_last_bits_is_said_and_strict_refuses(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    stopped_run(project, directory, 5, monkeypatch)
    rewritten(directory, lambda values, run: run["numerics"].update(threads=64))
    refused = invoke("resume", directory, "--device", "cpu", "--strict")
    assert refused.exit_code == 6
    assert "not bit-exact: threads was 64" in refused.stderr
    resumed = invoke("resume", directory, "--device", "cpu")
    assert resumed.exit_code == 0
    assert "not bit-exact: threads was 64" in resumed.stderr
    assert_same(directory, finished.directory)


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "C22-step-of-no-phase": lambda values, run: values["state"].update(step=10**9),
    "C22-negative-phase": lambda values, run: values["state"].update(phase=-1),
    "C22-text-for-a-number": lambda values, run: values["state"].update(records="<script>"),
    "C22-an-unknown-field": lambda values, run: values["state"].update({"__import__('os')": 1}),
    "C22-no-state": lambda values, run: values.clear(),
    "R25-another-digest-of-the-recipe": lambda values, run: run.update(recipe_sha256="0" * 64),
    "C11-facts-of-another-version": lambda values, run: run.update(gpus=8),
    "C12-another-class": lambda values, run: run["classes"].append("violet"),
}


@pytest.mark.case("C11", "C12", "C22", "R25")
def test_hand_edited_checkpoints_are_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start"
    stopped_run(project, start, 5, monkeypatch)
    for name, change in HOSTILE.items():
        directory = shutil.copytree(start, tmp_path / name)
        rewritten(directory, change)
        result = invoke("resume", directory, "--device", "cpu")
        assert (name, result.exit_code) == (name, 6), result.output
        assert "TLR602" in result.stderr


@pytest.mark.case("R25")
def test_a_recipe_that_is_edited_while_it_runs_changes_nothing(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(project, tmp_path / "project", ignore=shutil.ignore_patterns("run*"))
    stopped_run(own, tmp_path / "run", 5, monkeypatch)
    (own / "tiny.toml").write_text("epochs = 99")
    assert invoke("resume", tmp_path / "run", "--device", "cpu").exit_code == 0
    assert metrics(tmp_path / "run") == metrics(finished.directory)


def test_k02_no_room_for_a_line_of_metrics_saves_what_was_trained_first(
    project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(files.Operations):
        def open(self, path: Path, flags: int) -> int:
            if path.name == "metrics.jsonl":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().open(path, flags)

    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", Full())
        full = invoke("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu")
    assert full.exit_code == 9 and "ENOSPC" in full.stderr
    saved, _ = checkpoint.newest(directory / "checkpoints")
    assert saved is not None and saved.values["state"]["step"] > 0
    assert invoke("resume", directory, "--device", "cpu").exit_code == 0
    assert_same(directory, finished.directory)


@pytest.mark.parametrize(("share", "code"), [(0.9, 9), (1.5, 0)], ids=["K03-too-little", "K03-narrow"])
def test_free_space_is_compared_before_anything_is_trained(
    share: float,
    code: int,
    project: Path,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "run"
    # Three checkpoints of the network, two tensors of Adam's and the best weights beside it, and the bundle.
    needed = 13 * (finished.directory / "model" / "model.safetensors").stat().st_size
    monkeypatch.setattr(files, "free_bytes", lambda path: share * needed if path == directory else None)
    result = invoke("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu")
    assert result.exit_code == code, result.output
    assert "needs" in result.stderr and "3 checkpoints of" in result.stderr
    assert directory.exists() == (code == 0)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = invoke("resume", tmp_path)
    assert result.exit_code == 6
    assert "TLR601" in result.stderr


@pytest.mark.case("C01")
@pytest.mark.parametrize("name", ["environment.json", "recipe.resolved.toml"])
def test_what_ends_before_it_has_its_recipe_is_no_run_yet(
    name: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    ended_at(name, project, directory, monkeypatch)
    result = invoke("resume", directory, "--device", "cpu")
    assert result.exit_code == 6 and "not a run directory" in result.stderr


@pytest.mark.case("C01")
@pytest.mark.parametrize("name", ["data.json", "evaluation.json", "result.json", "report.html"])
def test_what_ends_at_one_of_its_files_lacks_none_when_it_is_resumed(
    name: str, project: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    ended_at(name, project, directory, monkeypatch)
    assert invoke("resume", directory, "--device", "cpu").exit_code == 0
    assert_same(directory, finished.directory)


def ended_at(name: str, project: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose process is gone when the file ``name`` is to appear in its directory."""

    class Gone(BaseException):
        pass

    class Dying(files.Operations):
        def rename(self, source: Path, target: Path) -> None:
            if target == directory / name:
                raise Gone
            super().rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(Gone):
        patch.setattr(files, "operations", Dying())
        run(project / "tiny.toml", run_dir=directory, device="cpu")


# Real processes time for themselves whether bfloat16 is faster.
LONG = ("--set", "phase.all.epochs=100", "--set", "compute.precision=fp32")


@pytest.fixture(scope="module")
def long_run(project: Path) -> Finished:
    """A run that takes long enough to be hit by a signal, undisturbed."""
    directory = project / "run-long"
    through = invoke("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu", *LONG)
    assert through.exit_code == 0
    return Finished(directory, through)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


def _wait_for_checkpoint(directory: Path) -> None:
    deadline = time.monotonic() + 600
    while not list((directory / "checkpoints").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDS: dict[str, tuple[int, ...]] = {
    "kill": (signal.SIGKILL,),
    "P01-P02-term": (signal.SIGTERM,),
    "P08-stop": (signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM),
    "P12-term-and-kill": (signal.SIGTERM, signal.SIGKILL),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_process_group_that_gets_signals_leaves_a_run_that_can_be_resumed(
    case: str, project: Path, long_run: Finished, zygote: Zygote, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    pid = zygote.start("run", project / "tiny.toml", "--run-dir", directory, "--device", "cpu", *LONG)
    _wait_for_checkpoint(directory)
    for number in ENDS[case]:
        time.sleep(0.1)
        os.killpg(pid, number)
    assert zygote.wait() in ((75,) if signal.SIGKILL not in ENDS[case] else (75, -signal.SIGKILL))
    assert not (directory / "model").exists()
    resumed = invoke("resume", directory, "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    assert_same(directory, long_run.directory)


@pytest.mark.slow
@pytest.mark.case("C01", "C14")
def test_fifty_random_kills_of_a_real_run(zygote: Zygote, tmp_path: Path) -> None:
    """The sample and its pretrained network, killed at random moments of its whole life: while it decodes,
    measures, computes features, trains, saves, evaluates and writes the bundle. Each life that ends by
    itself is compared, and a new run begins with an empty cache, until fifty kills have hit."""
    recipe = Path(__file__).parents[2] / "recipes" / "hybrid.toml"
    small = ["data.size=32", "data.per_class=10", "phase.extract.epochs=4", "phase.finetune.epochs=2"]
    # Choices by timing are those of one run, and runs are compared here that begin anew.
    fixed = ["compute.precision=fp32", "compute.features=store"]
    options = [part for value in small + fixed for part in ("--set", value)]

    def begin(directory: Path) -> int:
        shutil.rmtree(files.cache_dir(), ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)
        return zygote.start("run", recipe, "--run-dir", directory, "--device", "cpu", *options)

    through = tmp_path / "through"
    started = time.monotonic()
    begin(through)
    assert zygote.wait() == 0
    life = time.monotonic() - started
    rng, kills, complete, hit = random.Random(0), 0, 0, Counter[str]()
    directory = tmp_path / "run-0"
    pid = begin(directory)
    while True:
        if kills < 50:
            time.sleep(rng.uniform(0, life))
            event = _last_event(directory)
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(pid, signal.SIGKILL)
        code = zygote.wait()
        if code == -signal.SIGKILL:
            kills += 1
            hit[event] += 1
        else:
            assert code == 0
            assert_same(directory, through)
            complete += 1
            if kills >= 50:
                break
            directory = tmp_path / f"run-{kills}"
        if (directory / "recipe.resolved.toml").exists():
            pid = zygote.start("resume", directory, "--device", "cpu")
        else:
            pid = begin(directory)
    print(f"{kills} kills, {complete} runs completed and compared; last event before each: {dict(hit)}")
    assert len(hit) > 3, "the kills hit one part of the run only"


def _last_event(directory: Path) -> str:
    try:
        return str(json.loads((directory / "log.jsonl").read_text().splitlines()[-1])["event"])
    except (OSError, ValueError, IndexError):
        return "none"
