"""A toy network for the compiler, with telling names, and recipes for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tlrecipe.language.spec import Recipe
from tlrecipe.planning.facts import DatasetInfo, ModuleFact, ParamFact, ParamTable, Preprocessing

INFO = DatasetInfo(classes=("cat", "dog"), counts={"train": 100, "val": 20, "test": 50})


def toy_table(
    *, pretrained: bool = True, tied: bool = False, fixed_size: bool = False, rank: int = 0
) -> ParamTable:
    """stem (conv + batch norm), two blocks (conv + batch norm + dropout) and a head; with a ``rank``, also
    adapters of the blocks' convolutions."""
    params: list[ParamFact] = []
    modules = [ModuleFact("", "Toy")]

    def conv(name: str, stage: int) -> None:
        params.append(ParamFact(f"{name}.weight", (4, 3, 3, 3), name, stage=stage, depth=stage))
        modules.append(ModuleFact(name, "Conv2d"))

    def norm(name: str, stage: int) -> None:
        weight = ParamFact(f"{name}.weight", (4,), name, norm=True, stage=stage, depth=stage)
        params.extend([weight, replace(weight, name=f"{name}.bias", bias=True)])
        buffers = (f"{name}.running_mean", f"{name}.running_var")
        modules.append(ModuleFact(name, "BatchNorm2d", norm=True, statistics=True, buffers=buffers))

    conv("stem", 0)
    norm("bn", 0)
    modules.append(ModuleFact("blocks", "Sequential"))
    for index in range(2):
        modules.append(ModuleFact(f"blocks.{index}", "Block"))
        conv(f"blocks.{index}.conv", index + 1)
        if rank:
            down = replace(
                params[-1], name=f"blocks.{index}.conv.lora_down", shape=(rank, 3, 3, 3), adapter=True
            )
            params.extend([down, replace(down, name=f"blocks.{index}.conv.lora_up", shape=(4, rank, 1, 1))])
        norm(f"blocks.{index}.bn", index + 1)
        modules.append(ModuleFact(f"blocks.{index}.drop", "Dropout", random=True))
    modules.append(ModuleFact("head", "Linear"))
    aliases = ("stem.tied",) if tied else ()
    params.append(ParamFact("head.weight", (2, 4), "head", head=True, stage=3, depth=3, aliases=aliases))
    params.append(ParamFact("head.bias", (2,), "head", bias=True, head=True, stage=3, depth=3))
    return ParamTable(
        tuple(params), tuple(modules), Preprocessing(32), pretrained=pretrained, fixed_size=fixed_size
    )


def recipe(**changes: Any) -> Recipe:
    """A valid recipe for the toy network; keyword arguments replace its top-level keys."""
    values: dict[str, Any] = {
        "format": 1,
        "name": "toy",
        "data": {"source": "sample", "batch_size": 10},
        "backbone": {"source": "timm", "name": "toy", "weights": "pretrained"},
        "phase": [phase()],
    }
    return Recipe.model_validate(values | changes)


def phase(**changes: Any) -> dict[str, Any]:
    """A valid phase; a value of None removes a key."""
    values = {"name": "one", "freeze": ["@backbone"], "epochs": 2, "lr": 0.1} | changes
    return {key: value for key, value in values.items() if value is not None}
