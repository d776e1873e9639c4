"""What a run is doing, on stderr: bars on a terminal, else a line per epoch."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from tlrecipe.cli.console import note, width
from tlrecipe.cli.render import printable
from tlrecipe.cli.timeleft import TimeLeft

_EVERY_SECONDS = 30.0
# Seconds before an evaluation gets a bar.
_FLICKER = 0.5
_NAME_WIDTH, _BAR_WIDTH = 13, 8
# Columns of a bar's line before its text: name, bar, share, time, and a space behind each.
_BEFORE_TEXT = _NAME_WIDTH + _BAR_WIDTH + 4 + 7 + 4


class Receiver(Protocol):
    """Takes events of a run: their kind, and fields by name."""

    def __call__(self, kind: str, /, **fields: Any) -> None: ...


@contextmanager
def progress(
    *, plain: bool = False, quiet: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Receiver]:
    """A receiver that shows events while the block runs. ``plain`` asks for lines on a terminal too,
    ``quiet`` for warnings only. ``clock`` gives seconds."""
    if quiet:
        yield _warnings_only
        return
    if plain or not sys.stderr.isatty():
        yield Lines(clock)
        return
    with _bars(clock) as receiver:
        yield receiver


def _warnings_only(kind: str, /, **fields: Any) -> None:
    if kind == "warning":
        note(_warning(fields))


class Lines:
    """One line per phase and epoch; within one, and for what else takes long, one per 30 seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spoke = clock()
        self._left = TimeLeft(clock)

    def __call__(self, kind: str, /, **fields: Any) -> None:
        self._left(kind, fields)
        if kind in _WITHIN:
            if self._clock() - self._spoke < _EVERY_SECONDS:
                return
            line = _WITHIN[kind](fields) + self._ending()
        elif kind == "epoch":
            line = _epoch(fields) + self._ending()
        elif kind in _ALWAYS:
            line = _ALWAYS[kind](fields)
        else:
            return
        self._spoke = self._clock()
        note("\n".join(_wrapped(line)))

    def _ending(self) -> str:
        left = self._left.seconds()
        return "" if left is None else f", {duration(left)} left{_at_most(self._left)}"


def _wrapped(text: str) -> Iterator[str]:
    """The lines of a text, in those of the terminal where there is one."""
    columns = width(sys.stderr)
    for line in text.split("\n"):
        if columns is None:
            yield line
        else:
            indent = " " * (len(line) - len(line.lstrip()))
            yield from textwrap.wrap(
                line.strip(), columns, initial_indent=indent, subsequent_indent=f"{indent}    "
            )


@contextmanager
def _bars(clock: Callable[[], float]) -> Iterator[Receiver]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    left = TimeLeft(clock)

    class Time(TimeRemainingColumn):
        """Of the whole run what is left of it, of the others what is left of them."""

        def render(self, task: Task) -> Text:
            if task.id != tasks.get("run"):
                return super().render(task)
            seconds = left.seconds()
            return Text("--:--" if seconds is None else duration(seconds), style="progress.remaining")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_BAR_WIDTH),
        TaskProgressColumn(),
        Time(compact=True),
        TextColumn("{task.fields[text]}", markup=False),
    )
    # Rows that a command prints meanwhile go to a stdout that is no terminal, and have to get there.
    with Progress(
        *columns,
        console=Console(stderr=True, highlight=False),
        transient=True,
        get_time=clock,
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        tasks: dict[str, Any] = {}
        accuracy: float | None = None
        evaluating: float | None = None

        def show(name: str, description: str, done: int, total: int, text: str = "") -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(description, total=total, text=text)
            bars.update(tasks[name], completed=done, total=total, text=text)
            if done >= total:
                end(name)

        def end(name: str) -> None:
            if name in tasks:
                bars.remove_task(tasks.pop(name))

        def receive(kind: str, /, **fields: Any) -> None:
            nonlocal accuracy, evaluating
            left(kind, fields)
            if kind == "phase":
                accuracy = None
            if kind == "outlook":
                tasks["run"] = bars.add_task("whole run", total=1.0, text="")
            elif kind == "data":
                show("data", f"images of {fields['split']}", fields["done"], fields["total"])
            elif kind == "features":
                show("features", f"features of {fields['split']}", fields["done"], fields["total"])
            elif kind == "predictions":
                show("predictions", "images", fields["done"], fields["total"])
            elif kind == "evaluation":
                # One that takes no time would only flicker.
                evaluating = clock() if not fields["done"] or evaluating is None else evaluating
                if clock() - evaluating >= _FLICKER or "evaluation" in tasks:
                    name = f"evaluate {fields['split']}"
                    show("evaluation", name, fields["done"], fields["total"])
            elif kind == "step":
                name = fields["phase"][:_NAME_WIDTH]
                text = _bar_text(fields, accuracy, bars.console.width - _BEFORE_TEXT)
                show("step", name, fields["step"], fields["steps"], text)
            elif kind == "epoch":
                accuracy = (fields["val"] or fields["train"]).get("accuracy")
            elif kind in _ALWAYS:
                if kind == "phase_end":
                    end("step")
                bars.console.print(_ALWAYS[kind](fields), markup=False)
            if "run" in tasks:
                bars.update(tasks["run"], completed=left.share(), text=f"left{_at_most(left)}")

        yield receive


def _at_most(left: TimeLeft) -> str:
    return " at most" if left.at_most else ""


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes and seconds: ``01:23``, ``2:00:00``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


# --------------------------------------------------------------------------- events in words


def _data(fields: Mapping[str, Any]) -> str:
    return f"images of {fields['split']}: {fields['done']} of {fields['total']} decoded"


def _features(fields: Mapping[str, Any]) -> str:
    return f"features of {fields['split']}: {fields['done']} of {fields['total']}"


def _evaluation(fields: Mapping[str, Any]) -> str:
    return f"evaluation on {fields['split']}: {fields['done']} of {fields['total']}"


def _predictions(fields: Mapping[str, Any]) -> str:
    return f"images: {fields['done']} of {fields['total']}"


def _step(fields: Mapping[str, Any]) -> str:
    return f"  step {fields['step']} of {fields['steps']}, {_step_text(fields)}"


def _step_text(fields: Mapping[str, Any]) -> str:
    return (
        f"epoch {fields['epoch']}/{fields['epochs']}, loss {fields['loss']:.4f},"
        f" {rates(fields['lr'])}, {fields['images_per_second']:.0f} images/s"
    )


def _bar_text(fields: Mapping[str, Any], accuracy: float | None, room: int) -> str:
    """Beside a bar, as far as there is room: the epoch, the loss, the last epoch's accuracy (on the
    validation split, where there is one), the highest rate and the speed."""
    parts = [f"{fields['epoch']}/{fields['epochs']}", f"loss {fields['loss']:.3f}"]
    if accuracy is not None:
        parts.append(f"acc {percent(accuracy)}")
    parts += [f"lr {max(fields['lr'].values()):.1e}", f"{fields['images_per_second']:.0f}/s"]
    while len(" ".join(parts)) > room and len(parts) > 1:
        parts.pop()
    return " ".join(parts)


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


_WITHIN = {
    "data": _data,
    "features": _features,
    "step": _step,
    "evaluation": _evaluation,
    "predictions": _predictions,
}
_ALWAYS = {
    "phase": _phase,
    "phase_end": _phase_end,
    "test": _test,
    "resume": _resume,
    "warning": _warning,
}
