"""Peak memory of one training run, in a process of its own: one line of JSON on stdout.

    python benchmarks/peak.py ours|textbook FOLDER SIZE

``start`` is what the process took before anything was built, its libraries loaded; ``peak`` is the most that
it took at all. Both in bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cases
from loops import textbook

# The library of the backbone, which would otherwise be loaded between the two readings.
import tlrecipe.models.timm_source  # noqa: F401
from tlrecipe.models.memory import process_bytes


def main(side: str, root: str, size: str) -> None:
    recipe = cases.recipe(cases.Setting(Path(root), int(size), 1), [cases.phase(epochs=2)])
    start = process_bytes()
    backbone = cases.fresh()
    if side == "ours":
        cases.ours(recipe, backbone)
    else:
        training = cases.as_training(recipe, cases.HEAD)
        textbook(backbone.model, Path(root), training, cases.preprocessing(recipe), workers=0)
    print(json.dumps({"start": start, "peak": process_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
