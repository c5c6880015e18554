"""Tables of clicks to compare with scikit-learn on, and a fit of CTRClassifier's program on them without Spark."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hvdspark.collectives import LocalCollective
from hvdspark.data.dataset.selection import Selection
from hvdspark.data.readers.moments import training_moments
from hvdspark.estimators import CTRClassifier
from hvdspark.estimators.asked import Columns, train_spec
from hvdspark.estimators.ctr_program import click_program
from hvdspark.store import Store
from hvdspark.train.loop import train
from hvdspark.train.program import TrainResult
from tests.unit.train.datasets import write_dataset

Floats = NDArray[np.float64]
HELD_OUT = 100_000


@dataclass(frozen=True)
class Rows:
    """Numbers float64 [rows, N], categories int64 [rows, F], labels 0 or 1 [rows]."""

    numbers: Floats
    categories: NDArray[np.int64]
    labels: Floats


@dataclass(frozen=True)
class Found:
    """Of some scores: AUC on held-out rows, and how many times the observed rate the mean prediction is."""

    auc: float
    training_ratio: float
    ratio: float


def clicks(rows: int, rate: float, signal: str, seed: int, *, wide_category: bool = True) -> tuple[Rows, Rows]:
    """Training and held-out rows whose logit is a sum of effects.

    Args:
        rate: share of positive rows.
        signal: "dense": most of it is in the numbers; "sparse": in the categories.
        wide_category: whether one of the categories has 10,000 values.
    """
    random, count = np.random.default_rng(seed), rows + HELD_OUT
    numbers = {
        "price": random.uniform(0, 500, count),
        "signed": random.normal(0, 50, count),
        "seconds of an hour": 1.7e9 + random.uniform(0, 3600, count),
        "count": np.floor(random.lognormal(1, 2, count)),
        "tiny": random.normal(0, 1e-9, count),
    }
    categories = [random.integers(0, 5, count), np.minimum(random.zipf(1.5, count), 50), random.integers(0, 200, count)]
    if wide_category:
        even = random.integers(0, 10_000, count)
        categories.append(even if signal == "dense" else (10_000 * random.random(count) ** 2).astype(np.int64))
    number_effects, category_effects = ([0.8, -0.6, 0.7, 0.0, 0.4], [0.5, 0.3, 0.0, 0.0])
    if signal == "sparse":
        number_effects, category_effects = [0.2, 0.0, 0.0, 0.0, 0.0], [0.5, 0.7, 0.7, 1.0]
    logits = sum(
        effect * (values - values.mean()) / values.std()
        for effect, values in zip(number_effects, numbers.values(), strict=True)
    )
    if signal == "dense":
        logged = np.log1p(numbers["count"])
        logits = logits + 0.5 * (logged - logged.mean()) / logged.std()
    for effect, values in zip(category_effects, categories, strict=False):
        logits = logits + random.normal(0, effect, 10_001)[values]
    logits = logits + _offset(logits, rate)
    labels = (random.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    whole = Rows(np.stack(list(numbers.values()), axis=1), np.stack(categories, axis=1).astype(np.int64), labels)
    return _cut(whole, slice(0, rows)), _cut(whole, slice(rows, count))


def many_numbers(rows: int, rate: float, seed: int) -> tuple[Rows, Rows]:
    """As `clicks`, with 20 numbers that go together, of which each says a little, and two categories."""
    random, count = np.random.default_rng(seed), rows + HELD_OUT
    together = random.normal(size=(count, 3))
    raw = [0.5 * together[:, k % 3] + random.normal(size=count) for k in range(20)]
    shapes = [lambda x: x, lambda x: np.exp(1.5 * x), lambda x: 1e6 * x + 3e7, lambda x: np.floor(3 * np.exp(x))]
    numbers = [shapes[k % len(shapes)](values) for k, values in enumerate(raw)]
    categories = [random.integers(0, size, count) for size in (30, 30)]
    logits = sum(random.normal(0, 0.27) * (values - values.mean()) / values.std() for values in numbers)
    logits = logits + sum(random.normal(0, 0.2, 30)[values] for values in categories)
    labels = (random.random(count) < 1 / (1 + np.exp(-logits - _offset(logits, rate)))).astype(np.float64)
    whole = Rows(np.stack(numbers, axis=1), np.stack(categories, axis=1).astype(np.int64), labels)
    return _cut(whole, slice(0, rows)), _cut(whole, slice(rows, count))


def adult(folder: Path) -> tuple[Rows, Rows]:
    """The UCI census table: 32,561 training and 16,281 held-out rows."""
    splits = []
    for name in ("adult.data", "adult.test"):
        with (folder / name).open() as file:
            splits.append([row for row in csv.reader(file, skipinitialspace=True) if row][1:])
    rows = splits[0] + splits[1]
    numeric = [0, 2, 4, 10, 11, 12]
    numbers = np.array([[float(row[k]) for k in numeric] for row in rows])
    others = [k for k in range(14) if k not in numeric]
    categories = np.stack([np.unique([row[k] for row in rows], return_inverse=True)[1] for k in others], axis=1)
    labels = np.array([float(row[14].strip() == ">50K") for row in rows])
    whole = Rows(numbers, categories.astype(np.int64), labels)
    return _cut(whole, slice(0, len(splits[0]))), _cut(whole, slice(len(splits[0]), len(rows)))


def logistic_regression(training: Rows, held_out: Rows) -> Found:
    """scikit-learn's, on standardised numbers and one-hot categories."""
    scaler, encoder = make_pipeline(StandardScaler()), OneHotEncoder(handle_unknown="ignore")
    from scipy.sparse import hstack

    inputs = hstack([scaler.fit_transform(training.numbers), encoder.fit_transform(training.categories)]).tocsr()
    model = LogisticRegression(max_iter=2000).fit(inputs, training.labels)
    new = hstack([scaler.transform(held_out.numbers), encoder.transform(held_out.categories)]).tocsr()
    return _found(model.predict_proba(inputs)[:, 1], model.predict_proba(new)[:, 1], training, held_out)


def fitted(classifier: CTRClassifier, training: Rows, store: Store) -> tuple[torch.nn.Module, TrainResult]:
    """What the classifier's `fit` trains, on one rank in this process. Columns are x0, x1, ... and c0, c1, ..."""
    columns: dict[str, Any] = {f"x{k}": training.numbers[:, k] for k in range(training.numbers.shape[1])}
    columns |= {f"c{k}": training.categories[:, k] for k in range(training.categories.shape[1])}
    numbers, categories = classifier.getContinuousCols(), classifier.getCategoricalCols()
    data = write_dataset(store, {**columns, "label": training.labels.astype(np.float32)})
    rows = training_moments(None, store, data, numbers, "label", None)  # type: ignore[arg-type]
    program = click_program(classifier, numbers, categories, [], classifier.pace(data.train_rows), rows)
    asked = Columns(None, None, (*numbers, *categories), ("label",), None, Selection(()), tuple(numbers))  # type: ignore[arg-type]
    spec = train_spec(classifier, asked, data, ("logloss", "auc", "accuracy"), "run", store.uri)
    result = train(spec, program, LocalCollective(), "cpu", lambda event: None)
    return program.module.eval(), result


def compared(classifier: CTRClassifier, training: Rows, held_out: Rows, store: Store) -> Found:
    """The classifier with all columns, by its scores."""
    classifier = classifier.copy().setContinuousCols([f"x{k}" for k in range(training.numbers.shape[1])])
    classifier.setCategoricalCols([f"c{k}" for k in range(training.categories.shape[1])])
    module, _ = fitted(classifier, training, store)
    return _found(_scores(module, training), _scores(module, held_out), training, held_out)


def _scores(module: torch.nn.Module, rows: Rows) -> Floats:
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows.labels), 1 << 13):
            part = slice(start, start + (1 << 13))
            columns: Sequence[Any] = [*rows.numbers[part].T, *rows.categories[part].T]
            parts.append(torch.sigmoid(module(*(torch.tensor(np.ascontiguousarray(column)) for column in columns))))
    return torch.cat(parts).double().numpy()


def _found(scores: Floats, new: Floats, training: Rows, held_out: Rows) -> Found:
    return Found(
        float(roc_auc_score(held_out.labels, new)),
        float(scores.mean() / training.labels.mean()),
        float(new.mean() / held_out.labels.mean()),
    )


def _cut(rows: Rows, part: slice) -> Rows:
    return Rows(rows.numbers[part], rows.categories[part], rows.labels[part])


def _offset(logits: Floats, rate: float) -> float:
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (1 / (1 + np.exp(-logits - middle))).mean() > rate else (middle, high)
    return low
