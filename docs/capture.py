"""Capture a real run as the picture that README.md shows: ``python docs/capture.py docs/images/run.svg``."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

RECIPE = Path(__file__).parents[1] / "recipes" / "feature_extraction.toml"


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tlrecipe", "run", str(RECIPE), "--plain", "--run-dir", "runs/first"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
    console = Console(record=True, width=124, file=io.StringIO())
    console.print(Text("$ tlrecipe run recipes/feature_extraction.toml --plain --run-dir runs/first", "bold"))
    console.print(Text(done.stdout.rstrip()))
    # No font is fetched: the reader's own monospaced one does.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="tlrecipe run"), flags=re.DOTALL)
    out.parent.mkdir(exist_ok=True)
    out.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
