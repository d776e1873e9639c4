"""From a recipe to a run directory with a trained model, and from where a run stopped to its end."""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from tlrecipe import files
from tlrecipe.artifacts import checkpoint
from tlrecipe.artifacts.bundle import write_bundle
from tlrecipe.artifacts.environment import environment, version
from tlrecipe.artifacts.predictions import write_evaluated
from tlrecipe.artifacts.report.findings import Predictions
from tlrecipe.artifacts.report.page import REPORT, write_report
from tlrecipe.artifacts.report.thumbnails import THUMBNAILS, shown, thumbnails
from tlrecipe.artifacts.rundir import RunDirectory, refuse_used
from tlrecipe.artifacts.runs import Run
from tlrecipe.artifacts.tracking import Tracking, tracker
from tlrecipe.data.card import data_card, findings
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.text import Document, Overrides
from tlrecipe.models.backbones import Backbone, build
from tlrecipe.models.memory import weight_bytes
from tlrecipe.training.engine import Emit, Stopped
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.forecast import checkpoint_bytes, scratch_bytes
from tlrecipe.training.interpreter import Checkpoint, RunResult, train
from tlrecipe.workflow.checking import Checked, located, plan
from tlrecipe.workflow.decoding import DecodedData, left_out
from tlrecipe.workflow.device import pick_device


class Requests(Protocol):
    """What may be asked of a run from outside while it goes on, by signals for instance."""

    def stop(self) -> bool:
        """Whether the run shall stop."""
        ...

    def save(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        ...

    def between_steps(self) -> AbstractContextManager[None]:
        """Entered while the run asks :meth:`stop` by itself. Outside of it a request to stop may be raised
        as :class:`~tlrecipe.training.engine.Stopped`: nothing is lost by it."""
        ...


Stop = Callable[[], bool] | AbstractContextManager[Requests]
"""Says whether a run shall stop, or is entered for all its work and gives :class:`Requests`."""


class _Asked:
    """:class:`Requests` of a plain function."""

    def __init__(self, stop: Callable[[], bool]):
        self.stop = stop

    def save(self) -> bool:
        return False

    def between_steps(self) -> AbstractContextManager[None]:
        return nullcontext()


# Events that come many times a second; the log does without them.
_FLEETING = ("step", "data", "features", "evaluation")


def _silent(kind: str, /, **fields: Any) -> None:
    """Receives events and forgets them."""


def _never() -> bool:
    return False


def run(
    recipe: str | Path | Document | Checked,
    overrides: Overrides = (),
    *,
    run_dir: str | Path | None = None,
    device: torch.device | str = "auto",
    track: Sequence[str] = (),
    on_event: Emit = _silent,
    stop: Stop = _never,
    started: float | None = None,
) -> Run:
    """Validate, plan, train every phase, evaluate on the test split and write the run directory.

    Args:
        recipe: A recipe file, what :func:`tlrecipe.load` gave, or what :func:`tlrecipe.plan` gave.
        overrides: Values to change in a recipe file; see :func:`tlrecipe.load`.
        run_dir: Where to write; by default a new folder ``runs/<recipe>/<time>-<id>``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, or a device of torch.
        track: Trackers to send the run's values to: ``"tensorboard"``, ``"mlflow"`` or ``"wandb"``, with
            ``:`` and a folder, a tracking URI or a project behind it where it is not the default.
        on_event: Called with each event of the run: its kind, and its fields by name. The warnings of a
            recipe that is checked here are events too.
        stop: Asked after each step; once it says yes, the run saves a checkpoint and returns.
        started: :func:`time.perf_counter` when the work began, for the result's ``seconds``; now if None.

    Raises:
        TlrecipeError: with every mistake in the recipe, its data or its weights, before anything is
            written; TLR601 where ``run_dir`` holds anything; TLR404 for images that cannot be used;
            TLR701 where a loss is not finite; TLR901.
        ValueError: where there is no such device or tracker.
    """
    started = time.perf_counter() if started is None else started
    for text in track:
        tracker(text)
    if isinstance(recipe, Checked) and recipe.listing is not None and not overrides:
        checked = recipe
    else:
        checked = plan(_document(recipe), overrides, needs_data=True)
        for warning in checked.warnings:
            on_event("warning", message=warning.message)
    if run_dir is not None:
        run_dir = Path(run_dir)
        refuse_used(run_dir)
    where = _prepared(checked, device)
    backbone = _backbone(checked)
    refuse_full_disk(checked, backbone, run_dir if run_dir is not None else Path("runs"), on_event)
    with RunDirectory.create(checked.plan.name, path=run_dir) as directory:
        directory.write_text("recipe.toml", checked.document.text)
        directory.write_json("plan.json", checked.plan.as_dict())
        directory.write_json("environment.json", environment(where))
        # The last of them: what has it can be resumed, and then lacks none of the others.
        directory.write_text("recipe.resolved.toml", checked.document.resolved())
        return _carried_out(checked, backbone, directory, where, track, on_event, stop, started, None)


def resume(
    run_dir: str | Path,
    *,
    device: torch.device | str = "auto",
    strict: bool = False,
    on_event: Emit = _silent,
    stop: Stop = _never,
    started: float | None = None,
) -> Run:
    """Go on with a run from its newest valid checkpoint, to the result that it would have had.

    A run that is complete is returned as it is.

    Args:
        run_dir: The run directory.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, or a device of torch.
        strict: Refuse where versions, threads or processor are not those of the checkpoint, which may
            change the last bits of the result; otherwise that is a warning.
        on_event, stop, started: As for :func:`run`.

    Raises:
        TlrecipeError: TLR601 where the folder is no run directory or another process works in it, TLR602
            where no checkpoint can be used or it is not of this recipe and these images, and what
            :func:`run` raises.
        ValueError: where there is no such device.
    """
    started = time.perf_counter() if started is None else started
    path = Path(run_dir)
    if (before := Run.load(path)).complete:
        if not (path / REPORT).is_file():  # it ended between its last two files
            write_report(path)
        return before
    checked = plan(path / "recipe.resolved.toml", needs_data=True)
    where = _prepared(checked, device)
    with RunDirectory(path) as directory:
        saved, damaged = checkpoint.newest(directory.checkpoints)
        for sentence in damaged:
            on_event("warning", message=f"checkpoint {sentence}; going on from an older one")
        if saved is None:
            _refuse_progress(path)
            on_event("warning", message="the run stopped before its first checkpoint: it begins again")
        else:
            if changed := _numerics_changed(saved.run, run_facts(checked, {}, where, "")):
                if strict:
                    raise TlrecipeError.of("TLR602", changed)
                on_event("warning", message=changed)
            phase, step, records = _progress(saved.values)
            directory.cut_metrics(records)
            on_event("resume", phase=phase, step=step)
        return _carried_out(checked, _backbone(checked), directory, where, (), on_event, stop, started, saved)


# --------------------------------------------------------------------------- what both do


def _document(recipe: str | Path | Document | Checked) -> str | Path | Document:
    return recipe.document if isinstance(recipe, Checked) else recipe


def _prepared(checked: Checked, device: torch.device | str) -> torch.device:
    where = pick_device(device)
    if checked.plan.threads is not None:
        torch.set_num_threads(checked.plan.threads)
    return where


def _backbone(checked: Checked) -> Backbone:
    recipe = checked.document.recipe
    with located(checked.document):
        classes = len(checked.plan.classes)
        return build(recipe.backbone, recipe.head, classes, recipe.seed, recipe.data.size)


def _carried_out(
    checked: Checked,
    backbone: Backbone,
    directory: RunDirectory,
    device: torch.device,
    track: Sequence[str],
    on_event: Emit,
    stop: Stop,
    started: float,
    resume: checkpoint.Saved | None,
) -> Run:
    """Train, from the start or from a checkpoint, and write what the run leaves."""
    settings = checked.document.recipe.model_dump(mode="json", exclude_none=True)
    tracking = Tracking(
        track, checked.plan, directory.path, settings, lambda text: on_event("warning", message=text)
    )

    def tell(kind: str, /, **fields: Any) -> None:
        on_event(kind, **fields)
        tracking(kind, **fields)

    complete = False
    try:
        with located(checked.document):
            result = _trained(checked, backbone, directory, device, tell, stop, started, resume)
        directory.write_json("result.json", result)
        complete = result["status"] == "complete"
        if complete:
            write_report(directory.path)
    finally:
        kept = [directory.path / name for name in ("recipe.resolved.toml", "result.json", REPORT)]
        tracking.finish(complete, [path for path in kept if path.exists()])
    return Run.load(directory.path)


def _trained(
    checked: Checked,
    backbone: Backbone,
    directory: RunDirectory,
    device: torch.device,
    on_event: Emit,
    stop: Stop,
    started: float,
    resume: checkpoint.Saved | None,
) -> dict[str, Any]:
    """Decode, train, evaluate and write the bundle; gives what `result.json` says."""
    recipe, plan, listing = checked.document.recipe, checked.plan, checked.listing
    assert listing is not None
    written = files.read(directory.path / "recipe.toml", code="TLR601")
    recipe_sha256 = hashlib.sha256(written).hexdigest()
    result: dict[str, Any] = {"status": "stopped", "recipe": recipe.name, "recipe_sha256": recipe_sha256}

    def emit(kind: str, /, **fields: Any) -> None:
        on_event(kind, **fields)
        if kind not in _FLEETING:
            directory.log(kind, **fields)
        if kind == "epoch":
            directory.append_metrics(fields)
        elif kind == "test":
            directory.append_metrics({"phase": plan.phases[-1].name, "test": fields})

    def save(point: Checkpoint) -> None:
        checkpoint.save(directory.checkpoints, point.tensors, point.values, facts)

    for leftover in files.leftovers(directory.path):
        files.remove(leftover)
    files.remove(directory.model)
    data = DecodedData(listing, recipe.data.on_bad, emit)
    try:
        with stop if isinstance(stop, AbstractContextManager) else nullcontext(_Asked(stop)) as asked:
            digests = _open_data(checked, data, directory, emit)
            facts = run_facts(checked, digests, device, recipe_sha256)
            if resume is not None:
                refuse_other_run(resume.run, facts)
            with asked.between_steps():
                done = train(
                    plan,
                    backbone,
                    data,
                    emit=emit,
                    save=save,
                    store=FeatureStore(files.cache_dir() / files.FEATURES),
                    device=device,
                    stop=asked.stop,
                    save_now=asked.save,
                    resume=None if resume is None else Checkpoint(resume.tensors, resume.values),
                )
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
            intervals = _write_evaluation(directory, checked, data, done)
    except Stopped:
        return result
    seconds = {"total": time.perf_counter() - started, "data": data.seconds}
    result["backbone"] = backbone.provenance()
    return result | _outcome(done, intervals, plan.classes, seconds)


def _write_evaluation(
    directory: RunDirectory, checked: Checked, data: DecodedData, done: RunResult
) -> dict[str, Any]:
    """Write `evaluation.json`, `predictions.csv` and what the report shows of the images; gives the
    intervals of the metrics by split."""
    if (evaluated := done.evaluated) is None:
        return {}
    classes, evaluation = checked.plan.classes, evaluated.evaluation
    report = evaluation.report(classes)
    about = {"split": evaluated.split, "metrics": done.metrics[evaluated.split]}
    directory.write_text("evaluation.json", json.dumps(report | about, ensure_ascii=False) + "\n")
    pixels = data(evaluated.split, checked.plan.preprocessing)
    assert pixels is not None
    write_evaluated(pixels.names, evaluation.predictions(classes), directory.path / "predictions.csv")
    # While the images are in memory: the report shows some of them.
    found = Predictions.of(classes, pixels.names, evaluation.predictions(classes))
    files.make_folder((directory.path / THUMBNAILS).parent)
    directory.write_json(THUMBNAILS, thumbnails(pixels, shown(found)))
    return {evaluated.split: report["intervals"]}


# Two checkpoints are kept, and the next is written before the older one goes.
_CHECKPOINTS_AT_ONCE = 3


def refuse_full_disk(checked: Checked, backbone: Backbone, place: Path, on_event: Emit) -> None:
    """Compare what a run will write with what its disks have left, before it has trained for hours.

    Raises TLR901 where it cannot fit, and warns where less than twice as much is free.
    """
    one = checkpoint_bytes(checked.plan, backbone.model)
    written = _CHECKPOINTS_AT_ONCE * one + weight_bytes(backbone.model)
    what = f"{_CHECKPOINTS_AT_ONCE} checkpoints of {files.size_text(one)} and the model"
    images = scratch_bytes(checked.plan)
    needs = [(place, written, what), (files.cache_dir(), images, "the decoded images")]
    if images and files.same_disk(place, files.cache_dir()):
        needs = [(place, written + images, f"{what}, and the decoded images")]
    for folder, size, content in needs:
        free = files.free_bytes(folder)
        if free is None or size * 2 <= free:
            continue
        message = f"`{folder}` needs {files.size_text(size)} for {content}; {files.size_text(free)} free"
        if size > free:
            help = "free some space, or choose a place on another disk"
            raise TlrecipeError.of("TLR901", message, help=help)
        on_event("warning", message=message)


def run_facts(
    checked: Checked, digests: Mapping[str, str], device: torch.device, recipe_sha256: str
) -> dict[str, Any]:
    """What a checkpoint says about its run, so that another one is not taken for it."""
    packages = ("tlrecipe", "torch", "torchvision", "timm", "numpy", "pillow")
    return {
        "recipe": checked.document.resolved(),
        "recipe_sha256": recipe_sha256,
        "classes": list(checked.plan.classes),
        "pixels": dict(digests),
        "numerics": {
            **{name: version(name) for name in packages},
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
    for there, here, what in ((saved, facts, "run"), (saved.get("numerics"), facts["numerics"], "numerics")):
        if not isinstance(there, Mapping) or there.keys() != here.keys():
            raise TlrecipeError.of("TLR602", f"the checkpoint does not say all of its {what}")
    if changed := _changes(str(saved["recipe"]), str(facts["recipe"])):
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise TlrecipeError.of(
            "TLR602",
            f"the recipe is not the one that the checkpoint was saved by: {'; '.join(changed[:6])}{more}",
            help="put it back, or run the new recipe in a new run directory",
        )
    if saved["recipe_sha256"] != facts["recipe_sha256"]:
        raise TlrecipeError.of(
            "TLR602",
            "`recipe.toml` in the run directory is not the file that the checkpoint was saved by",
            help="put it back; it is the record of what was run, and goes into the bundle",
        )
    for what, name in (("classes", "classes"), ("pixels", "images")):
        if saved[what] != facts[what]:
            raise TlrecipeError.of(
                "TLR602",
                f"the {name} of the data are not those that the checkpoint was saved with",
                help="put the data back as it was, or run the recipe in a new run directory",
            )


def _changes(before: str, now: str) -> list[str]:
    """What differs in meaning between two resolved recipes: ``phase.all.epochs was 2, is 3``."""
    if before == now:
        return []
    try:
        old, new = (dict(_settings(tomllib.loads(text))) for text in (before, now))
    except tomllib.TOMLDecodeError:
        return ["it cannot be read"]
    missing = "not there"
    changed = [
        f"{key} was {old.get(key, missing)}, is {new.get(key, missing)}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key, missing) != new.get(key, missing)
    ]
    return changed or ["its order is another"]


def _settings(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a recipe with its dotted key; groups and phases go by their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _settings(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _settings(item, f"{path}.{item.get('name', index)}")
    else:
        yield path, value


def _open_data(checked: Checked, data: DecodedData, directory: RunDirectory, emit: Emit) -> dict[str, str]:
    """Decode every split before training starts, so that a bad file is not found hours later.

    Writes the card of the data; gives the digest of each split's pixels.
    """
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
    card = data_card(listing, decoded)
    directory.write_json("data.json", card.as_dict())
    for warning in findings(card, listing):
        emit("warning", message=warning.message)
    return {split: pixels.digest for split, pixels in decoded.items()}


def _outcome(
    done: RunResult, intervals: Mapping[str, Any], classes: Sequence[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "status": "complete",
        "metrics": done.metrics,
        "intervals": intervals,
        "phases": [asdict(phase) for phase in done.phases],
        "seconds": {**seconds, **done.seconds},
        "classes": list(classes),
        "weights": done.weights,
        "precision": done.precision,
        "peak_memory_bytes": done.peak_memory_bytes,
    }


def _progress(values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Phase, step and records of a checkpoint; the interpreter looks at the rest."""
    match values.get("state"):
        case {"phase": int(phase), "step": int(step), "records": int(records)} if records >= 0:
            return phase, step, records
    raise TlrecipeError.of("TLR602", "the checkpoint does not say where the run was")


def _refuse_progress(path: Path) -> None:
    """A run that recorded epochs had checkpoints: where they are gone, it must not begin again unasked."""
    metrics = path / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        raise TlrecipeError.of(
            "TLR602",
            f"`{metrics}` records epochs, but there is no checkpoint in `{path / 'checkpoints'}`",
            help="start the recipe again in a new run directory",
        )


def _numerics_changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What can change the last bits of a result, as a sentence."""
    before, here = saved.get("numerics"), now["numerics"]
    if not isinstance(before, Mapping):
        raise TlrecipeError.of("TLR602", "the checkpoint does not say all of its numerics")
    changed = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in here.items()
        if before.get(name) != value
    ]
    return f"not bit-exact: {'; '.join(changed)}" if changed else None
