"""A run that cannot fit into memory is refused before it begins, and one that did not fit says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.project import RECIPE, invoke, write_images
from training.nets import Recorder, backbone, net, phase, plan_for, source

from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.models import memory
from tlrecipe.training import forecast, interpreter
from tlrecipe.training.interpreter import Checkpoint, train

GROWING = [phase(), phase(name="two", freeze=[], batch_size=48)]


def needs(model: Any) -> list[int]:
    """What each phase of GROWING adds to what the process holds."""
    plan = plan_for(model, phase=GROWING)
    facts = forecast.prefix_facts(plan, net().to("meta"), baseline=0)
    return [(fact.memory_bytes or 0) - forecast._KERNELS - memory.weight_bytes(model) for fact in facts]


def refused(monkeypatch: pytest.MonkeyPatch, limit: int, held: int = 0) -> tuple[Diagnostic, Recorder]:
    monkeypatch.setattr(forecast, "limit_bytes", lambda: (limit, "the limit of the control group"))
    monkeypatch.setattr(forecast, "resident_bytes", lambda: held)
    told = Recorder()
    model = net()
    with pytest.raises(TlrecipeError) as caught:
        train(plan_for(model, phase=GROWING), backbone(model), source, emit=told)
    (found,) = caught.value.diagnostics
    assert (found.code, found.exit_code) == ("TLR801", 8)
    return found, told


@pytest.mark.case("M02")
def test_a_later_phase_that_cannot_fit_is_refused_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = needs(net())
    assert second > 1.4 * first
    found, told = refused(monkeypatch, int(second / 1.35))
    assert found.path == ("phase", 1)
    assert "phase `two` takes about" in found.message
    assert "batches of 48 images of 16 pixels" in found.message
    assert "the limit of the control group" in found.message
    assert found.help == "`batch_size = 24` would fit; with `accumulate = 2` an update sees as many images"
    assert told.events == []


@pytest.mark.case("M02")
def test_where_no_batch_fits_another_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "limit_bytes", lambda: (1000, "the machine's memory"))
    monkeypatch.setattr(forecast, "resident_bytes", lambda: 2000)
    with pytest.raises(TlrecipeError) as caught:
        train(plan_for(net(), phase=GROWING), backbone(net()), source)
    assert [item.path for item in caught.value.diagnostics] == [("phase", 0), ("phase", 1)]
    assert all("freeze more" in str(item.help) for item in caught.value.diagnostics)


def test_what_may_just_not_fit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    _, second = needs(net())
    monkeypatch.setattr(forecast, "limit_bytes", lambda: (int(second / 1.1), "the machine's memory"))
    monkeypatch.setattr(forecast, "resident_bytes", lambda: 0)
    told = Recorder()
    train(plan_for(net(), phase=GROWING), backbone(net()), source, emit=told)
    (warning,) = told.of("warning")
    assert warning["message"].startswith("phase `two` takes about")


def test_the_prediction_leaves_network_and_result_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it, without = net(dropout=0.1), net(dropout=0.1)
    train(plan_for(with_it, phase=GROWING), backbone(with_it), source)
    monkeypatch.setattr(interpreter, "refuse_too_large", lambda *_, **__: None)
    train(plan_for(without, phase=GROWING), backbone(without), source)
    for name, value in with_it.state_dict().items():
        assert torch.equal(value, without.state_dict()[name]), name


@pytest.mark.case("M03", "M04")
@pytest.mark.parametrize("where", ["step", "save"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_memory_that_runs_out_names_phase_batch_and_size(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Checkpoint] = []

    def fail(*_: object, **__: object) -> None:
        raise error

    def save(point: Checkpoint) -> None:
        if where == "save" and point.values["state"]["phase"] == 2:
            fail()
        saved.append(point)

    if where == "step":
        original = interpreter._Run._step

        def step(self: Any, phase: Any, *arguments: Any) -> float:
            return (
                fail() if phase.name == "two" and self.state.step == 0 else original(self, phase, *arguments)
            )  # type: ignore[return-value]

        monkeypatch.setattr(interpreter._Run, "_step", step)
    with pytest.raises(TlrecipeError) as caught:
        train(plan_for(net(), phase=GROWING), backbone(net()), source, save=save)
    (found,) = caught.value.diagnostics
    assert (found.code, found.exit_code, found.path) == ("TLR801", 8, ("phase", 1))
    assert found.message == "out of memory in phase `two` with batches of 48 images of 16 pixels"
    assert "try `batch_size = 24` with `accumulate = 2`" in str(found.help)
    assert saved[-1].values["state"]["phase"] == 1


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(interpreter._Run, "_step", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        train(plan_for(net()), backbone(net()), source)


def test_explain_refuses_what_cannot_fit_after_it_has_shown_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "colours" / "train", 8)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert invoke("explain", tmp_path / "tiny.toml").exit_code == 0
    monkeypatch.setattr(forecast, "limit_bytes", lambda: (50 << 20, "the machine's memory"))
    result = invoke("explain", tmp_path / "tiny.toml")
    assert result.exit_code == 8
    assert "all" in result.stdout
    assert "tiny.toml:26:" in result.stderr
    assert "error[TLR801]: phase `all` takes about" in result.stderr


@pytest.mark.slow
@pytest.mark.case("M01")
def test_a_process_with_few_addresses_exits_with_8_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    write_images(tmp_path / "colours" / "train", 40)
    (tmp_path / "tiny.toml").write_text(
        RECIPE.replace("size = 64", "size = 512").replace("batch_size = 8", "batch_size = 90")
    )
    code = (
        "import resource, sys\n"
        "import tlrecipe.training.interpreter, tlrecipe.artifacts.bundle, tlrecipe.models.timm_source\n"
        "from tlrecipe.models import memory\n"
        "from tlrecipe.training import forecast\n"
        "if sys.argv.pop(1) == 'blind': forecast.limit_bytes = lambda: (1 << 50, '')\n"
        "limit = memory._status('VmSize') + (700 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "from tlrecipe.__main__ import main\n"
        "main()\n"
    )
    for mode, said in (("seeing", "RLIMIT_AS"), ("blind", "out of memory")):
        run = tmp_path / mode
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                mode,
                "run",
                tmp_path / "tiny.toml",
                "--run-dir",
                run,
                "--device",
                "cpu",
            ],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 8, (mode, result.stderr)
        assert "error[TLR801]" in result.stderr
        assert said in result.stderr
        assert "`size`" in result.stderr
