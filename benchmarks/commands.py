"""Commands of tlrecipe in this process, so that many of them import their libraries once."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner

from tlrecipe.cli.app import cli


def called(*arguments: Any) -> str:
    """What a command of tlrecipe prints. Raises where it does not end well."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if done.exit_code:
        raise RuntimeError(f"tlrecipe {' '.join(map(str, arguments))}: {done.output}") from done.exception
    return done.stdout
