"""Metrics against torchmetrics, intervals against repeated sampling."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from torch import Tensor
from torch.nn import functional as F

from tlrecipe.language.spec import Metric
from tlrecipe.planning.intervals import wilson_interval
from tlrecipe.training.metrics import METRICS, Scores, detail, intervals, scalars


def scores(count: int, classes: int, seed: int = 0, *, signal: float = 1.0) -> Scores:
    """Logits that know something, with unequal classes."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.arange(1.0, classes + 1)
    labels = torch.multinomial(weights, count, replacement=True, generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += signal
    return Scores(logits, labels)


def test_the_table_is_what_the_grammar_names() -> None:
    assert list(METRICS) == list(get_args(Metric))


def expected(logits: Tensor, labels: Tensor) -> dict[str, float]:
    classes = logits.shape[1]
    p = logits.softmax(1)
    values = {
        "loss": F.cross_entropy(logits, labels),
        "accuracy": reference.multiclass_accuracy(p, labels, classes, average="micro"),
        "top5_accuracy": reference.multiclass_accuracy(
            p, labels, classes, average="micro", top_k=min(5, classes)
        ),
        "macro_f1": reference.multiclass_f1_score(p, labels, classes, average="macro"),
        "balanced_accuracy": reference.multiclass_recall(p, labels, classes, average="macro"),
        "auroc": reference.multiclass_auroc(p, labels, classes, average="macro"),
        "calibration_error": reference.multiclass_calibration_error(p, labels, classes, n_bins=15),
    }
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize(("count", "classes"), [(40, 2), (300, 5), (300, 6), (2000, 40)])
def test_values_are_those_of_torchmetrics(count: int, classes: int) -> None:
    made = scores(count, classes)
    assert set(made.labels.tolist()) == set(range(classes))
    found, wanted = scalars(made), expected(made.logits, made.labels)
    if classes <= 5:
        del wanted["top5_accuracy"]
    assert found == pytest.approx(wanted, abs=2e-6)


def test_ties_count_half_in_auroc() -> None:
    made = scores(400, 3)
    made = Scores(made.logits.round(), made.labels)
    assert scalars(made)["auroc"] == pytest.approx(expected(made.logits, made.labels)["auroc"], abs=1e-6)


def test_detail_is_that_of_torchmetrics() -> None:
    made = scores(500, 7)
    names = list("abcdefg")
    found = detail(made, names)
    matrix = reference.multiclass_confusion_matrix(made.logits, made.labels, 7)
    assert found["confusion_matrix"] == matrix.tolist()
    for column, function in (
        ("precision", reference.multiclass_precision),
        ("recall", reference.multiclass_recall),
        ("f1", reference.multiclass_f1_score),
        ("auroc", reference.multiclass_auroc),
    ):
        inputs = made.logits.softmax(1) if column == "auroc" else made.logits
        wanted = function(inputs, made.labels, 7, average="none").tolist()
        assert [row[column] for row in found["per_class"]] == pytest.approx(wanted, abs=1e-6)
    assert [row["support"] for row in found["per_class"]] == torch.bincount(made.labels).tolist()
    assert [row["class"] for row in found["per_class"]] == names


def test_the_calibration_bins_add_up_to_the_calibration_error() -> None:
    made = scores(500, 7)
    bins = detail(made, list("abcdefg"))["calibration"]
    assert sum(each["count"] for each in bins) == 500
    total = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / 500
    assert scalars(made)["calibration_error"] == pytest.approx(total)
    assert all(each["low"] < each["confidence"] <= each["high"] for each in bins)


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    made = scores(200, 4)
    wider = Scores(F.pad(made.logits, (0, 1), value=-50.0), made.labels)
    found, wanted = scalars(wider), scalars(made)
    assert found == pytest.approx(wanted, abs=1e-6)
    row = detail(wider, list("abcde"))["per_class"][4]
    assert (row["support"], row["precision"], row["recall"], row["auroc"]) == (0, None, None, None)


def test_with_one_class_among_the_images_there_is_no_auroc() -> None:
    made = Scores(torch.randn(10, 3), torch.ones(10, dtype=torch.int64))
    assert "auroc" not in scalars(made)
    assert "auroc" not in intervals(made)


def test_only_what_is_asked_for_is_computed() -> None:
    made = scores(50, 3)
    assert list(scalars(made, ["macro_f1", "loss"])) == ["loss", "macro_f1"]


def test_a_class_more_than_the_limit_has_no_matrix() -> None:
    made = Scores(torch.randn(20, 1001), torch.arange(20))
    assert detail(made, [str(n) for n in range(1001)])["confusion_matrix"] is None


# --------------------------------------------------------------------------- intervals


def test_wilson_is_the_textbook_formula() -> None:
    # Newcombe, Statistics in Medicine 17:857 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(hits / count, count) == pytest.approx((low, high), abs=1e-4)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Samples of a population whose values are known; the error of calibration is biased upwards in
    small samples (https://arxiv.org/abs/1904.01685), so its intervals are held to its own mean."""
    population = scores(20_000, 6, signal=1.5)
    rng = np.random.default_rng(0)
    draws = [torch.from_numpy(rng.choice(20_000, 250, replace=False)) for _ in range(60)]
    samples = [Scores(population.logits[rows], population.labels[rows]) for rows in draws]
    truth = scalars(population)
    values = [scalars(sample)["calibration_error"] for sample in samples]
    truth["calibration_error"] = float(np.mean(values))
    found = [intervals(sample) for sample in samples]
    for name in METRICS:
        held = sum(low <= truth[name] <= high for low, high in (each[name] for each in found))
        # 95 % of 60 are 57; fewer than 51 would be rarer than once in a hundred.
        assert held >= 51, name


def test_intervals_shrink_with_the_root_of_the_count() -> None:
    few, many = intervals(scores(400, 6)), intervals(scores(6400, 6))
    for name in METRICS:
        ratio = (few[name][1] - few[name][0]) / (many[name][1] - many[name][0])
        assert math.isclose(ratio, 4, rel_tol=0.35), name


def test_intervals_are_the_same_each_time_and_hold_their_value() -> None:
    made = scores(100, 6)
    assert intervals(made) == intervals(Scores(made.logits.clone(), made.labels))
    values = scalars(made)
    assert all(low <= values[name] <= high for name, (low, high) in intervals(made).items())
