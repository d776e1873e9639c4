"""Options of the benchmarks, and the table that they end with."""

from __future__ import annotations

import pytest

ROWS: pytest.StashKey[list[tuple[str, str, str, str]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--per-class", type=int, default=100, help="Training images per class of the sample (at most 100)."
    )
    parser.addoption("--pixels", type=int, default=128, help="Image size.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[tuple[str, str, str, str]]:
    """Rows of the final table: case, ours, theirs, what they say about each other."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    import torch

    from tlrecipe.models.fast import native_bf16

    terminalreporter.section("ours against the plain loop, same process")
    native = "native" if native_bf16("cpu") else "no native"
    terminalreporter.line(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads,"
        f" {torch.backends.cpu.get_cpu_capability()}, {native} bfloat16"
    )
    for row in [("case", "ours", "plain", "result"), *rows]:
        terminalreporter.line(f"{row[0]:<44}{row[1]:>10}{row[2]:>10}   {row[3]}")
