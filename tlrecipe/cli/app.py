"""The command line: names, options and help. What a command does is in the module of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich_click as click

from tlrecipe.cli import completion
from tlrecipe.cli.render import printable
from tlrecipe.cli.reporting import reports
from tlrecipe.cli.signals import EXIT_ON

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_FILE = click.Path(path_type=Path)
_SET: Decorator = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completion.overrides,
    help="Override a value of the recipe, read as TOML: --set phase.finetune.epochs=3. Repeatable.",
)
_JSON: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_EXIT_ON: Decorator = click.option(
    "--exit-on",
    multiple=True,
    type=click.Choice(EXIT_ON),
    help="Save and exit with 75 on this signal too, as on SIGTERM. SIGUSR1 otherwise saves and goes on.",
)
_PLAIN: Decorator = click.option("--plain", is_flag=True, help="Lines instead of progress bars.")
_QUIET: Decorator = click.option("-q", "--quiet", is_flag=True, help="Nothing but warnings and the result.")
_DEVICE: Decorator = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)


def _example(arguments: str) -> str:
    """What stands at the end of a command's help."""
    return f"Example: tlrecipe {arguments}"


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from tlrecipe.artifacts.environment import version

        # The packages' metadata: importing torch to ask it takes seconds.
        names = ("tlrecipe", "torch", "torchvision", "timm")
        click.echo(", ".join(f"{name} {version(name) or '(not installed)'}" for name in names))
        context.exit()


class _Commands(click.RichGroup):
    """Commands whose usage errors show foreign characters instead of acting on the terminal by them."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _shown_usage():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _shown_usage():
            return super().invoke(ctx)


@contextmanager
def _shown_usage() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        # Another error of its class could not be made without its other facts.
        error.message = printable(error.message)  # type: ignore[misc]
        raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show versions and exit.",
)
def cli() -> None:
    """Transfer learning from a recipe: what to train, frozen when, at which rates."""


@cli.command(epilog=_example("run recipe.toml --set phase.finetune.epochs=3"))
@click.argument("recipe", type=_FILE, shell_complete=completion.recipes)
@_SET
@click.option("--run-dir", type=_FILE, help="Where to write; by default a new folder under runs/.")
@_DEVICE
@_EXIT_ON
@click.option(
    "--track",
    multiple=True,
    metavar="TRACKER",
    help="Send metrics to tensorboard[:DIR], mlflow[:URI] or wandb[:PROJECT]. Repeatable.",
)
@_PLAIN
@_QUIET
@_JSON
@reports
def run(recipe: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Train a recipe and write its run directory."""
    from tlrecipe.cli.run import run

    run(recipe, overrides, **options)


@cli.command(epilog=_example("resume runs/flowers/first"))
@click.argument("run_dir", type=_FILE)
@_DEVICE
@_EXIT_ON
@click.option("--strict", is_flag=True, help="Refuse where the result may differ in its last bits.")
@_PLAIN
@_QUIET
@_JSON
@reports
def resume(run_dir: Path, **options: Any) -> None:
    """Go on where a run stopped, to the same result."""
    from tlrecipe.cli.resume import resume

    resume(run_dir, **options)


@cli.command(epilog=_example("validate recipe.toml --data"))
@click.argument("recipes", nargs=-1, required=True, type=_FILE, shell_complete=completion.recipes)
@_SET
@click.option("--data", "decode", is_flag=True, help="Open every image as well, and show the data's card.")
@_PLAIN
@_QUIET
@click.option("--json", "as_json", is_flag=True, help="Print the cards of --data as one JSON object.")
@reports
def validate(recipes: tuple[Path, ...], overrides: tuple[str, ...], **options: Any) -> None:
    """Check recipes without training."""
    from tlrecipe.cli.validate import validate

    validate(recipes, overrides, **options)


@cli.command(epilog=_example("explain recipe.toml --memory"))
@click.argument("recipe", metavar="RECIPE|CODE", shell_complete=completion.recipes_or_codes)
@_SET
@click.option("--memory", is_flag=True, help="Predict the peak memory of each phase too.")
@click.option("--plot", type=_FILE, help="Draw rates and frozen groups over all steps: a .svg or .png file.")
@_JSON
@reports
def explain(recipe: str, overrides: tuple[str, ...], memory: bool, plot: Path | None, as_json: bool) -> None:
    """Show what a recipe does in each phase, or what an error code means."""
    from tlrecipe.cli.explain import explain_code, explain_recipe, is_code

    if is_code(recipe):
        explain_code(recipe, as_json=as_json)
    else:
        explain_recipe(Path(recipe), overrides, memory=memory, plot=plot, as_json=as_json)


@cli.command(epilog=_example("preview recipe.toml"))
@click.argument("recipe", type=_FILE, shell_complete=completion.recipes)
@_SET
@click.option("-o", "--output", "out", type=_FILE, help="The PNG file; by default NAME-preview.png.")
@click.option("--images", type=click.IntRange(1, 64), default=8, show_default=True, help="Images to show.")
@click.option("--epochs", type=click.IntRange(1, 64), default=3, show_default=True, help="Epochs to show.")
@reports
def preview(recipe: Path, overrides: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Draw what the augmentation of each phase does to training images."""
    from tlrecipe.cli.preview import preview

    preview(recipe, overrides, out, **options)


@cli.command(epilog=_example("params recipe.toml layer4 @norm"))
@click.argument("recipe", type=_FILE, shell_complete=completion.recipes)
@click.argument("globs", nargs=-1, metavar="[GLOB]...")
@_SET
@click.option("--depth", type=click.IntRange(min=1), help="Name segments to show; the rest is summed up.")
@reports
def params(recipe: Path, globs: tuple[str, ...], overrides: tuple[str, ...], depth: int | None) -> None:
    """Show the parameters of a recipe's network, and what patterns match."""
    from tlrecipe.cli.params import params

    params(recipe, globs, overrides, depth)


@cli.command(epilog=_example("new photos -o own.toml"))
@click.argument("data", required=False, type=_FILE, metavar="[DATA_DIR]")
@click.option("-o", "--output", "out", type=_FILE, help="The file to write; - prints the recipe.")
@click.option(
    "--domain",
    type=click.Choice(["similar", "different"]),
    help="Whether the images are like those that the weights saw; by default judged by colour.",
)
@click.option(
    "--strategy",
    type=click.Choice(["feature-extraction", "fine-tuning", "from-scratch", "hybrid"]),
    help="Take this strategy, whatever the data.",
)
@reports
def new(data: Path | None, out: Path | None, **options: Any) -> None:
    """Look at a folder of images and write a commented recipe for it.

    Without a folder, a template for the data set in the package is written.
    """
    from tlrecipe.cli.new import new

    new(data, out, **options)


@cli.command(epilog=_example("evaluate runs/flowers/first --data photos"))
@click.argument("model", type=_FILE)
@click.option("--data", type=_FILE, help="A folder or zip of images, a table, or a recipe.")
@click.option("-o", "--output", "out", type=_FILE, help="CSV of each image's true and predicted class.")
@_DEVICE
@_PLAIN
@_QUIET
@_JSON
@reports
def evaluate(model: Path, data: Path | None, **options: Any) -> None:
    """Measure a trained model on labelled images.

    MODEL is a run directory or the model folder in one.
    """
    from tlrecipe.cli.evaluate import evaluate

    evaluate(model, data, **options)


@cli.command(epilog=_example("predict runs/flowers/first photos -o labels.csv"))
@click.argument("model", type=_FILE)
@click.argument("images", nargs=-1, required=True, type=_FILE, metavar="PATH...")
@click.option("-o", "--output", "out", type=_FILE, help="CSV, or JSON lines if it ends in .jsonl.")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes per image.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time."
)
@click.option("--keep-going", is_flag=True, help="Exit with 0 although files could not be used.")
@_DEVICE
@_PLAIN
@_QUIET
@reports
def predict(model: Path, images: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Predict the classes of images, or of all images in folders.

    MODEL is a run directory or the model folder in one. A file that cannot be used has its error in its
    row, and the exit code is 4.
    """
    from tlrecipe.cli.predict import predict

    predict(model, images, out, **options)


@cli.command(epilog=_example("report runs/flowers/first"))
@click.argument("run_dir", type=_FILE)
@click.option("-o", "--output", "out", type=_FILE, help="Where to write; by default report.html in RUN_DIR.")
@reports
def report(run_dir: Path, out: Path | None) -> None:
    """Write the report of a run: one HTML file that needs nothing else.

    `run` and `resume` write it already; this makes it again, from the run directory alone.
    """
    from tlrecipe.cli.report import report

    report(run_dir, out)


@cli.command(epilog=_example("compare runs/flowers/first runs/flowers/first"))
@click.argument("run_dirs", nargs=-1, required=True, type=_FILE, metavar="RUN_DIR...")
@click.option("-o", "--output", "out", type=_FILE, help="Write a page too: one HTML file.")
@_JSON
@reports
def compare(run_dirs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Show runs side by side: what they reached, and what differs in their recipes.

    Where runs were measured on the same images, the others are compared with the first image by image.
    """
    from tlrecipe.cli.compare import compare

    compare(run_dirs, out, as_json=as_json)


@cli.command("list", epilog=_example("list backbones efficientnet"))
@click.argument("kind", type=click.Choice(["backbones", "data", "optimizers", "schedules", "augmentations"]))
@click.argument("filter", default="", shell_complete=completion.names_of_kind)
@reports
def list_names(kind: str, filter: str) -> None:
    """List what a recipe may name."""
    from tlrecipe.cli.catalog import print_list

    print_list(kind, filter)


@cli.command("schema", epilog=_example("schema -o recipe.schema.json"))
@click.option("-o", "--output", "out", type=_FILE, help="Write to a file.")
@reports
def print_schema(out: Path | None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from tlrecipe import files
    from tlrecipe.language.schema import schema

    if out is None:
        click.echo(schema(), nl=False)
    else:
        files.write_atomic(out, schema().encode())


@cli.command("completion", epilog=_example("completion bash"))
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
@reports
def print_completion(shell: str) -> None:
    """Print the completion script of a shell.

    Bash: add eval "$(tlrecipe completion bash)" to ~/.bashrc. Zsh: the same with zsh in ~/.zshrc, behind
    compinit.
    """
    completion.print_script(shell)


@cli.group()
def cache() -> None:
    """Look after stored features and images."""


@cache.command("list", epilog=_example("cache list"))
@reports
def list_cache() -> None:
    """Show what is stored."""
    from tlrecipe.cli.machine import print_cache

    print_cache()


@cache.command("clear", epilog=_example("cache clear"))
@reports
def clear_cache() -> None:
    """Remove all that is stored."""
    from tlrecipe.cli.machine import clear_cache

    clear_cache()


@cache.command("path", epilog=_example("cache path"))
@reports
def cache_path() -> None:
    """Print the folder."""
    from tlrecipe import files

    click.echo(str(files.cache_dir()))


@cli.command(epilog=_example("doctor --json"))
@_JSON
@reports
def doctor(as_json: bool) -> None:
    """Show versions and what this machine can do."""
    from tlrecipe.cli.machine import print_doctor

    print_doctor(as_json=as_json)
