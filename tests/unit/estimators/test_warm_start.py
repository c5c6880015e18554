"""Which dense weights of a click model mean what they meant; needs no session."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.model import DATA, inputs_of
from hvdspark.artifact.tables import load_model, write_tables
from hvdspark.artifact.warm_start import begin_from
from hvdspark.artifact.weights import write_weights
from hvdspark.collectives import LocalCollective
from hvdspark.errors import CheckpointError, ConfigurationError, StoreError
from hvdspark.estimators.warm_start import begin, trained_before
from hvdspark.models.click import ClickModel
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroups, TrainSpec
from hvdspark.store import Store

NUMBERS, CATEGORIES = ["price", "age"], ["user", "page"]
NO_SESSION: Any = None  # nobody asks it where a URI has a scheme


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


def test_a_table_that_others_share_now_goes_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    source = saved(store)
    assert fresh(store, source, NUMBERS, CATEGORIES, shared_tables={"user": CATEGORIES}) == set()
    assert fresh(store, source, NUMBERS, CATEGORIES, shared_tables={"both": CATEGORIES}) == {"table both"}


def test_columns_that_nobody_knows_are_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert fresh(store, saved(store, known=False), NUMBERS, CATEGORIES) == OF_NUMBERS


@pytest.mark.parametrize(("id_bits", "kept"), [(52, True), (40, False), (0, False)])
def test_tables_of_other_ids_are_fresh(tmp_path: Path, id_bits: int, kept: bool) -> None:
    """0: those of a TorchModel, whose module takes ids as they are."""
    store = Store(str(tmp_path))
    made = model()
    features = [asdict(column) for column in columns(NUMBERS, CATEGORIES)]
    raw = {"numbers": NUMBERS, "categories": CATEGORIES, "id_bits": id_bits}
    state = {"objects": {}, "features": features, "types": {}, "raw": raw}
    write_weights(
        store, "model", made, {"state": state}, write_tables(store, "model", made, LocalCollective(), state=False)
    )
    found = fresh(store, Artifact.open(store, "model"), NUMBERS, CATEGORIES)
    assert found == (set() if kept else {"table user", "table page"})


@pytest.mark.parametrize("spelling", ["file://{}", "file://{}/", "file:{}//", "file://{}/model", "file://{}/model/"])
def test_a_model_is_found_however_its_place_is_spelled(tmp_path: Path, spelling: str) -> None:
    """That of a saved model is beside its metadata, that of a fit is the directory itself."""
    store = Store(str(tmp_path))
    saved(store)
    if not spelling.rstrip("/").endswith("model"):
        (tmp_path / "model").rename(tmp_path / DATA)
    found = trained_before(NO_SESSION, spelling.format(tmp_path))
    assert found is not None
    assert found.fingerprint == Artifact.open(store, "model" if "model" in spelling else DATA).fingerprint
    assert trained_before(NO_SESSION, None) is None


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("file:///nowhere/at/all", CheckpointError, "no trained model here.*warmStartFrom.*a fitted model, its uri"),
        ("file:///", CheckpointError, "no trained model here"),
        ("models:/clicks/3", ConfigurationError, r"MLflow.*mlflow_flavor.load_model\('models:/clicks/3'\)"),
        ("runs:/a1/model", ConfigurationError, "MLflow"),
        ("s3://key:secret@bucket/model", StoreError, "credentials"),
        ("", StoreError, "empty.*warmStartFrom"),
    ],
)
def test_where_no_model_is(uri: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        trained_before(NO_SESSION, uri)


BEFORE = Path(__file__).parents[2] / "fixtures" / "models-0.1.0"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ctr-estimator", "an estimator was saved here, and nothing is trained.*ctr-estimator"),
        ("torch-estimator", "an estimator"),
        ("pipeline", "no trained model here.*one of its stages: file://.*pipeline/stages/2_CTRClassifier_"),
        ("pipeline/stages", "no complete model"),
    ],
)
def test_what_is_saved_and_no_trained_model(name: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        trained_before(NO_SESSION, f"file://{BEFORE}/{name}/")


@pytest.mark.parametrize("dim", [3, 4])
def test_models_of_before_are_gone_on_from(dim: int) -> None:
    """Their collections have no name, and their rows no counts."""
    source = trained_before(NO_SESSION, f"file://{BEFORE}/deepfm")
    assert source is not None
    inputs = inputs_of(source.manifest["state"])
    settings: dict[str, Any] = {"number_inputs": "linear_and_log", "first_order": True, "one_table": True}
    made, scored = (
        ClickModel("deepfm", 2, inputs.categories, ["tags"], dim=width, hidden=(4,), **settings) for width in (dim, 3)
    )
    load_model(source.store, source.directory, scored, source.fingerprint)
    data = DatasetSpec("d", inputs.features, RowGroups.of())
    spec = TrainSpec("run", "file:///s", data, tuple(column.name for column in inputs.features), ("label",))
    begins = begin(source, spec, made)
    assert begins.said is not None
    assert begins.spec.warm_start is not None
    begin_from(begins.spec.warm_start, made, LocalCollective())
    assert made.rows is not None
    assert scored.rows is not None
    (shard,) = made.rows.shards
    if dim == 3:
        assert begins.said["fresh"] == {}
        for number, name in enumerate(made.rows.tables):
            now = shard.export(number)  # type: ignore[attr-defined]
            assert len(now["ids"]) > 0
            assert torch.equal(now["rows"], scored.rows.rows_of(name, now["ids"]))
    else:
        assert begins.said["fresh"]["table user"] == "dim, with the last column, was 4 when saved, and is 5 now"
        assert shard.row_counts() == [0, 0, 0]


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
