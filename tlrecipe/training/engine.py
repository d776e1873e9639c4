"""How the images of a phase become inputs of what trains: stored features, recomputed ones, or images.

The choice is made from measurements at the start of a run and is recorded, so that a resumed run makes
the same one. Where a prefix exists, stored and recomputed features are the same numbers.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlrecipe.data.augment import augment_batch, flip_mask
from tlrecipe.data.pixels import Pixels
from tlrecipe.data.preprocess import normalise
from tlrecipe.files import size_text
from tlrecipe.language.spec import Augment
from tlrecipe.models.fast import DTYPES, Precision, best_precision, fast_copy, seconds, synchronize
from tlrecipe.models.prefix import Frozen, Split, mixed_modules, proved, split
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.planning.randomness import key, uniforms
from tlrecipe.training import freezing
from tlrecipe.training.features import FeatureStore, content_key

Mode = Literal["store", "recompute", "plain"]
Ids = NDArray[np.int64]

# Below this share of a phase's time, storing is not worth its bytes.
_WORTHWHILE = 0.1
# Bytes per second that stored features are read with, far below what memory gives: a safe side.
_READ_SPEED = 2e9
# Convolutions of fewer images than this take other kernels, whose last bits differ.
SMALLEST_BATCH = 4


class Emit(Protocol):
    """Receives events of a run."""

    def __call__(self, kind: str, /, **fields: Any) -> None: ...


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop; its last checkpoint is saved."""


class PixelSource(Protocol):
    """Gives the decoded images of a split (``train``, ``val``, ``test``), or None if there are none."""

    def __call__(self, split: str, preprocessing: Preprocessing) -> Pixels | None: ...


@dataclass(frozen=True)
class Choice:
    """What is done about a phase's frozen prefix, and why. Plain values: it is saved and shown."""

    mode: Mode
    reason: str
    cut: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    precision: Precision = "fp32"
    views: int = 0
    """Passes over the prefix per image that the store keeps: 1, 2 with a flip, K by ``views = K``."""
    feature_bytes: int = 0
    """Bytes of one image's features, one view."""
    chunk: int = 32
    """Images per pass through the prefix."""
    prefix_seconds: float = 0.0
    """Measured seconds of the fast prefix per image."""
    step_seconds: float = 0.0
    """Measured seconds of a training step per image, without the prefix."""
    autocast: bool = False
    """Train in bfloat16 by autocast."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Choice:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def views_of(augment: Augment) -> int | None:
    """Distinct views that make the augmentation's distribution exact, or None if there are endless ones."""
    if augment.views is not None:
        return augment.views
    if augment == Augment(hflip=augment.hflip):
        return 2 if augment.hflip else 1
    return None


def preprocessing_of(plan: Plan, phase: PhasePlan) -> Preprocessing:
    return replace(plan.preprocessing, size=phase.size)


# --------------------------------------------------------------------------- the choice


def split_phase(
    plan: Plan, phase: PhasePlan, model: nn.Module, taps: Sequence[tuple[str, ...]] = ()
) -> Split:
    """Split a network that is in the modes of ``phase``. Splits of all phases of a plan share names."""
    open_modules = frozenset().union(*(mixed_modules(model, each.trainable) for each in plan.phases))
    frozen = Frozen(phase.trainable, phase.train_modules)
    return split(model, frozen, phase.size, open_modules=open_modules, taps=taps)


def survey(
    plan: Plan, model: nn.Module, store: FeatureStore, device: torch.device, known: Sequence[Choice] = ()
) -> tuple[list[Split], list[Choice]]:
    """Split the network for every phase and choose what to do about each prefix.

    ``known`` are choices of an earlier start of the same run; they are kept.
    """
    splits: list[Split] = []
    choices: list[Choice] = []
    for phase in plan.phases:
        freezing.apply(model, phase)
        parts = split_phase(plan, phase, model)
        if len(known) > phase.index:
            choices.append(known[phase.index])
        else:
            sample = torch.rand(16, 3, phase.size, phase.size, device=device)
            sample = sample.to(memory_format=torch.channels_last)
            parts = proved(model, parts, sample[:3])
            choices.append(_choose(plan, phase, parts, sample, store, device))
        splits.append(parts)
    return splits, choices


def _choose(
    plan: Plan, phase: PhasePlan, parts: Split, sample: Tensor, store: FeatureStore, device: torch.device
) -> Choice:
    if plan.features == "off":
        return Choice("plain", 'compute.features = "off"', autocast=_autocast(plan, device))
    if parts.prefix is None:
        return Choice("plain", parts.note, autocast=_autocast(plan, device))
    precision, why = best_precision(parts.prefix, sample, plan.precision)
    fast = fast_copy(parts.prefix, sample, precision)
    typed = sample.to(DTYPES[precision])
    chunk, prefix_seconds = _best_chunk(fast, typed, device)
    with torch.no_grad():
        features = tuple(part.float() for part in fast(typed))
    step_seconds = _step_seconds(parts.suffix, features, len(plan.classes)) / len(sample)
    choice = Choice(
        "recompute",
        "",
        parts.cut,
        parts.nodes,
        precision,
        views_of(phase.augment) or 0,
        sum(part[0].numel() for part in features) * DTYPES[precision].itemsize,
        chunk,
        prefix_seconds,
        step_seconds,
        _autocast(plan, device),
    )
    mode, reason = _store_or_not(plan, phase, choice, store)
    return replace(choice, mode=mode, reason=f"{reason}; {precision}: {why}")


def _autocast(plan: Plan, device: torch.device) -> bool:
    # On CPUs the backward of depthwise convolutions is slower in bfloat16 than what the rest gains.
    return device.type == "cuda" and plan.precision != "fp32" and torch.cuda.is_bf16_supported()


def _best_chunk(fast: nn.Module, sample: Tensor, device: torch.device) -> tuple[int, float]:
    """Images per pass that give most images per second: small batches stay in a CPU's cache."""
    if device.type == "cuda":
        return 256, seconds(fast, sample) / len(sample)
    timed = {count: seconds(fast, sample[:count], repeats=1) / count for count in (8, 16)}
    timed[32] = seconds(fast, torch.cat([sample, sample]), repeats=1) / 32
    best = min(timed, key=lambda count: timed[count])
    return best, timed[best]


def _step_seconds(suffix: nn.Module, features: tuple[Tensor, ...], classes: int) -> float:
    """Seconds of one forward and backward pass of what trains, which leaves no trace in the network."""
    labels = torch.arange(len(features[0]), device=features[0].device) % classes
    buffers = {name: buffer.clone() for name, buffer in suffix.named_buffers()}
    best = float("inf")
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            synchronize(features[0].device)
            start = time.perf_counter()
            loss = nn.functional.cross_entropy(suffix(*(part.clone() for part in features)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            synchronize(features[0].device)
            best = min(best, time.perf_counter() - start)
    with torch.no_grad():
        for name, buffer in suffix.named_buffers():
            buffer.copy_(buffers[name])
    for parameter in suffix.parameters():
        parameter.grad = None
    return best


def _store_or_not(plan: Plan, phase: PhasePlan, choice: Choice, store: FeatureStore) -> tuple[Mode, str]:
    """The cost model: seconds saved by reading features instead of computing them, against their bytes."""
    views = views_of(phase.augment)
    if plan.features == "recompute":
        return "recompute", 'compute.features = "recompute"'
    if views is None:
        return "recompute", "the augmentation has endless outcomes, so each epoch sees new ones"
    images = plan.counts["train"] + plan.counts.get("val", 0)
    size = (plan.counts["train"] * views + plan.counts.get("val", 0)) * choice.feature_bytes
    room = store.memory_bytes if store.folder is None else store.limit_bytes
    passes = ceil(phase.epochs)
    where = f"{size_text(size)} for {images} images"
    if plan.features == "store":
        return "store", f'compute.features = "store"; {where}'
    if size > room:
        return "recompute", f"features would take {where}, more than the {size_text(room)} allowed"
    if passes < views:
        return "recompute", f"{passes} epochs are fewer than the {views} views that would be stored"
    read = choice.feature_bytes / _READ_SPEED
    saved = max(0.0, choice.prefix_seconds - read) * passes - choice.prefix_seconds * views
    whole = (choice.prefix_seconds + choice.step_seconds) * passes
    # One pass more or less is all there is to lose where epochs equal views; later phases and runs gain.
    if passes > views and saved < _WORTHWHILE * whole:
        share = choice.prefix_seconds / (choice.prefix_seconds + choice.step_seconds)
        return "recompute", f"the frozen part is {share:.0%} of the work, too little to store {where}"
    if passes == views and choice.prefix_seconds < choice.step_seconds * _WORTHWHILE:
        return "recompute", f"the frozen part is too little of the work to store {where}"
    factor = passes * choice.prefix_seconds / (views * choice.prefix_seconds + passes * read)
    return "store", f"{where} replace {passes} passes by {views}, {factor:.1f} times less prefix work"


# --------------------------------------------------------------------------- carrying it out


class Engine:
    """Inputs for what trains in one phase, and that part of the network.

    ``engine.network(*engine.inputs("train", ids, epoch))`` are the logits that the plain network would
    give for the augmented images of that epoch; with epoch None, for the images as they are.
    """

    def __init__(
        self,
        plan: Plan,
        phase: PhasePlan,
        model: nn.Module,
        splits: Sequence[Split],
        choices: Sequence[Choice],
        pixels: PixelSource,
        store: FeatureStore,
        device: torch.device,
        identity: str,
        emit: Emit,
        stop: Callable[[], bool],
    ):
        self.plan, self.phase, self.device, self.store, self.emit = plan, phase, device, store, emit
        self._stop = stop
        self.choice = choices[phase.index]
        self.preprocessing = preprocessing_of(plan, phase)
        self._source = pixels
        self._identity = identity
        self._features: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        self._fast: nn.Module | None = None
        self._copied: tuple[list[tuple[str, ...]], nn.Module] | None = None
        self._digests: dict[tuple[str, ...], str] = {}
        self.computed = 0
        """Images that went through the prefix to be stored."""
        parts = splits[phase.index]
        if self.choice.mode == "plain" or parts.prefix is None:
            self.network: nn.Module = model
            return
        self.network = parts.suffix
        if self.choice.mode == "recompute":
            self._fast = self._fast_copy(parts)
            return
        later = [
            (other, splits[other.index])
            for other in plan.phases[phase.index + 1 :]
            if self._survives(other, splits[other.index], choices[other.index])
        ]
        for name, views in (("train", self.choice.views), ("val", 1)):
            if (found := pixels(name, self.preprocessing)) is not None:
                for view in range(views):
                    self._features[name, view] = self._obtain(name, view, found, model, parts, later)
        self._copied = None

    def _survives(self, other: PhasePlan, parts: Split, choice: Choice) -> bool:
        """Whether a later phase will want features that a pass now can give as well."""
        if choice.mode != "store" or parts.prefix is None or other.size != self.phase.size:
            return False
        if choice.precision != self.choice.precision:
            return False
        names = set(parts.prefix.state_dict())
        between = self.plan.phases[self.phase.index : other.index]
        return not any(names & (phase.trainable | phase.moving_buffers) for phase in between)

    def _fast_copy(self, parts: Split) -> nn.Module:
        size = self.phase.size
        sample = torch.rand(SMALLEST_BATCH, 3, size, size, device=self.device)
        sample = sample.to(memory_format=torch.channels_last)
        assert parts.prefix is not None
        return fast_copy(parts.prefix, sample, self.choice.precision)

    # ------------------------------------------------------------------ stored features

    def _obtain(
        self,
        name: str,
        view: int,
        pixels: Pixels,
        model: nn.Module,
        parts: Split,
        later: Sequence[tuple[PhasePlan, Split]],
    ) -> tuple[Tensor, ...]:
        """Features of a split in one view: found, or computed in one pass with those of later phases."""
        address = self._key(pixels, self.phase, parts, name, view)
        found = self.store.find(address)
        if found is not None:
            return found
        wanted: dict[str, Split] = {address: parts}
        for other, deeper in later:
            views = 1 if name == "val" else views_of(other.augment) or 0
            if view < views and self._view_name(other, name, view) == self._view_name(self.phase, name, view):
                tap = self._key(pixels, other, deeper, name, view)
                if tap not in wanted and not self.store.has(tap):
                    wanted[tap] = deeper
        taps = [item.nodes for item in list(wanted.values())[1:]]
        together = parts
        if taps:
            together = split_phase(self.plan, self.phase, model, taps)
            if together.prefix is None:
                taps, together, wanted = [], parts, {address: parts}
        # The copy of the pass before serves again where it gives the same features.
        if self._copied is None or self._copied[0] != taps:
            self._copied = taps, self._fast_copy(together)
        self._compute(name, view, pixels, self._copied[1], wanted)
        result = self.store.find(address)
        assert result is not None
        return result

    def _compute(
        self, name: str, view: int, pixels: Pixels, fast: nn.Module, wanted: Mapping[str, Split]
    ) -> None:
        count = len(pixels.labels)
        dtype = DTYPES[self.choice.precision]
        entries = [
            self.store.create(address, count, [_stored_shape(shape) for shape in parts.shapes], dtype)
            for address, parts in wanted.items()
        ]
        targets = [tensor for entry in entries for tensor in entry.tensors]
        try:
            for start in range(0, count, self.choice.chunk):
                if self._stop():
                    raise Stopped
                ids = np.arange(start, min(count, start + self.choice.chunk))
                outputs = self._through(fast, self._view(name, pixels, ids, view))
                for target, output in zip(targets, outputs, strict=True):
                    target[start : start + len(ids)].copy_(_to_stored(output))
                self.computed += len(ids)
                self.emit(
                    "features",
                    phase=self.phase.name,
                    split=name,
                    view=view,
                    done=int(ids[-1]) + 1,
                    total=count,
                )
            for entry, parts in zip(entries, wanted.values(), strict=True):
                about = {"split": name, "images": count, "cut": list(parts.cut), "backbone": self._identity}
                entry.commit(about | {"size": self.phase.size, "precision": self.choice.precision})
        except BaseException:
            for entry in entries:
                entry.discard()
            raise

    def _key(self, pixels: Pixels, phase: PhasePlan, parts: Split, name: str, view: int) -> str:
        assert parts.prefix is not None
        if parts.nodes not in self._digests:
            self._digests[parts.nodes] = freezing.digest(sorted(parts.prefix.state_dict().items()))
        return content_key(
            pixels=pixels.digest,
            preprocessing=self.preprocessing.as_dict(),
            view=self._view_name(phase, name, view),
            prefix=self._digests[parts.nodes],
            nodes=parts.nodes,
            precision=self.choice.precision,
            backbone=self._identity,
            torch=torch.__version__,
            processor=(platform.machine(), torch.backends.cpu.get_cpu_capability(), self.device.type),
        )

    def _view_name(self, phase: PhasePlan, name: str, view: int) -> str:
        if _by_views(phase, name):
            return f"{phase.augment.model_dump_json()} {self.plan.seed} {view}"
        return "flipped" if view else "as it is"

    def _view(self, name: str, pixels: Pixels, ids: Ids, view: int) -> Tensor:
        images = pixels.batch(torch.from_numpy(ids), self.preprocessing)
        if _by_views(self.phase, name):
            stream = key(self.plan.seed, "views", view)
            images = augment_batch(images, self.phase.augment, key=stream, ids=ids)
        elif view == 1:
            images = images.flip(-1)
        return self._normalised(images)

    # ------------------------------------------------------------------ batches

    def inputs(self, name: str, ids: Ids, epoch: int | None) -> tuple[Tensor, ...]:
        """What :attr:`network` takes for the images ``ids`` of a split, augmented as in ``epoch``.

        Float32 tensors on the device, the images in the order of ``ids``.
        """
        if self.choice.mode == "store":
            return self._gather(name, ids, epoch)
        images = self._images(name, ids, epoch)
        if self._fast is None:
            return (images,)
        parts = [
            self._through(self._fast, images[start : start + self.choice.chunk])
            for start in range(0, len(ids), self.choice.chunk)
        ]
        return tuple(torch.cat(column).float() for column in zip(*parts, strict=True))

    def _gather(self, name: str, ids: Ids, epoch: int | None) -> tuple[Tensor, ...]:
        rows = torch.from_numpy(ids)
        views = self.choice.views
        if name != "train" or epoch is None or views == 1:
            parts = tuple(tensor.index_select(0, rows) for tensor in self._features[name, 0])
        else:
            which = torch.from_numpy(self._which_view(ids, epoch))
            parts = tuple(
                torch.empty((len(ids), *t.shape[1:]), dtype=t.dtype) for t in self._features[name, 0]
            )
            for view in range(views):
                places = (which == view).nonzero().squeeze(1)
                for part, tensor in zip(parts, self._features[name, view], strict=True):
                    part[places] = tensor.index_select(0, rows[places])
        return tuple(_from_stored(part.to(self.device, non_blocking=True)).float() for part in parts)

    def _which_view(self, ids: Ids, epoch: int) -> Ids:
        stream = self._stream(epoch)
        if self.phase.augment.views is None:
            return flip_mask(stream, ids).astype(np.int64)
        return (uniforms(stream, ids) * self.phase.augment.views).astype(np.int64)

    def _stream(self, epoch: int) -> int:
        return key(self.plan.seed, self.phase.name, epoch, "augment")

    def _images(self, name: str, ids: Ids, epoch: int | None) -> Tensor:
        pixels = self._source(name, self.preprocessing)
        assert pixels is not None
        if epoch is not None and name == "train" and self.phase.augment.views is not None:
            which = self._which_view(ids, epoch)
            order = [self._view(name, pixels, ids[which == view], view) for view in np.unique(which)]
            places = np.concatenate([np.flatnonzero(which == view) for view in np.unique(which)])
            return torch.cat(order)[torch.from_numpy(np.argsort(places))]
        images = pixels.batch(torch.from_numpy(ids), self.preprocessing)
        if epoch is not None:
            images = augment_batch(images, self.phase.augment, key=self._stream(epoch), ids=ids)
        return self._normalised(images)

    def _normalised(self, images: Tensor) -> Tensor:
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return normalise(images, self.preprocessing)

    def _through(self, fast: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """The prefix of a chunk; chunks that are too small are filled up and cut back."""
        count = len(images)
        if count < SMALLEST_BATCH:
            images = torch.cat([images] * ceil(SMALLEST_BATCH / count))[:SMALLEST_BATCH]
        images = images.to(DTYPES[self.choice.precision], memory_format=torch.channels_last)
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = fast(images)
        return tuple(output[:count] for output in outputs)


def _by_views(phase: PhasePlan, name: str) -> bool:
    return name == "train" and phase.augment.views is not None


# Image-like features are kept channels-last, as the network makes and reads them.
def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _to_stored(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1) if features.ndim == 4 else features


def _from_stored(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2) if features.ndim == 4 else features
