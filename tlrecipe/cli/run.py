"""`tlrecipe run`: from a recipe to a run directory with a trained model."""

from __future__ import annotations

import difflib
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
from tlrecipe.language.diagnostics import TlrecipeError

if TYPE_CHECKING:
    import torch

    from tlrecipe.artifacts.checkpoint import Saved
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

    from tlrecipe.artifacts.rundir import RunDirectory, refuse_used
    from tlrecipe.models.backbones import build

    if run_dir is not None:
        refuse_used(run_dir)
    where = pick_device(device)
    if checked.plan.threads is not None:
        torch.set_num_threads(checked.plan.threads)
    recipe = checked.document.recipe
    with located(checked.document):
        classes = len(checked.plan.classes)
        backbone = build(recipe.backbone, recipe.head, classes, recipe.seed, recipe.data.size)
    with RunDirectory.create(recipe.name, path=run_dir) as directory:
        _write_inputs(directory, checked, where)
        carry_out(checked, backbone, directory, where, plain=plain, as_json=as_json, started=started)


def carry_out(
    checked: Checked,
    backbone: Backbone,
    directory: RunDirectory,
    device: torch.device,
    *,
    plain: bool,
    as_json: bool,
    started: float,
    resume: Saved | None = None,
) -> None:
    """Train, from the start or from a checkpoint, write what the run leaves and say how it ended."""
    with located(checked.document), progress(plain=plain) as show:
        result = _trained(checked, backbone, directory, device, show, started, resume)
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


def _trained(
    checked: Checked,
    backbone: Backbone,
    directory: RunDirectory,
    device: torch.device,
    show: Receiver,
    started: float,
    resume: Saved | None,
) -> dict[str, Any]:
    """Decode, train, evaluate and write the bundle; gives what `result.json` says."""
    from tlrecipe.artifacts import checkpoint
    from tlrecipe.artifacts.bundle import write_bundle
    from tlrecipe.cli.decoding import DecodedData
    from tlrecipe.training.engine import Stopped
    from tlrecipe.training.features import FeatureStore
    from tlrecipe.training.interpreter import Checkpoint, train

    recipe, plan, listing = checked.document.recipe, checked.plan, checked.listing
    assert listing is not None
    written = files.read(directory.path / "recipe.toml", code="TLR601")
    recipe_sha256 = hashlib.sha256(written).hexdigest()
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
        checkpoint.save(directory.checkpoints, point.tensors, point.values, facts)

    data = DecodedData(listing, recipe.data.on_bad, emit)
    digests = _open_data(checked, data, emit)
    facts = run_facts(checked, digests, device)
    if resume is not None:
        refuse_other_run(resume.run, facts)
    files.remove(directory.model)
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
                resume=None if resume is None else Checkpoint(resume.tensors, resume.values),
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


def run_facts(checked: Checked, digests: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """What a checkpoint says about its run, so that another one is not taken for it."""
    import torch

    from tlrecipe.artifacts.environment import version

    packages = ("tlrecipe", "torch", "torchvision", "timm", "numpy", "pillow")
    return {
        "recipe": checked.document.resolved(),
        "classes": list(checked.plan.classes),
        "pixels": dict(digests),
        "numerics": {
            "versions": {name: version(name) for name in packages},
            "threads": torch.get_num_threads(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "device": device.type,
        },
    }


def refuse_other_run(saved: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Compare a checkpoint's facts with those of the run that wants to go on from it.

    Raises:
        TlrecipeError: TLR602 where the recipe, the classes or the images are not the same.
    """
    before, now = str(saved.get("recipe")).splitlines(), str(facts["recipe"]).splitlines()
    if before != now:
        changed = [line for line in difflib.ndiff(before, now) if line[:2] in ("- ", "+ ")]
        raise TlrecipeError.of(
            "TLR602",
            "the recipe is not the one that the checkpoint was saved by: " + "; ".join(changed[:6]),
            help="put it back, or run the new recipe in a new run directory",
        )
    for what, name in (("classes", "classes"), ("pixels", "images")):
        if saved.get(what) != facts[what]:
            raise TlrecipeError.of(
                "TLR602",
                f"the {name} of the data are not those that the checkpoint was saved with",
                help="put the data back as it was, or run the recipe in a new run directory",
            )


def _open_data(checked: Checked, data: DecodedData, emit: Receiver) -> dict[str, str]:
    """Decode every split before training starts, so that a bad file is not found hours later.

    Gives the digest of each split's pixels.
    """
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
    return {split: pixels.digest for split, pixels in decoded.items()}


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
