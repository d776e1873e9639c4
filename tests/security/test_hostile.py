"""Every command on files made to attack: nothing is run, started, reached or written that should not be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpus
import pytest
from cli.project import RECIPE, invoke, write_images

GUARD = Path(__file__).with_name("guard.py")

# What acts on a terminal or on the eye: control characters but line ends and tabs, overrides of the
# reading direction, characters without width.
ACTING = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")

ANSWERS = {0, 2, 3, 4, 5, 6, 7, 8, 9}


class Place:
    """The folders of one test: what a stranger sent, what is ours, and what is nobody's business."""

    def __init__(self, folder: Path):
        self.sent, self.own, self.secret = folder / "sent", folder / "own", folder / "secret"
        self.canary = folder / "owned"
        self.outside = folder / "outside"
        for made in (self.sent, self.own, self.secret, self.outside, folder / "bin"):
            made.mkdir()
        (self.secret / "key.png").write_bytes(b"the key")
        self.programs = folder / "bin"
        # Helpers that image and font libraries are known to start.
        for name in ("gs", "ghostscript", "djpeg", "xv", "display", "convert", "ldconfig", "gcc", "uname"):
            (self.programs / name).write_text(f"#!/bin/sh\ntouch {self.canary}\n")
            (self.programs / name).chmod(0o755)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def finished(place: Place) -> Path:
    """A sound run directory, from a sound recipe."""
    write_images(place.own / "colours" / "train", 8)
    write_images(place.own / "colours" / "test", 2)
    (place.own / "tiny.toml").write_text(RECIPE)
    result = invoke("run", place.own / "tiny.toml", "--run-dir", place.own / "run", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    return place.own / "run"


def guarded(place: Place, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The cases in a process of their own, under the audit hook."""
    request = {
        "writable": [str(place.own / "out"), str(place.own / "cache")],
        "forbidden": [str(place.secret)],
        "foreign": [str(place.sent)],
        "cases": cases,
    }
    environment = {
        name: os.environ[name] for name in ("LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ
    }
    done = subprocess.run(
        [sys.executable, GUARD],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment
        | {
            "PATH": f"{place.programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TLRECIPE_CACHE_DIR": str(place.own / "cache"),
            "HOME": str(place.own),
            # What switches PyTorch's protection off for those who leave the choice to it.
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


def stopped_copy(folder: Path, finished: Path) -> Path:
    """A run directory like ``finished``, of a run that can be resumed."""
    shutil.copytree(finished, folder)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    return folder


def cases_of(place: Place, finished: Path) -> list[dict[str, Any]]:
    """Every command on every file of the corpus that it reads."""
    out = place.own / "out"
    out.mkdir(exist_ok=True)
    cases: list[dict[str, Any]] = []
    stopped = stopped_copy(place.own / "stopped", finished)

    def add(name: str, *arguments: object, **more: object) -> None:
        cases.append({"name": name, "arguments": [str(item) for item in arguments], **more})

    def recipe_with(name: str, old: str, new: str) -> Path:
        path = place.own / f"{name}.toml"
        sound = RECIPE.replace('path = "colours"', f'path = "{place.own / "colours"}"').replace(
            "epochs = 2", "steps = 1"
        )
        path.write_text(sound.replace(old, new) if old in sound else RECIPE.replace(old, new))
        return path

    def run(name: str, path: Path) -> None:
        add(f"run {name}", "run", path, "--device", "cpu", "--run-dir", out / f"run-{len(cases)}")

    for name, path in corpus.recipes(place.sent / "recipes", place.canary).items():
        add(f"validate recipe {name}", "validate", path)
        if name.startswith("escapes") or name in ("stars", "braces"):
            add(f"params recipe {name}", "params", path, "**")
            add(f"explain recipe {name}", "explain", path)
            add(f"errors as json recipe {name}", "validate", path, "--errors", "json")
            add(f"errors as annotations recipe {name}", "validate", path, "--errors", "github")
        else:
            run(f"recipe {name}", path)
    data = corpus.data_folders(place.sent / "data", place.secret) | {
        f"zip {name}": path for name, path in corpus.archives(place.sent / "zips").items()
    }
    for name, path in data.items():
        toml = recipe_with(f"data-{name.replace(' ', '-')}", 'path = "colours"', f'path = "{path}"')
        add(
            f"validate data {name}",
            "validate",
            "--data",
            toml,
            folder=str(path if path.is_dir() else place.own),
        )
        run(f"data {name}", toml)
        add(f"evaluate data {name}", "evaluate", finished, "--data", path, "--device", "cpu")
        add(
            f"predict data {name}",
            "predict",
            finished,
            path,
            "--device",
            "cpu",
            "-o",
            out / f"{len(cases)}.csv",
        )
    for name, path in corpus.weights(place.sent / "weights", place.canary).items():
        run(f"weights {name}", recipe_with(f"weights-{name}", 'weights = "none"', f'weights = "{path}"'))
    for name, path in corpus.run_directories(out / "runs", stopped, place.outside).items():
        add(f"resume {name}", "resume", path, "--device", "cpu")
    images = place.own / "colours" / "test"
    for name, path in corpus.bundles(
        place.sent / "bundles", finished / "model", place.secret, place.canary
    ).items():
        add(
            f"predict bundle {name}",
            "predict",
            path,
            images,
            "--device",
            "cpu",
            "-o",
            out / f"{len(cases)}.jsonl",
        )
        add(f"evaluate bundle {name}", "evaluate", path, "--device", "cpu", folder=str(path))
    return cases


@pytest.mark.case("E11", "I12", "W04", "W05")
def test_no_file_of_a_stranger_makes_a_command_do_what_it_should_not(place: Place, finished: Path) -> None:
    answers_that_are_in_order(place, cases_of(place, finished))


def answers_that_are_in_order(place: Place, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The answers of all cases, after it was seen that nothing else came of them."""
    before = _state(place)
    answered = guarded(place, cases)
    problems = []
    for name, answer in answered["answers"].items():
        problems += [f"{name}: {found}" for found in answer["found"]]
        if answer["code"] not in ANSWERS:
            problems.append(f"{name}: exit {answer['code']}: {answer['stderr'][-300:]}")
        for stream in ("stdout", "stderr"):
            if acting := ACTING.search(answer[stream]):
                problems.append(f"{name}: prints {acting[0]!r} on {stream}: {answer[stream]!a}"[:400])
    assert not problems, "\n".join(problems)
    assert not place.canary.exists()
    assert not list(place.sent.rglob("owned*")) and not list(place.sent.rglob("pwned*"))
    assert _state(place) == before
    # A hook that sees no writing and no reading would prove nothing.
    assert {"open", "os.rename"} <= set(answered["seen"])
    answers: dict[str, Any] = answered["answers"]
    return answers


def more_cases_of(place: Place, finished: Path) -> list[dict[str, Any]]:
    """The commands that make something else of such files, and hostile words in the place of names."""
    out = place.own / "out"
    cases: list[dict[str, Any]] = []

    def add(name: str, *arguments: object, **more: object) -> None:
        cases.append({"name": name, "arguments": [str(item) for item in arguments], **more})

    stopped = stopped_copy(place.own / "halted", finished)
    for name, path in corpus.checkpoints(out / "checkpoints", stopped).items():
        add(f"checkpoint {name}", "resume", path, "--device", "cpu")
    for name, path in corpus.reported(place.sent / "reported", finished, place.secret).items():
        page = out / f"{len(cases)}.html"
        add(f"report {name}", "report", path, "-o", page)
        add(f"compare {name}", "compare", finished, path, "-o", out / f"compared-{len(cases)}.html")
    data = corpus.data_folders(place.sent / "folders", place.secret) | corpus.archives(place.sent / "packed")
    sound = place.own / "tiny.toml"
    for name, path in data.items():
        add(f"new {name}", "new", path, "-o", out / f"{len(cases)}.toml", folder=str(place.own))
        given = ("--set", f"data.path={json.dumps(str(path))}")
        add(f"preview {name}", "preview", sound, *given, "-o", out / f"{len(cases)}.png")
    code = {"folder": str(data["code"])}
    add("new here", "new", "-o", "-", **code)
    for command in (("doctor",), ("doctor", "--json"), ("cache", "list"), ("cache", "path"), ("schema",)):
        add(" ".join(command), *command, **code)
    for word in (corpus.BAD_NAME, corpus.FORMULA, corpus.SHELL, "../../secret/key.png", "-" * 9, "{" * 200):
        short = ascii(word)[:20]
        for command in ("run", "resume", "validate", "explain", "preview", "new", "report", "compare"):
            add(f"{command} called {short}", command, "--", word, **code)
        add(f"params {short}", "params", sound, "--", word)
        add(f"set {short}", "explain", sound, "--set", word)
        add(f"set to {short}", "explain", sound, "--set", f"backbone.name={word}")
        named = ("--device", "cpu", "-o", out / f"{len(cases)}.csv", "--", out / word.replace("/", "_"))
        add(f"predict {short}", "predict", finished, *named)
        add(f"evaluate {short}", "evaluate", finished, "--device", "cpu", "--data", word)
        add(f"list {short}", "list", "backbones", "--", word)
        add(f"plot {short}", "explain", sound, "--plot", out / word.replace("/", "_"))
        add(f"completion {short}", "completion", "--", word)
    return [*cases, {"name": "cache clear", "arguments": ["cache", "clear"], **code}]


@pytest.mark.case("C22", "E04")
def test_what_is_made_of_a_stranger_s_files_is_only_what_was_asked_for(place: Place, finished: Path) -> None:
    (place.own / "out").mkdir(exist_ok=True)
    cases = more_cases_of(place, finished)
    answered = answers_that_are_in_order(place, cases)
    for name, answer in answered.items():
        if name.startswith("checkpoint "):
            assert (name, answer["code"]) == (name, 6), answer["stderr"]
    pages = list((place.own / "out").glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        assert not ACTING.search(page.read_text()), page
        assert "alert(1)</script>" not in page.read_text(), page


def _state(place: Place) -> dict[str, object]:
    """What is not the program's to change, byte for byte."""
    state: dict[str, object] = {}
    for folder in (place.sent, place.secret, place.outside):
        for path in sorted(folder.rglob("*")):
            special = not (path.is_file() or path.is_dir()) or path.is_symlink()
            state[str(path)] = "special" if special else path.read_bytes() if path.is_file() else "folder"
    return state
