"""`tlrecipe resume`: go on where a run stopped, to the same result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.checking import check, located
from tlrecipe.cli.device import pick_device
from tlrecipe.language.diagnostics import TlrecipeError


def resume(path: Path, *, device: str, plain: bool, as_json: bool, strict: bool) -> None:
    """Go on with the run in the folder ``path`` from its newest valid checkpoint."""
    started = time.perf_counter()
    if not (path / "recipe.resolved.toml").is_file():
        raise TlrecipeError.of("TLR601", f"`{path}` is not a run directory: it holds no recipe.resolved.toml")
    if _is_complete(path):
        console.out(f"already complete: {path}")
        return
    checked = check(path / "recipe.resolved.toml", needs_data=True)
    import torch

    from tlrecipe.artifacts import checkpoint
    from tlrecipe.artifacts.rundir import RunDirectory
    from tlrecipe.cli.run import carry_out, run_facts
    from tlrecipe.models.backbones import build

    where = pick_device(device)
    if checked.plan.threads is not None:
        torch.set_num_threads(checked.plan.threads)
    recipe = checked.document.recipe
    with RunDirectory(path) as directory:
        saved, damaged = checkpoint.newest(directory.checkpoints)
        for sentence in damaged:
            console.note(f"warning: checkpoint {sentence}; going on from an older one")
        if saved is None:
            _refuse_progress(path)
            console.note("the run stopped before its first checkpoint: it begins again")
        else:
            _compare_numerics(saved.run, run_facts(checked, {}, where), strict)
            state = saved.values["state"]
            directory.cut_metrics(int(state["records"]))
            console.note(f"going on in phase {state['phase'] + 1} after step {state['step']}")
        with located(checked.document):
            classes = len(checked.plan.classes)
            backbone = build(recipe.backbone, recipe.head, classes, recipe.seed, recipe.data.size)
        carry_out(
            checked,
            backbone,
            directory,
            where,
            plain=plain,
            as_json=as_json,
            started=started,
            resume=saved,
        )


def _is_complete(path: Path) -> bool:
    result = path / "result.json"
    if not result.is_file():
        return False
    try:
        said = json.loads(files.read(result, code="TLR601", limit=1 << 26))
        return bool(said["status"] == "complete")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TlrecipeError.of("TLR601", f"`{result}` is damaged: {error}") from error


def _refuse_progress(path: Path) -> None:
    """A run that recorded epochs had checkpoints: where they are gone, it must not begin again unasked."""
    metrics = path / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        raise TlrecipeError.of(
            "TLR602",
            f"`{metrics}` records epochs, but there is no checkpoint in `{path / 'checkpoints'}`",
            help="start the recipe again in a new run directory",
        )


def _compare_numerics(saved: Mapping[str, Any], now: Mapping[str, Any], strict: bool) -> None:
    """Say what can change the last bits of a result; with ``strict``, refuse."""
    said, here = saved.get("numerics"), now["numerics"]
    before = said if isinstance(said, dict) else {}
    changed = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in here.items()
        if before.get(name) != value
    ]
    if changed and strict:
        raise TlrecipeError.of("TLR602", f"not bit-exact: {'; '.join(changed)}")
    if changed:
        console.note(f"warning: not bit-exact: {'; '.join(changed)}")
