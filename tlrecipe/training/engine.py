"""How the images of a phase become inputs of what trains: stored features, recomputed ones, or images.

Where a prefix exists, stored and recomputed features are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlrecipe.data.augment import augment_batch, flip_mask
from tlrecipe.data.mixing import Mix, mixed
from tlrecipe.data.pixels import Pixels
from tlrecipe.data.preprocess import normalise
from tlrecipe.models.fast import DTYPES, fast_copy
from tlrecipe.models.inference import Inference
from tlrecipe.models.prefix import Split
from tlrecipe.models.tuned import TunedSteps
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.planning.randomness import key, uniforms
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.survey import (
    Addresses,
    Choice,
    PixelSource,
    by_views,
    outlives,
    prefix_digest,
    preprocessing_of,
    split_phase,
    views_of,
)

Ids = NDArray[np.int64]

# Convolutions of fewer images than this take other kernels, whose last bits differ.
SMALLEST_BATCH = 4


class Emit(Protocol):
    """Receives events of a run."""

    def __call__(self, kind: str, /, **fields: Any) -> None: ...


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop; its last checkpoint is saved."""


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
        addresses: Addresses,
        emit: Emit,
        stop: Callable[[], bool],
    ):
        self.plan, self.phase, self.store, self.emit = plan, phase, store, emit
        self.device = addresses.device
        self._stop = stop
        self.choice = choices[phase.index]
        self.preprocessing = preprocessing_of(plan, phase)
        self._source = pixels
        self._addresses = addresses
        self._model = model
        self._parts = splits[phase.index]
        self._features: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        self._fast: nn.Module | None = None
        self._copied: tuple[list[tuple[str, ...]], nn.Module] | None = None
        self._digests: dict[tuple[str, ...], str] = {}
        self._kernels = ExitStack()
        self.computed = 0
        """Images that went through the prefix to be stored."""
        if self.choice.mode == "plain" or self._parts.prefix is None:
            self.network: nn.Module = model
            return
        self.network = self._parts.suffix
        if self.choice.mode == "recompute":
            self._fast = self._fast_copy(self._parts)
            return
        later = [
            (other, splits[other.index])
            for other in plan.phases[phase.index + 1 :]
            if choices[other.index].mode == "store"
            and choices[other.index].precision == self.choice.precision
            and outlives(plan, phase, other, splits[other.index])
        ]
        for name, views in (("train", self.choice.views), ("val", 1)):
            if (found := pixels(name, self.preprocessing)) is not None:
                for view in range(views):
                    self._features[name, view] = self._obtain(name, view, found, later)
        self._copied = None

    def __enter__(self) -> Engine:
        """From here to the end of the phase, the layers that train compute as the choice says."""
        if self.choice.tuned:
            some = np.arange(min(SMALLEST_BATCH, len(self._pixels("train"))))
            self._kernels.enter_context(TunedSteps(self.network, self.inputs("train", some, None)))
        return self

    def __exit__(self, *error: object) -> None:
        self._kernels.close()

    def _pixels(self, name: str) -> Pixels:
        found = self._source(name, self.preprocessing)
        assert found is not None
        return found

    def inference_features(self, inference: Inference, name: str) -> bool:
        """Make the features of a further split, if what is stored is what ``inference`` computes.

        Its body must be this phase's prefix, in the same precision; then :meth:`inputs` gives for the
        split what the body would give, and a later run finds it in the store.
        """
        body = inference.parts
        if (
            self.choice.mode != "store"
            or self.choice.precision != inference.precision
            or body.cut != self._parts.cut
            or body.shapes != self._parts.shapes
        ):
            return False
        self._features[name, 0] = self._obtain(name, 0, self._pixels(name), ())
        self._copied = None
        return True

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
        later: Sequence[tuple[PhasePlan, Split]],
    ) -> tuple[Tensor, ...]:
        """Features of a split in one view: found, or computed in one pass with those of later phases."""
        parts, view_name = self._parts, self._addresses.view_name
        address = self._key(pixels, self.phase, parts, name, view)
        found = self.store.find(address)
        if found is not None:
            return found
        wanted: dict[str, Split] = {address: parts}
        for other, deeper in later:
            views = 1 if name == "val" else views_of(other.augment) or 0
            if view < views and view_name(other, name, view) == view_name(self.phase, name, view):
                tap = self._key(pixels, other, deeper, name, view)
                if tap not in wanted and not self.store.has(tap):
                    wanted[tap] = deeper
        taps = [item.nodes for item in list(wanted.values())[1:]]
        together = parts
        if taps:
            together = split_phase(self.plan, self.phase, self._model, taps)
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
                about = {
                    "split": name,
                    "images": count,
                    "cut": list(parts.cut),
                    "backbone": self._addresses.identity,
                }
                entry.commit(about | {"size": self.phase.size, "precision": self.choice.precision})
        except BaseException:
            for entry in entries:
                entry.discard()
            raise

    def _key(self, pixels: Pixels, phase: PhasePlan, parts: Split, name: str, view: int) -> str:
        if parts.nodes not in self._digests:
            self._digests[parts.nodes] = prefix_digest(parts)
        weights = self._digests[parts.nodes]
        return self._addresses.of(phase, parts, weights, pixels, name, view, self.choice.precision)

    def _view(self, name: str, pixels: Pixels, ids: Ids, view: int) -> Tensor:
        images = pixels.batch(torch.from_numpy(ids), self.preprocessing)
        if by_views(self.phase, name):
            stream = key(self.plan.seed, "views", view)
            images = augment_batch(images, self.phase.augment, key=stream, ids=ids)
        elif view == 1:
            images = images.flip(-1)
        return self._normalised(images)

    # ------------------------------------------------------------------ batches

    def inputs(self, name: str, ids: Ids, epoch: int | None, mix: Mix | None = None) -> tuple[Tensor, ...]:
        """What :attr:`network` takes for the images ``ids`` of a split, augmented as in ``epoch``.

        ``ids`` may be sample numbers of :func:`tlrecipe.data.sampling.epoch_order`. With ``mix``, other
        images of the split are mixed in, augmented as in that epoch too.

        Float32 tensors on the device, the images in the order of ``ids``.
        """
        if self.choice.mode == "store":
            assert mix is None, "mixing has endless outcomes, and rules out storing"
            return self._gather(name, ids, epoch)
        images = self._images(name, ids, epoch)
        if mix is not None:
            images = mixed(images, self._images(name, mix.partners, epoch), mix)
        if self._fast is None:
            return (images,)
        parts = [
            self._through(self._fast, images[start : start + self.choice.chunk])
            for start in range(0, len(ids), self.choice.chunk)
        ]
        return tuple(torch.cat(column).float() for column in zip(*parts, strict=True))

    def _gather(self, name: str, ids: Ids, epoch: int | None) -> tuple[Tensor, ...]:
        rows = torch.from_numpy(ids % len(self._features[name, 0][0]))
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
        pixels = self._pixels(name)
        rows = ids % len(pixels)
        if epoch is not None and name == "train" and self.phase.augment.views is not None:
            which = self._which_view(ids, epoch)
            order = [self._view(name, pixels, rows[which == view], view) for view in np.unique(which)]
            places = np.concatenate([np.flatnonzero(which == view) for view in np.unique(which)])
            return torch.cat(order)[torch.from_numpy(np.argsort(places))]
        images = pixels.batch(torch.from_numpy(rows), self.preprocessing)
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


# Image-like features are kept channels-last, as the network makes and reads them.
def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _to_stored(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1) if features.ndim == 4 else features


def _from_stored(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2) if features.ndim == 4 else features
