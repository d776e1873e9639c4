"""Licences that forbid commercial use are warned about; every licence of timm falls on one side."""

from __future__ import annotations

import pytest
from planning.toys import INFO, phase, recipe

from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.explain import explain, explain_text
from tlrecipe.planning.facts import ParamFact, ParamTable, Preprocessing
from tlrecipe.planning.licenses import non_commercial

PARAMS = (ParamFact("conv.weight", (4,), "conv"), ParamFact("fc.weight", (3, 4), "fc", head=True, stage=1))


@pytest.mark.parametrize(
    ("license", "forbids"),
    [
        ("cc-by-nc-4.0", True),
        ("CC-BY-NC-SA-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("apple-amlr", True),
        ("apache-2.0", False),
        ("mit", False),
        ("bsd-3-clause", False),
        ("cc-by-4.0", False),
        ("dinov3-license", False),
        ("unknown", False),
        (None, False),
    ],
)
def test_non_commercial(license: str | None, forbids: bool) -> None:
    table = ParamTable(PARAMS, (), Preprocessing(32), license=license, architecture="tower")
    plan = compile_recipe(recipe(), table, INFO)
    assert non_commercial(license) == forbids
    assert [found.code for found in plan.warnings] == ["TLR505"] * forbids
    said = explain_text(explain(plan, table))
    assert f"backbone: tower, licence of the weights: {license or 'not known'}" in said


def test_random_weights_have_no_licence() -> None:
    table = ParamTable(PARAMS, (), Preprocessing(32), pretrained=False, architecture="tower")
    said = explain_text(explain(compile_recipe(recipe(phase=[phase(freeze=[])]), table, INFO), table))
    assert "backbone: tower, random weights" in said
