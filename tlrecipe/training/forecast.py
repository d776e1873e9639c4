"""What a run would compute once, and the memory it would take, before there are weights or pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlrecipe.data.listing import Item, Listing
from tlrecipe.data.pixels import MEMORY_BUDGET
from tlrecipe.data.preprocess import BadImage, decode
from tlrecipe.files import size_text
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.language.spec import AdamSpec, AdamWSpec, RMSpropSpec, SGDSpec
from tlrecipe.models.memory import (
    forward_bytes,
    limit_bytes,
    on_meta,
    process_bytes,
    resident_bytes,
    step_bytes,
    weight_bytes,
)
from tlrecipe.models.prefix import Split
from tlrecipe.planning.explain import PrefixFacts
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.training import freezing
from tlrecipe.training.survey import only_a_head, split_phase, views_of

# Images in the largest pass through a frozen prefix on a CPU; in bfloat16 twice as many take the same bytes.
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


# How far off a prediction may be: what it does not see can only be found out by trying.
_UNSURE = 1.3


def refuse_too_large(
    plan: Plan, model: nn.Module, splits: Sequence[Split], *, warn: Callable[[str], None]
) -> None:
    """Refuse a plan of which some phase cannot fit into memory, before the first has begun.

    ``model`` has its weights and ``splits`` are its parts, phase by phase; the images are decoded. The
    peak of a phase is what the process holds now and :func:`prefix_facts`' count of what the phase adds.
    ``warn`` is told of phases that may just not fit. The network is left in the modes of the last phase.

    Raises TLR801 with a batch size that would fit.
    """
    held, (limit, why) = resident_bytes(), limit_bytes()
    problems = []
    for phase, parts in zip(plan.phases, splits, strict=True):
        freezing.apply(model, phase)
        halves = [half for half in (parts.prefix, parts.suffix) if half is not None]

        def work(
            batch_size: int,
            phase: PhasePlan = phase,
            parts: Split = parts,
            halves: Sequence[nn.Module] = halves,
        ) -> int | None:
            with on_meta(model, *halves):
                return _work_bytes(plan, replace(phase, batch_size=batch_size), model, parts)

        problem = too_large(phase, held, limit, why, work)
        if problem is not None and problem.severity == "error":
            problems.append(problem)
        elif problem is not None:
            warn(problem.message)
    if problems:
        raise TlrecipeError(problems)


def with_pixels(facts: Sequence[PrefixFacts], pixel_bytes: int) -> tuple[PrefixFacts, ...]:
    """``facts`` with the memory that the decoded images take as well."""
    return tuple(
        replace(item, memory_bytes=None if item.memory_bytes is None else item.memory_bytes + pixel_bytes)
        for item in facts
    )


def unfit_phases(plan: Plan, model: nn.Module, facts: Sequence[PrefixFacts]) -> list[Diagnostic]:
    """What :func:`too_large` says of each phase, from the ``facts`` of :func:`prefix_facts`."""
    limit, why = limit_bytes()
    found = []
    for phase, fact in zip(plan.phases, facts, strict=True):

        def needed(
            batch_size: int, phase: PhasePlan = phase, known: int | None = fact.memory_bytes
        ) -> int | None:
            if batch_size == phase.batch_size:
                return known
            smaller = [replace(each, batch_size=min(batch_size, each.batch_size)) for each in plan.phases]
            changed = replace(plan, phases=tuple(smaller))
            return prefix_facts(changed, model)[phase.index].memory_bytes

        problem = too_large(phase, 0, limit, why, needed)
        if problem is not None:
            found.append(problem)
    return found


def too_large(
    phase: PhasePlan, held: int, limit: int, why: str, work: Callable[[int], int | None]
) -> Diagnostic | None:
    """What to say of a phase that needs ``held`` bytes and what ``work`` says for a batch size, where
    ``limit`` are all there are: an error, a warning where the prediction is too unsure, or None."""
    needed = work(phase.batch_size)
    if needed is None or held + needed <= limit:
        return None
    message = (
        f"phase `{phase.name}` takes about {size_text(held + needed)} with batches of {phase.batch_size}"
        f" images of {phase.size} pixels, and {size_text(limit)} are all there are: {why}"
    )
    if held + needed <= _UNSURE * limit:
        return Diagnostic("TLR801", message, severity="warning")
    fitting = _fitting_batch(phase.batch_size, limit - held, work)
    if fitting is None:
        cure = "freeze more of the backbone, or choose a smaller `size` or another backbone"
    else:
        same = phase.accumulate * phase.batch_size // fitting
        cure = f"`batch_size = {fitting}` would fit; with `accumulate = {same}` an update sees as many images"
    return Diagnostic("TLR801", message, ("phase", phase.index), cure)


def _fitting_batch(batch_size: int, room: int, work: Callable[[int], int | None]) -> int | None:
    """The largest half, quarter, … of a batch whose work fits into ``room`` bytes, or None."""
    while batch_size >= 2:
        batch_size //= 2
        needed = work(batch_size)
        if needed is not None and needed <= room:
            return batch_size
    return None


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
        # A frozen part that is all but the head is what the last evaluation runs.
        counted = parts.prefix is not None and only_a_head(parts.suffix)
        if phase.index + 1 == len(plan.phases) and not counted:
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
