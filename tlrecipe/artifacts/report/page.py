"""The report of one run as HTML: a record in, one self-contained page out."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from tlrecipe import files
from tlrecipe.artifacts.report import charts, findings, text
from tlrecipe.artifacts.report.charts import Curve, Row, Span
from tlrecipe.artifacts.report.record import (
    Card,
    ClassScores,
    Epoch,
    Evaluated,
    PhaseDone,
    PhasePlanned,
    Planned,
    Record,
    read_record,
)
from tlrecipe.artifacts.report.shapes import DARK, FIGURE_STYLE, LIGHT, Figure, Point
from tlrecipe.artifacts.report.thumbnails import EXAMPLES, MISTAKES, PAIRS
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.planning.intervals import wilson_interval

REPORT = "report.html"
"""The report in its run directory."""

_WIDE, _HALF, _NARROW = 820.0, 400.0, 340.0
_MATRIX = 20
_TABLE_ROWS = 1000
_TABLE_BYTES = 500_000
_CARD_BYTES = 200_000
_BAD = 5
_NAME_LENGTH = 48
_CURVE_POINTS = 240

_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_METRICS = {
    "accuracy": ("Accuracy", "share of images whose most probable class is the right one"),
    "top5_accuracy": ("Top-5 accuracy", "share whose class is among the five most probable"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes: each counts alike"),
    "macro_f1": ("Macro F1", "mean over the classes of precision and recall in one"),
    "auroc": ("AUROC", "how well each class is ranked before the others, mean over the classes"),
    "calibration_error": ("Calibration error", "mean gap between confidence and accuracy"),
    "loss": ("Loss", "cross-entropy in nats"),
}
"""Names and meanings of the metrics of ``evaluation.json``, in the order in which they are shown."""

_CLOCKS = {
    "data": "decoding images",
    "survey": "planning what to store",
    "features": "features, computed once",
    "train": "training steps",
    "evaluate": "evaluation",
}


def report_page(record: Record) -> str:
    """The report of a run as one HTML file, which loads nothing and says nothing to anybody."""
    return render("report.html.jinja", _context(record))


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of the run in ``run_dir`` to ``out``, by default into the directory itself.

    Raises TLR601 where the directory cannot be read, and TLR901.
    """
    target = out if out is not None else run_dir / REPORT
    files.write_atomic(target, report_page(read_record(run_dir)).encode())
    return target


def render(template: str, context: Mapping[str, Any]) -> str:
    """A page from a template of this package, with the style and script that its policy allows."""
    style, script = _style(), _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        name=_name,
        short=_short_name,
        path=_path_name,
        percent=text.percent,
        points=text.points,
        duration=text.duration,
        rate=text.rate,
        count=text.count,
        visible=text.visible,
    )
    return environment.get_template(template).render(
        context,
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        svg=lambda figure, extra="": Markup(figure.svg(extra)),
        meter=lambda *values: Markup(charts.meter(*values)),
    )


def _harmless(value: Any) -> Any:
    """What is printed without a filter may be foreign too."""
    return text.visible(value) if type(value) is str else value


def _asset(name: str) -> str:
    return resources.files("tlrecipe.artifacts.report").joinpath(name).read_text(encoding="utf-8")


def _style() -> str:
    """The stylesheet, with the colours that figures have too and the steps of a heat map."""
    colours = ";".join(f"--{role}:light-dark({LIGHT[role]},{DARK[role]})" for role in LIGHT)
    themes = "[data-theme=light]{color-scheme:light}[data-theme=dark]{color-scheme:dark}"
    roles = "".join(f".{role}{{--c:var(--{role})}}" for role in LIGHT)
    heat = "".join(
        f".{kind}{step}{{background:color-mix(in srgb,var(--{role}) {step * 5}%,var(--band))!important}}"
        for kind, role in (("good", "s1"), ("bad", "s2"))
        for step in range(1, 11)
    )
    root = f":root{{color-scheme:light dark;{colours}}}{themes}"
    return f"{root}{FIGURE_STYLE}{roles}{heat}\n{_asset('style.css')}"


def _csp_hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _name(value: str) -> Markup:
    """A foreign name, which may run from right to left without moving what stands around it."""
    return Markup("<bdi>{}</bdi>").format(escape(text.visible(value)))


def _short_name(value: str) -> Markup:
    """A foreign name within a sentence: a long one ends early, and a hint shows the whole."""
    shown = text.visible(value)
    if len(shown) <= _NAME_LENGTH:
        return _name(value)
    return Markup('<bdi title="{}">{}…</bdi>').format(escape(shown), escape(shown[: _NAME_LENGTH - 1]))


def _path_name(value: str) -> Markup:
    """A file's path, which may be broken after each slash."""
    return Markup("<bdi>{}</bdi>").format(Markup("/<wbr>").join(text.visible(value).split("/")))


# --------------------------------------------------------------------------- the parts of the page


def _context(record: Record) -> dict[str, Any]:
    plan, result = record.plan, record.result
    backbone = record.recipe.get("backbone", {})
    first, predictions = plan.phases[0], record.predictions
    phases = [_phase(record, index) for index in range(len(plan.phases))]
    return {
        "record": record,
        "plan": plan,
        "result": result,
        "title": plan.name,
        "description": record.recipe.get("description", ""),
        "backbone": backbone,
        "parameters": first.trainable_count + first.frozen_count,
        "headline": _headline(record),
        "phases": phases,
        "charts": _training_charts(record),
        "rates": {"wide": rates_figure(plan, _WIDE), "narrow": rates_figure(plan, _NARROW)},
        "smoothed": any(phase.get("label_smoothing") for phase in record.recipe.get("phase", [])),
        "metrics": metric_rows(record.evaluation),
        "split": _SPLITS.get(record.evaluation.split, "") if record.evaluation else "",
        "mistakes": _mistakes(predictions, record.evaluation) if predictions and record.evaluation else None,
        "data": _data(record),
        "time": _time(record),
        "saved": sum(phase["saved"] or 0.0 for phase in phases),
        "environment": _environment(record.environment),
        "recipe": _highlighted(record.recipe_text),
    }


@dataclass(frozen=True)
class _Headline:
    split: str
    accuracy: float
    low: float
    high: float
    images: int
    loss: float
    figure: Figure
    narrow: Figure
    best_guess: float | None


def _headline(record: Record) -> _Headline | None:
    """The accuracy on the test split, or on the validation split where there is no other."""
    metrics = record.result.metrics if record.result else {}
    split = next((name for name in ("test", "val") if name in metrics), None)
    if split is None:
        return None
    accuracy = float(metrics[split]["accuracy"])
    images = int(metrics[split].get("count") or record.plan.counts.get(split) or 1)
    low, high = wilson_interval(accuracy, images)
    guess = findings.chance(record.predictions) if record.predictions is not None else None
    marks = [] if guess is None else [("always the largest class", guess)]
    said = f"{text.percent(accuracy)}, with a 95 % interval from {text.percent(low)} to {text.percent(high)}"
    draw = [
        charts.interval(accuracy, low, high, marks, width=width, description=said)
        for width in (560.0, _NARROW)
    ]
    loss = float(metrics[split]["loss"])
    return _Headline(split, accuracy, low, high, images, loss, draw[0], draw[1], guess)


def _phase(record: Record, index: int) -> dict[str, Any]:
    planned = record.plan.phases[index]
    done = record.result.phases[index] if record.result and index < len(record.result.phases) else None
    saved_images, saved = _saved(record.plan, done)
    digests = done.frozen_sha256 if done else {}
    return {
        "plan": planned,
        "done": done,
        "share": planned.trainable_count / max(1, planned.trainable_count + planned.frozen_count),
        "groups": _group_rates(planned),
        "frozen_groups": [
            name for name, members in record.plan.group_params.items() if planned.frozen.issuperset(members)
        ],
        "proved": bool(digests) and digests.get("before") == digests.get("after"),
        "sha256": digests.get("after", ""),
        "saved": saved,
        "saved_images": saved_images,
    }


def _saved(plan: Planned, done: PhaseDone | None) -> tuple[int, float | None]:
    """Passes of an image through the frozen part that stored features replaced, and their seconds."""
    if done is None or done.prefix.mode != "store":
        return 0, None
    each = plan.counts.get("train", 0) + plan.counts.get("val", 0)
    images = max(0, round(done.epochs * each) - done.prefix.images_computed)
    return images, images * done.prefix.prefix_seconds


def _group_rates(phase: PhasePlanned) -> list[tuple[str, float, float, float]]:
    """Name, first, highest and last rate of each group that trains."""
    landmarks = (0, min(phase.warmup_steps, phase.steps - 1), phase.steps - 1)
    start, peak, end = (phase.rates(step) for step in landmarks)
    return [(name, start[name], peak[name], end[name]) for name in peak]


# --------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Timeline:
    """The epochs of a run on one axis."""

    spans: list[Span]
    rows: list[tuple[float, Epoch]]
    """Epochs since the start of the run, with what was measured there."""


def training_path(record: Record) -> Timeline:
    """Each epoch's place on the axis of the whole run, and where phases begin and end."""
    spans, rows, start = [], [], 0.0
    for index, phase in enumerate(record.plan.phases):
        own = [row for row in record.epochs if row.phase == phase.name]
        done = record.result.phases[index] if record.result and index < len(record.result.phases) else None
        length = done.epochs if done else (own[-1].step / phase.steps_per_epoch if own else 0.0)
        if length == 0:
            continue
        spans.append(Span(phase.name, start, start + length))
        rows += [(start + row.step / phase.steps_per_epoch, row) for row in own]
        start += length
    return Timeline(spans, rows)


@dataclass(frozen=True)
class Measure:
    """A number that is measured in each epoch, and how it is drawn."""

    heading: str
    key: str
    axis: Callable[[float], str]
    """Writes a value beside the axis."""
    exact: Callable[[float], str]
    limits: tuple[float | None, float | None]
    rises: bool
    """Whether more is better."""


MEASURES = (
    Measure("Loss", "loss", lambda value: f"{value:.3g}", lambda value: f"{value:.4f}", (0.0, None), False),
    Measure("Accuracy", "accuracy", lambda value: text.percent(value, 0), text.percent, (0.0, 1.0), True),
)


def _training_charts(record: Record) -> list[tuple[str, Figure]]:
    """Loss and accuracy over the epochs: heading and figure."""
    path = training_path(record)
    if not path.rows:
        return []
    return [(measure.heading, _training_chart(path, measure)) for measure in MEASURES]


def _training_chart(path: Timeline, measure: Measure) -> Figure:
    key, best = measure.key, max if measure.rises else min
    train = [(x, row.train[key]) for x, row in path.rows if key in row.train]
    val = [(x, row.val[key]) for x, row in path.rows if row.val is not None and key in row.val]
    lines = [("train", "s6", train, False), ("validation", "s1", val, True)]
    said = [
        f"{name} from {measure.exact(points[0][1])} to {measure.exact(points[-1][1])},"
        f" best {measure.exact(best(value for _, value in points))}"
        for name, _, points, _ in lines
        if points
    ]
    hints = [(x, _hint(row, measure)) for x, row in path.rows]
    return charts.curves(
        [Curve(name, role, [thinned(points)], thick=thick) for name, role, points, thick in lines if points],
        title=f"{measure.heading} over the epochs",
        description=f"{'; '.join(said)}. Phases: {', '.join(span.name for span in path.spans)}.",
        width=_HALF,
        number=measure.axis,
        x_name="epochs",
        spans=path.spans,
        limits=measure.limits,
        hints=hints if len(hints) <= _CURVE_POINTS else (),
    )


def _hint(row: Epoch, measure: Measure) -> str:
    values = (("train", row.train), ("validation", row.val or {}))
    said = [f"{name} {measure.exact(found[measure.key])}" for name, found in values if measure.key in found]
    return f"{row.phase}, epoch {row.epoch}: {', '.join(said)}"


def thinned(points: Sequence[Point], limit: int = _CURVE_POINTS) -> list[Point]:
    """At most ``limit`` of the points, evenly taken, the first and the last among them."""
    if len(points) <= limit:
        return list(points)
    last = len(points) - 1
    return [points[round(index * last / (limit - 1))] for index in range(limit)]


def rates_figure(plan: Planned, width: float) -> Figure:
    """Learning rate of each group over all steps of a plan, with what trains and what is frozen when."""
    edges = [0]
    for phase in plan.phases:
        edges.append(edges[-1] + phase.steps)
    spans = [Span(p.name, a, b) for p, (a, b) in zip(plan.phases, pairwise(edges), strict=True)]
    segments: dict[str, list[list[Point]]] = {name: [] for name in plan.group_params}
    for phase, start in zip(plan.phases, edges, strict=False):
        steps = _sampled(phase, max(2, _CURVE_POINTS // len(plan.phases)))
        by_step = [(step, phase.rates(step)) for step in steps]
        for name in by_step[0][1]:
            segments[name].append([(start + step, rates[name]) for step, rates in by_step])
    roles = {name: charts.role(index) for index, name in enumerate(plan.group_params)}
    peaks = [max(y for part in parts for _, y in part) for parts in segments.values() if parts]
    log = min(peaks) < max(peaks) / 20
    low = max(peaks) / 1e4 if min(peaks) > max(peaks) / 1e3 else min(peaks) / 10
    if log:
        segments = {
            name: [[(x, max(y, low)) for x, y in part] for part in parts] for name, parts in segments.items()
        }
    curves = [
        Curve(" = ".join(names), roles[names[0]], segments[names[0]], thick=True)
        for names in _alike(segments)
        if segments[names[0]]
    ]
    rows = [
        Row(name, roles[name], [_state(phase, members) for phase in plan.phases])
        for name, members in plan.group_params.items()
    ]
    said = [
        f"phase {phase.name}: "
        + ", ".join(f"{name} {_state(phase, members)[0]}" for name, members in plan.group_params.items())
        for phase in plan.phases
    ]
    return charts.curves(
        curves,
        title="Learning rate of each parameter group over all steps",
        description="; ".join(said),
        width=width,
        number=text.rate,
        x_name="steps",
        spans=spans,
        rows=rows,
        height=230 + 20.0 * len(rows),
        limits=(None if log else 0.0, None),
        log=log,
    )


def _sampled(phase: PhasePlanned, limit: int) -> list[int]:
    last = phase.steps - 1
    even = (round(index * last / (limit - 1)) for index in range(limit))
    return sorted({0, last, min(phase.warmup_steps, last), *even})


def _alike(segments: Mapping[str, list[list[Point]]]) -> list[list[str]]:
    """Names with one and the same curve together, so that their lines do not hide each other."""
    found: dict[str, list[str]] = {}
    for name, parts in segments.items():
        found.setdefault(repr(parts), []).append(name)
    return list(found.values())


def _state(phase: PhasePlanned, members: Sequence[str]) -> tuple[str, bool]:
    trains = sum(name in phase.trainable for name in members)
    if trains == 0:
        return "frozen", False
    return ("trains" if trains == len(members) else f"trains {trains} of {len(members)} tensors"), True


# --------------------------------------------------------------------------- mistakes


def metric_rows(evaluation: Evaluated | None) -> list[tuple[str, str, str, str]]:
    """Name, meaning, value and interval of each metric of an evaluation."""
    if evaluation is None:
        return []
    rows = []
    for key, (name, meaning) in _METRICS.items():
        if key not in evaluation.metrics:
            continue
        write = (lambda value: f"{value:.4f}") if key in ("loss", "macro_f1", "auroc") else text.percent
        ends = evaluation.intervals.get(key)
        interval = f"{write(ends[0])} to {write(ends[1])}" if ends else "–"
        rows.append((name, meaning, write(float(evaluation.metrics[key])), interval))
    return rows


def _mistakes(predictions: findings.Predictions, evaluation: Evaluated) -> dict[str, Any]:
    block = findings.block(predictions, _MATRIX)
    classes = sorted(
        zip(findings.by_class(predictions), evaluation.per_class, strict=True),
        key=lambda found: (found[0].recall is None, found[0].recall or 0.0),
    )
    confidence = float(predictions.probability.mean())
    error = float(evaluation.metrics["calibration_error"])
    worst = [
        {
            "number": str(index),
            "file": predictions.files[index],
            "truth": predictions.classes[int(predictions.labels[index])],
            "predicted": predictions.classes[int(predictions.predicted[index])],
            "probability": float(predictions.probability[index]),
        }
        for index in findings.mistakes(predictions, MISTAKES)
    ]
    bins = [(b.low, b.high, b.confidence, b.accuracy, b.count) for b in evaluation.calibration]
    said = (
        f"Expected calibration error {text.percent(error)}. Mean confidence {text.percent(confidence)},"
        f" accuracy {text.percent(predictions.accuracy)}."
    )
    return {
        "block": block,
        "heat": _heat(block),
        "pairs": findings.confusions(predictions, PAIRS, EXAMPLES),
        "images": len(predictions),
        "worst": worst,
        "wrong": int((~predictions.right).sum()),
        "classes": _fitting(classes),
        "class_count": len(classes),
        "auroc": any(scores.auroc is not None for _, scores in classes),
        "confidence": confidence,
        "error": error,
        "gap": confidence - predictions.accuracy,
        "reliability": charts.reliability(bins, width=_HALF, description=said),
    }


def _fitting(
    classes: Sequence[tuple[findings.ClassFinding, ClassScores]],
) -> list[tuple[findings.ClassFinding, ClassScores]]:
    """The first classes, as many as keep the page small although names may be long."""
    named = [(item.name, item.taken_for or "") for item, _ in classes[:_TABLE_ROWS]]
    return list(classes[: _fitting_rows(named, 450, _TABLE_BYTES)])


def _fitting_rows(named: Iterable[Sequence[str]], each: int, limit: int) -> int:
    """How many rows of a table fit into ``limit`` bytes, of ``each`` bytes beside the names in them."""
    # A long name stands in the row and in the hint that shows it whole.
    sizes = (each + sum(2 * len(name.encode(errors="replace")) for name in names) for names in named)
    return sum(used <= limit for used in accumulate(sizes))


def _heat(block: findings.Block) -> list[list[str]]:
    """A class name for each cell: right answers by their share of the row, wrong ones by their share of
    the most frequent confusion, since a single scale would leave them all pale."""
    rows = len(block.classes)
    most = max((int(block.counts[i, j]) for i in range(rows) for j in range(rows) if i != j), default=0)

    def step(row: int, column: int) -> str:
        number = int(block.counts[row, column])
        if number == 0:
            return "zero"
        if row == column:
            return f"good{max(1, math.ceil(10 * number / max(1, int(block.totals[row]))))}"
        return f"bad{max(1, math.ceil(10 * number / most))}"

    return [[step(row, column) for column in range(rows)] for row in range(rows)]


# --------------------------------------------------------------------------- facts


def _data(record: Record) -> dict[str, Any]:
    plan = record.plan
    counts = [(name, plan.counts[name]) for name in ("train", "val", "test") if plan.counts.get(name)]
    return {
        "counts": [(_SPLITS[name], number) for name, number in counts],
        "table": record.recipe.get("data", {}),
        "preprocessing": Preprocessing.from_dict(plan.preprocessing.model_dump()),
        "card": record.card,
        **(_card(record.card, plan.classes) if record.card else {}),
    }


def _card(card: Card, classes: Sequence[str]) -> dict[str, Any]:
    splits = [(said, card.splits[name]) for name, said in _SPLITS.items() if name in card.splits]
    counted = [(name, [part.by_class.get(name, 0) for _, part in splits]) for name in classes]
    counted.sort(key=lambda row: row[1][0])
    shown = _fitting_rows([(name,) for name, _ in counted[:_TABLE_ROWS]], 400, _CARD_BYTES)
    return {
        "splits": splits,
        "even": all(len(set(part.by_class.values())) == 1 for _, part in splits),
        "most": max(1, counted[-1][1][0]),
        "classes": counted[:shown],
        "bad": _BAD,
        "split": _SPLITS,
    }


def _time(record: Record) -> dict[str, Any] | None:
    if record.result is None or not record.result.seconds:
        return None
    seconds = record.result.seconds
    total = seconds.get("total", 0.0)
    parts = [(label, seconds.get(key, 0.0)) for key, label in _CLOCKS.items()]
    rest = total - sum(value for _, value in parts)
    parts.append(("everything else", rest if rest > 0.05 else 0.0))
    said = ", ".join(f"{label} {text.duration(value)}" for label, value in parts if value > 0)
    draw = {
        kind: charts.shares(parts, width=width, title="Where the time went", description=said)
        for kind, width in (("wide", 640.0), ("narrow", _NARROW))
    }
    return {"total": total, "memory": record.result.peak_memory_bytes, **draw}


def _environment(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += [(str(name), "not installed" if v is None else str(v)) for name, v in value.items()]
        else:
            words = {True: "yes", False: "no"}
            shown = words[value] if isinstance(value, bool) else str(value)
            rows.append((key.replace("_", " "), shown))
    return rows


def _highlighted(toml: str) -> Markup:
    """TOML with its table headers bold and its values quieter than its keys."""
    lines = []
    for line in toml.rstrip("\n").split("\n"):
        shown = text.visible(line)
        key, equals, value = shown.partition(" = ")
        if shown.startswith("["):
            lines.append(Markup("<b>{}</b>").format(shown))
        elif equals:
            lines.append(Markup("{}<i> = </i>{}").format(key, value))
        else:
            lines.append(escape(shown))
    return Markup("\n").join(lines)
