"""The engine against the plain loops: one test per row of the table in docs/performance.md.

Both sides run in turns in one process (theirs, ours, theirs, ours, …), one round per seed, from reading the
images to the accuracy on the test split. Building the network is left out on both sides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
from cases import (
    BEFORE_LAST_STAGES,
    HEAD,
    LAST_STAGES,
    Run,
    Setting,
    as_training,
    decoder,
    fresh,
    ours,
    phase,
    preprocessing,
    recipe,
)
from loops import Outcome, fairer, textbook
from summary import Row

from tlrecipe.data.sources import list_data
from tlrecipe.language.spec import Recipe

Report = Callable[[Row], None]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Path]:
    """A new cache folder at each call."""
    made: list[Path] = []

    def new() -> Path:
        made.append(tmp_path / str(len(made)))
        return made[-1]

    return new


def in_turns(
    benchmark: Any, seeds: int, theirs: Callable[[int], Outcome], ours: Callable[[int], Any]
) -> tuple[list[Outcome], list[Any]]:
    """Run both sides for each seed, theirs first; ours is what pytest-benchmark times."""
    first: list[Outcome] = []
    second: list[Any] = []

    def setup() -> tuple[tuple[int], dict[str, Any]]:
        first.append(theirs(len(first)))
        return (len(second),), {}

    benchmark.pedantic(lambda seed: second.append(ours(seed)), setup=setup, rounds=seeds, iterations=1)
    return first, second


def against(
    benchmark: Any,
    setting: Setting,
    loop: Callable[[Recipe, tuple[str, ...]], Outcome],
    phases: Sequence[dict[str, Any]],
    trains: tuple[str, ...],
    folder: Callable[[], Path],
    **compute: str,
) -> tuple[list[Outcome], list[Run], list[Run]]:
    """A plain loop and our cold runs, in turns; then our warm runs, which find the features of the last."""
    recipes = [recipe(setting, phases, seed=seed, **compute) for seed in range(setting.seeds)]
    places: list[Path] = []

    def cold(seed: int) -> Run:
        places.append(folder())
        return ours(recipes[seed], fresh(), places[-1])

    theirs, colds = in_turns(benchmark, setting.seeds, lambda seed: loop(recipes[seed], trains), cold)
    warms = [ours(recipes[-1], fresh(), places[-1]) for _ in range(setting.seeds)]
    benchmark.extra_info["cold_seconds"] = [run.seconds for run in colds]
    benchmark.extra_info["warm_seconds"] = [run.seconds for run in warms]
    benchmark.extra_info["their_seconds"] = [outcome.seconds for outcome in theirs]
    benchmark.extra_info["chosen"] = [done.prefix["reason"] for done in colds[-1].phases]
    return theirs, colds, warms


def textbook_loop(setting: Setting, recipe: Recipe, trains: tuple[str, ...]) -> Outcome:
    training = as_training(recipe, trains)
    return textbook(fresh().model, setting.root, training, preprocessing(recipe), setting.workers)


def fairer_loop(setting: Setting, recipe: Recipe, trains: tuple[str, ...]) -> Outcome:
    p = preprocessing(recipe)
    decode = decoder(list_data(recipe.data, recipe.seed), p)
    return fairer(fresh().model, decode, as_training(recipe, trains), p)


def seconds(outcomes: Sequence[Outcome]) -> float:
    return median(outcome.seconds for outcome in outcomes)


def faster(
    case: str, theirs: Sequence[Outcome], colds: Sequence[Run], warms: Sequence[Run], least: float, aim: float
) -> Row:
    return Row(
        case=case,
        ours=f"{seconds(colds):.2f} s, warm {seconds(warms):.2f} s",
        theirs=f"{seconds(theirs):.2f} s",
        ratio=seconds(theirs) / seconds(colds),
        least=least,
        aim=aim,
        accuracies=(fmean(run.accuracy for run in colds), fmean(run.accuracy for run in theirs)),
    )


# --------------------------------------------------------------------------- against the loops


def test_frozen_against_the_textbook_loop(
    benchmark: Any, setting: Setting, report: Report, folder: Any
) -> None:
    measured = against(benchmark, setting, partial(textbook_loop, setting), [phase()], HEAD, folder)
    report(faster("frozen backbone, 10 epochs, textbook loop", *measured, least=15, aim=40))


def test_frozen_against_the_fairer_loop(
    benchmark: Any, setting: Setting, report: Report, folder: Any
) -> None:
    loop = partial(fairer_loop, setting)
    measured = against(benchmark, setting, loop, [phase()], HEAD, folder, precision="fp32")
    report(faster("the same, fairer loop, fp32 on both sides", *measured, least=8, aim=9.5))


def test_last_stages(benchmark: Any, setting: Setting, report: Report, folder: Any) -> None:
    phases = [phase(freeze=BEFORE_LAST_STAGES, lr=5e-4)]
    measured = against(benchmark, setting, partial(textbook_loop, setting), phases, LAST_STAGES, folder)
    report(faster("last three stages trained, 10 epochs, textbook loop", *measured, least=2.5, aim=5))


def test_frozen_with_a_random_flip(benchmark: Any, setting: Setting, report: Report, folder: Any) -> None:
    phases = [phase(augment={"hflip": True})]
    measured = against(benchmark, setting, partial(textbook_loop, setting), phases, HEAD, folder)
    report(faster("frozen with random flip, 10 epochs, textbook loop", *measured, least=8, aim=15))


def test_the_whole_network(benchmark: Any, setting: Setting, report: Report, folder: Any) -> None:
    phases = [phase(freeze=[], epochs=2, lr=5e-4)]
    theirs, colds, _ = against(benchmark, setting, partial(textbook_loop, setting), phases, ("",), folder)
    images = 2 * len(list_data(recipe(setting, phases).data, 0).splits["train"])
    speeds = [
        images / median(outcome.training_seconds for outcome in outcomes) for outcomes in (colds, theirs)
    ]
    report(
        Row(
            case="whole network trained, images per second, textbook loop",
            ours=f"{speeds[0]:.0f}/s",
            theirs=f"{speeds[1]:.0f}/s",
            ratio=speeds[0] / speeds[1],
            least=1.5,
            aim=2.5,
            accuracies=(fmean(run.accuracy for run in colds), fmean(run.accuracy for run in theirs)),
        )
    )


# --------------------------------------------------------------------------- how it grows


def smaller(case: str, ours: str, theirs: str, ratio: float, least: float, aim: float, note: str = "") -> Row:
    return Row(case, ours, theirs, ratio, least, aim, larger_is_better=False, note=note)


def test_fifty_epochs_against_one(benchmark: Any, setting: Setting, report: Report, folder: Any) -> None:
    def run(epochs: int, seed: int) -> Run:
        phases = [phase(epochs=epochs)]
        return ours(recipe(setting, phases, seed=seed), fresh(), folder())

    one, fifty = in_turns(benchmark, setting.seeds, partial(run, 1), partial(run, 50))
    times = seconds(fifty), seconds(one)
    report(
        smaller(
            "frozen, 50 epochs against 1",
            *(f"{value:.2f} s" for value in times),
            ratio=times[0] / times[1],
            least=1.3,
            aim=1.1,
        )
    )


def test_a_second_run_at_another_rate(benchmark: Any, setting: Setting, report: Report, folder: Any) -> None:
    places: list[Path] = []

    def first(seed: int) -> Run:
        places.append(folder())
        return ours(recipe(setting, [phase()], seed=seed), fresh(), places[-1])

    def second(seed: int) -> Run:
        return ours(recipe(setting, [phase(lr=3e-3)], seed=seed), fresh(), places[-1])

    cold, warm = in_turns(benchmark, setting.seeds, first, second)
    times = seconds(warm), seconds(cold)
    report(
        smaller(
            "second run, another learning rate, against the first",
            *(f"{value:.2f} s" for value in times),
            ratio=times[0] / times[1],
            least=0.15,
            aim=0.03,
        )
    )


def test_gradual_unfreezing_passes_the_prefix_once(
    benchmark: Any, setting: Setting, report: Report, folder: Any
) -> None:
    stems = ["conv_stem", "bn1"]
    phases = [
        phase("head", epochs=5),
        phase("last", epochs=3, freeze=[*stems, "blocks.[0-5]"], lr=5e-4),
        phase("later", epochs=3, freeze=[*stems, "blocks.[0-4]"], lr=5e-4),
        phase("late", epochs=3, freeze=[*stems, "blocks.[0-3]"], lr=5e-4),
    ]
    plain = recipe(setting, phases, features="off")
    fast = recipe(setting, phases)
    theirs, colds = in_turns(
        benchmark,
        1,
        lambda _: ours(plain, fresh()),
        lambda _: ours(fast, fresh(), folder()),
    )
    images = len(list_data(fast.data, 0).splits["train"])

    def passes(done: Any) -> float:
        stored = done.prefix["mode"] == "store"
        return done.prefix["images_computed"] / images if stored else done.epochs

    count = sum(passes(done) for done in colds[0].phases)
    benchmark.extra_info["chosen"] = [done.prefix["reason"] for done in colds[0].phases]
    report(
        smaller(
            "gradual unfreezing in four phases: passes over the prefix",
            ours=f"{count:g}, {seconds(colds):.2f} s",
            theirs=f"{sum(done.epochs for done in theirs[0].phases):g}, {seconds(theirs):.2f} s",  # type: ignore[attr-defined]
            ratio=count,
            least=1,
            aim=1,
            note="theirs: our plain network",
        )
    )


def test_a_frozen_stem_is_never_slower_than_plain(
    benchmark: Any, setting: Setting, report: Report, folder: Any
) -> None:
    def run(features: str, seed: int) -> Run:
        phases = [phase(freeze=["conv_stem", "bn1"], epochs=1, lr=5e-4)]
        return ours(recipe(setting, phases, seed=seed, features=features), fresh(), folder())

    plain, fast = in_turns(benchmark, setting.seeds, partial(run, "off"), partial(run, "auto"))
    times = [median(run.training_seconds for run in runs) for runs in (fast, plain)]
    benchmark.extra_info["chosen"] = fast[-1].phases[0].prefix["reason"]
    report(
        Row(
            case="frozen stem only, against our plain network",
            ours=f"{times[0]:.2f} s",
            theirs=f"{times[1]:.2f} s",
            ratio=times[1] / times[0],
            # Five percent are the noise of two equal runs.
            least=0.95,
            aim=1,
            note=fast[-1].phases[0].prefix["mode"],
        )
    )


def test_twelve_recipes_with_one_prefix(
    benchmark: Any, setting: Setting, report: Report, folder: Any
) -> None:
    rates = [round(3e-4 * 1.4**step, 6) for step in range(12)]

    def one(_: int) -> Run:
        return ours(recipe(setting, [phase(lr=rates[0])]), fresh(), folder())

    def twelve(_: int) -> float:
        place = folder()
        runs = [ours(recipe(setting, [phase(lr=rate)]), fresh(), place) for rate in rates]
        return sum(run.seconds for run in runs)

    single, all_of_them = in_turns(benchmark, setting.seeds, one, twelve)
    times = median(all_of_them), seconds(single)
    report(
        smaller(
            "twelve recipes with one prefix, against one",
            *(f"{value:.2f} s" for value in times),
            ratio=times[0] / times[1],
            least=2,
            aim=1.2,
        )
    )


def test_peak_memory(benchmark: Any, setting: Setting, report: Report) -> None:
    def beyond_the_libraries(side: str) -> float:
        script = str(Path(__file__).with_name("peak.py"))
        command = [sys.executable, script, side, str(setting.root), str(setting.size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        benchmark.extra_info[side] = found
        return float(found["peak"] - found["start"])

    theirs = beyond_the_libraries("textbook")
    fast = benchmark.pedantic(beyond_the_libraries, ("ours",), rounds=1, iterations=1)
    report(
        smaller(
            "peak memory of the frozen phase, textbook loop",
            f"{fast / 1e6:.0f} MB",
            f"{theirs / 1e6:.0f} MB",
            ratio=fast / theirs,
            least=0.5,
            aim=0.3,
            note="beyond the loaded libraries",
        )
    )
