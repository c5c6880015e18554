"""Scores as raw prediction, probability and class, without Spark; tests/spark holds Spark's plan to the same cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hvdspark.artifact.classes import ClassRule, tells_classes

NAN = math.nan


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# (rule, score, raw, probability, class)
CASES: list[Any] = [
    (ClassRule("bce_with_logits"), 1.0, [-1.0, 1.0], [1 - sigmoid(1), sigmoid(1)], 1.0),
    (ClassRule("bce_with_logits", 0.8), 1.0, [-1.0, 1.0], [1 - sigmoid(1), sigmoid(1)], 0.0),
    (ClassRule("bce_with_logits"), -800.0, [800.0, -800.0], [1.0, 0.0], 0.0),
    (ClassRule("bce_with_logits"), 0.0, [0.0, 0.0], [0.5, 0.5], 0.0),
    (ClassRule("bce_with_logits"), NAN, [NAN, NAN], [NAN, NAN], 0.0),
    (ClassRule("bce", 0.7), 0.75, [0.25, 0.75], [0.25, 0.75], 1.0),
    (ClassRule("cross_entropy"), [2.0, 3.0], [-1.0, 1.0], [1 - sigmoid(1), sigmoid(1)], 1.0),
    (ClassRule("cross_entropy", 0.8), [2.0, 3.0], [-1.0, 1.0], [1 - sigmoid(1), sigmoid(1)], 0.0),
    (ClassRule("nll", 0.25), [math.log(0.7), math.log(0.3)], [math.log(7 / 3), math.log(3 / 7)], [0.7, 0.3], 1.0),
    (ClassRule("cross_entropy"), [1.0, 3.0, 2.0], [1.0, 3.0, 2.0], None, 1.0),
    (ClassRule("cross_entropy"), [-900.0, -1000.0, -2000.0], [-900.0, -1000.0, -2000.0], [1.0, 0.0, 0.0], 0.0),
    (ClassRule("cross_entropy"), [5.0, 5.0, 1.0], [5.0, 5.0, 1.0], None, 0.0),
    (ClassRule("cross_entropy"), [NAN, NAN, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN], 0.0),
    (ClassRule("cross_entropy", thresholds=(0.1, 0.8, 0.1)), [1.0, 2.0, 1.5], [1.0, 2.0, 1.5], None, 2.0),
    (ClassRule("cross_entropy", thresholds=(0.0, 1.0, 1.0)), [-9.0, 2.0, 1.5], [-9.0, 2.0, 1.5], None, 0.0),
    (ClassRule("cross_entropy", thresholds=(0.0, 1.0, 1.0)), [-9e9, 2.0, 1.5], [-9e9, 2.0, 1.5], None, 1.0),
    (ClassRule("cross_entropy", 0.8, as_returned=True), [2.0, 3.0], [2.0, 3.0], None, 1.0),
    (ClassRule("nll"), np.log([0.2, 0.5, 0.3]), np.log([0.2, 0.5, 0.3]), [0.2, 0.5, 0.3], 1.0),
]


@pytest.mark.parametrize(("rule", "score", "raw", "probability", "prediction"), CASES)
def test_a_class_is_read_off_a_score(rule: ClassRule, score: Any, raw: Any, probability: Any, prediction: Any) -> None:
    found = rule.classes(np.array([score, score], dtype=np.float64))
    if probability is None:
        probability = torch.tensor(score, dtype=torch.float64).softmax(0).tolist()
    np.testing.assert_allclose(found.raw, [raw, raw], atol=1e-12)
    np.testing.assert_allclose(found.probability, [probability, probability], atol=1e-12)
    assert found.prediction.tolist() == [prediction, prediction]


def test_no_rows_have_no_classes() -> None:
    for shape in ((0,), (0, 2), (0, 3)):
        found = ClassRule("cross_entropy" if len(shape) > 1 else "bce").classes(np.empty(shape))
        assert (len(found.raw), len(found.probability), len(found.prediction)) == (0, 0, 0)


def test_what_a_manifest_says() -> None:
    def state(loss: str, *shapes: tuple[int, ...], **entries: Any) -> dict[str, Any]:
        return {"result": {"loss": loss, "outputs": [{"shape": list(shape)} for shape in shapes]}, **entries}

    assert ClassRule.of_state({}) is None
    assert ClassRule.of_state(state("mse", ())) is None
    assert ClassRule.of_state(state("bce_with_logits", (1,))) == ClassRule("bce_with_logits")
    assert ClassRule.of_state(state("bce_with_logits", (4,))) is None, "four labels"
    assert ClassRule.of_state(state("cross_entropy", (4,), ())) is None, "two outputs"
    kept = {"loss": "cross_entropy", "threshold": 0.5, "thresholds": [1.0, 2.0, 0.0]}
    rule = ClassRule.of_state(state("cross_entropy", (3,), classes=kept))
    assert rule == ClassRule("cross_entropy", thresholds=(1.0, 2.0, 0.0))
    assert tells_classes("nll", [(3,)])
    assert not tells_classes("nll", [(3, 2)])
