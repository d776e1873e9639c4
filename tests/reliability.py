"""Which test proves which case of ``catalogue.toml``, and the page that says so.

``python -m pytest tests --reliability docs/reliability.md`` runs the tests that carry a case and writes the
tables of the page, outcomes included; with ``-m "slow or not slow"`` the long ones too. A test carries
cases by the marker ``case``, by a function name like ``test_c02_…``, or by the id of a parameter like
``R07-nan``.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
CATALOGUE: dict[str, Any] = tomllib.loads((ROOT / "tests" / "catalogue.toml").read_text(encoding="utf-8"))
START, END = "<!-- cases: begin -->\n", "<!-- cases: end -->\n"

_ID = re.compile(r"[A-Z]\d\d")
_IN_NAME = re.compile(r"^test_((?:[a-z]\d\d_)+)")
_COLLECTED = pytest.StashKey[list[pytest.Item]]()
_outcomes: dict[str, str] = {}

Cases = Mapping[str, list[str]]
"""Node ids by case."""


def cases_of(item: pytest.Item) -> set[str]:
    """The cases that a test is about."""
    found = {str(case) for mark in item.iter_markers("case") for case in mark.args}
    if named := _IN_NAME.match(item.name):
        found |= {part.upper() for part in named[1].split("_") if part}
    if (call := getattr(item, "callspec", None)) is not None:
        found |= {part for part in re.split(r"[-_ ]", call.id) if _ID.fullmatch(part)}
    return found


# --------------------------------------------------------------------------- the page


def tables(cases: Cases, outcomes: Mapping[str, str]) -> str:
    """The tables of the page: a row for each case, by groups."""
    parts = []
    for letter, title in CATALOGUE["groups"].items():
        rows = "".join(_row(case, cases, outcomes) for case in CATALOGUE["cases"] if case[0] == letter)
        head = (
            f"### {letter}. {title}\n\n| # | what happens | what is answered | tests |\n|---|---|---|---|\n"
        )
        parts.append(head + rows)
    left_out = "".join(f"- **{case}** {why}.\n" for case, why in CATALOGUE["left_out"].items())
    return "\n".join(parts) + f"\n### Left out\n\n{left_out}"


def _row(case: str, cases: Cases, outcomes: Mapping[str, str]) -> str:
    happens, answered = CATALOGUE["cases"][case]
    without = CATALOGUE["open"].get(case, "left out, see below")
    tests = "<br>".join(_lines(cases.get(case, ()), outcomes)) or without
    return f"| {case} | {happens} | {answered} | {tests} |\n"


def _lines(node_ids: Iterable[str], outcomes: Mapping[str, str]) -> Iterator[str]:
    """A line for each test function: how many of its parameters there are, and how they ended."""
    functions: dict[str, list[str]] = {}
    for node_id in node_ids:
        functions.setdefault(node_id.partition("[")[0], []).append(node_id)
    for function, members in sorted(functions.items()):
        count = f" ×{len(members)}" if len(members) > 1 else ""
        ends = Counter(outcomes.get(node_id, "not run") for node_id in members)
        text = ", ".join(end if len(ends) == 1 else f"{number} {end}" for end, number in sorted(ends.items()))
        yield f"`{function.removeprefix('tests/')}`{count}: {text}"


def without_outcomes(page: str) -> str:
    """The page with its outcomes taken out: what is the same whoever ran it, and where."""
    return re.sub(r"(`[\w/.]+::\w+`(?: ×\d+)?): [^<|]*", r"\1 ", page)


def renewed(page: str, new: str) -> str:
    """The page with other tables."""
    before, _, rest = page.partition(START)
    return before + START + "\n" + new + "\n" + END + rest.partition(END)[2]


# --------------------------------------------------------------------------- the plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reliability", type=Path, metavar="PAGE", help="run the tests of cases and write the page"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Before -m and -k take tests away.
    config.stash[_COLLECTED] = list(items)
    if config.getoption("--reliability"):
        if hasattr(config, "workerinput"):
            raise pytest.UsageError("--reliability runs in one process: leave out -n")
        chosen = [item for item in items if cases_of(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def collected(config: pytest.Config) -> Cases:
    """Node ids of all collected tests by case, whether they are to run or not."""
    found: dict[str, list[str]] = {}
    for item in config.stash[_COLLECTED]:
        for case in cases_of(item):
            found.setdefault(case, []).append(item.nodeid)
    return found


def whole_suite(config: pytest.Config) -> bool:
    """Whether every test file was collected."""
    files = set((ROOT / "tests").rglob("test_*.py"))
    return files <= {item.path for item in config.stash[_COLLECTED]}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        text = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            text = f"skipped ({report.longrepr[2].removeprefix('Skipped: ')})"
        _outcomes[report.nodeid] = text


def pytest_sessionfinish(session: pytest.Session) -> None:
    page: Path | None = session.config.getoption("--reliability")
    if page is None or _COLLECTED not in session.config.stash:
        return
    text = page.read_text(encoding="utf-8")
    page.write_text(renewed(text, tables(collected(session.config), _outcomes)), encoding="utf-8")
