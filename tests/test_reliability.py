"""The page of promises and cases agrees with the tests that there are."""

from __future__ import annotations

import re

import pytest
from reliability import CATALOGUE, PAGE, START, collected, renewed, tables, whole_suite, without_outcomes

MOST_LEFT_OUT = 5


def test_at_most_five_cases_are_left_out_each_with_a_reason() -> None:
    left_out = CATALOGUE["left_out"]
    assert set(left_out) <= set(CATALOGUE["cases"])
    assert len(left_out) <= MOST_LEFT_OUT
    assert all(left_out.values())


def test_every_case_has_a_test_or_a_reason_and_the_page_lists_it(request: pytest.FixtureRequest) -> None:
    if not whole_suite(request.config):
        pytest.skip("the page is compared where the whole suite was collected")
    cases = collected(request.config)
    assert set(cases) - set(CATALOGUE["cases"]) == set()
    assert set(CATALOGUE["cases"]) - set(cases) <= {*CATALOGUE["left_out"], *CATALOGUE["open"]}
    page = PAGE.read_text(encoding="utf-8")
    new = renewed(page, tables(cases, {}))
    assert without_outcomes(page) == without_outcomes(new), (
        "python -m pytest tests --reliability docs/reliability.md"
    )


def test_every_promise_names_a_test_that_is_there(request: pytest.FixtureRequest) -> None:
    if not whole_suite(request.config):
        pytest.skip("the page is compared where the whole suite was collected")
    from reliability import _COLLECTED

    known = {
        item.nodeid.partition("[")[0].removeprefix("tests/") for item in request.config.stash[_COLLECTED]
    }
    promises, _, _ = PAGE.read_text(encoding="utf-8").partition(START)
    named = set(re.findall(r"`([\w/]+\.py::\w+)`", promises))
    assert len(named) > 10
    assert named <= known
