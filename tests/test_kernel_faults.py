"""Full disks, broken disks and short writes as the kernel makes them.

Where the kernel lets nobody mount or trace, or a tool is not installed, the tests say so and are skipped.
"""

from __future__ import annotations

import functools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

WRITE = """
import json, sys
from pathlib import Path
from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError

folder, size = Path(sys.argv[1]), int(sys.argv[2])
said = None
try:
    files.write_atomic(folder / "state", bytes(size))
except TlrecipeError as error:
    said = [error.exit_code, error.diagnostics[0].message]
held = {path.name: path.stat().st_size for path in folder.iterdir()}
print(json.dumps({"said": said, "held": held}))
"""


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, **options
    )


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@functools.cache
def _refused(*command: str) -> str:
    """Why a command cannot run here; empty where it can."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = run(command)
    return "" if done.returncode == 0 else f"the kernel refuses: {done.stderr.strip()[:100]}"


def needs(*command: str) -> None:
    if reason := _refused(*command):
        pytest.skip(reason)


def on_a_small_disk(folder: Path, code: str, *arguments: object) -> dict[str, Any]:
    """Run ``code`` with ``folder`` as a disk of 1 MB that holds nothing yet."""
    needs("unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1M tmpfs /mnt")
    script = 'mount -t tmpfs -o size=1M tmpfs "$1" && shift && exec "$@"'
    return answer(
        run(
            [
                "unshare",
                "-rm",
                "sh",
                "-c",
                script,
                "sh",
                folder,
                sys.executable,
                "-c",
                code,
                folder,
                *arguments,
            ]
        )
    )


def traced(injection: str, *command: object) -> list[object]:
    needs("strace", "-o", "/dev/null", "-e", "trace=none", "true")
    name = injection.partition(":")[0]
    return ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={injection}", *command]


@pytest.mark.case("K01")
def test_a_file_that_does_not_fit_leaves_nothing_and_says_what_it_needs(tmp_path: Path) -> None:
    done = on_a_small_disk(tmp_path, WRITE, 3_000_000)
    code, message = done["said"]
    assert code == 9
    assert "ENOSPC" in message and "needs 3.0 MB" in message and "free" in message
    assert done["held"] == {}


SAVE_UNTIL_FULL = """
import json, sys
from pathlib import Path
import torch
from tlrecipe.artifacts import checkpoint
from tlrecipe.language.diagnostics import TlrecipeError

folder, failures, step = Path(sys.argv[1]), [], 0
for size in (*range(10, 400, 43), *range(400, 10, -67), 390):
    try:
        checkpoint.save(folder, {"model/w": torch.ones(size * 256)}, {"state": {"step": step + 1}}, {})
        step += 1
    except TlrecipeError as error:
        failures.append(error.exit_code)
    saved, damaged = checkpoint.newest(folder)
    assert saved.values["state"]["step"] == step and not damaged, (size, step, damaged)
    assert not [path for path in folder.iterdir() if "tmp" in path.name]
print(json.dumps({"failures": failures, "saves": step}))
"""


@pytest.mark.case("K01", "C20")
def test_checkpoints_on_a_disk_that_runs_full_stay_valid(tmp_path: Path) -> None:
    done = on_a_small_disk(tmp_path, SAVE_UNTIL_FULL)
    assert set(done["failures"]) == {9}
    assert done["saves"] > 3


@pytest.mark.case("K01", "K07")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    limit = (100_000, 100_000)  # the first write is shortened to it, and the next one fails
    done = answer(
        run(
            [sys.executable, "-c", WRITE, tmp_path, 3_000_000],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
    )
    assert done["said"][0] == 9 and "EFBIG" in done["said"][1]
    assert done["held"] == {}


@pytest.mark.case("K01", "K02")
def test_a_line_to_a_full_device() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    from tlrecipe import files
    from tlrecipe.language.diagnostics import TlrecipeError

    with pytest.raises(TlrecipeError, match="ENOSPC") as caught:
        files.append_line(Path("/dev/full"), "{}")
    assert caught.value.exit_code == 9


INJECTED = {
    "K04-EIO-on-fsync": ("fsync:error=EIO", "EIO"),
    "K05-EROFS": ("openat:error=EROFS:when={open}", "EROFS"),
    "K05-EDQUOT": ("write:error=EDQUOT:when=1", "EDQUOT"),
    "K05-EACCES": ("openat:error=EACCES:when={open}", "EACCES"),
    "K08-EBUSY-on-rename": ("rename:error=EBUSY", "EBUSY"),
}


@pytest.mark.parametrize("case", INJECTED)
def test_an_error_of_the_kernel_is_named_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    injection, name = INJECTED[case]
    if "{open}" in injection:
        injection = injection.format(open=_number_of_the_open(tmp_path))
    done = answer(run(traced(injection, sys.executable, "-c", WRITE, tmp_path, 100)))
    assert done["said"][0] == 9 and name in done["said"][1]
    assert done["held"] == {}


def _number_of_the_open(folder: Path) -> int:
    """Which of the process's openings is the one of the temporary file."""
    needs("strace", "-o", "/dev/null", "-e", "trace=none", "true")
    log = folder.parent / "trace"
    run(["strace", "-f", "-o", log, "-e", "trace=openat", sys.executable, "-c", WRITE, folder, 100])
    lines = [line for line in log.read_text().splitlines() if "openat(" in line]
    (folder / "state").unlink()
    return next(number for number, line in enumerate(lines, start=1) if ".state.tmp-" in line)


READ = """
import sys
from tlrecipe.data.reading import read_bytes
print(len(read_bytes(sys.argv[1])))
"""


@pytest.mark.case("D18")
@pytest.mark.parametrize(("times", "ends"), [("1..3", 0), ("1+", 1)], ids=["it-recovers", "it-does-not"])
def test_a_disk_that_fails_to_read(times: str, ends: int, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"x" * 1000)
    command = traced(f"read:error=EIO:when={times}", "-P", image, sys.executable, "-c", READ, image)
    done = run(command)
    assert done.returncode == ends
    assert done.stdout.strip() == ("1000" if ends == 0 else "")
    if ends:
        assert "Input/output error" in done.stderr
