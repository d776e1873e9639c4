"""What a run is doing, on stderr: bars on a terminal, else a line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from tlrecipe.cli.console import note
from tlrecipe.cli.render import printable

_EVERY_SECONDS = 30.0
_NAME_WIDTH = 16


class Receiver(Protocol):
    """Takes events of a run: their kind, and fields by name."""

    def __call__(self, kind: str, /, **fields: Any) -> None: ...


@contextmanager
def progress(*, plain: bool = False, quiet: bool = False) -> Iterator[Receiver]:
    """A receiver that shows events while the block runs. ``plain`` asks for lines on a terminal too,
    ``quiet`` for warnings only."""
    if quiet:
        yield _warnings_only
        return
    if plain or not sys.stderr.isatty():
        yield Lines()
        return
    with _bars() as receiver:
        yield receiver


def _warnings_only(kind: str, /, **fields: Any) -> None:
    if kind == "warning":
        note(_warning(fields))


class Lines:
    """One line per phase and epoch; within one, and for what else takes long, one per 30 seconds."""

    def __init__(self) -> None:
        self._spoke = time.monotonic()

    def __call__(self, kind: str, /, **fields: Any) -> None:
        if kind in _WITHIN:
            if time.monotonic() - self._spoke < _EVERY_SECONDS:
                return
            line = _WITHIN[kind](fields)
        elif kind in _ALWAYS:
            line = _ALWAYS[kind](fields)
        else:
            return
        self._spoke = time.monotonic()
        note(line)


@contextmanager
def _bars() -> Iterator[Receiver]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bars:
        tasks: dict[str, Any] = {}
        accuracy: float | None = None

        def show(name: str, description: str, done: int, total: int, text: str) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(description, total=total, text=text)
            bars.update(tasks[name], completed=done, total=total, text=text)
            if done >= total:
                bars.remove_task(tasks.pop(name))

        def receive(kind: str, /, **fields: Any) -> None:
            nonlocal accuracy
            if kind == "phase":
                accuracy = None
            if kind == "data":
                show("data", f"images of {fields['split']}", fields["done"], fields["total"], "")
            elif kind == "features":
                show("features", f"features of {fields['split']}", fields["done"], fields["total"], "")
            elif kind == "step":
                name = fields["phase"][:_NAME_WIDTH]
                show("step", name, fields["step"], fields["steps"], _bar_text(fields, accuracy))
            elif kind == "epoch":
                accuracy = (fields["val"] or fields["train"]).get("accuracy")
            elif kind in _ALWAYS:
                if kind == "phase_end" and "step" in tasks:
                    bars.remove_task(tasks.pop("step"))
                bars.console.print(_ALWAYS[kind](fields), markup=False)

        yield receive


# --------------------------------------------------------------------------- events in words


def _data(fields: Mapping[str, Any]) -> str:
    return f"images of {fields['split']}: {fields['done']} of {fields['total']} decoded"


def _features(fields: Mapping[str, Any]) -> str:
    return f"features of {fields['split']}: {fields['done']} of {fields['total']}"


def _step(fields: Mapping[str, Any]) -> str:
    return f"  step {fields['step']} of {fields['steps']}, {_step_text(fields)}"


def _step_text(fields: Mapping[str, Any]) -> str:
    return (
        f"epoch {fields['epoch']}/{fields['epochs']}, loss {fields['loss']:.4f},"
        f" {rates(fields['lr'])}, {fields['images_per_second']:.0f} images/s"
    )


def _bar_text(fields: Mapping[str, Any], accuracy: float | None) -> str:
    """Beside a bar in 80 columns: the epoch, the loss, the last epoch's accuracy (on the validation split,
    where there is one), the highest rate and the speed."""
    known = "" if accuracy is None else f" acc {percent(accuracy)}"
    rate = max(fields["lr"].values())
    return (
        f"{fields['epoch']}/{fields['epochs']} loss {fields['loss']:.3f}{known}"
        f" lr {rate:.1e} {fields['images_per_second']:.0f}/s"
    )


def _phase(fields: Mapping[str, Any]) -> str:
    trainable, total = fields["trainable"], fields["trainable"] + fields["frozen"]
    return (
        f"phase {fields['index'] + 1}/{fields['phases']} {fields['name']}: {fields['epochs']:g} epochs,"
        f" {fields['steps']} steps, trains {trainable:,} of {total:,} parameters\n"
        f"  frozen part: {printable(fields['prefix'])}"
    )


def _epoch(fields: Mapping[str, Any]) -> str:
    parts = [f"epoch {fields['epoch']:>3}", _metrics("train", fields["train"])]
    if fields["val"] is not None:
        parts.append(_metrics("val", fields["val"]))
    return "  " + "  ".join([*parts, rates(fields["lr"]), f"{fields['seconds']:.1f} s"])


def _phase_end(fields: Mapping[str, Any]) -> str:
    best = fields["best"]
    shown = "" if best is None else f", best {best['metric']} {best['value']:.4f} in epoch {best['epoch']}"
    return f"  {fields['name']} took {fields['seconds']:.1f} s{shown}"


def _test(fields: Mapping[str, Any]) -> str:
    return _metrics("test", fields)


def _resume(fields: Mapping[str, Any]) -> str:
    return f"going on in phase {fields['phase'] + 1} after step {fields['step']}"


def _warning(fields: Mapping[str, Any]) -> str:
    return f"warning: {printable(fields['message'])}"


def _metrics(name: str, values: Mapping[str, Any]) -> str:
    text = f"{name} loss {values['loss']:.4f}"
    return f"{text}, accuracy {percent(values['accuracy'])}" if "accuracy" in values else text


def percent(share: float) -> str:
    """A share as people write it: ``87.3 %``."""
    return f"{100 * share:.1f} %"


def rates(by_group: Mapping[str, float]) -> str:
    """Learning rates by group, or the one that all have."""
    if len(set(by_group.values())) == 1:
        return f"lr {next(iter(by_group.values())):.2g}"
    return "lr " + ", ".join(f"{group} {rate:.2g}" for group, rate in by_group.items())


_WITHIN = {"data": _data, "features": _features, "step": _step}
_ALWAYS = {
    "phase": _phase,
    "epoch": _epoch,
    "phase_end": _phase_end,
    "test": _test,
    "resume": _resume,
    "warning": _warning,
}
