"""The names of all backbones, remembered: completing one in a shell must not wait for PyTorch.

This module imports neither library unless the names of its version are not known yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.models.table import versions


def known_backbones(cache: Path) -> list[tuple[str, str]]:
    """:func:`tlrecipe.models.backbones.available`, remembered under ``cache`` for the libraries' versions.

    A damaged file is made anew.
    """
    key = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode()).hexdigest()
    file = cache / "tables" / f"names-{key}.json"
    try:
        return [(str(name), str(source)) for name, source in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        pass
    from tlrecipe.models.backbones import available

    names = list(available())
    with contextlib.suppress(TlrecipeError):
        files.make_folder(file.parent)
        files.write_atomic(file, json.dumps(names).encode())
    return names
