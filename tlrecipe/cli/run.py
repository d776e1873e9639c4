"""`tlrecipe run`: from a recipe to a run directory with a trained model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.exceptions import Exit

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.checking import Checked, check, located
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.machine import FEATURES
from tlrecipe.cli.progress import Receiver, percent, progress
from tlrecipe.cli.reporting import EXIT_STOPPED, warn
from tlrecipe.cli.signals import stop_on_signal

if TYPE_CHECKING:
    import torch

    from tlrecipe.artifacts.rundir import RunDirectory
    from tlrecipe.cli.decoding import DecodedData
    from tlrecipe.models.backbones import Backbone
    from tlrecipe.training.interpreter import RunResult

# Events that come many times a second; the log does without them.
_FLEETING = ("step", "data", "features")


def run(
    path: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    device: str,
    plain: bool,
    as_json: bool,
) -> None:
    """Validate, plan, train every phase, evaluate on the test split, write the run directory."""
    started = time.perf_counter()
    checked = check(path, overrides, needs_data=True)
    warn(checked.warnings)
    # Torch and its company, after all that can be checked without them.
    import torch

    from tlrecipe.artifacts.rundir import RunDirectory
    from tlrecipe.models.backbones import build

    where = pick_device(device)
    if checked.plan.threads is not None:
        torch.set_num_threads(checked.plan.threads)
    recipe = checked.document.recipe
    with located(checked.document):
        classes = len(checked.plan.classes)
        backbone = build(recipe.backbone, recipe.head, classes, recipe.seed, recipe.data.size)
    with RunDirectory.create(recipe.name, path=run_dir) as directory:
        _write_inputs(directory, checked, where)
        with located(checked.document), progress(plain=plain) as show:
            result = _carry_out(checked, backbone, directory, where, show, started)
        directory.write_json("result.json", result)
        _report(result, directory.path, as_json=as_json)
    if result["status"] == "stopped":
        raise Exit(EXIT_STOPPED)


def _write_inputs(directory: RunDirectory, checked: Checked, device: torch.device) -> None:
    from tlrecipe.artifacts.environment import environment

    directory.write_text("recipe.toml", checked.document.text)
    directory.write_text("recipe.resolved.toml", checked.document.resolved())
    directory.write_json("plan.json", checked.plan.as_dict())
    directory.write_json("environment.json", environment(device))


def _carry_out(
    checked: Checked,
    backbone: Backbone,
    directory: RunDirectory,
    device: torch.device,
    show: Receiver,
    started: float,
) -> dict[str, Any]:
    """Decode, train, evaluate and write the bundle; gives what `result.json` says."""
    from tlrecipe.artifacts import checkpoint
    from tlrecipe.artifacts.bundle import write_bundle
    from tlrecipe.cli.decoding import DecodedData
    from tlrecipe.training.features import FeatureStore
    from tlrecipe.training.interpreter import Checkpoint, Stopped, train

    recipe, plan, listing = checked.document.recipe, checked.plan, checked.listing
    assert listing is not None
    recipe_sha256 = hashlib.sha256(checked.document.text.encode()).hexdigest()
    result = {"status": "stopped", "recipe": recipe.name, "recipe_sha256": recipe_sha256}

    def emit(kind: str, /, **fields: Any) -> None:
        show(kind, **fields)
        if kind not in _FLEETING:
            directory.log(kind, **fields)
        if kind == "epoch":
            directory.append_metrics(fields)
        elif kind == "test":
            directory.append_metrics({"phase": plan.phases[-1].name, "test": fields})

    def save(point: Checkpoint) -> None:
        about = {"recipe_sha256": recipe_sha256}
        checkpoint.save(directory.checkpoints, point.tensors, point.values, about)

    data = DecodedData(listing, recipe.data.on_bad, emit)
    _open_data(checked, data, emit)
    try:
        with stop_on_signal() as stop:
            done = train(
                plan,
                backbone,
                data,
                emit=emit,
                save=save,
                store=FeatureStore(files.cache_dir() / FEATURES),
                device=device,
                stop=stop,
            )
    except Stopped:
        return result
    write_bundle(
        directory.model,
        backbone=backbone,
        classes=plan.classes,
        preprocessing=plan.preprocessing,
        recipe=recipe,
        recipe_sha256=recipe_sha256,
        metrics=done.metrics,
        precision=done.precision,
        averaged=done.weights == "ema",
    )
    seconds = {"total": time.perf_counter() - started, "data": data.seconds}
    return result | _outcome(done, plan.classes, seconds)


def _open_data(checked: Checked, data: DecodedData, emit: Receiver) -> None:
    """Decode every split before training starts, so that a bad file is not found hours later."""
    from tlrecipe.cli.decoding import left_out
    from tlrecipe.data.pixels import duplicates

    plan, listing = checked.plan, checked.listing
    assert listing is not None
    decoded = {}
    for split in listing.splits:
        size = plan.preprocessing.size if split == "test" else plan.phases[0].size
        pixels = data(split, replace(plan.preprocessing, size=size))
        assert pixels is not None
        decoded[split] = pixels
        for skipped in left_out(pixels, listing):
            emit("warning", message=skipped.message)
    for split in ("val", "test"):
        if split in decoded and (pairs := duplicates(decoded["train"], decoded[split])):
            first, second = pairs[0]
            emit(
                "warning",
                message=f"{len(pairs)} files of {split} are in train too, such as {second} and {first}",
            )


def _outcome(done: RunResult, classes: Sequence[str], seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "status": "complete",
        "metrics": done.metrics,
        "phases": [asdict(phase) for phase in done.phases],
        "seconds": {**seconds, **done.seconds},
        "classes": list(classes),
        "weights": done.weights,
        "precision": done.precision,
        "peak_memory_bytes": done.peak_memory_bytes,
    }


def _report(result: Mapping[str, Any], directory: Path, *, as_json: bool) -> None:
    if as_json:
        console.out(json.dumps({**result, "run_dir": str(directory)}, indent=2))
        return
    if result["status"] == "stopped":
        console.out(f"stopped: {directory}\nnext: tlrecipe resume {directory}")
        return
    for split in ("test", "val"):
        if split in result["metrics"]:
            console.out(accuracy_line(split, result["metrics"][split]))
            break
    console.out(f"run directory: {directory}\nnext: tlrecipe predict {directory} IMAGE…")


def accuracy_line(split: str, metrics: Mapping[str, Any]) -> str:
    """The accuracy of a split, with what chance leaves open where the number of images is known."""
    from tlrecipe.training.evaluate import wilson_interval

    text = f"{split} accuracy {percent(metrics['accuracy'])}"
    if "count" not in metrics:
        return text
    low, high = wilson_interval(metrics["accuracy"], metrics["count"])
    return f"{text} (95 % interval {percent(low)} to {percent(high)}, {metrics['count']:,} images)"
