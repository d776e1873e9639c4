"""Transfer learning from a recipe: a file that says what to train, frozen when, at which rates.

What is here is the whole public surface. Each name is fetched from its home when it is first used, so
that ``import tlrecipe`` costs next to nothing and reading a recipe never imports torch::

    run = tlrecipe.run("recipes/hybrid.toml", {"phase.finetune.epochs": 3})
    print(run.metrics["test"]["accuracy"])
    for prediction in run.model().predict(["photo.jpg"]):
        print(prediction.label, prediction.probability)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Checked",
    "Diagnostic",
    "Document",
    "Measured",
    "Model",
    "Plan",
    "Prediction",
    "Recipe",
    "Run",
    "TlrecipeError",
    "__version__",
    "compile_recipe",
    "evaluate",
    "load",
    "loads",
    "plan",
    "resume",
    "run",
    "validate",
]

__version__: str
"""Version of the installed distribution; ``"unknown"`` where the package is used without being installed."""

if TYPE_CHECKING:
    from tlrecipe.artifacts.bundle import Model
    from tlrecipe.artifacts.predictions import Prediction
    from tlrecipe.artifacts.runs import Run
    from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
    from tlrecipe.language.spec import Recipe
    from tlrecipe.language.text import Document, load, loads
    from tlrecipe.planning.compile import compile_recipe
    from tlrecipe.planning.plan import Plan
    from tlrecipe.workflow.checking import Checked, plan, validate
    from tlrecipe.workflow.evaluating import Measured, evaluate
    from tlrecipe.workflow.running import resume, run
else:
    # Out of a type checker's sight, to which a module with __getattr__ has every name there could be.
    _HOMES = {
        "Checked": "tlrecipe.workflow.checking",
        "Diagnostic": "tlrecipe.language.diagnostics",
        "Document": "tlrecipe.language.text",
        "Measured": "tlrecipe.workflow.evaluating",
        "Model": "tlrecipe.artifacts.bundle",
        "Plan": "tlrecipe.planning.plan",
        "Prediction": "tlrecipe.artifacts.predictions",
        "Recipe": "tlrecipe.language.spec",
        "Run": "tlrecipe.artifacts.runs",
        "TlrecipeError": "tlrecipe.language.diagnostics",
        "compile_recipe": "tlrecipe.planning.compile",
        "evaluate": "tlrecipe.workflow.evaluating",
        "load": "tlrecipe.language.text",
        "loads": "tlrecipe.language.text",
        "plan": "tlrecipe.workflow.checking",
        "resume": "tlrecipe.workflow.running",
        "run": "tlrecipe.workflow.running",
        "validate": "tlrecipe.workflow.checking",
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
