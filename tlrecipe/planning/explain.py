"""A plan told to a person: what trains when, at which rates, and what became of each pattern."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from tlrecipe.language.grammar import inline
from tlrecipe.planning.facts import ParamTable
from tlrecipe.planning.plan import PhasePlan, Plan


@dataclass(frozen=True)
class PrefixFacts:
    """What is known before a run about the part of a phase that can be computed once."""

    cut: tuple[str, ...]
    """Where the frozen part ends; empty if there is none."""
    feature_bytes: int
    """Bytes of one image's features in float32."""
    note: str
    """How it was found, or why there is none."""
    views: int | None
    """Views that would be stored; None where augmentation has endless outcomes."""
    memory_bytes: int | None = None
    """Predicted peak memory of the phase."""


def explain(plan: Plan, table: ParamTable, prefixes: Sequence[PrefixFacts] = ()) -> dict[str, Any]:
    """The plan as plain data for ``--json``; ``prefixes`` has one entry per phase, or none at all."""
    sizes = {param.name: param.numel for param in table}
    norms = [module.name for module in table.modules if module.norm]
    phases = []
    for phase in plan.phases:
        facts = prefixes[phase.index] if prefixes else None
        phases.append(
            {
                "name": phase.name,
                "steps": phase.steps,
                "epochs": round(phase.epochs, 4),
                "batch_size": phase.batch_size,
                "accumulate": phase.accumulate,
                "size": phase.size,
                "optimizer": phase.optimizer.name,
                "schedule": phase.schedule.name,
                "warmup_steps": phase.warmup_steps,
                "groups": [_group(phase, name, names, sizes) for name, names in plan.group_params.items()],
                "norm": phase.norm,
                "norm_layers": {
                    "train": sum(name in phase.train_modules for name in norms),
                    "eval": sum(name not in phase.train_modules for name in norms),
                },
                "moving_statistics_of_frozen_layers": _exempt(phase, table),
                "augment": given(phase.augment),
                "loss": phase.loss.model_dump(mode="json", exclude_none=True),
                "class_weights": None
                if phase.class_weights is None
                else dict(zip(plan.classes, phase.class_weights, strict=True)),
                "sampling": phase.sampling,
                "l2_sp": phase.l2_sp,
                "wise_ft": phase.wise_ft,
                "patterns": [asdict(match) for match in phase.matches if match.where in ("freeze", "thaw")],
                "computed_once": None
                if facts is None
                else {
                    "cut": list(facts.cut),
                    "bytes_per_image": facts.feature_bytes,
                    "views": facts.views,
                    "note": facts.note,
                },
                "predicted_memory_bytes": None if facts is None else facts.memory_bytes,
            }
        )
    return {
        "name": plan.name,
        "classes": list(plan.classes),
        "images": dict(plan.counts),
        "parameters": sum(sizes.values()),
        "groups": {name: sum(sizes[p] for p in names) for name, names in plan.group_params.items()},
        "patterns": [asdict(m) for m in plan.phases[0].matches if m.where not in ("freeze", "thaw")],
        "adapter": _adapter(table),
        "tied": {param.name: list(param.aliases) for param in table if param.aliases},
        "final_weights": plan.final_weights,
        "architecture": table.architecture,
        "pretrained": table.pretrained,
        "license": table.license,
        "phases": phases,
    }


def _adapter(table: ParamTable) -> dict[str, Any] | None:
    """What the patterns of the adapter became, and its size; None without an adapter."""
    if not table.adapters:
        return None
    params = [param for param in table if param.adapter]
    return {
        "layers": len(table.adapted),
        "parameters": sum(param.numel for param in params),
        "patterns": [
            {
                "pattern": match.pattern,
                "layers": list(match.layers),
                "left_out": dict(Counter(match.left_out)),
            }
            for match in table.adapters
        ],
    }


def given(table: BaseModel) -> dict[str, Any]:
    """The keys of a table that are not at their defaults; tables in it whole."""
    values = table.model_dump(mode="json")
    fields = type(table).model_fields.items()
    return {key: values[key] for key, field in fields if getattr(table, key) != field.default}


def _group(phase: PhasePlan, name: str, names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, Any]:
    members = [(index, group) for index, group in enumerate(phase.groups) if group.name == name]
    trains = [param for _, group in members for param in group.params]
    curve = [phase.rates(step) for step in _landmarks(phase)]
    decays = sorted({group.weight_decay for _, group in members})
    return {
        "name": name,
        "trainable": sum(sizes[param] for param in trains),
        "frozen": sum(sizes[param] for param in names if param in phase.frozen),
        "rate": {
            label: max((rates[index] for index, _ in members), default=0.0)
            for label, rates in zip(("start", "peak", "end"), curve, strict=True)
        }
        if members
        else None,
        "lowest_rate": min((group.lr for _, group in members), default=None),
        "weight_decay": decays,
    }


def _landmarks(phase: PhasePlan) -> tuple[int, int, int]:
    """First step, the step with the full rate, last step."""
    return 0, min(phase.warmup_steps, phase.steps - 1), phase.steps - 1


def _exempt(phase: PhasePlan, table: ParamTable) -> list[str]:
    """Norm layers whose statistics move although their parameters are frozen."""
    own: dict[str, list[str]] = {}
    for param in table:
        own.setdefault(param.module, []).append(param.name)
    return [
        module.name
        for module in table.modules
        if any(buffer in phase.moving_buffers for buffer in module.buffers)
        and own.get(module.name)
        and all(name in phase.frozen for name in own[module.name])
    ]


def explain_text(facts: Mapping[str, Any], title: str = "") -> str:
    """:func:`explain`'s data as text of at most 80 columns."""
    images = facts["images"]
    lines = [f"{facts['name']}{f' · {title}' if title else ''}"]
    if images:
        counts = ", ".join(
            f"{images[split]:,} {split}" for split in ("train", "val", "test") if images.get(split)
        )
        lines.append(f"{len(facts['classes'])} classes; images: {counts}")
    groups = ", ".join(f"{name} {_count(size)}" for name, size in facts["groups"].items())
    lines.append(f"{_count(facts['parameters'])} parameters: {groups}")
    lines.append(f"backbone: {facts['architecture']}, {_weights(facts)}")
    if (adapter := facts["adapter"]) is not None:
        lines.append(f"adapter: {_count(adapter['parameters'])} parameters on {adapter['layers']} layers")
        lines += [_adapter_pattern(match) for match in adapter["patterns"]]
    for name, aliases in facts["tied"].items():
        lines.append(f"tied: {name} = {', '.join(aliases)}")
    lines += [_pattern(match) for match in facts["patterns"]]
    for number, phase in enumerate(facts["phases"], 1):
        lines += ["", *_phase_lines(phase, number, len(facts["phases"]))]
    return "\n".join(part for line in lines for part in _wrapped(line)) + "\n"


def _phase_lines(phase: Mapping[str, Any], number: int, count: int) -> list[str]:
    epochs = phase["epochs"]
    length = f"{epochs:g} epoch{'' if epochs == 1 else 's'}, {phase['steps']:,} steps"
    batch = f"batches of {phase['batch_size']}"
    if phase["accumulate"] > 1:
        batch += f" × {phase['accumulate']}"
    lines = [
        f"phase {number} of {count}: {phase['name']} – {length}, {batch}, {phase['size']} px",
        f"  {phase['optimizer']}, {phase['schedule']} schedule, {phase['warmup_steps']} warm-up steps",
        f"  {'group':<14}{'trains':>9}{'frozen':>9}   {'rate: start → peak → end':<32}{'decay':>9}",
    ]
    for group in phase["groups"]:
        rate = decay = "–"
        if group["rate"]:
            rate = " → ".join(f"{group['rate'][label]:.2e}" for label in ("start", "peak", "end"))
            decay = "/".join(f"{value:g}" for value in group["weight_decay"])
        trains = _count(group["trainable"]) if group["trainable"] else "–"
        frozen = _count(group["frozen"]) if group["frozen"] else "–"
        lines.append(f"  {group['name'][:13]:<14}{trains:>9}{frozen:>9}   {rate:<32}{decay:>9}")
        lowest = group["lowest_rate"]
        if group["rate"] and lowest < group["rate"]["peak"] * 0.999:
            lines.append(f"  {'':<32}   layer decay down to a base rate of {lowest:.2e}")
    norm = phase["norm_layers"]
    lines.append(f'  norm = "{phase["norm"]}": {norm["train"]} layers train, {norm["eval"]} stand still')
    exempt = phase["moving_statistics_of_frozen_layers"]
    if exempt:
        lines.append(f"  not frozen: the statistics of {len(exempt)} norm layers whose parameters are")
    if phase["augment"]:
        lines.append("  augment: " + ", ".join(f"{key} = {inline(v)}" for key, v in phase["augment"].items()))
    lines += _method_lines(phase)
    lines += [_pattern(match) for match in phase["patterns"]]
    once = phase["computed_once"]
    if once is not None:
        lines.append("  computed once: " + _once(once))
    if phase["predicted_memory_bytes"] is not None:
        lines.append(f"  predicted peak memory: {phase['predicted_memory_bytes'] / 1e6:,.0f} MB")
    return lines


def _weights(facts: Mapping[str, Any]) -> str:
    if not facts["pretrained"]:
        return "random weights"
    return f"licence of the weights: {facts['license'] or 'not known'}"


def _method_lines(phase: Mapping[str, Any]) -> list[str]:
    """What is not as in every phase."""
    lines = []
    if phase["loss"] != {"name": "cross_entropy"}:
        lines.append(f"  loss: {inline(phase['loss'])}")
    if (weights := phase["class_weights"]) is not None:
        low, high = min(weights, key=lambda name: weights[name]), max(weights, key=lambda name: weights[name])
        lines.append(f"  class weights: {weights[low]:.3g} ({low}) to {weights[high]:.3g} ({high})")
    if phase["sampling"] != "once":
        lines.append(f"  sampling: {phase['sampling']}")
    if phase["l2_sp"] is not None:
        lines.append(f"  l2_sp: the backbone is pulled towards its pretrained weights by {phase['l2_sp']:g}")
    if phase["wise_ft"] is not None:
        lines.append(f"  wise_ft: ends with {phase['wise_ft']:g} of what it trained, the rest as it began")
    return lines


def _pattern(match: Mapping[str, Any]) -> str:
    span = match["first"] if match["taken"] == 1 else f"{match['first']} … {match['last']}"
    of = match["taken"] if match["taken"] == match["matched"] else f"{match['taken']} of {match['matched']}"
    return f"  {match['where']} `{match['pattern']}`: {of}, {span}"


def _adapter_pattern(match: Mapping[str, Any]) -> str:
    layers = match["layers"]
    span = layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]}"
    left_out = ", ".join(f"{count} × {what}" for what, count in match["left_out"].items())
    without = f"; left out: {left_out}" if left_out else ""
    return f"  backbone.adapter.match `{match['pattern']}`: {len(layers)}, {span}{without}"


def _once(once: Mapping[str, Any]) -> str:
    if not once["cut"]:
        return f"nothing; {once['note']}"
    what = f"up to {', '.join(once['cut'])}, {once['bytes_per_image'] / 1000:,.1f} kB an image"
    if once["views"] is None:
        return f"{what}; not stored, since the augmentation has endless outcomes"
    return f"{what}, {once['views']} view{'s' if once['views'] > 1 else ''}, if storing is measured to pay"


def _count(number: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return str(number)


def _wrapped(line: str, width: int = 80) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_on_hyphens=False,
    )
