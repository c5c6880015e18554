"""Labels that no loss can take, in rows that the driver does not look at: the smallest and the largest are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from torch import nn

from hvdspark.errors import DataError
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.program import Program
from hvdspark.train.rehearsal import try_out
from tests.unit.train.datasets import train_spec, write_dataset


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    """30 rows: x [rows, 3], and labels 0 and 1."""
    store = Store(tmp_path_factory.mktemp("ends").as_uri())
    numbers = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32)
    columns = {"x": numbers, "label": (numbers[:, 0] > 0).astype(np.float32)}
    return train_spec(store, write_dataset(store, columns, group_rows=(20, 10)), features=("x",), labels=("label",))


@pytest.mark.parametrize(
    ("low", "high", "module", "loss", "message"),
    [
        (0, 2, nn.Linear(3, 1), "bce_with_logits", r"\[0, 1\]: 2.0 \(in label\).*for a label that is a quantity"),
        (1, 2, nn.Linear(3, 1), "bce_with_logits", r"\[0, 1\]: 2.0 \(in label\).*Hint: .*subtract 1"),
        (-1, 1, nn.Linear(3, 1), "bce_with_logits", r"\[0, 1\]: -1.0 \(in label\).*\(F.col\(label\) > 0\)"),
        (1, 2, nn.Linear(3, 2), "cross_entropy", r"with 2 outputs must lie in \[0, 1\]: 2 .*Hint: .*subtract 1"),
        (0, 1, nn.Linear(3, 2), "cross_entropy", None),
        (-100, 1, nn.Linear(3, 2), "cross_entropy", None),
        (-5, 5, nn.Linear(3, 1), "mse", None),
    ],
)
def test_labels_of_later_rows_are_known_by_their_ends(
    spec: TrainSpec, low: float, high: float, module: nn.Module, loss: str, message: str | None
) -> None:
    columns = [
        dataclasses.replace(column, minimum=float(low), maximum=float(high)) if column.name == "label" else column
        for column in spec.dataset.columns
    ]
    changed = dataclasses.replace(spec, dataset=dataclasses.replace(spec.dataset, columns=tuple(columns)))
    if message is None:
        try_out(changed, Program(module, loss))
    else:
        with pytest.raises(DataError, match=f"(?s){message}"):
            try_out(changed, Program(module, loss))


def test_one_class_alone_is_told(spec: TrainSpec) -> None:
    module, columns = nn.Linear(3, 1), list(spec.dataset.columns)
    columns = [dataclasses.replace(c, minimum=1.0, maximum=1.0) if c.name == "label" else c for c in columns]
    alone = dataclasses.replace(spec, dataset=dataclasses.replace(spec.dataset, columns=tuple(columns)))
    (warning,) = try_out(alone, Program(module, "bce_with_logits")).warnings
    assert "all labels in 'label' are 1: there is nothing to tell apart" in warning
    assert not try_out(alone, Program(module, "mse")).warnings
    assert not try_out(spec, Program(module, "bce_with_logits")).warnings
