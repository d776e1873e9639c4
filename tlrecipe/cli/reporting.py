"""How every command ends: mistakes in the format that was asked for, and the exit code."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.exceptions import Exit

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.render import as_github, as_json, as_text
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError

EXIT_WORKER = 10
EXIT_BUG = 70
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--errors`` and ``--debug``, and turn what it raises into messages and exit codes."""

    @click.option(
        "--errors",
        "errors",
        type=click.Choice(["plain", "json", "github"]),
        default="plain",
        show_default=True,
        help="How to report mistakes: as text on stderr, or as JSON or GitHub annotations on stdout.",
    )
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def guarded(*args: Any, errors: str, debug: bool, **options: Any) -> None:
        click.get_current_context().meta[__name__] = errors
        try:
            command(*args, **options)
            sys.stdout.flush()
        except (Exit, click.ClickException, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            if debug:
                traceback.print_exc()
            known = _known(error)
            if known is None:
                _bug(error, debug)
            stop(known.diagnostics, known.exit_code)

    return guarded


def _known(error: Exception) -> TlrecipeError | None:
    """The user's view of an error, or None for a bug of ours."""
    if isinstance(error, TlrecipeError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK:
        return files.disk_error("use", Path(error.filename or "the output"), error)
    if _out_of_memory(error):
        detail = str(error).partition("\n")[0]
        message = f"out of memory: {detail}" if detail else "out of memory"
        return TlrecipeError.of("TLR801", message, help="choose a smaller `batch_size` or `size`")
    return None


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from tlrecipe.models.memory import out_of_memory

    return out_of_memory(error)


def _bug(error: Exception, shown: bool) -> NoReturn:
    hint = "" if shown else "; run it again with --debug to see where"
    text = str(error).partition("\n")[0]
    console.note(f"this is a bug of tlrecipe: {type(error).__name__}: {text}{hint}")
    raise Exit(EXIT_BUG)


def tell(diagnostics: Sequence[Diagnostic]) -> None:
    """Report mistakes in the format of the running command; in JSON an empty list is an answer too."""
    wanted = _format()
    if wanted == "json":
        console.out(as_json(diagnostics))
    elif wanted == "github" and diagnostics:
        console.out(as_github(diagnostics))
    elif diagnostics:
        warn(diagnostics)


def warn(diagnostics: Sequence[Diagnostic]) -> None:
    """Report as text on stderr, whatever the format: for what comes beside a result."""
    if diagnostics:
        console.styled(as_text(diagnostics, console.width(sys.stderr)), sys.stderr)


def stop(diagnostics: Sequence[Diagnostic], exit_code: int) -> NoReturn:
    """Report mistakes and end the command with ``exit_code``."""
    tell(diagnostics)
    raise Exit(exit_code)


def errors_as_text() -> bool:
    """Whether stdout is free for results, as it is unless mistakes are to be reported there."""
    return _format() == "plain"


def _format() -> str:
    return str(click.get_current_context().meta.get(__name__, "plain"))
