"""The examples run as they are, and show what they say they show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_rates_are_compared_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "compare_rates.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "unknown selector `@backbon`; did you mean `@backbone`?" in printed
    assert "20 steps train 12,810 values, 3,371,008 stand still" in printed
    assert printed.count("of the validation images") == 8
    (best,) = re.findall(r"best rate .*: ([\d.]+)% of the test images", printed)
    assert float(best) > 30
    predictions = printed.splitlines()[-3:]
    assert all(re.fullmatch(r"/test/\w+/\d+\.png( \w+ \d+%){2}", line) for line in predictions)
    assert len(list((tmp_path / "runs" / "feature_extraction").iterdir())) == 2


def test_every_example_is_tested() -> None:
    assert [path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"] == ["compare_rates.py"]
