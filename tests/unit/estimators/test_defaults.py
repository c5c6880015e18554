from __future__ import annotations

import math

import pytest

from hvdspark.embedding.config import OPTIMIZERS, SparseOptimizer
from hvdspark.estimators import CTRClassificationModel, CTRClassifier
from hvdspark.estimators.defaults import Pace, dense_pace, embedding_pace, pace

ROWS = (1, 10, 1000, 5000, 40_000, 200_000, 1_000_000, 10_000_000, 10**10)


@pytest.mark.parametrize("rows", ROWS)
def test_few_rows_are_passed_often_in_small_batches_and_many_once(rows: int) -> None:
    chosen = pace(rows, batch_size=None, epochs=None, schedule=None, accumulation=1)
    steps = chosen.epochs * math.ceil(rows / chosen.batch_size)
    assert 32 <= chosen.batch_size <= 8192
    assert 1 <= chosen.epochs <= 20
    assert steps >= 300 or chosen.epochs == 20
    assert chosen.epochs == 1 or steps < 450
    if rows >= 10_000_000:
        assert (chosen.batch_size, chosen.epochs) == (8192, 1)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("batch_size", [None, 1, 4096])
@pytest.mark.parametrize("epochs", [None, 1, 7])
@pytest.mark.parametrize("schedule", [None, "constant"])
def test_what_is_set_stays(rows: int, batch_size: int | None, epochs: int | None, schedule: str | None) -> None:
    chosen = pace(rows, batch_size=batch_size, epochs=epochs, schedule=schedule, accumulation=2)
    assert batch_size in (None, chosen.batch_size)
    assert epochs in (None, chosen.epochs)
    assert chosen.schedule == (schedule or "cosine")


def test_what_is_not_set_makes_up_for_what_is() -> None:
    def steps(batch_size: int | None, epochs: int | None, accumulation: int = 1) -> float:
        chosen = pace(40_000, batch_size=batch_size, epochs=epochs, schedule=None, accumulation=accumulation)
        return chosen.epochs * 40_000 / chosen.batch_size / accumulation

    assert steps(4096, None) == pytest.approx(20 * 40_000 / 4096)  # 20 epochs are the most
    assert steps(512, None) >= 300
    assert steps(None, 1) >= 200
    assert steps(None, None, accumulation=4) >= 200


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5, 0.999999])
def test_every_optimizer_gets_values_that_it_takes(name: str, rate: float) -> None:
    for learning_rate in (None, 0.02):
        chosen = embedding_pace(name, Pace(8192, 1, "cosine"), rate, 1000.0, learning_rate=learning_rate)
        for size, accumulator in (
            (chosen.vectors, chosen.vector_accumulator),
            (chosen.weights, chosen.weight_accumulator),
        ):
            SparseOptimizer(name, size, initial_accumulator=accumulator)
            assert learning_rate in (None, size)


OPEN = {"batchSize": 64, "epochs": 3, "learningRateSchedule": "constant", "embeddingLearningRate": 0.5}


@pytest.mark.parametrize("name", OPEN)
def test_what_follows_from_the_rows_is_a_param_as_any_other(name: str) -> None:
    suffix = name[0].upper() + name[1:]
    for stage in (CTRClassifier(), CTRClassificationModel(), CTRClassifier().copy()):
        assert getattr(stage, f"get{suffix}")() is None
        assert stage.hasDefault(name)
        assert not stage.isSet(name)
        text = stage.explainParam(name)
        assert "None: " in text
        assert text.endswith("(default: None)")
    chosen = CTRClassifier(**{name: OPEN[name]})
    assert getattr(chosen, f"get{suffix}")() == OPEN[name]
    chosen.clear(chosen.getParam(name))
    assert getattr(chosen, f"get{suffix}")() is None
    assert CTRClassifier().pace(40_000) == Pace(512, 4, "cosine")


@pytest.mark.parametrize(
    ("rate", "rows", "numbers", "held_back"),
    [
        (0.4, 5_000, 20, True),
        (0.4, 5_000, 5, False),
        (0.01, 5_000, 5, True),
        (0.24, 32_561, 6, False),
        (0.4, 200_000, 20, False),
        (0.5, math.inf, 1000, False),
        (0.5, 10_000, 0, False),
    ],
)
def test_deep_layers_are_held_back_where_there_are_few_rows_for_the_pairs_of_numbers(
    rate: float, rows: float, numbers: int, held_back: bool
) -> None:
    found = dense_pace(rate, rows, numbers)
    assert 0 < found.deep <= 1
    assert (found.deep < 1) == held_back
    assert (found.first_order, found.bias) == (10.0, 50.0)
