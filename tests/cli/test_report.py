"""The report of a real run, and made again from its directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from project import Finished, invoke

from tlrecipe.artifacts.report.record import read_record


def test_a_run_leaves_its_report_with_what_the_report_needs(finished: Finished) -> None:
    record = read_record(finished.directory)
    assert record.complete
    assert record.predictions is not None
    assert record.result is not None
    assert record.predictions.accuracy == record.result.metrics["test"]["accuracy"]
    wrong = {str(i) for i in range(12) if not record.predictions.right[i]}
    assert set(record.thumbnails) == wrong
    assert "><bdi>tiny</bdi></h1>" in (finished.directory / "report.html").read_text(encoding="utf-8")


def test_the_report_is_the_same_from_a_copy_of_the_directory(finished: Finished, tmp_path: Path) -> None:
    written = (finished.directory / "report.html").read_bytes()
    copy = shutil.copytree(finished.directory, tmp_path / finished.directory.name)
    (copy / "report.html").unlink()
    result = invoke("report", copy)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{copy / 'report.html'}\n"
    assert (copy / "report.html").read_bytes() == written


def test_the_report_goes_where_it_is_asked_to(finished: Finished, tmp_path: Path) -> None:
    result = invoke("report", finished.directory, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "page.html").read_bytes() == (finished.directory / "report.html").read_bytes()


def test_the_report_of_something_else_is_an_error(tmp_path: Path) -> None:
    result = invoke("report", tmp_path)
    assert result.exit_code == 6
    assert "holds no plan.json" in result.stderr
