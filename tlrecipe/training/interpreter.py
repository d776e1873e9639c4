"""The interpreter: a plan carried out, phase by phase.

:func:`train` follows the plan from top to bottom. All randomness is a hash of names and counters, so a
run that starts again from a :class:`Checkpoint` is the run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from tlrecipe.data.mixing import Mix, mix_of
from tlrecipe.data.pixels import Pixels
from tlrecipe.data.sampling import epoch_order
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.models.backbones import Backbone
from tlrecipe.models.fast import Precision
from tlrecipe.models.inference import Inference
from tlrecipe.models.memory import keep_freed_memory, out_of_memory, process_bytes
from tlrecipe.models.prefix import Split
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.planning.randomness import key
from tlrecipe.training import freezing, metrics, numerics, optimizers, restore
from tlrecipe.training.engine import Emit, Engine, Ids, Stopped
from tlrecipe.training.evaluate import Evaluation, evaluate, evaluate_pixels
from tlrecipe.training.features import FeatureStore, NotFiniteFeatures
from tlrecipe.training.forecast import refuse_too_large
from tlrecipe.training.losses import Loss
from tlrecipe.training.outlook import outlook
from tlrecipe.training.survey import (
    Addresses,
    Choice,
    PixelSource,
    only_a_head,
    preprocessing_of,
    split_plan,
    survey,
)

# A checkpoint may cost this share of the time since the last one: at the end of an epoch, and within one.
_AFTER_EPOCH, _WITHIN_EPOCH = 0.02, 0.01
# What the tensors of a checkpoint belong to.
_PARTS = ("model", "optimizer", "average", "best", "start")
# Images whose stored features go through the head at once.
_TEST_BATCH = 256

_CLOCKS = ("survey", "features", "train", "evaluate", "checkpoints")

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a run between two optimizer steps: named tensors, and plain values as JSON."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class PhaseResult(restore.Exact):
    """What one phase did."""

    name: str
    steps: Count
    epochs: float
    seconds: Seconds
    trainable_params: Count
    frozen_params: Count
    frozen_sha256: dict[str, str]
    """``before`` and ``after``: digests of all that had to stand still; equal, or the run failed."""
    prefix: dict[str, Any]
    """What was computed once, and why."""
    best: dict[str, Any] | None
    """Best epoch on the validation split: ``epoch``, ``metric``, ``value``."""


@dataclass(frozen=True)
class Evaluated:
    """A finished network's evaluation, as its bundle repeats it."""

    split: str
    evaluation: Evaluation
    precision: str


@dataclass(frozen=True)
class RunResult:
    """What a run gives, beside the network that it trained in place."""

    metrics: dict[str, dict[str, Any]]
    phases: tuple[PhaseResult, ...]
    seconds: dict[str, float]
    peak_memory_bytes: int
    weights: str
    """``"raw"``, or ``"ema"`` where the last phase averaged."""
    evaluated: Evaluated | None
    """The finished network on the test split, else on the validation split; None without either."""

    @property
    def precision(self) -> str:
        """How the finished network was evaluated."""
        return "fp32" if self.evaluated is None else self.evaluated.precision


@dataclass
class _State(restore.Exact):
    """Everything that changes while a run goes on, outside the network."""

    phase: Count = 0
    step: Count = 0
    records: Count = 0
    """Metrics records emitted."""
    loss_sum: float = 0.0
    correct: Annotated[float, Field(ge=0)] = 0.0
    """Images that were classified right; of mixed ones, the share of the label that was."""
    seen: Count = 0
    """Images since the last epoch's record. Not zero at the end of an epoch: its record is still to come."""
    best: dict[str, Any] | None = None
    best_val: dict[str, float] | None = None
    """All metrics of the best epoch."""
    stop_value: float | None = None
    """Value of the stop rule's metric that the next one has to improve on."""
    waited: Count = 0
    """Epochs without improvement."""
    seconds: Seconds = 0.0
    """Spent in this phase before the last checkpoint."""
    results: list[dict[str, Any]] = field(default_factory=list)
    last_val: dict[str, float] | None = None
    clocks: dict[str, Seconds] = field(default_factory=lambda: dict.fromkeys(_CLOCKS, 0.0))

    @classmethod
    def restored(cls, values: object, plan: Plan, choices: Sequence[Choice]) -> _State:
        """What a checkpoint of ``plan`` says. Raises TLR602 where no run of it can have said so."""
        state = restore.exactly(cls, values, "state")
        restore.keys(state.clocks, _CLOCKS, "state.clocks")
        if state.phase > len(plan.phases):
            restore.refuse(f"`state.phase` is {state.phase}, and there are {len(plan.phases)} phases")
        done = [restore.exactly(PhaseResult, result, "state.results") for result in state.results]
        if [result.name for result in done] != [phase.name for phase in plan.phases[: state.phase]]:
            restore.refuse(f"`state.results` are not those of the {state.phase} phases before")
        for result, choice in zip(done, choices, strict=False):
            restore.keys(result.frozen_sha256, ("before", "after"), "state.results.frozen_sha256")
            computed = result.prefix.get("images_computed")
            if not isinstance(computed, int) or result.prefix != _prefix(choice, computed):
                restore.refuse(f"`state.results` of phase `{result.name}` do not agree with `choices`")
        for best in (state.best, *(result.best for result in done)):
            if best is not None:
                restore.exactly(_Best, best, "best")
        steps = [result.steps for result in done]
        if state.phase < len(plan.phases):
            steps.append(state.step)
        elif state.step or state.seen:
            restore.refuse("`state.step` and `state.seen` belong to no phase")
        epochs = 0
        for phase, count in zip(plan.phases, steps, strict=False):
            if count > phase.steps:
                restore.refuse(f"phase `{phase.name}` has {phase.steps} steps, not {count}")
            epochs += count // phase.steps_per_epoch
            epochs += count == phase.steps and count % phase.steps_per_epoch > 0
        within = plan.phases[state.phase] if state.phase < len(plan.phases) else None
        pending = within is not None and state.seen > 0 and _epoch_ends(within, state.step)
        if state.records != epochs - pending:
            restore.refuse(f"`state.records` is {state.records} after {epochs} epochs")
        return state


@dataclass
class _Best(restore.Exact):
    """The best epoch of a phase so far."""

    epoch: Count
    metric: str
    value: float


@dataclass
class _Live:
    """Tensors of the current phase outside the network."""

    optimizer: torch.optim.Optimizer
    loss: Loss
    average: dict[str, Tensor] | None
    statistics: numerics.Kept
    """Those of norm layers before the step."""
    start: dict[str, Tensor] | None
    """What the phase started from, where it ends with an interpolation."""
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
        save_now: Callable[[], bool],
    ):
        self.plan, self.backbone, self.pixels = plan, backbone, pixels
        self.emit, self.save, self.store, self.device, self.stop = emit, save, store, device, stop
        self.save_now = save_now
        self.model = backbone.model.to(device).to(memory_format=torch.channels_last)
        self.addresses = Addresses(plan, backbone.identity, device)
        pulled = frozenset().union(*(phase.trainable for phase in plan.phases if phase.l2_sp is not None))
        self.pretrained = {
            param.name: self.model.get_parameter(param.name).detach().clone()
            for param in backbone.table
            if param.name in pulled and not param.head
        }
        """What L2-SP pulls towards."""
        self.state = _State()
        self.splits: list[Split] = []
        self.choices: list[Choice] = []
        self.precision = plan.precision
        """Of the final evaluation; from the survey on, what it became."""
        self.engine: Engine | None = None
        self.saved_at = time.perf_counter()
        self.save_cost = 0.0

    # ------------------------------------------------------------------ the whole run

    def train(self, resume: Checkpoint | None) -> RunResult:
        started = time.perf_counter()
        known = self._restore(resume) if resume is not None else []
        self.splits = split_plan(self.plan, self.model, self.device, known)
        if self.device.type == "cpu":
            # Before any step is timed; the images count as memory that is taken.
            for phase in self.plan.phases[self.state.phase :][:1]:
                for split in ("train", "val"):
                    self.pixels(split, preprocessing_of(self.plan, phase))
            refuse_too_large(self.plan, self.model, self.splits, warn=self._warn)
        self.choices = survey(
            self.plan, self.model, self.splits, self.pixels, self.store, self.addresses, known
        )
        self.precision = self._final_precision()
        self.state.clocks["survey"] += time.perf_counter() - started
        if resume is None:
            # The choices and the precision are timings: saved before anything rests on them, they are made
            # once.
            self._save(None)
        ahead = outlook(self.plan, self.splits, self.choices, self.pixels, self.state.phase, self.state.step)
        self.emit("outlook", work=[asdict(work) for work in ahead])
        for phase in self.plan.phases[self.state.phase :]:
            with _memory_of(phase):
                self._phase(phase, resume)
            resume = None
        return self._finish(self._inference())

    def _final_precision(self) -> str:
        """Of the final evaluation: as the recipe says, as it was timed for the last phase where the frozen
        part is all but the head, or as it is timed now."""
        last = self.choices[-1]
        if self.precision == "auto" and last.mode == "store" and only_a_head(self.splits[-1].suffix):
            return last.precision
        return self._inference().precision

    def _inference(self) -> Inference:
        """How the network of this moment is evaluated."""
        return Inference(
            self.model,
            self.backbone.heads,
            self.plan.phases[-1].size,
            precision=self.precision,
            flip=self.plan.test_flip,
        )

    def _finish(self, inference: Inference) -> RunResult:
        self.model.eval()
        last = self.plan.phases[-1]
        found: dict[str, dict[str, Any]] = {}
        if self.state.last_val is not None:
            found["val"] = self.state.last_val
        with self._clock("evaluate"):
            evaluated = self._evaluated(inference)
        if evaluated is not None:
            of, about = evaluated.evaluation, {"precision": evaluated.precision}
            found[evaluated.split] = of.scalars() | {"count": of.count} | about
            if evaluated.split == "test":
                self._record("test", **found["test"])
        peak = process_bytes()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        return RunResult(
            metrics=found,
            phases=tuple(PhaseResult(**result) for result in self.state.results),
            seconds=self.state.clocks,
            peak_memory_bytes=peak,
            weights="ema" if last.ema is not None else "raw",
            evaluated=evaluated,
        )

    def _evaluated(self, inference: Inference) -> Evaluated | None:
        """The finished network on the test split, or on the validation split where there is no other."""
        for split in ("test", "val"):
            pixels = self.pixels(split, self.plan.preprocessing)
            if pixels is not None:
                found = self._test(inference, split, pixels)
                self._refuse_logits(found, pixels, f"on the {split} split")
                return Evaluated(split, found, inference.precision)
        return None

    def _test(self, inference: Inference, split: str, pixels: Pixels) -> Evaluation:
        """As a bundle is evaluated; what does not depend on the head may be in the store."""
        engine = self.engine
        plain = split != "test" or inference.flip
        if plain or engine is None or not engine.inference_features(inference, "test"):
            chunk = self.choices[-1].chunk
            return evaluate_pixels(
                inference,
                pixels,
                self.plan.preprocessing,
                batch_size=chunk,
                told=self._evaluating(None, split, pixels),
            )
        return evaluate(
            lambda ids: inference.classify(engine.inputs("test", ids, None)),
            pixels.labels,
            _TEST_BATCH,
            told=self._evaluating(None, split, pixels),
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
        while True:
            # Here too after a resume: a run may stop between an epoch's last step and its validation.
            if state.seen and _epoch_ends(phase, state.step):
                epoch = (state.step - 1) // phase.steps_per_epoch
                self._end_epoch(phase, engine, live, val, epoch, time.perf_counter() - epoch_started)
                if phase.stop and state.waited >= phase.stop.patience:
                    break
                self._checkpoint(live, time.perf_counter() - started, _AFTER_EPOCH)
            if state.step == phase.steps:
                break
            epoch, within = divmod(state.step, phase.steps_per_epoch)
            if epoch != order_epoch:
                stream = key(self.plan.seed, phase.name, epoch, "order")
                order = epoch_order(phase.sampling, stream, train.labels.numpy())
                order_epoch, epoch_started, epoch_images = epoch, time.perf_counter(), 0
            per_step = phase.batch_size * phase.accumulate
            ids = order[within * per_step : (within + 1) * per_step]
            with self._clock("train"):
                loss = self._step(phase, engine, live, train, ids, order, epoch)
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
            self._checkpoint(live, time.perf_counter() - started, _WITHIN_EPOCH)

    def _live(self, phase: PhasePlan, resume: Checkpoint | None) -> _Live:
        def clones() -> dict[str, Tensor]:
            return {k: t.detach().clone() for k, t in freezing.moving_tensors(self.model, phase).items()}

        average = clones() if phase.ema is not None else None
        statistics = numerics.Kept(self.model.get_buffer(name) for name in sorted(phase.moving_buffers))
        start = clones() if phase.wise_ft is not None else None
        loss = Loss(phase.loss, phase.class_weights, phase.label_smoothing, self.device)
        live = _Live(optimizers.build(self.model, phase), loss, average, statistics, start)
        if resume is not None and self.state.step > 0:
            parts = _parts(resume.tensors)
            optimizers.load_state_by_name(
                live.optimizer, phase.optimizer, parts["optimizer"], resume.values["stateless"]
            )
            if average is not None:
                _copy_into(average, parts["average"], "average")
            if start is not None:
                _copy_into(start, parts["start"], "start")
            if self.state.best is not None:
                live.best = clones()
                _copy_into(live.best, parts["best"], "best")
        return live

    def _step(
        self, phase: PhasePlan, engine: Engine, live: _Live, train: Pixels, ids: Ids, order: Ids, epoch: int
    ) -> float:
        """One optimizer step over ``ids`` of an epoch's ``order``, in micro-batches of the batch size."""
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
            labels = self._labels(train, part)
            mix = self._mix(phase, part, order, epoch)
            inputs = engine.inputs("train", part, epoch, mix)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=engine.choice.autocast):
                logits = engine.network(*inputs)
            best = logits.detach().argmax(1)
            if mix is None:
                loss = live.loss.total(logits.float(), labels)
                correct += (best == labels).sum()
            else:
                others = self._labels(train, mix.partners)
                share = torch.from_numpy(mix.share).to(self.device, torch.float32)
                loss = live.loss.total(logits.float(), labels, (others, share))
                correct += ((best == labels) * share + (best == others) * (1 - share)).sum()
            (loss / len(ids)).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        self._pull(phase)
        gradients = [p.grad for p in _parameters(live.optimizer) if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        total, hits, size = torch.stack([loss_sum, correct, norm.to(self.device)]).tolist()
        if not (math.isfinite(total) and math.isfinite(size)):
            raise self._not_finite(phase, engine, live, train, ids, order, epoch, total / len(ids), size)
        if phase.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(_parameters(live.optimizer), phase.clip_norm, norm)
        live.optimizer.step()
        if live.average is not None:
            self._update_average(phase, live.average)
        state.loss_sum += total
        state.correct += hits
        state.seen += len(ids)
        return float(total / len(ids))

    def _mix(self, phase: PhasePlan, ids: Ids, order: Ids, epoch: int) -> Mix | None:
        stream = key(self.plan.seed, phase.name, epoch, "mix")
        return mix_of(phase.augment, key=stream, ids=ids, order=order, side=phase.size)

    def _seed(self, seed: int) -> None:
        # torch.manual_seed seeds every device that there could be, in milliseconds.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _labels(self, train: Pixels, numbers: Ids) -> Tensor:
        rows = torch.from_numpy(numbers % len(train))
        return train.labels[rows].to(self.device, non_blocking=True)

    def _pull(self, phase: PhasePlan) -> None:
        """Add the gradient of L2-SP's penalty, half the squared distance to the pretrained weights."""
        if phase.l2_sp is not None:
            parameters = dict(self.model.named_parameters())
            for name, origin in self.pretrained.items():
                gradient = parameters[name].grad
                if gradient is not None:
                    gradient.add_(parameters[name].detach() - origin, alpha=phase.l2_sp)

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
        order: Ids,
        epoch: int,
        loss: float,
        norm: float,
    ) -> TlrecipeError:
        """The error for a step that must not be taken. The state before it is saved, where it is sound."""
        parts = [ids[start : start + phase.batch_size] for start in range(0, len(ids), phase.batch_size)]
        mixes = [self._mix(phase, part, order, epoch) for part in parts]
        cause = self._cause(phase, engine, train, list(zip(parts, mixes, strict=True)), epoch, loss)
        partners = [number for mix in mixes if mix is not None for number in mix.partners]
        mixed_in = f"; mixed with {_listed(_names(train, partners))}" if partners else ""
        live.statistics.put_back()
        # What makes the state unsound is the cause already; a disk that is full is not what matters now.
        with suppress(TlrecipeError):
            self._save(live)
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in _rates(phase, self.state.step).items())
        return TlrecipeError.of(
            "TLR701",
            f"loss {loss:.4g} with gradient norm {norm:.4g} in phase `{phase.name}`, step"
            f" {self.state.step + 1} of {phase.steps}, at the rates {rates}; first not finite: {cause};"
            f" images of the batch: {_listed(_names(train, ids))}{mixed_in}",
            help="the network was not changed by this step; lower `lr`, add a warm-up or `clip_norm`",
        )

    def _cause(
        self,
        phase: PhasePlan,
        engine: Engine,
        train: Pixels,
        parts: Sequence[tuple[Ids, Mix | None]],
        epoch: int,
        loss: float,
    ) -> str:
        """The first tensor of a step that is not finite, in the order in which they came to be."""
        moving = freezing.moving_tensors(self.model, phase)
        weights = [(f"`{name}`", moving[name]) for name in moving if name in phase.trainable]
        if (name := numerics.first_not_finite(weights)) is not None:
            return name
        for part, mix in parts:
            for ids in (part,) if mix is None else (part, mix.partners):
                for tensor in engine.inputs("train", ids, epoch):
                    if rows := numerics.rows_not_finite(tensor):
                        return f"the input made of {_listed(_names(train, ids[rows]))}"
            inputs = engine.inputs("train", part, epoch, mix)
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
        values = None
        try:
            if val is not None:
                with self._clock("evaluate"):
                    values = self._validate(phase, engine, live, val).scalars(self._names(phase))
            self._record(
                "epoch",
                phase=phase.name,
                epoch=epoch + 1,
                step=state.step,
                lr=_rates(phase, state.step - 1),
                train={"loss": state.loss_sum / state.seen, "accuracy": state.correct / state.seen},
                val=values,
                seconds=seconds,
            )
        except Stopped:
            self._save(live)
            raise
        except TlrecipeError as error:
            # Where the disk takes no line, it may still take what was trained.
            if error.diagnostics[0].code == "TLR901":
                with suppress(TlrecipeError):
                    self._save(live)
            raise
        if values is not None:
            state.last_val = values
            self._remember_best(phase, live, values, epoch)
        state.loss_sum, state.correct, state.seen = 0.0, 0.0, 0

    def _validate(self, phase: PhasePlan, engine: Engine, live: _Live, val: Pixels) -> Evaluation:
        """Validation with the weights that the phase would end with; leaves the network as it was."""
        where = f"before validation in phase `{phase.name}`, after step {self.state.step}"
        numerics.refuse_not_finite(freezing.moving_tensors(self.model, phase).items(), where)
        kept = self._swap_in(phase, self._ending(phase, live))
        self.model.eval()

        def logits_of(ids: Ids) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=engine.choice.autocast):
                logits: Tensor = engine.network(*engine.inputs("val", ids, None))
            return logits

        try:
            told = self._evaluating(phase, "val", val)
            result = evaluate(logits_of, val.labels, max(64, phase.batch_size), told=told)
        finally:
            self._swap_in(phase, kept)
            freezing.apply_modes(self.model, phase)
        freezing.check(self.model, phase)
        self._refuse_logits(result, val, f"in phase `{phase.name}`, after step {self.state.step}")
        return result

    def _evaluating(self, phase: PhasePlan | None, split: str, pixels: Pixels) -> Callable[[int], None]:
        """What an evaluation does between its batches."""

        def told(done: int) -> None:
            self.emit(
                "evaluation",
                phase=None if phase is None else phase.name,
                split=split,
                done=done,
                total=len(pixels),
            )
            if done < len(pixels):
                self._stop_if_asked()

        return told

    def _refuse_logits(self, result: Evaluation, pixels: Pixels, where: str) -> None:
        """A metric of what is not a number would be none either, and could be taken for the best."""
        if rows := numerics.rows_not_finite(result.logits):
            names = _listed([pixels.names[row] for row in rows])
            raise TlrecipeError.of("TLR701", f"class scores that are not finite {where}: {names}")

    def _ending(self, phase: PhasePlan, live: _Live) -> dict[str, Tensor] | None:
        """The weights that the phase would end with now, where they are not the network's own: averaged, or
        interpolated with those that it started from."""
        if live.start is None:
            return live.average
        assert phase.wise_ft is not None
        trained = live.average or freezing.moving_tensors(self.model, phase)
        with torch.no_grad():
            return {
                name: torch.lerp(start, trained[name].detach(), phase.wise_ft)
                if start.is_floating_point()
                else trained[name].detach().clone()
                for name, start in live.start.items()
            }

    def _swap_in(self, phase: PhasePlan, values: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Put other weights into the network; gives what was there, to be put back."""
        if values is None:
            return None
        current = freezing.moving_tensors(self.model, phase)
        kept = {name: tensor.detach().clone() for name, tensor in current.items()}
        _copy_into(current, values, "average")
        return kept

    def _remember_best(self, phase: PhasePlan, live: _Live, val: dict[str, float], epoch: int) -> None:
        """Track the best epoch, and how long the stop rule has waited; ties keep the earlier."""
        state, metric = self.state, phase.best_metric
        previous = None if state.best is None else state.best["value"]
        if _gain(metric, val, previous) > 0:
            state.best = {"epoch": epoch + 1, "metric": metric, "value": val[metric]}
            state.best_val = val
            values = self._ending(phase, live) or freezing.moving_tensors(self.model, phase)
            live.best = {name: tensor.detach().clone() for name, tensor in values.items()}
        if phase.stop is not None:
            gain = _gain(phase.stop.metric, val, state.stop_value)
            if gain > 0 and gain >= phase.stop.min_delta:
                state.stop_value, state.waited = val[phase.stop.metric], 0
            else:
                state.waited += 1

    @staticmethod
    def _names(phase: PhasePlan) -> set[str]:
        """The metrics of each epoch: those that cost next to nothing, and those that are asked for."""
        asked = {phase.best_metric} | ({phase.stop.metric} if phase.stop else set())
        return asked | set(metrics.EACH_EPOCH)

    def _end_phase(
        self, phase: PhasePlan, engine: Engine, live: _Live, before: dict[str, str], seconds: float
    ) -> None:
        state = self.state
        self._swap_in(phase, self._ending(phase, live))
        after = freezing.digests(freezing.frozen_tensors(self.model, phase))
        freezing.prove(before, after, phase)
        last = phase.index + 1 == len(self.plan.phases)
        follows = self.plan.final_weights if last else self.plan.phases[phase.index + 1].start_from
        if follows == "best" and live.best is not None:
            _copy_into(freezing.moving_tensors(self.model, phase), live.best, "best")
            state.last_val = state.best_val
        result = PhaseResult(
            name=phase.name,
            steps=state.step,
            epochs=state.step / phase.steps_per_epoch,
            seconds=seconds,
            trainable_params=phase.trainable_count,
            frozen_params=phase.frozen_count,
            frozen_sha256={"before": freezing.combined(before), "after": freezing.combined(after)},
            prefix=_prefix(engine.choice, engine.computed),
            best=state.best,
        )
        state.results.append(asdict(result))
        state.phase, state.step, state.seconds = phase.index + 1, 0, 0.0
        state.best, state.best_val, state.stop_value, state.waited = None, None, None, 0
        self.emit("phase_end", name=phase.name, seconds=seconds, best=result.best)
        live.best = None
        self._save(None)
        self._stop_if_asked()

    # ------------------------------------------------------------------ checkpoints

    def _checkpoint(self, live: _Live, seconds: float, share: float) -> None:
        """Save where it is due or asked for. ``share`` is what saving may cost of the time since."""
        self.state.seconds = seconds
        stopping, asked = self.stop(), self.save_now()
        since = time.perf_counter() - self.saved_at
        if stopping or asked or since * share > max(self.save_cost, 0.02):
            self._save(live)
        if asked:
            self.emit("saved", phase=self.plan.phases[self.state.phase].name, step=self.state.step)
        if stopping:
            raise Stopped

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise Stopped

    def _save(self, live: _Live | None) -> None:
        started = time.perf_counter()
        tensors = {f"model/{name}": value.detach() for name, value in self.model.state_dict().items()}
        stateless: list[str] = []
        if live is not None:
            state, stateless = optimizers.state_by_name(live.optimizer)
            tensors |= {f"optimizer/{name}": value for name, value in state.items()}
            tensors |= {f"average/{name}": value for name, value in (live.average or {}).items()}
            tensors |= {f"start/{name}": value for name, value in (live.start or {}).items()}
            tensors |= {f"best/{name}": value for name, value in (live.best or {}).items()}
        numerics.refuse_not_finite(tensors.items(), "and would be saved")
        values = {
            "state": asdict(self.state),
            "choices": [choice.as_dict() for choice in self.choices],
            "precision": self.precision,
            "stateless": stateless,
        }
        self.save(Checkpoint(tensors, values))
        self.saved_at = time.perf_counter()
        self.save_cost = self.saved_at - started
        self.state.clocks["checkpoints"] += self.save_cost

    def _restore(self, checkpoint: Checkpoint) -> list[Choice]:
        """Take over the state and the network of a checkpoint; gives its choices.

        All is checked before anything is computed. Raises TLR602.
        """
        known = ("state", "choices", "precision", "stateless")
        values = restore.keys(checkpoint.values, known, "values")
        saved = values["choices"]
        if not isinstance(saved, list) or len(saved) != len(self.plan.phases):
            restore.refuse(f"`choices` are not one for each of {len(self.plan.phases)} phases")
        choices = [restore.exactly(Choice, item, "choices") for item in saved]
        self.state = _State.restored(values["state"], self.plan, choices)
        if values["precision"] not in get_args(Precision):
            restore.refuse("`precision` is none")
        self.precision = values["precision"]
        phase = self.plan.phases[self.state.phase] if self.state.step > 0 else None
        if phase is None and values["stateless"] != []:
            restore.refuse("`stateless` belongs to no phase")
        parts = _parts(checkpoint.tensors)
        expected = {
            "model": True,
            "optimizer": phase is not None,
            "average": phase is not None and phase.ema is not None,
            "best": self.state.best is not None,
            "start": phase is not None and phase.wise_ft is not None,
        }
        for part, tensors in parts.items():
            if tensors and not expected.get(part):
                restore.refuse(f"`{part}` tensors do not belong to this state")
        _copy_into(dict(self.model.state_dict()), parts["model"], "model")
        return choices

    # ------------------------------------------------------------------ small things

    def _record(self, kind: str, **fields: Any) -> None:
        """Emit what belongs into metrics.jsonl, and count it."""
        self.emit(kind, **fields)
        self.state.records += 1

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
        self.state.clocks[self.name] += time.perf_counter() - self.start


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
    save_now: Callable[[], bool] = lambda: False,
    resume: Checkpoint | None = None,
) -> RunResult:
    """Carry out ``plan`` on ``backbone``, whose network is trained in place.

    Args:
        plan: What to do; must have been compiled for this backbone and these data.
        pixels: Gives the decoded images of ``train``, ``val`` and ``test``.
        emit: Receives events: ``outlook``, ``features``, ``phase``, ``step``, ``evaluation``, ``epoch``,
            ``saved``, ``phase_end``, ``test``.
        save: Receives a checkpoint at the end of each phase, from time to time within, and when stopped.
        store: Where features are kept; by default in memory, for this run only.
        device: Where to compute.
        stop: Asked after each step; once it says yes, the run saves and raises :class:`Stopped`.
        save_now: Asked after each step; where it says yes, the run saves and goes on.
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
        return _Run(plan, backbone, pixels, emit, save, store, device, stop, save_now).train(resume)


def _prefix(choice: Choice, computed: int) -> dict[str, Any]:
    """What a result says of a frozen prefix; lists as in JSON."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in choice.as_dict().items()}
    return plain | {"images_computed": computed}


def _epoch_ends(phase: PhasePlan, step: int) -> bool:
    """Whether an epoch is over after ``step`` steps of a phase; the last one may be shorter."""
    return step % phase.steps_per_epoch == 0 or step == phase.steps


def _gain(metric: str, values: Mapping[str, float], previous: float | None) -> float:
    """By how much a metric is better than before; a value that is missing or not finite never is."""
    value = values.get(metric, math.nan)
    if not math.isfinite(value):
        return -math.inf
    if previous is None:
        return math.inf
    return (value - previous) * (1 if metrics.METRICS[metric].higher_is_better else -1)


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


def _names(pixels: Pixels, numbers: Iterable[int]) -> list[str]:
    """Names of the images that sample numbers stand for."""
    return [pixels.names[int(number) % len(pixels)] for number in numbers]


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"`{name}`" for name in names[:limit]) + more


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
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
