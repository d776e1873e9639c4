"""`tlrecipe cache` and `tlrecipe doctor`: what lies on this machine, and whether it is fit."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.language.diagnostics import TlrecipeError


def print_cache() -> None:
    """Print what the cache folder holds: stored features one by one, the rest by folder."""
    from tlrecipe.training.features import entries_of

    folder = files.cache_dir()
    console.out(str(folder))
    for entry in entries_of(folder / files.FEATURES):
        about = entry.about
        age = _age(time.time() - entry.used)
        console.out(
            f"  features {entry.key[:12]}  {files.size_text(entry.size):>7}  used {age} ago  "
            f"{about.get('images')} images of {about.get('split')}, {about.get('backbone')}"
        )
    for place, size in _sizes(folder):
        console.out(f"  {place.name:<21}  {files.size_text(size):>7}")


def clear_cache() -> None:
    """Remove the folders that tlrecipe keeps in its cache folder, and nothing else that lies there."""
    folder = files.cache_dir()
    freed = sum(size for _, size in _sizes(folder))
    for place, _ in _sizes(folder):
        files.remove(place)
    console.out(f"removed {files.size_text(freed)} from {folder}")


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    for name in (files.FEATURES, "pixels", "tables"):
        place = folder / name
        if place.is_dir():
            yield place, sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def _age(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


def print_doctor(*, as_json: bool) -> None:
    """Print versions, the processor, and whether the cache folder can be written."""
    import torch

    from tlrecipe.artifacts.environment import environment

    facts = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    facts["cache"] = str(files.cache_dir())
    facts["cache_problem"] = _cache_problem()
    if as_json:
        console.out(json.dumps(facts, indent=2))
        return
    for name, value in facts.pop("packages").items():
        console.out(f"{name:<14} {value or 'not installed'}")
    for name, value in facts.items():
        console.out(f"{name.replace('_', ' '):<14} {'–' if value is None else value}")


def _cache_problem() -> str | None:
    folder = files.cache_dir()
    try:
        files.make_folder(folder)
        probe = folder / "doctor"
        files.write_atomic(probe, b"can this folder be written?")
        files.remove(probe)
    except TlrecipeError as error:
        return error.diagnostics[0].message
    free = shutil.disk_usage(folder).free
    return None if free > 1 << 30 else f"only {files.size_text(free)} free"
