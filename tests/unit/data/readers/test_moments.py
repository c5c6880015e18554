from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hvdspark.data.readers.moments import Moments, inputs, merged, moments, training_moments
from hvdspark.models import numbers
from hvdspark.store import Store
from tests.unit.train.datasets import write_dataset

# Each is a column whose mean or deviation is lost in float32, or by sums of squares.
NUMBERS: dict[str, Any] = {
    "seconds of an hour": 1.7e9 + np.arange(0.0, 3600.0, 7.0),
    "nanoseconds of an hour": 1.7e18 + np.arange(0.0, 3.6e12, 7e9),
    "tiny": np.linspace(-1e-9, 1e-9, 500),
    "below the square root of the smallest": np.linspace(1e-200, 3e-200, 500),
    "largest": np.linspace(-3e38, 3e38, 500),
    "heavy tail": np.floor(np.exp(np.linspace(0.0, 20.0, 500))),
    "gaps": np.where(np.arange(500) % 3, np.arange(500.0), np.nan),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_means_and_deviations_are_those_of_numpy(name: str, parts: int) -> None:
    values = NUMBERS[name]
    found = moments(np.empty((0, 1)), np.empty(0), None)
    for part in np.array_split(values, parts):
        found = merged(found, moments(part[:, None], np.zeros(len(part)), None))
    count, mean, _, low, high = found.inputs[:, 0]
    known = values[~np.isnan(values)]
    assert (count, low, high) == (len(known), known.min(), known.max())
    size = np.ptp(known)
    assert mean == pytest.approx(known.mean(), abs=1e-9 * size + 1e-15 * abs(known).max())
    expected = size / 2 if size < 1e-160 else known.std()
    assert found.deviation[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7e18, 1e-200, -3e38])
def test_one_number_has_no_deviation_whatever_it_is(value: float) -> None:
    found = moments(np.full((1000, 1), value), np.zeros(1000), None)
    assert merged(found, found).deviation[0] == math.inf
    assert found.inputs[1, 0] == value


@pytest.mark.parametrize("name", NUMBERS)
def test_moments_are_of_what_the_model_standardises(name: str) -> None:
    values = np.stack([NUMBERS[name], -NUMBERS[name]], axis=1)
    of_the_model = numbers.inputs(torch.from_numpy(values), "linear_and_log").numpy()
    assert np.allclose(inputs(values), of_the_model, rtol=1e-15, atol=0, equal_nan=True)


def test_nothing_but_gaps() -> None:
    found = moments(np.full((4, 1), np.nan), np.ones(4), None)
    assert found.inputs[1, 0] == 0.0
    assert found.deviation[0] == math.inf


def test_the_share_of_positive_rows_is_weighted() -> None:
    label, weight = np.array([1.0, 0.0, 0.0]), np.array([1.0, 3.0, 0.0])
    assert moments(np.empty((3, 0)), label, weight).label_mean == 0.25
    assert math.isnan(moments(np.empty((1, 0)), label[:1], np.zeros(1)).label_mean)


def test_training_rows_alone_are_read_in_any_row_groups(tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    columns = {
        "a.b": random.normal(1e6, 1.0, 90),
        "n": random.normal(0, 5, 90).astype(np.float64),
        "label": (random.random(90) < 0.3).astype(np.float32),
        "w": random.random(90).astype(np.float32),
    }
    validation = {name: values + 1e7 for name, values in columns.items()}
    store = Store(str(tmp_path))
    data = write_dataset(store, columns, validation, group_rows=[50, 10, 30])
    found = training_moments(None, store, data, ["a.b", "n"], "label", "w")  # type: ignore[arg-type]
    raw = np.stack([columns["a.b"], columns["n"]], axis=1)
    inputs = np.concatenate([raw, np.sign(raw) * np.log1p(np.abs(raw))], axis=1)
    assert np.allclose(found.inputs[1], inputs.mean(axis=0), rtol=1e-14, atol=0)
    assert np.allclose(found.deviation, inputs.std(axis=0), rtol=1e-6, atol=0)
    weights = columns["w"].astype(np.float64)
    assert found.label_mean == pytest.approx(float(columns["label"] @ weights / weights.sum()), rel=1e-12)
    assert isinstance(found, Moments)
