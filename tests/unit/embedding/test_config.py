from __future__ import annotations

import pytest

from hvdspark.embedding.config import (
    Admission,
    Eviction,
    Initialization,
    SparseOptimizer,
    TableConfig,
    check_unique_names,
)
from hvdspark.errors import ConfigurationError
from hvdspark.specs import from_json, to_json


@pytest.mark.parametrize(
    "table",
    [
        TableConfig("t", 16),
        TableConfig(
            "t",
            1,
            pooling="mean",
            optimizer=SparseOptimizer("ftrl", 0.1, initial_accumulator=0.1, l1=0.5, l2=1, clip_norm=2.0),
            init=Initialization("normal", 1e-4),
            dtype="bfloat16",
            placement="row",
            admission=Admission(3),
            eviction=Eviction(100, max_age_steps=1000, min_count=2),
        ),
        TableConfig("t", 8, num_embeddings=10**9, placement="table"),
    ],
)
def test_json_round_trip(table: TableConfig) -> None:
    assert from_json(TableConfig, to_json(table)) == table
    assert hash(from_json(TableConfig, to_json(table))) == hash(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "a table needs a name: ''"),
        ({"dim": 0}, r"dim is out of range: 0 \(in table 't'\). Hint: a whole number >= 1"),
        ({"dim": 16.0}, "dim is out of range: 16.0"),
        ({"dim": True}, "dim is out of range: True"),
        ({"num_embeddings": -5}, "num_embeddings is out of range: -5"),
        ({"num_embeddings": 0}, "num_embeddings is out of range: 0"),
        ({"num_embeddings": 2**41}, "Hint: a whole number >= 1 and <= 1099511627776"),
        ({"pooling": "avg"}, "unknown pooling: 'avg'.*known are none, sum, mean"),
        ({"dtype": "bfloat"}, "unknown dtype: 'bfloat'.*did you mean 'bfloat16'"),
        ({"dtype": "int8"}, "unknown dtype: 'int8'"),
        ({"placement": "column"}, "unknown placement: 'column'"),
        ({"placement": "replicated"}, "an unbounded table cannot be replicated"),
        ({"num_embeddings": 5, "admission": Admission(2)}, "admission and eviction are for unbounded tables"),
        ({"num_embeddings": 5, "eviction": Eviction(2, 3)}, "admission and eviction are for unbounded tables"),
        ({"dim": 1, "optimizer": SparseOptimizer(last=SparseOptimizer())}, "nothing beside the last column: 1"),
        ({"dim": 1, "init": Initialization(zero_last=True)}, "nothing beside the last column: 1"),
    ],
)
def test_bad_tables(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TableConfig(**{"name": "t", "dim": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adagard"}, "unknown name: 'adagard'.*did you mean 'adagrad'"),
        ({"learning_rate": 0}, "learning_rate is out of range: 0 .*> 0"),
        ({"learning_rate": float("nan")}, "learning_rate is out of range: nan"),
        ({"learning_rate": "0.1"}, "learning_rate is out of range: '0.1'"),
        ({"eps": -1}, "eps is out of range: -1"),
        ({"initial_accumulator": -1}, "initial_accumulator is out of range: -1"),
        ({"beta1": 1.0}, "beta1 is out of range: 1.0.*>= 0 and < 1"),
        ({"beta2": -0.1}, "beta2 is out of range: -0.1"),
        ({"l2": -1.0}, "l2 is out of range: -1.0"),
        ({"clip_norm": 0.0}, "clip_norm is out of range: 0.0"),
        ({"l1": 0.1}, "only ftrl has an l1 term: 0.1"),
        ({"name": "ftrl"}, "ftrl needs a positive initial_accumulator: 0.0.*0.1 is the usual value"),
        ({"name": "ftrl", "initial_accumulator": 0.1, "l1": -1.0}, "l1 is out of range: -1.0"),
        ({"last": SparseOptimizer(last=SparseOptimizer())}, "only one column is the last one"),
    ],
)
def test_bad_optimizers(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SparseOptimizer(**options)  # type: ignore[arg-type]


def test_bad_rules() -> None:
    with pytest.raises(ConfigurationError, match="unknown distribution: 'unifrom'.*did you mean 'uniform'"):
        Initialization("unifrom")
    with pytest.raises(ConfigurationError, match="scale is out of range: 0"):
        Initialization("normal", 0)
    with pytest.raises(ConfigurationError, match="min_count is out of range: 0"):
        Admission(0)
    with pytest.raises(ConfigurationError, match="eviction without a rule"):
        Eviction(10)
    with pytest.raises(ConfigurationError, match="every_steps is out of range: 0"):
        Eviction(0, max_age_steps=1)
    with pytest.raises(ConfigurationError, match="max_age_steps is out of range: 0"):
        Eviction(1, max_age_steps=0)
    with pytest.raises(ConfigurationError, match="min_count is out of range: -1"):
        Eviction(1, min_count=-1)


def test_two_tables_of_one_name() -> None:
    with pytest.raises(ConfigurationError, match="two tables have the same name: 'a'"):
        check_unique_names([TableConfig("a", 2), TableConfig("b", 2), TableConfig("a", 3)])
    check_unique_names([TableConfig("a", 2), TableConfig("b", 2)])
