"""Which dense weights of a click model mean what they meant; needs no session."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import write_tables
from hvdspark.artifact.weights import write_weights
from hvdspark.collectives import LocalCollective
from hvdspark.estimators.warm_start import begin
from hvdspark.models.click import ClickModel
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroups, TrainSpec
from hvdspark.store import Store

NUMBERS, CATEGORIES = ["price", "age"], ["user", "page"]


def model(numbers: list[str] = NUMBERS, categories: list[str] = CATEGORIES, **changes: Any) -> ClickModel:
    settings: dict[str, Any] = {"dim": 3, "hidden": (5, 5, 5, 5), "first_order": True, "one_table": True}
    return ClickModel("wide_deep", len(numbers), categories, **{**settings, **changes})


def columns(numbers: list[str], categories: list[str]) -> tuple[ColumnSpec, ...]:
    named = [*((name, "float64") for name in numbers), *((name, "int64") for name in categories)]
    return tuple(ColumnSpec(name, dtype, "scalar") for name, dtype in named)


def saved(store: Store, known: bool = True) -> Artifact:
    made = model()
    features = [asdict(column) for column in columns(NUMBERS, CATEGORIES)]
    tables = write_tables(store, "model", made, LocalCollective(), state=False)
    write_weights(store, "model", made, {"features": features} if known else {}, tables)
    return Artifact.open(store, "model")


def fresh(store: Store, source: Artifact, numbers: list[str], categories: list[str], **changes: Any) -> set[str]:
    of_rows = columns(numbers, categories)
    data = DatasetSpec("d", of_rows, RowGroups.of())
    spec = TrainSpec("run", store.uri, data, tuple(column.name for column in of_rows), ("label",))
    begins = begin(source, spec, model(numbers, categories, **changes))
    assert begins.said is not None
    assert begins.spec.warm_start is not None
    assert json.loads(json.dumps(begins.said)) == begins.said
    return set(begins.said["fresh"])


OF_NUMBERS = {"mean", "deviation", "network.wide.weight", "network.deep.0.weight"}


@pytest.mark.parametrize(
    ("numbers", "categories", "expected"),
    [
        (NUMBERS, CATEGORIES, set()),
        (["age", "price"], CATEGORIES, OF_NUMBERS),
        (["price", "size"], CATEGORIES, OF_NUMBERS),
        (NUMBERS, ["page", "user"], {"network.deep.0.weight"}),
        (NUMBERS, ["user", "shop"], {"network.deep.0.weight", "table shop"}),
        (NUMBERS, ["user"], {"network.deep.0.weight"}),
    ],
)
def test_weights_of_columns_that_changed_are_fresh(
    tmp_path: Path, numbers: list[str], categories: list[str], expected: set[str]
) -> None:
    store = Store(str(tmp_path))
    assert fresh(store, saved(store), numbers, categories) == expected


def test_columns_that_nobody_knows_are_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert fresh(store, saved(store, known=False), NUMBERS, CATEGORIES) == OF_NUMBERS


def test_dropout_renumbers_the_layers(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    source = saved(store)
    deep = {name for name in model(dropout=0.1).state_dict() if name.startswith("network.deep.")}
    assert "network.deep.6.weight" in deep & source.tensors().keys(), "of another layer, in the same shape"
    assert fresh(store, source, NUMBERS, CATEGORIES, dropout=0.1) == deep - {
        "network.deep.0.weight",
        "network.deep.0.bias",
    }
    deeper = fresh(store, source, NUMBERS, CATEGORIES, hidden=(5, 5, 5, 5, 5))
    assert deeper == {"network.deep.8.weight", "network.deep.8.bias", "network.deep.10.weight", "network.deep.10.bias"}
