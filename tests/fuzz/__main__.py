"""Search with atheris for bytes that a reader has no answer to: ``python -m tests.fuzz TARGET [OPTION…]``.

Needs ``pip install atheris``. Options are libFuzzer's (https://llvm.org/docs/LibFuzzer.html), such as
``-max_total_time=3600``; a folder among them keeps the corpus from one search to the next.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris
import torch  # noqa: F401 - imported before, not to be instrumented

with atheris.instrument_imports(include=["tlrecipe"], enable_loader_override=False):
    sys.path.insert(0, str(Path(__file__).parent))
    import targets

    import tlrecipe.artifacts.bundle
    import tlrecipe.artifacts.checkpoint
    import tlrecipe.data.preprocess
    import tlrecipe.data.sources
    import tlrecipe.language.places
    import tlrecipe.language.text
    import tlrecipe.models.weights  # noqa: F401 - imported here to be instrumented


def main(name: str, options: list[str]) -> None:
    given = [option for option in options if not option.startswith("-")]
    with tempfile.TemporaryDirectory() as fresh:
        corpus = Path(given[0] if given else fresh)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(targets.seeds(name)):
            (corpus / f"seed-{number}").write_bytes(seed)
        flags = [option for option in options if option.startswith("-")]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], targets.TARGETS[name])
        atheris.Fuzz()


if len(sys.argv) < 2 or sys.argv[1] not in targets.TARGETS:
    sys.exit(f"python -m tests.fuzz TARGET [OPTION…]; targets: {', '.join(targets.TARGETS)}")
main(sys.argv[1], sys.argv[2:])
