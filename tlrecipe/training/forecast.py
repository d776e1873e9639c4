"""What a run would compute once, and the memory it would take, before there are weights or pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlrecipe.data.listing import Item, Listing
from tlrecipe.data.pixels import MEMORY_BUDGET
from tlrecipe.data.preprocess import BadImage, decode
from tlrecipe.language.spec import AdamSpec, AdamWSpec, RMSpropSpec, SGDSpec
from tlrecipe.models.memory import forward_bytes, process_bytes, step_bytes, weight_bytes
from tlrecipe.models.prefix import Split
from tlrecipe.planning.explain import PrefixFacts
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.training import freezing
from tlrecipe.training.survey import split_phase, views_of

# Images in the largest pass through a frozen prefix on a CPU.
_CHUNK = 32
# Compiled kernels, their scratch memory and the allocator's slack: what three measured runs took beyond
# the tensors (40 to 130 MB).
_KERNELS = 80 << 20


def prefix_facts(
    plan: Plan, model: nn.Module, *, pixel_bytes: int = 0, baseline: int | None = None
) -> tuple[PrefixFacts, ...]:
    """Where the frozen part of each phase ends, and the phase's predicted peak memory on a CPU.

    Args:
        plan: What would be run.
        model: The backbone's network on the meta device. Left as the last phase has it.
        pixel_bytes: What :func:`decoded_bytes` says of the data.
        baseline: Bytes that the process takes before anything is built; by default what it takes now,
            with its libraries loaded.
    """
    held = pixel_bytes + weight_bytes(model) + _KERNELS
    held += process_bytes() if baseline is None else baseline
    facts = []
    for phase in plan.phases:
        freezing.apply(model, phase)
        parts = split_phase(plan, phase, model)
        work = _work_bytes(plan, phase, model, parts)
        facts.append(
            PrefixFacts(
                cut=parts.cut,
                feature_bytes=_bytes_per_image(parts),
                note=parts.note,
                views=views_of(phase.augment),
                memory_bytes=None if work is None else held + work,
            )
        )
    return tuple(facts)


def decoded_bytes(listing: Listing, p: Preprocessing) -> int:
    """Bytes of all decoded images that are held in memory, judged by the first image of each split."""
    total = 0
    for images in listing.splits.values():
        if len(images):
            total += min(MEMORY_BUDGET, len(images) * _decoded_size(listing, images[0], p))
    return total


def _decoded_size(listing: Listing, item: Item, p: Preprocessing) -> int:
    fitted = 3 * p.size**2
    try:
        if listing.arrays is not None:
            height, width = listing.arrays(np.array([item.row])).shape[1:3]
        else:
            height, width = decode(listing.read(item), p).shape[1:]
    except (BadImage, OSError):
        return fitted
    return 3 * height * width if max(height, width) <= p.size else fitted


# Tensors of a parameter's size that an optimizer keeps for it.
_STATES: Mapping[type, Callable[[Any], int]] = {
    SGDSpec: lambda spec: int(spec.momentum > 0),
    AdamSpec: lambda spec: 2,
    AdamWSpec: lambda spec: 2,
    RMSpropSpec: lambda spec: 1 + (spec.momentum > 0),
}


def checkpoint_bytes(plan: Plan, model: nn.Module) -> int:
    """Bytes of the largest checkpoint of a run, without its header."""
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    held = [sum(sizes[name] for name in phase.trainable) * _copies(plan, phase) for phase in plan.phases]
    return weight_bytes(model) + max(held)


def scratch_bytes(plan: Plan) -> int:
    """Bytes of the decoded images that go to the disk, because they are more than the memory they may take.

    At the network's size; images that are all smaller take less.
    """
    size = max(phase.size for phase in plan.phases)
    splits = [count * 3 * size**2 for count in plan.counts.values()]
    return sum(held for held in splits if held > MEMORY_BUDGET)


def _copies(plan: Plan, phase: PhasePlan) -> int:
    """Tensors beside a trainable parameter: the optimizer's, the best epoch's and the average's."""
    states = _STATES[type(phase.optimizer)](phase.optimizer)
    return states + bool(plan.counts.get("val")) + (phase.ema is not None)


def _work_bytes(plan: Plan, phase: PhasePlan, model: nn.Module, parts: Split) -> int | None:
    """Most bytes that a phase's work takes at once, beside the network and the images; None if unknown."""
    try:
        work = _phase_bytes(plan, phase, model, parts)
        if phase.index + 1 == len(plan.phases):
            model.eval()
            work = max(work, _pass_bytes(model, phase.size, _CHUNK))
    except Exception:  # not everything that a network may do can be done without values
        return None
    return work


def _phase_bytes(plan: Plan, phase: PhasePlan, model: nn.Module, parts: Split) -> int:
    parameters = dict(model.named_parameters())
    trainable = sum(parameters[name].nbytes for name in phase.trainable)
    held = trainable * _copies(plan, phase)
    images = _empty(phase.batch_size, (3, phase.size, phase.size))
    if parts.prefix is None or plan.features == "off":
        return held + images.nbytes + step_bytes(model, [images])
    features = [_empty(phase.batch_size, shape) for shape in parts.shapes]
    step = held + sum(feature.nbytes for feature in features) + step_bytes(parts.suffix, features)
    passing = _pass_bytes(parts.prefix, phase.size, _CHUNK)
    views = views_of(phase.augment)
    if views is None or plan.features == "recompute":
        return images.nbytes + max(passing, step + passing - weight_bytes(parts.prefix))
    stored = (plan.counts.get("train", 0) * views + plan.counts.get("val", 0)) * _bytes_per_image(parts)
    return stored + max(passing, step)


def _pass_bytes(network: nn.Module, size: int, count: int) -> int:
    """Bytes of making a fast copy of a network, beside the one that is compared with it, and a pass."""
    images = _empty(count, (3, size, size))
    return 2 * weight_bytes(network) + images.nbytes + forward_bytes(network, [images])


def _bytes_per_image(parts: Split) -> int:
    return 4 * sum(prod(shape) for shape in parts.shapes)


def _empty(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(count, *shape, device="meta")
