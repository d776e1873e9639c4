"""Options of the benchmarks, what their cases share, and the table at their end.

    pytest benchmarks --benchmark-only

measures everything against the plain loops of ``loops.py``, in one process and in turns. ``--quick`` shows in
minutes that it works, ``--gate`` makes a ratio that misses its least value a failure, ``--write-docs`` writes
the table into docs/performance.md. Seconds are never asserted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import HEAD, Setting, as_training, fresh, phase, preprocessing, recipe, write_sample
from loops import textbook
from summary import Row, machine, table, write_docs

ROWS = pytest.StashKey[list[Row]]()
LOADER = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tlrecipe benchmarks")
    group.addoption("--quick", action="store_true", help="10 images a class, 64 pixels, one seed.")
    group.addoption("--gate", action="store_true", help="Fail where a ratio misses its least value.")
    group.addoption("--seeds", type=int, default=3, help="Seeds, each of which is one round of a case.")
    group.addoption("--write-docs", action="store_true", help="Write the table into docs/performance.md.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """The images as files, and the number of loader workers that makes the textbook loop fastest today."""
    quick = request.config.getoption("--quick")
    root = tmp_path_factory.mktemp("sample")
    write_sample(root, 10 if quick else 100)
    chosen = Setting(root, 64 if quick else 128, 1 if quick else request.config.getoption("--seeds"))
    once = recipe(chosen, [phase(epochs=1)])
    seconds = {
        workers: textbook(
            fresh().model, root, as_training(once, HEAD), preprocessing(once), workers
        ).training_seconds
        for workers in (0, 2)
    }
    workers = min(seconds, key=lambda count: seconds[count])
    request.config.stash[LOADER] = ", ".join(f"{n} workers {s:.1f} s" for n, s in seconds.items())
    yield replace(chosen, workers=workers)


@pytest.fixture
def report(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Row], None]:
    """Puts a case into the table and into the benchmark's data; with ``--gate``, holds it to its ratio."""

    def add(row: Row) -> None:
        request.config.stash[ROWS].append(row)
        benchmark.extra_info.update(dict(zip(("case", "ours", "theirs", "ratio"), row.cells(), strict=False)))
        benchmark.extra_info.update(accuracies=row.accuracies, met=row.verdict)
        if request.config.getoption("--gate"):
            assert row.reaches(row.least), f"{row.case}: {row.ratio:.3g}, {row.verdict}"

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    about = machine()
    if LOADER in config.stash:
        about += f"; an epoch of the textbook loop takes, with {config.stash[LOADER]}"
    terminalreporter.section("against the plain loops")
    for line in (*table(rows), about):
        terminalreporter.write_line(line)
    if config.getoption("--write-docs"):
        write_docs(rows, about)
