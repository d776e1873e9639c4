"""What a run came to, read from its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError

if TYPE_CHECKING:
    import torch

    from tlrecipe.artifacts.bundle import Model


@dataclass(frozen=True)
class Run:
    """A run that has ended: complete, or stopped with a checkpoint to go on from."""

    path: Path
    """The run directory."""
    result: Mapping[str, Any]
    """What its ``result.json`` says; empty where the run was ended by force."""

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """The run in the folder ``path``. Raises TLR601 where there is none, or its result is damaged."""
        path = Path(path)
        if not (path / "recipe.resolved.toml").is_file():
            raise TlrecipeError.of(
                "TLR601", f"`{path}` is not a run directory: it holds no recipe.resolved.toml"
            )
        file = path / "result.json"
        if not file.is_file():
            return cls(path, {})
        try:
            result = json.loads(files.read(file, code="TLR601", limit=1 << 26))
            if result["status"] not in ("complete", "stopped"):
                raise ValueError(f"its status is {result['status']!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TlrecipeError.of("TLR601", f"`{file}` is damaged: {error}") from error
        return cls(path, result)

    @property
    def complete(self) -> bool:
        """Whether the run went through; else :func:`tlrecipe.resume` finishes it."""
        return bool(self.result.get("status") == "complete")

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Metrics by split, such as ``metrics["test"]["accuracy"]``; none before the run is complete."""
        found: Mapping[str, Mapping[str, Any]] = self.result.get("metrics", {})
        return found

    def model(self, device: torch.device | str = "cpu") -> Model:
        """The trained classifier. Raises TLR504 before the run is complete."""
        from tlrecipe.artifacts.bundle import Model

        return Model.load(self.path, device)
