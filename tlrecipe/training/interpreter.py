"""The interpreter: a plan carried out, phase by phase.

:func:`train` follows the plan from top to bottom. All randomness is a hash of names and counters, so a
run that starts again from a :class:`Checkpoint` is the run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlrecipe.data.pixels import Pixels
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.models.backbones import Backbone
from tlrecipe.models.inference import Inference
from tlrecipe.models.memory import keep_freed_memory, out_of_memory, process_bytes
from tlrecipe.models.prefix import Split
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.planning.randomness import key, permutation
from tlrecipe.training import freezing, numerics, optimizers
from tlrecipe.training.engine import Emit, Engine, Ids, Stopped
from tlrecipe.training.evaluate import Evaluation, evaluate, evaluate_pixels
from tlrecipe.training.features import FeatureStore, NotFiniteFeatures
from tlrecipe.training.forecast import refuse_too_large
from tlrecipe.training.survey import Addresses, Choice, PixelSource, preprocessing_of, survey

# A checkpoint may cost this share of the time since the last one.
_CHECKPOINT_SHARE = 0.02
# Images whose stored features go through the head at once.
_TEST_BATCH = 256


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a run between two optimizer steps: named tensors, and plain values as JSON."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class PhaseResult:
    """What one phase did."""

    name: str
    steps: int
    epochs: float
    seconds: float
    trainable_params: int
    frozen_params: int
    frozen_sha256: dict[str, str]
    """``before`` and ``after``: digests of all that had to stand still; equal, or the run failed."""
    prefix: dict[str, Any]
    """What was computed once, and why."""
    best: dict[str, Any] | None
    """Best epoch on the validation split: ``epoch``, ``metric``, ``value``."""


@dataclass(frozen=True)
class RunResult:
    """What a run gives, beside the network that it trained in place."""

    metrics: dict[str, dict[str, Any]]
    phases: tuple[PhaseResult, ...]
    seconds: dict[str, float]
    peak_memory_bytes: int
    weights: str
    """``"raw"``, or ``"ema"`` where the last phase averaged."""
    test: Evaluation | None
    precision: str
    """How the test split was evaluated."""


@dataclass
class _State:
    """Everything that changes while a run goes on, outside the network."""

    phase: int = 0
    step: int = 0
    records: int = 0
    """Metrics records emitted."""
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    best: dict[str, Any] | None = None
    waited: int = 0
    """Epochs without improvement."""
    seconds: float = 0.0
    """Spent in this phase before the last checkpoint."""
    results: list[dict[str, Any]] = field(default_factory=list)
    last_val: dict[str, float] | None = None
    clocks: dict[str, float] = field(default_factory=lambda: {"features": 0.0, "train": 0.0, "evaluate": 0.0})


@dataclass
class _Live:
    """Tensors of the current phase outside the network."""

    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] | None
    statistics: numerics.Kept
    """Those of norm layers before the step."""
    best: dict[str, Tensor] | None = None


class _Run:
    """One run in progress; :func:`train` is its only user."""

    def __init__(
        self,
        plan: Plan,
        backbone: Backbone,
        pixels: PixelSource,
        emit: Emit,
        save: Callable[[Checkpoint], None],
        store: FeatureStore,
        device: torch.device,
        stop: Callable[[], bool],
    ):
        self.plan, self.backbone, self.pixels = plan, backbone, pixels
        self.emit, self.save, self.store, self.device, self.stop = emit, save, store, device, stop
        self.model = backbone.model.to(device).to(memory_format=torch.channels_last)
        self.addresses = Addresses(plan, str(backbone.config.get("architecture")), device)
        self.state = _State()
        self.splits: list[Split] = []
        self.choices: list[Choice] = []
        self.engine: Engine | None = None
        self.saved_at = time.perf_counter()
        self.save_cost = 0.0

    # ------------------------------------------------------------------ the whole run

    def train(self, resume: Checkpoint | None) -> RunResult:
        started = time.perf_counter()
        known = [Choice.from_dict(item) for item in resume.values["choices"]] if resume else []
        self.splits, self.choices = survey(
            self.plan, self.model, self.pixels, self.store, self.addresses, known
        )
        if self.device.type == "cpu":
            refuse_too_large(self.plan, self.model, self.splits, warn=self._warn)
        self.state.clocks["survey"] = time.perf_counter() - started
        if resume is not None:
            self._restore_model(resume)
        else:
            # The choices are timings: saved before anything rests on them, they are made once.
            self._save(None)
        for phase in self.plan.phases[self.state.phase :]:
            with _memory_of(phase):
                self._phase(phase, resume)
            resume = None
        return self._finish()

    def _finish(self) -> RunResult:
        self.model.eval()
        last = self.plan.phases[-1]
        metrics: dict[str, dict[str, Any]] = {}
        if self.state.last_val is not None:
            metrics["val"] = self.state.last_val
        test, precision = None, "fp32"
        with self._clock("evaluate"):
            found = self.pixels("test", self.plan.preprocessing)
            if found is not None:
                inference = Inference(
                    self.model, self.backbone.heads, last.size, precision=self.plan.precision
                )
                test = self._test(inference, found)
                self._refuse_logits(test, found, "on the test split")
                precision = inference.precision
                metrics["test"] = {**test.as_dict(), "count": test.count, "precision": precision}
                self._record("test", **metrics["test"])
        peak = process_bytes()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        return RunResult(
            metrics=metrics,
            phases=tuple(PhaseResult(**result) for result in self.state.results),
            seconds=self.state.clocks,
            peak_memory_bytes=peak,
            weights="ema" if last.ema is not None else "raw",
            test=test,
            precision=precision,
        )

    def _test(self, inference: Inference, found: Pixels) -> Evaluation:
        """As a bundle is evaluated; what does not depend on the head may be in the store."""
        engine = self.engine
        if engine is None or not engine.inference_features(inference, "test"):
            chunk = self.choices[-1].chunk
            return evaluate_pixels(
                inference, found, self.plan.preprocessing, batch_size=chunk, between=self._stop_if_asked
            )
        return evaluate(
            lambda ids: inference.classify(engine.inputs("test", ids, None)), found.labels, _TEST_BATCH
        )

    # ------------------------------------------------------------------ one phase

    def _phase(self, phase: PhasePlan, resume: Checkpoint | None) -> None:
        state, model = self.state, self.model
        started = time.perf_counter() - state.seconds
        freezing.apply(model, phase)
        before = freezing.digests(freezing.frozen_tensors(model, phase))
        with self._clock("features"), self._named_features(phase):
            engine = self.engine = Engine(
                self.plan,
                phase,
                model,
                self.splits,
                self.choices,
                self.pixels,
                self.store,
                self.addresses,
                self.emit,
                self.stop,
            )
        live = self._live(phase, resume)
        train = self.pixels("train", engine.preprocessing)
        val = self.pixels("val", engine.preprocessing)
        assert train is not None
        self.emit(
            "phase",
            name=phase.name,
            index=phase.index,
            phases=len(self.plan.phases),
            steps=phase.steps,
            epochs=phase.epochs,
            trainable=phase.trainable_count,
            frozen=phase.frozen_count,
            prefix=f"{engine.choice.mode}: {engine.choice.reason}",
        )
        freezing.check(model, phase)
        with engine:
            self._steps(phase, engine, live, train, val, started)
        self._end_phase(phase, engine, live, before, time.perf_counter() - started)

    def _steps(
        self, phase: PhasePlan, engine: Engine, live: _Live, train: Pixels, val: Pixels | None, started: float
    ) -> None:
        """All steps of a phase, from where it stands, with an evaluation after each epoch."""
        state = self.state
        order: Ids = np.empty(0, np.int64)
        order_epoch, epoch_started, epoch_images, told = -1, time.perf_counter(), 0, 0.0
        while state.step < phase.steps:
            epoch, within = divmod(state.step, phase.steps_per_epoch)
            if epoch != order_epoch:
                order = permutation(key(self.plan.seed, phase.name, epoch, "order"), len(train.labels))
                order_epoch, epoch_started, epoch_images = epoch, time.perf_counter(), 0
            per_step = phase.batch_size * phase.accumulate
            ids = order[within * per_step : (within + 1) * per_step]
            with self._clock("train"):
                loss = self._step(phase, engine, live, train, ids, epoch)
            state.step += 1
            epoch_images += len(ids)
            if (now := time.perf_counter()) - told > 0.1:
                told = now
                self.emit(
                    "step",
                    phase=phase.name,
                    step=state.step,
                    steps=phase.steps,
                    epoch=epoch + 1,
                    epochs=math.ceil(phase.epochs),
                    lr=_rates(phase, state.step - 1),
                    loss=loss,
                    images_per_second=epoch_images / (now - epoch_started),
                )
            if state.step % phase.steps_per_epoch == 0 or state.step == phase.steps:
                self._end_epoch(phase, engine, live, val, epoch, time.perf_counter() - epoch_started)
                if phase.stop and state.waited >= phase.stop.patience:
                    break
            self._checkpoint(live, time.perf_counter() - started)

    def _live(self, phase: PhasePlan, resume: Checkpoint | None) -> _Live:
        def clones() -> dict[str, Tensor]:
            return {k: t.detach().clone() for k, t in freezing.moving_tensors(self.model, phase).items()}

        average = clones() if phase.ema is not None else None
        statistics = numerics.Kept(self.model.get_buffer(name) for name in sorted(phase.moving_buffers))
        live = _Live(optimizers.build(self.model, phase), average, statistics)
        if resume is not None and self.state.step > 0:
            parts = _parts(resume.tensors)
            optimizers.load_state_by_name(live.optimizer, phase.optimizer, parts.get("optimizer", {}))
            if average is not None:
                _copy_into(average, parts.get("average", {}), "average")
            if self.state.best is not None:
                live.best = clones()
                _copy_into(live.best, parts.get("best", {}), "best")
        return live

    def _step(
        self, phase: PhasePlan, engine: Engine, live: _Live, train: Pixels, ids: Ids, epoch: int
    ) -> float:
        """One optimizer step over ``ids``, in micro-batches of the phase's batch size."""
        state = self.state
        rates = phase.rates(state.step)
        optimizers.set_rates(live.optimizer, rates)
        live.optimizer.zero_grad(set_to_none=True)
        live.statistics.keep()
        # Dropout and stochastic depth draw from torch's own stream: it starts anew at each step.
        self._seed(key(self.plan.seed, phase.name, state.step, "network") >> 1)
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        for start in range(0, len(ids), phase.batch_size):
            part = ids[start : start + phase.batch_size]
            labels = train.labels[torch.from_numpy(part)].to(self.device, non_blocking=True)
            inputs = engine.inputs("train", part, epoch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=engine.choice.autocast):
                logits = engine.network(*inputs)
            loss = F.cross_entropy(
                logits.float(), labels, label_smoothing=phase.label_smoothing, reduction="sum"
            )
            (loss / len(ids)).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == labels).sum()
        gradients = [p.grad for p in _parameters(live.optimizer) if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        total, hits, size = torch.stack([loss_sum, correct, norm.to(self.device)]).tolist()
        if not (math.isfinite(total) and math.isfinite(size)):
            raise self._not_finite(phase, engine, live, train, ids, epoch, total / len(ids), size)
        if phase.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(_parameters(live.optimizer), phase.clip_norm, norm)
        live.optimizer.step()
        if live.average is not None:
            self._update_average(phase, live.average)
        state.loss_sum += total
        state.correct += int(hits)
        state.seen += len(ids)
        return float(total / len(ids))

    def _seed(self, seed: int) -> None:
        # torch.manual_seed seeds every device that there could be, in milliseconds.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _update_average(self, phase: PhasePlan, average: dict[str, Tensor]) -> None:
        """Exponential moving average; its decay starts low so that a short phase forgets where it began."""
        assert phase.ema is not None
        decay = min(phase.ema, (1 + self.state.step) / (10 + self.state.step))
        current = freezing.moving_tensors(self.model, phase)
        with torch.no_grad():
            for name, value in average.items():
                if value.is_floating_point():
                    value.lerp_(current[name].detach(), 1 - decay)
                else:
                    value.copy_(current[name])

    def _not_finite(
        self,
        phase: PhasePlan,
        engine: Engine,
        live: _Live,
        train: Pixels,
        ids: Ids,
        epoch: int,
        loss: float,
        norm: float,
    ) -> TlrecipeError:
        """The error for a step that must not be taken. The state before it is saved, where it is sound."""
        cause = self._cause(phase, engine, train, ids, epoch, loss)
        live.statistics.put_back()
        # What makes the state unsound is the cause already; a disk that is full is not what matters now.
        with suppress(TlrecipeError):
            self._save(live)
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in _rates(phase, self.state.step).items())
        return TlrecipeError.of(
            "TLR701",
            f"loss {loss:.4g} with gradient norm {norm:.4g} in phase `{phase.name}`, step"
            f" {self.state.step + 1} of {phase.steps}, at the rates {rates}; first not finite: {cause};"
            f" images of the batch: {_listed([train.names[int(index)] for index in ids])}",
            help="the network was not changed by this step; lower `lr`, add a warm-up or `clip_norm`",
        )

    def _cause(
        self, phase: PhasePlan, engine: Engine, train: Pixels, ids: Ids, epoch: int, loss: float
    ) -> str:
        """The first tensor of a step that is not finite, in the order in which they came to be."""
        moving = freezing.moving_tensors(self.model, phase)
        weights = [(f"`{name}`", moving[name]) for name in moving if name in phase.trainable]
        if (name := numerics.first_not_finite(weights)) is not None:
            return name
        for start in range(0, len(ids), phase.batch_size):
            part = ids[start : start + phase.batch_size]
            inputs = engine.inputs("train", part, epoch)
            for tensor in inputs:
                if rows := numerics.rows_not_finite(tensor):
                    return f"the input made of {_listed([train.names[int(part[row])] for row in rows])}"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=engine.choice.autocast):
                module = numerics.origin(engine.network, inputs)
            if module is not None:
                return f"the output of `{module}`"
        if not math.isfinite(loss):
            return "the loss"
        # A gradient that is not finite spreads to all that lies before it.
        gradients = [
            (f"the gradient of `{name}`", parameter.grad)
            for name, parameter in reversed(list(self.model.named_parameters()))
            if parameter.grad is not None
        ]
        return numerics.first_not_finite(gradients) or "the norm of all gradients together"

    @contextmanager
    def _named_features(self, phase: PhasePlan) -> Iterator[None]:
        """Give features that are not finite the name of their image."""
        try:
            yield
        except NotFiniteFeatures as error:
            pixels = self.pixels(error.split, preprocessing_of(self.plan, phase))
            assert pixels is not None
            raise TlrecipeError.of(
                "TLR701",
                f"the frozen part of phase `{phase.name}` makes values that are not finite of"
                f" {_listed([pixels.names[row] for row in error.rows])}",
                help='the weights may be unsound; with `compute.precision = "fp32"` less overflows',
            ) from None

    # ------------------------------------------------------------------ ends

    def _end_epoch(
        self, phase: PhasePlan, engine: Engine, live: _Live, val: Pixels | None, epoch: int, seconds: float
    ) -> None:
        state = self.state
        result = None
        if val is not None:
            with self._clock("evaluate"):
                result = self._validate(phase, engine, live, val)
            state.last_val = result.as_dict()
            self._remember_best(phase, live, result, epoch)
        self._record(
            "epoch",
            phase=phase.name,
            epoch=epoch + 1,
            step=state.step,
            lr=_rates(phase, state.step - 1),
            train={"loss": state.loss_sum / state.seen, "accuracy": state.correct / state.seen},
            val=None if result is None else result.as_dict(),
            seconds=seconds,
        )
        state.loss_sum, state.correct, state.seen = 0.0, 0, 0

    def _validate(self, phase: PhasePlan, engine: Engine, live: _Live, val: Pixels) -> Evaluation:
        """Validation with the weights that the phase would end with; leaves the network as it was."""
        where = f"before validation in phase `{phase.name}`, after step {self.state.step}"
        numerics.refuse_not_finite(freezing.moving_tensors(self.model, phase).items(), where)
        kept = self._swap_in(phase, live.average)
        self.model.eval()

        def logits_of(ids: Ids) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=engine.choice.autocast):
                logits: Tensor = engine.network(*engine.inputs("val", ids, None))
            return logits

        result = evaluate(logits_of, val.labels, max(64, phase.batch_size))
        self._swap_in(phase, kept)
        freezing.apply_modes(self.model, phase)
        freezing.check(self.model, phase)
        self._refuse_logits(result, val, f"in phase `{phase.name}`, after step {self.state.step}")
        return result

    def _refuse_logits(self, result: Evaluation, pixels: Pixels, where: str) -> None:
        """A metric of what is not a number would be none either, and could be taken for the best."""
        if rows := numerics.rows_not_finite(result.logits):
            names = _listed([pixels.names[row] for row in rows])
            raise TlrecipeError.of("TLR701", f"class scores that are not finite {where}: {names}")

    def _swap_in(self, phase: PhasePlan, values: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Put averaged weights into the network; gives what was there, to be put back."""
        if values is None:
            return None
        current = freezing.moving_tensors(self.model, phase)
        kept = {name: tensor.detach().clone() for name, tensor in current.items()}
        _copy_into(current, values, "average")
        return kept

    def _remember_best(self, phase: PhasePlan, live: _Live, result: Evaluation, epoch: int) -> None:
        """Track the best epoch; ties keep the earlier, and a value that is not finite is never best."""
        state = self.state
        metric = phase.stop.metric if phase.stop else "accuracy"
        value = result.as_dict()[metric]
        delta = phase.stop.min_delta if phase.stop else 0.0
        previous = None if state.best is None else state.best["value"]
        gain = math.inf if previous is None else (value - previous) * (1 if metric == "accuracy" else -1)
        if math.isfinite(value) and (gain > 0 and gain >= delta):
            state.best = {"epoch": epoch + 1, "metric": metric, "value": value}
            state.waited = 0
            values = live.average or freezing.moving_tensors(self.model, phase)
            live.best = {name: tensor.detach().clone() for name, tensor in values.items()}
        else:
            state.waited += 1

    def _end_phase(
        self, phase: PhasePlan, engine: Engine, live: _Live, before: dict[str, str], seconds: float
    ) -> None:
        state = self.state
        self._swap_in(phase, live.average)
        after = freezing.digests(freezing.frozen_tensors(self.model, phase))
        freezing.prove(before, after, phase)
        last = phase.index + 1 == len(self.plan.phases)
        follows = self.plan.final_weights if last else self.plan.phases[phase.index + 1].start_from
        if follows == "best" and live.best is not None:
            _copy_into(freezing.moving_tensors(self.model, phase), live.best, "best")
        result = PhaseResult(
            name=phase.name,
            steps=state.step,
            epochs=state.step / phase.steps_per_epoch,
            seconds=seconds,
            trainable_params=phase.trainable_count,
            frozen_params=phase.frozen_count,
            frozen_sha256={"before": freezing.combined(before), "after": freezing.combined(after)},
            prefix=engine.choice.as_dict() | {"images_computed": engine.computed},
            best=state.best,
        )
        state.results.append(asdict(result))
        state.phase, state.step, state.best, state.waited, state.seconds = phase.index + 1, 0, None, 0, 0.0
        self.emit("phase_end", name=phase.name, seconds=seconds, best=result.best)
        live.best = None
        self._save(None)
        self._stop_if_asked()

    # ------------------------------------------------------------------ checkpoints

    def _checkpoint(self, live: _Live, seconds: float) -> None:
        """Save where it is due, or where the run is asked to stop."""
        self.state.seconds = seconds
        asked = self.stop()
        since = time.perf_counter() - self.saved_at
        if asked or since * _CHECKPOINT_SHARE > max(self.save_cost, 0.02):
            self._save(live)
        if asked:
            raise Stopped

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise Stopped

    def _save(self, live: _Live | None) -> None:
        started = time.perf_counter()
        tensors = {f"model/{name}": value.detach() for name, value in self.model.state_dict().items()}
        if live is not None:
            state = optimizers.state_by_name(live.optimizer)
            tensors |= {f"optimizer/{name}": value for name, value in state.items()}
            tensors |= {f"average/{name}": value for name, value in (live.average or {}).items()}
            tensors |= {f"best/{name}": value for name, value in (live.best or {}).items()}
        numerics.refuse_not_finite(tensors.items(), "and would be saved")
        values = {"state": asdict(self.state), "choices": [choice.as_dict() for choice in self.choices]}
        self.save(Checkpoint(tensors, values))
        self.saved_at = time.perf_counter()
        self.save_cost = self.saved_at - started

    def _restore_model(self, checkpoint: Checkpoint) -> None:
        self.state = _State(**checkpoint.values["state"])
        parts = _parts(checkpoint.tensors)
        _copy_into(dict(self.model.state_dict()), parts.get("model", {}), "model")

    # ------------------------------------------------------------------ small things

    def _record(self, kind: str, **fields: Any) -> None:
        """Emit what belongs into metrics.jsonl, and count it."""
        self.state.records += 1
        self.emit(kind, **fields)

    def _warn(self, message: str) -> None:
        self.emit("warning", message=message)

    def _clock(self, name: str) -> _Clock:
        return _Clock(self.state, name)


class _Clock:
    def __init__(self, state: _State, name: str):
        self.state, self.name = state, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        clocks = self.state.clocks
        clocks[self.name] = clocks.get(self.name, 0.0) + time.perf_counter() - self.start


def train(
    plan: Plan,
    backbone: Backbone,
    pixels: PixelSource,
    *,
    emit: Emit = lambda kind, /, **fields: None,
    save: Callable[[Checkpoint], None] = lambda checkpoint: None,
    store: FeatureStore | None = None,
    device: torch.device | str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    resume: Checkpoint | None = None,
) -> RunResult:
    """Carry out ``plan`` on ``backbone``, whose network is trained in place.

    Args:
        plan: What to do; must have been compiled for this backbone and these data.
        pixels: Gives the decoded images of ``train``, ``val`` and ``test``.
        emit: Receives events: ``features``, ``phase``, ``step``, ``epoch``, ``phase_end``, ``test``.
        save: Receives a checkpoint at the end of each phase, from time to time within, and when stopped.
        store: Where features are kept; by default in memory, for this run only.
        device: Where to compute.
        stop: Asked after each step; once it says yes, the run saves and raises :class:`Stopped`.
        resume: A checkpoint of the same plan to go on from.

    Raises:
        TlrecipeError: TLR701 where a loss, gradient, weight, statistic or class score is not finite (before
            the update, and before anything is saved), TLR702 where a frozen tensor moved, TLR801 where a
            phase does not fit into memory (before the first, if it can be foreseen), TLR602 where ``resume``
            does not fit.
        Stopped: after ``stop`` said yes, with the checkpoint saved.
    """
    device = torch.device(device)
    store = store if store is not None else FeatureStore()
    keep_freed_memory()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Run(plan, backbone, pixels, emit, save, store, device, stop).train(resume)


@contextmanager
def _memory_of(phase: PhasePlan) -> Iterator[None]:
    """Say what a phase was doing when memory ran out. What was saved before stays."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        half = max(1, phase.batch_size // 2)
        more = f" with `accumulate = {2 * phase.accumulate}`" if half < phase.batch_size else ""
        raise TlrecipeError.of(
            "TLR801",
            f"out of memory in phase `{phase.name}` with batches of {phase.batch_size} images of {phase.size}"
            f" pixels",
            path=("phase", phase.index),
            help=f"try `batch_size = {half}`{more}, a smaller `size`, or freeze more of the backbone; the"
            " last checkpoint is sound",
        ) from error


def _rates(phase: PhasePlan, step: int) -> dict[str, float]:
    """Rate by recipe group: the highest, where layer decay gives a group several."""
    rates: dict[str, float] = {}
    for group, rate in zip(phase.groups, phase.rates(step), strict=True):
        rates[group.name] = max(rate, rates.get(group.name, 0.0))
    return rates


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"`{name}`" for name in names[:limit]) + more


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _copy_into(targets: dict[str, Tensor], values: Mapping[str, Tensor], what: str) -> None:
    """Copy by name, refusing anything that does not match exactly."""
    if targets.keys() != values.keys():
        odd = sorted(targets.keys() ^ values.keys())
        raise TlrecipeError.of("TLR602", f"{what}: `{odd[0]}` is missing or left over ({len(odd)} in all)")
    with torch.no_grad():
        for name, target in targets.items():
            value = values[name]
            if value.shape != target.shape or value.dtype != target.dtype:
                raise TlrecipeError.of(
                    "TLR602",
                    f"{what}: `{name}` is {tuple(value.shape)} {value.dtype},"
                    f" expected {tuple(target.shape)} {target.dtype}",
                )
            target.copy_(value)
