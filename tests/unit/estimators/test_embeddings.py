"""Trained embeddings as Arrow batches, file by file; needs no session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import collections_of, load_model, table_place, write_tables
from hvdspark.artifact.weights import write_weights
from hvdspark.collectives import LocalCollective
from hvdspark.embedding.files.entries import parse_entries
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.estimators import embeddings
from hvdspark.estimators.fitted import FittedModule
from hvdspark.models.click import ID_BITS, ClickModel
from hvdspark.models.click_tables import TableSettings
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store
from hvdspark.train.pickling import skeleton
from hvdspark.train.program import TrainResult

IDS = torch.arange(40)


def click_model(name: str = "wide_deep", **changes: Any) -> ClickModel:
    settings: dict[str, Any] = {"dim": 3, "hidden": (8,), "one_table": True, "embedding_learning_rate": 0.1}
    return ClickModel(name, 0, ["user", "page"], **{**settings, **changes})


def saved(made: ClickModel, store: Store) -> Artifact:
    for ids in (IDS, IDS[:30]):
        (made.train()(ids, ids.flip(0) + 7) - 1).square().mean().backward()
        for part in collections_of(made):
            part.apply_gradients()
    tables = write_tables(store, "model", made, LocalCollective(), state=False)
    write_weights(store, "model", made, {}, tables)
    return Artifact.open(store, "model")


def read(artifact: Artifact, made: ClickModel, column: str) -> pa.Table:
    place = made.rows_of(column)
    files = parse_entries(artifact.tables[place.collection]["files"], "model")
    store, directory = table_place(artifact, place.collection)
    batches = [
        batch
        for file in files
        if file.path and file.rows.get(place.table)
        for batch in embeddings.batches_of(store, directory, file, place)
    ]
    return pa.Table.from_batches(batches)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_rows_with_vector_weight_and_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(embeddings, "_BATCH_VALUES", 8)  # several batches to a file
    made = click_model(embedding_dtype=dtype, of_tables={"page": TableSettings(dim=2)})
    artifact = saved(made, Store(str(tmp_path)))
    scored = load_model(
        artifact.store, "model", click_model(embedding_dtype=dtype, of_tables=made.of_tables), artifact.fingerprint
    )
    for column, width in (("user", 3), ("page", 2)):
        table = read(artifact, made, column)
        assert len(table) == 40
        ids = torch.from_numpy(table["key"].to_numpy())
        (collection,) = collections_of(scored)
        rows = collection.rows_of(column, ids)
        assert torch.equal(torch.tensor(table["vector"].to_pylist()), rows[:, :width])
        assert torch.equal(torch.from_numpy(table["weight"].to_numpy()), rows[:, width])
        expected = collection({"user": ids, "page": ids})[column]  # as a forward pass has them
        assert torch.equal(rows, expected)
    counts = dict(zip(*(read(artifact, made, "user")[name].to_pylist() for name in ("key", "count")), strict=True))
    assert counts == {key: 2 if key < 30 else 1 for key in range(40)}


def test_a_model_of_first_order_alone_has_weights_and_empty_vectors(tmp_path: Path) -> None:
    made = click_model("lr")
    table = read(saved(made, Store(str(tmp_path))), made, "user")
    assert set(map(len, table["vector"].to_pylist())) == {0}
    assert np.abs(table["weight"].to_numpy()).min() > 0


def test_models_of_two_tables_have_no_weight_here(tmp_path: Path) -> None:
    made = click_model(one_table=False)
    table = read(saved(made, Store(str(tmp_path))), made, "user")
    assert table["weight"].null_count == len(table) == 40
    assert set(map(len, table["vector"].to_pylist())) == {3}


def test_files_of_earlier_versions_have_no_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = click_model()
    artifact = saved(made, Store(str(tmp_path)))
    whole = embeddings.read_file
    monkeypatch.setattr(
        embeddings,
        "read_file",
        lambda *arguments: {name: t for name, t in whole(*arguments).items() if not name.endswith("/counts")},
    )
    assert read(artifact, made, "user")["count"].null_count == 40


def test_lists_are_no_data_frame_and_one_category_is_no_list(tmp_path: Path) -> None:
    made, store = click_model(), Store(str(tmp_path))
    saved(made, store)
    features = tuple(ColumnSpec(name, "int64", "scalar") for name in made.categories)
    result = TrainResult((), 0, 0, None, "model", (), "float32", 0, {})
    of = FittedModule(store.uri, "model", skeleton(click_model()), features, result, id_bits=ID_BITS)
    with pytest.raises(ConfigurationError, match=r"not a DataFrame: 'list'.*column 'user'; or vectors\('user'"):
        embeddings.embeddings(of, "user", ["a"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="into a list"):
        embeddings.vectors(of, "user", "a")
    with pytest.raises(DataError, match="into a list"):
        embeddings.vectors(of, "user", {"a"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"one for each row: shape .1, 1"):
        embeddings.vectors(of, "user", pd.DataFrame({"user": ["a"]}))
    with pytest.raises(DataError, match="'list'"):
        embeddings.vectors(of, "user", [["a"]])
    assert embeddings.vectors(of, "user", ["a", 3.5]).tolist() == [[0.0] * 3] * 2, "never met"
    assert embeddings.vectors(of, "user", []).shape == (0, 3)


def test_rows_of_is_for_fitted_models_and_their_tables(tmp_path: Path) -> None:
    made = click_model()
    (collection,) = collections_of(made)
    with pytest.raises(ConfigurationError, match="not a sharded table of a fitted model: 'user'"):
        collection.rows_of("user", IDS)
    artifact = saved(made, Store(str(tmp_path)))
    (collection,) = collections_of(load_model(artifact.store, "model", click_model(), artifact.fingerprint))
    with pytest.raises(ConfigurationError, match="'usr'"):
        collection.rows_of("usr", IDS)
    twice = collection.rows_of("user", torch.tensor([5, 99, 5]))
    assert torch.equal(twice[0], twice[2])
    assert torch.equal(twice[1], torch.zeros(4)), "never met"
