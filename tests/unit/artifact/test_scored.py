"""The columns that scoring adds, in numpy. Against `transform`: tests/spark/test_mlflow_flavor.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact import TrainedModel
from hvdspark.artifact.classes import ClassRule
from hvdspark.artifact.inputs import Inputs
from hvdspark.artifact.scored import CLASS, OUTPUT, PROBABILITY, RAW, ScoredColumn, Scoring, score
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec

INPUTS = Inputs((ColumnSpec("x", "float32", "scalar"), ColumnSpec("n", "int64", "scalar")))


class Two(nn.Module):
    """A number and a pair for each row; remembers how many rows it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(len(x))
        return x, torch.stack([x, n.float()], dim=1)


BOTH = (ScoredColumn("one", OUTPUT, False), ScoredColumn("pair", OUTPUT, True))


def test_outputs_keep_their_order() -> None:
    kept, found = score(TrainedModel(Two(), INPUTS), Scoring(BOTH, "error"), {"x": [1.5, 2.5], "n": [3, 4]})
    assert kept.tolist() == [True, True]
    assert {name: values.tolist() for name, values in found.items()} == {
        "one": [1.5, 2.5],
        "pair": [[1.5, 3.0], [2.5, 4.0]],
    }


def test_integers_that_became_fractions_are_integers_again() -> None:
    columns = {"x": [1.5, 2.5, 3.5], "n": np.array([3.0, math.nan, 4.0])}
    kept, found = score(TrainedModel(Two(), INPUTS), Scoring(BOTH, "skip"), columns)
    assert kept.tolist() == [True, False, True]
    assert found["pair"].tolist() == [[1.5, 3.0], [3.5, 4.0]]
    with pytest.raises(DataError, match="not integers"):
        score(TrainedModel(Two(), INPUTS), Scoring(BOTH, "error"), {"x": [1.0], "n": [0.5]})


def test_no_row_at_all() -> None:
    module = Two()
    kept, found = score(TrainedModel(module, INPUTS), Scoring(BOTH, "skip"), {"x": [None], "n": [1]})
    assert (kept.tolist(), len(found["one"]), len(found["pair"]), module.calls) == ([False], 0, 0, [])


def test_rows_go_through_the_module_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvdspark.artifact.scored._ROWS", 2)
    module = Two()
    _, found = score(TrainedModel(module, INPUTS), Scoring(BOTH, "error"), {"x": np.arange(5.0), "n": range(5)})
    assert module.calls == [2, 2, 1]
    assert found["one"].tolist() == [0, 1, 2, 3, 4]


def test_classes_under_the_names_that_they_have() -> None:
    columns = (
        ScoredColumn("raw", RAW, True),
        ScoredColumn("p", PROBABILITY, True),
        ScoredColumn("prediction", CLASS, False),
    )
    scoring = Scoring(columns, "keep", ClassRule("bce_with_logits", threshold=0.9))
    _, found = score(TrainedModel(Two(), INPUTS), scoring, {"x": [0.0, 3.0, None], "n": [0, 0, 0]})
    assert found["raw"][:2].tolist() == [[0.0, 0.0], [-3.0, 3.0]]
    assert found["p"][:, 1].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-3)), math.nan], nan_ok=True)
    assert found["prediction"].tolist() == [0.0, 1.0, 0.0]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match=r"a feature column is missing: \['n'\].*given are \['x'\]"):
        score(TrainedModel(Two(), INPUTS), Scoring(BOTH, "error"), {"x": [1.0]})
