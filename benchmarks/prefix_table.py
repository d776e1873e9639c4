"""Writes docs/prefix-table.md: where the frozen part of many architectures ends, by freeze pattern.

    python benchmarks/prefix_table.py

Needs no weights, no network and no data: the networks are built on the meta device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tlrecipe.language.spec import Recipe
from tlrecipe.models.backbones import describe, outline
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.explain import PrefixFacts
from tlrecipe.planning.facts import DatasetInfo, ParamTable
from tlrecipe.training.forecast import prefix_facts

DOCUMENT = Path(__file__).parents[1] / "docs" / "prefix-table.md"

ARCHITECTURES = {
    "timm": """
        resnet18 resnet50 resnext50_32x4d resnetv2_50 wide_resnet50_2 densenet121 vgg16_bn inception_v3
        xception41 dpn68 dla34 hrnet_w18_small regnety_004 repvgg_a0 nf_resnet50 eca_nfnet_l0 res2net50_14w_8s
        tf_efficientnet_lite0 efficientnet_b0 efficientnetv2_rw_t mobilenetv2_100 mobilenetv3_large_100
        mobilenetv4_conv_small ghostnet_100 convnext_tiny convnextv2_nano mambaout_tiny vit_tiny_patch16_224
        deit3_small_patch16_224 vit_small_patch14_dinov2 swin_tiny_patch4_window7_224 maxvit_tiny_tf_224
        mixer_b16_224 coatnet_0_rw_224 levit_128s xcit_nano_12_p16_224
    """,
    "torchvision": """
        resnet18 densenet121 mobilenet_v3_small efficientnet_b0 vit_b_16 swin_t googlenet shufflenet_v2_x1_0
    """,
}

# The patterns of the shipped recipes, by the number of the backbone's last stage.
PATTERNS: Mapping[str, Callable[[int], list[str]]] = {
    "feature extraction: `@backbone`": lambda last: ["@backbone"],
    "hybrid, gradual: all but the last stage": lambda last: [f"@stage:0..{last - 1}"],
    "gradual: the first half of the stages": lambda last: [f"@stage:0..{last // 2}"],
    "the stem alone: `@stage:0`": lambda last: ["@stage:0"],
}
CLASSES = DatasetInfo(tuple("abcdefghij"), {"train": 1000, "val": 0, "test": 0})

HEADER = """\
# Where the frozen part ends

Written by `python benchmarks/prefix_table.py`; run it again after a change of `tlrecipe/models/prefix.py`.

For each architecture and each freeze pattern of the shipped recipes: the last layer whose output can be
computed once, and its size in kB per image, in float32, at the image size of the published weights. Several
names are several tensors, all of which the later layers read. The sizes say at a glance why storing pays
behind the last stage and not behind the stem; each run measures it for itself.

Networks are traced at module granularity (`torch.fx`). Where that fails, the table would say why, and the
network is trained as a whole.
"""


def recipe(library: str, name: str, last: int) -> Recipe:
    return Recipe.model_validate(
        {
            "format": 1,
            "name": "table",
            "data": {"source": "sample", "batch_size": 2},
            "backbone": {"source": library, "name": name, "weights": "pretrained"},
            "phase": [
                {"name": f"p{number}", "freeze": freeze(last), "epochs": 1, "lr": 0.1}
                for number, freeze in enumerate(PATTERNS.values())
            ],
        }
    )


def cuts(library: str, name: str) -> tuple[ParamTable, tuple[PrefixFacts, ...]]:
    draft = recipe(library, name, 1)
    table = describe(draft.backbone, draft.head, len(CLASSES.classes))
    last = max(param.stage for param in table if not param.head)
    plan = compile_recipe(recipe(library, name, last), table, CLASSES)
    return table, prefix_facts(plan, outline(draft.backbone, draft.head, len(CLASSES.classes)))


def rows() -> Iterator[str]:
    yield "| architecture | library | pixels | " + " | ".join(PATTERNS) + " |"
    yield "| --- " * (len(PATTERNS) + 3) + "|"
    for library, names in ARCHITECTURES.items():
        for name in names.split():
            print(name, file=sys.stderr)
            table, facts = cuts(library, name)
            cells = " | ".join(cell(fact) for fact in facts)
            yield f"| `{name}` | {library} | {table.preprocessing.size} | {cells} |"


def cell(fact: PrefixFacts) -> str:
    if not fact.cut:
        return f"nothing: {fact.note}"
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(fact.cut))
    return f"{names}, {fact.feature_bytes / 1000:,.1f}"


if __name__ == "__main__":
    DOCUMENT.write_text(HEADER + "\n" + "\n".join(rows()) + "\n")
