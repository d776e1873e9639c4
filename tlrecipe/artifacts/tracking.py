"""Trackers: what a run tells, sent to TensorBoard, MLflow or Weights & Biases.

A tracker is chosen by a text, ``NAME`` or ``NAME:WHERE``, on the command line and not in the recipe: it
changes nothing about what is trained. Each works in a thread of its own, so that a slow server never makes
a run wait, and what goes wrong in it is one warning.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.planning.plan import Plan

_STEP_SECONDS = 5.0
"""Values within an epoch are sent at most this often."""
_PATIENCE_SECONDS = 30.0
"""How long the end of a run waits for trackers."""
_FILE = "tracking.json"


@dataclass(frozen=True)
class About:
    """The run that is tracked."""

    directory: Path
    recipe: str
    """The recipe's name: the experiment or project."""
    id: str
    """Unique, and the same again on resume."""
    settings: Mapping[str, str | int | float | bool]
    """The resolved recipe as ``phase.finetune.epochs`` → value."""


class Tracker(Protocol):
    """Where a run's values go. All is called in one thread, in this order; any of it may raise."""

    def start(self, about: About) -> None:
        """Begin, or go on with the run of the same ``about.id``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take values by name at an optimizer step, counted over all phases as they are planned."""

    def finish(self, complete: bool, results: Sequence[Path]) -> None:
        """End, with files that belong to the run."""


class TensorBoard:
    """Event files in ``where``, one folder per run; by default in the folder ``tensorboard`` of the run."""

    package = "tensorboard"

    def __init__(self, where: str):
        self._where = where

    def start(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = about.directory / "tensorboard"
        if self._where:
            folder = Path(self._where) / about.recipe / about.directory.name
        self._writer = SummaryWriter(str(folder))
        text = "\n".join(f"    {key} = {json.dumps(value)}" for key, value in about.settings.items())
        self._writer.add_text("recipe", text)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, complete: bool, results: Sequence[Path]) -> None:
        self._writer.close()


class MLflow:
    """A run in the experiment of the recipe's name, at the tracking URI ``where``; by default where MLflow's
    own settings (``MLFLOW_TRACKING_URI``) say."""

    package = "mlflow"

    def __init__(self, where: str):
        self._where = where or None

    def start(self, about: About) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = client = MlflowClient(self._where)
        experiment = client.get_experiment_by_name(about.recipe)
        key = experiment.experiment_id if experiment else client.create_experiment(about.recipe)
        found = client.search_runs([key], f"tags.`tlrecipe.run` = '{about.id}'")
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            return
        run = client.create_run(key, tags={"tlrecipe.run": about.id}, run_name=about.directory.name)
        self._run = run.info.run_id
        params = [Param(name, str(value)) for name, value in about.settings.items()]
        for start in range(0, len(params), 100):
            client.log_batch(self._run, params=params[start : start + 100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, complete: bool, results: Sequence[Path]) -> None:
        for path in results:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, "FINISHED" if complete else "KILLED")


class WandB:
    """A run in the project ``where``, by default of the recipe's name. ``WANDB_MODE=offline`` keeps it in the
    run directory, to be synchronised later."""

    package = "wandb"

    def __init__(self, where: str):
        self._project = where

    def start(self, about: About) -> None:
        import wandb

        mode = wandb.setup().settings.mode
        # A question at the terminal would wait for an answer behind the progress bars.
        if mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise RuntimeError(
                "not logged in: call `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
            )
        self._run = wandb.init(
            project=self._project or about.recipe,
            name=about.directory.name,
            id=about.id,
            resume="allow",
            dir=str(about.directory),
            config=dict(about.settings),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, complete: bool, results: Sequence[Path]) -> None:
        for path in results:
            self._run.save(str(path), base_path=str(path.parent), policy="now")
        self._run.finish(exit_code=0 if complete else 1)


TRACKERS: Mapping[str, Callable[[str], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}
"""Every tracker by the name that chooses it, which is also that of the extra that installs it."""


def tracker(text: str) -> Tracker:
    """The tracker that ``NAME`` or ``NAME:WHERE`` means.

    Raises ValueError for an unknown one, one whose package is not installed, and a password in ``WHERE``.
    """
    name, _, where = text.partition(":")
    if name not in TRACKERS:
        raise ValueError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
    kind = TRACKERS[name]
    if importlib.util.find_spec(kind.package) is None:  # type: ignore[attr-defined]
        raise ValueError(f"the tracker {name} is not installed: pip install 'tlrecipe[{name}]'")
    if urlsplit(where).password:
        raise ValueError(f"{name}: a password in the address would be written down; give it by environment")
    return kind(where)


class Tracking:
    """All trackers of one run; receives its events."""

    def __init__(
        self,
        chosen: Sequence[str],
        plan: Plan,
        directory: Path,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
    ):
        """Start the trackers of ``chosen``, and those that the run had when it was stopped."""
        self._warn = warn
        steps = [phase.steps for phase in plan.phases]
        self._offsets = {phase.name: sum(steps[: phase.index]) for phase in plan.phases}
        self._total = sum(steps)
        self._told = time.monotonic()
        texts, key = _remembered(directory, chosen)
        about = About(directory, plan.name, key, dict(_flat(settings)))
        self._workers = [_Worker(text.partition(":")[0], tracker(text), about) for text in texts]

    def __call__(self, kind: str, /, **fields: Any) -> None:
        if not self._workers:
            return
        values: dict[str, Any] = {}
        step = self._total
        if kind == "epoch":
            step = self._offsets[fields["phase"]] + fields["step"]
            values = _prefixed("train", fields["train"]) | _prefixed("val", fields["val"] or {})
            values |= _prefixed("lr", fields["lr"]) | {"epoch_seconds": fields["seconds"]}
        elif kind == "step" and time.monotonic() - self._told >= _STEP_SECONDS:
            self._told = time.monotonic()
            step = self._offsets[fields["phase"]] + fields["step"]
            values = {"step/loss": fields["loss"], "step/images_per_second": fields["images_per_second"]}
        elif kind == "test":
            values = _prefixed("test", fields)
        numbers = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if numbers:
            for worker in self._workers:
                worker.put(numbers, step)
        self._say_failures()

    def finish(self, complete: bool, results: Sequence[Path]) -> None:
        """Let the trackers end, and wait a while for them."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for worker in self._workers:
            worker.end(complete, results)
        for worker in self._workers:
            worker.wait(max(0.0, deadline - time.monotonic()))
        self._say_failures()

    def _say_failures(self) -> None:
        for worker in self._workers:
            if worker.failure is not None:
                self._warn(f"{worker.name}: {worker.failure}; the run goes on without it")
        self._workers = [worker for worker in self._workers if worker.failure is None]


class _Worker:
    """One tracker in its thread. After its first failure it takes nothing more."""

    def __init__(self, name: str, tracker: Tracker, about: About):
        self.name = name
        self.failure: str | None = None
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tracker = tracker
        self._tasks.put(lambda: tracker.start(about))
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except BaseException as error:  # a tracker may even call exit
                first = str(error).strip().partition("\n")[0]
                self.failure = f"{type(error).__name__}: {first}"
                return

    def put(self, values: Mapping[str, float], step: int) -> None:
        self._tasks.put(lambda: self._tracker.log(values, step))

    def end(self, complete: bool, results: Sequence[Path]) -> None:
        self._tasks.put(lambda: self._tracker.finish(complete, results))
        self._tasks.put(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.failure = f"it did not end within {_PATIENCE_SECONDS:.0f} seconds"


def _remembered(directory: Path, chosen: Sequence[str]) -> tuple[list[str], str]:
    """The trackers of the run, those that it had before first, and its id; both are written down."""
    path = directory / _FILE
    before: list[str] = []
    key = uuid.uuid4().hex
    if path.exists():
        content = files.read(path, code="TLR601", limit=1 << 20)
        with suppress(ValueError, KeyError, TypeError):
            said = json.loads(content)
            before, key = [str(text) for text in said["trackers"]], str(said["id"])
        if not before:
            raise TlrecipeError.of("TLR601", f"`{path}` is damaged", help="remove it to go on untracked")
    texts = list(dict.fromkeys([*before, *chosen]))
    if texts != before:
        content = json.dumps({"trackers": texts, "id": key}, indent=2).encode()
        files.write_atomic(path, content + b"\n")
    return texts, key


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The scalars of a recipe by dotted key; phases and groups go by their names, lists are one text."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}".lstrip("."))]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Mapping) and "name" in item for item in value):
            return [pair for item in value for pair in _flat(item, f"{prefix}.{item['name']}")]
        return [(prefix, json.dumps(value))]
    return [] if value is None else [(prefix, value)]
