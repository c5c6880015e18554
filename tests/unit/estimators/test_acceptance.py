"""CTRClassifier with nothing but columns and a label, beside logistic regression of scikit-learn on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdspark.estimators import CTRClassifier
from hvdspark.models import ARCHITECTURES
from hvdspark.store import Store
from tests.unit.estimators.tables import Found, Rows, adult, clicks, compared, fitted, logistic_regression, many_numbers

AUC_BELOW = 0.005
MEAN_OFF = 0.05

# rows, share of positives, where the signal is, seed
TABLES: dict[str, tuple[int, float, str, int]] = {
    "5,000 rows, dense, 40 %": (5_000, 0.4, "dense", 2),
    "5,000 rows, sparse, 1 %": (5_000, 0.01, "sparse", 11),
    "40,000 rows, dense, 1 %": (40_000, 0.01, "dense", 3),
    "40,000 rows, sparse, 1 %": (40_000, 0.01, "sparse", 6),
    "40,000 rows, sparse, 40 %": (40_000, 0.4, "sparse", 5),
    "200,000 rows, sparse, 40 %": (200_000, 0.4, "sparse", 7),
    "200,000 rows, sparse, 1 %": (200_000, 0.01, "sparse", 8),
}


def check(found: Found, reference: Found) -> None:
    assert found.auc > reference.auc - AUC_BELOW, (found, reference)
    assert abs(found.training_ratio - 1) < MEAN_OFF, (found, reference)


@pytest.fixture(scope="module")
def small() -> tuple[Rows, Rows, Found]:
    training, held_out = clicks(5_000, 0.4, "dense", 2)
    return training, held_out, logistic_regression(training, held_out)


# The least and the most of layers, and each optimizer; the others are below, with every table.
@pytest.mark.parametrize(
    ("architecture", "optimizer"),
    [
        ("lr", "adagrad"),
        ("deepfm", "rowwise_adagrad"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("lr", "rowwise_adagrad"), ("dlrm", "ftrl"))),
    ],
)
def test_defaults_reach_logistic_regression(
    architecture: str, optimizer: str, small: tuple[Rows, Rows, Found], tmp_path: Path
) -> None:
    training, held_out, reference = small
    classifier = CTRClassifier(architecture=architecture, embeddingOptimizer=optimizer)
    check(compared(classifier, training, held_out, Store(str(tmp_path))), reference)


@pytest.mark.parametrize("architecture", ["dlrm", pytest.param("deepfm", marks=pytest.mark.slow)])
def test_few_rows_of_many_numbers_are_not_learnt_by_heart(architecture: str, tmp_path: Path) -> None:
    training, held_out = many_numbers(5_000, 0.4, 301)
    reference = logistic_regression(training, held_out)
    check(compared(CTRClassifier(architecture=architecture), training, held_out, Store(str(tmp_path))), reference)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("table", ["adult", "20 numbers", *TABLES])
def test_defaults_reach_logistic_regression_on_every_table(
    table: str, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    if table == "adult":
        training, held_out = adult(real_data("adult"))
    else:
        training, held_out = many_numbers(5_000, 0.4, 301) if table == "20 numbers" else clicks(*TABLES[table])
    reference = logistic_regression(training, held_out)
    for optimizer in ("rowwise_adagrad", "ftrl"):
        for architecture in ARCHITECTURES:
            classifier = CTRClassifier(architecture=architecture, embeddingOptimizer=optimizer)
            found = compared(classifier, training, held_out, Store(str(tmp_path / optimizer / architecture)))
            print(f"{table}, {optimizer}, {architecture}: {found}, logistic regression {reference}")
            check(found, reference)


def test_the_first_predictions_are_the_base_rate(tmp_path: Path) -> None:
    import torch

    training, _ = clicks(5_000, 0.01, "sparse", 11)
    for architecture in ARCHITECTURES:
        columns: dict[str, Any] = {"continuousCols": ["x0", "x3"], "categoricalCols": ["c0", "c3"]}
        # One step that is too short to change anything.
        classifier = CTRClassifier(
            architecture=architecture,
            batchSize=5_000,
            epochs=1,
            learningRate=1e-9,
            embeddingLearningRate=1e-9,
            **columns,
        )
        module, _ = fitted(classifier, training, Store(str(tmp_path / architecture)))
        scores = torch.sigmoid(module(*training_columns(training)))
        assert scores.mean().item() == pytest.approx(training.labels.mean(), rel=0.02), architecture
        assert scores.max().item() < 2 * training.labels.mean(), architecture


def training_columns(rows: Rows) -> list[Any]:
    import torch

    chosen = [*rows.numbers[:, [0, 3]].T, *rows.categories[:, [0, 3]].T]
    return [torch.tensor(column) for column in chosen]
