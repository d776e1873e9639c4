"""Transfer learning from a recipe: a file that says what to train, frozen when, at which rates.

What is here is the whole public surface. Each name is fetched from its home when it is first used, so
that ``import tlrecipe`` costs next to nothing and reading a recipe never imports torch::

    document = tlrecipe.load(Path("recipes/hybrid.toml"))
    model = tlrecipe.Model.load(Path("runs/hybrid/20260101-120000-1a2b/model"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Diagnostic",
    "Model",
    "Plan",
    "Recipe",
    "TlrecipeError",
    "__version__",
    "compile_recipe",
    "load",
]

__version__: str
"""Version of the installed distribution; ``"unknown"`` where the package is used without being installed."""

if TYPE_CHECKING:
    from tlrecipe.artifacts.bundle import Model
    from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
    from tlrecipe.language.spec import Recipe
    from tlrecipe.language.text import load
    from tlrecipe.planning.compile import compile_recipe
    from tlrecipe.planning.plan import Plan
else:
    # Out of a type checker's sight, to which a module with __getattr__ has every name there could be.
    _HOMES = {
        "Diagnostic": "tlrecipe.language.diagnostics",
        "Model": "tlrecipe.artifacts.bundle",
        "Plan": "tlrecipe.planning.plan",
        "Recipe": "tlrecipe.language.spec",
        "TlrecipeError": "tlrecipe.language.diagnostics",
        "compile_recipe": "tlrecipe.planning.compile",
        "load": "tlrecipe.language.text",
    }

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from tlrecipe.artifacts.environment import version

            return version("tlrecipe") or "unknown"
        if name in _HOMES:
            from importlib import import_module

            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module `tlrecipe` has no attribute `{name}`")

    def __dir__() -> list[str]:
        return sorted(__all__)
