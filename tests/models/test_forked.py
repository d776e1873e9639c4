"""Runs in processes that were forked or spawned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.project import RECIPE, write_images

SCRIPT = """
import hashlib, json, multiprocessing, sys
from pathlib import Path

def trained(folder, name, results):
    import torch
    torch.set_num_threads(2)
    import tlrecipe
    try:
        run = tlrecipe.run(folder / "tiny.toml", run_dir=folder / name, device="cpu")
        weights = (run.path / "model" / "model.safetensors").read_bytes()
        results.put([hashlib.sha256(weights).hexdigest(), run.metrics["test"]["loss"]])
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")

def started(how, name, folder):
    context = multiprocessing.get_context(how)
    results = context.Queue()
    process = context.Process(target=trained, args=(folder, name, results))
    process.start()
    answer = results.get(timeout=300)
    process.join()
    return answer

if __name__ == "__main__":
    folder, answers = Path(sys.argv[1]), {}
    for step in sys.argv[2:]:
        if step == "compute":
            import tlrecipe.models.forked, torch
            torch.set_num_threads(2)
            torch.ones(1 << 20, requires_grad=True).sum().backward()
        else:
            answers[step] = started(step.partition(" ")[0], step.replace(" ", "-"), folder)
    print(json.dumps(answers))
"""


def answers(folder: Path, *steps: str) -> dict[str, Any]:
    write_images(folder / "colours" / "train", 8)
    write_images(folder / "colours" / "test", 2)
    (folder / "tiny.toml").write_text(RECIPE + '\n[compute]\nprecision = "fp32"\n')
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, folder / "script.py", folder, *steps],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.case("P14")
def test_a_forked_and_a_spawned_process_train_the_same_bytes(tmp_path: Path) -> None:
    found = answers(tmp_path, "fork", "compute", "spawn")
    assert found["fork"] == found["spawn"]
    assert len(found["fork"]) == 2, found


@pytest.mark.case("P14")
def test_a_process_that_was_forked_too_late_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    found = answers(tmp_path, "compute", "fork")
    assert found["fork"].startswith("RuntimeError: this process was forked after PyTorch had computed")
