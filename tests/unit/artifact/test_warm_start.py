"""A run that begins with what a trained model has: what is taken over is the model's, bit for bit."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import load_model
from hvdspark.artifact.warm_start import Compared, compare
from hvdspark.collectives import LocalCollective
from hvdspark.embedding import Admission, Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.specs import DatasetSpec, TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.program import TrainResult
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import click_program, train_on_threads, train_to

NOTHING = 1e-30  # a learning rate that moves no float32


class Net(nn.Module):
    """Dense layers above an unbounded and a bounded table."""

    def __init__(
        self,
        hidden: int = 8,
        rate: float = 0.05,
        optimizer: str = "adagrad",
        tables: tuple[str, ...] = ("open", "closed"),
        seed: int = 3,
        initial_accumulator: float = 0.0,
        **changes: Any,
    ) -> None:
        super().__init__()
        of_rows = SparseOptimizer(optimizer, rate, initial_accumulator=initial_accumulator)
        configs = {"init": Initialization("uniform", 0.5), "optimizer": of_rows, **changes}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden, self.out = nn.Linear(3 + 4 * len(tables), hidden), nn.Linear(hidden, 1)
        self.tables = ShardedEmbeddingCollection(
            [TableConfig(name, 4, 11 if name == "closed" else None, placement="row", **configs) for name in tables],
            {name: name for name in tables},
            seed=seed if "closed" not in tables else 3,
        )

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        vectors = self.tables(dict.fromkeys(self.tables.features, id))
        return self.out(torch.tanh(self.hidden(torch.cat([dense, *vectors.values()], dim=1))))


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def dataset(store: Store) -> DatasetSpec:
    return write_dataset(store, click_columns(70), group_rows=(30, 40))


@pytest.fixture
def model(store: Store, dataset: DatasetSpec) -> Artifact:
    """Trained on two ranks."""
    spec = train_spec(store, dataset, run_id="before", epochs=2)
    _, results = train_on_threads(spec, lambda: click_program(module=Net()), 2)
    return Artifact.open(store, results[0].model_path)


def run(
    store: Store, dataset: DatasetSpec, compared: Compared, size: int = 1, rate: float = NOTHING, **net: Any
) -> tuple[nn.Module, TrainResult]:
    """A run on new ranks, and its model as it is scored."""
    spec = train_spec(store, dataset, run_id="after", learning_rate=rate, warm_start=compared.taken)
    assert from_json(TrainSpec, to_json(spec)) == spec
    _, results = train_on_threads(spec, lambda: click_program(module=Net(rate=rate, **net)), size)
    artifact = Artifact.open(store, results[0].model_path)
    return load_model(store, artifact.directory, Net(rate=rate, **net), artifact.fingerprint), results[0]


def outputs(module: nn.Module) -> Tensor:
    columns = click_columns(40, seed=9)
    return module(torch.from_numpy(columns["dense"]), torch.from_numpy(columns["id"])).detach()


def rows(artifact: Artifact) -> dict[str, dict[int, list[float]]]:
    """Of each table, by id."""
    found: dict[str, dict[int, list[float]]] = {}
    for file in artifact.tables[0]["files"]:
        if file["path"]:
            place = artifact.store.local_path(f"{artifact.directory}/tables/0/{file['path']}")
            for name, tensor in safetensors.torch.load_file(place).items():
                table, _, kind = name.rpartition("/")
                if kind == "rows":
                    ids = safetensors.torch.load_file(place)[f"{table}/ids"].tolist()
                    found.setdefault(table, {}).update(zip(ids, tensor.tolist(), strict=True))
    return found


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_what_is_taken_over_is_the_models(
    store: Store, dataset: DatasetSpec, model: Artifact, size: int, optimizer: str
) -> None:
    compared = compare(model, Net(optimizer=optimizer))
    assert compared.in_words() == []
    assert compared.kept == ("hidden.weight", "hidden.bias", "out.weight", "out.bias", "table closed", "table open")
    expected = outputs(load_model(store, model.directory, Net(), model.fingerprint))
    after, result = run(store, dataset, compared, size, optimizer=optimizer)
    assert torch.equal(outputs(after), expected)
    assert rows(Artifact.open(store, result.model_path)) == rows(model)
    moved, _ = run(store, dataset, compared, size, rate=0.05, optimizer=optimizer)
    assert not torch.equal(outputs(moved), expected), "training goes on"


def test_ftrl_goes_on_from_the_rows(store: Store, dataset: DatasetSpec, model: Artifact) -> None:
    """It makes rows of its state, which begins anew: as that of these rows, and not of zeros."""
    compared = compare(model, Net())
    _, result = run(store, dataset, compared, rate=1e-4, optimizer="ftrl", initial_accumulator=0.1)
    before, after = rows(model), rows(Artifact.open(store, result.model_path))
    distances = {
        name: np.abs(np.array(list(table.values())) - [after[name][key] for key in table]).max()
        for name, table in before.items()
    }
    assert all(0 < distance < 0.01 for distance in distances.values()), distances
    assert max(abs(value) for table in before.values() for row in table.values() for value in row) > 0.4


def test_the_first_loss_is_the_models(store: Store, dataset: DatasetSpec, model: Artifact) -> None:
    _, warm = run(store, dataset, compare(model, Net()))
    spec = train_spec(store, dataset, run_id="cold", epochs=1)
    _, (cold,) = train_on_threads(spec, lambda: click_program(module=Net(rate=NOTHING)), 1)
    assert warm.history[0]["train_loss"] < cold.history[0]["train_loss"]


CHANGES: dict[str, tuple[dict[str, Any], dict[str, str], tuple[str, ...]]] = {
    "a table added": (
        {"tables": ("open", "closed", "new")},
        {"hidden.weight": r"its shape was \(8, 11\), and is \(8, 15\)", "table new": "it is new"},
        (),
    ),
    "a table dropped": (
        {"tables": ("open",), "seed": 5},
        {"hidden.weight": r"its shape was \(8, 11\), and is \(8, 7\)"},
        ("table closed",),
    ),
    "another dtype": (
        {"dtype": "bfloat16"},
        dict.fromkeys(("table open", "table closed"), "dtype was 'float32' when saved, and is 'bfloat16' now"),
        (),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_alike_is_fresh_and_said(store: Store, dataset: DatasetSpec, model: Artifact, change: str) -> None:
    net, fresh, dropped = CHANGES[change]
    compared = compare(model, Net(**net))
    assert compared.fresh.keys() == fresh.keys()
    for name, why in fresh.items():
        assert re.fullmatch(why, compared.fresh[name])
    assert compared.dropped == dropped
    (words,) = compared.in_words()
    assert all(name in words for name in (*fresh, *dropped))
    after, result = run(store, dataset, compared, 2, **net)
    found = after.state_dict()
    before, new = model.tensors(), Net(**net).state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, new[name] if name in fresh else before[name]), name
    kept = {name.removeprefix("table ") for name in compared.kept if name.startswith("table ")}
    trained = rows(Artifact.open(store, result.model_path))
    assert all(trained[name] == rows(model)[name] for name in kept)


def test_rows_are_admitted_and_go_on_counting(store: Store, dataset: DatasetSpec) -> None:
    net = {"tables": ("open",), "admission": Admission(3)}
    spec = train_spec(store, dataset, run_id="before")
    _, (result,) = train_on_threads(spec, lambda: click_program(module=Net(**net)), 1)
    model = Artifact.open(store, result.model_path)
    few = write_dataset(store, {name: values[:16] for name, values in click_columns(70).items()}, path="datasets/few")
    _, after = run(store, few, compare(model, Net(**net)), **net)
    assert rows(Artifact.open(store, after.model_path)).items() == rows(model).items(), "met twice, and had before"


def test_a_relaunch_before_the_first_checkpoint_begins_the_same(
    store: Store, dataset: DatasetSpec, model: Artifact
) -> None:
    compared = compare(model, Net())
    spec = train_spec(store, dataset, run_id="after", learning_rate=0.05, warm_start=compared.taken, epochs=2)
    weights = []
    for generation in (0, 1):
        store.delete("runs/after")
        (program,), _ = train_on_threads(spec, lambda: click_program(module=Net()), 1, generation=generation)
        weights.append(program.module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_relaunch_goes_on_from_its_own_checkpoint(store: Store, dataset: DatasetSpec, model: Artifact) -> None:
    compared = compare(model, Net())
    spec = train_spec(store, dataset, run_id="after", learning_rate=0.05, warm_start=compared.taken, epochs=2)
    (whole,), _ = train_on_threads(spec, lambda: click_program(module=Net()), 1)
    store.delete("runs/after")
    train_to((0, 2), spec, click_program(module=Net()), LocalCollective())
    (resumed,), _ = train_on_threads(spec, lambda: click_program(module=Net()), 1, generation=1)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name])


def test_weights_of_other_columns_are_fresh_whatever_their_shape(model: Artifact) -> None:
    compared = compare(model, Net(), others=["hidden.weight"])
    assert compared.fresh == {"hidden.weight": "its inputs are others than they were"}
    assert "hidden.weight" not in compared.taken.weights


def test_ids_that_mean_something_else_are_fresh(store: Store, dataset: DatasetSpec, model: Artifact) -> None:
    compared = compare(model, Net(tables=("open", "closed", "new")), same_ids=False)
    words = "its ids are not those that categories are hashed to now"
    assert compared.fresh["table open"] == compared.fresh["table closed"] == words
    assert compared.fresh["table new"] == "it is new"
    assert [part.tables for part in compared.taken.rows] == [()]


def test_rows_of_tables_that_are_elsewhere_are_taken_over(
    store: Store, dataset: DatasetSpec, model: Artifact, tmp_path: Path
) -> None:
    """As in a model that MLflow has, whose tables were referenced."""
    at = {"store": store.uri, "directory": model.directory}
    (tmp_path / "logged" / "data").mkdir(parents=True)
    (tmp_path / "logged" / "data" / "weights.safetensors").write_bytes(model.read("weights.safetensors"))
    logged = Store(str(tmp_path / "logged"))
    logged.commit("data", {**model.manifest, "tables_at": at})
    source = Artifact.open(logged, "data")
    assert source.fingerprint == model.fingerprint
    _, result = run(store, dataset, compare(source, Net()), 2)
    assert rows(Artifact.open(store, result.model_path)) == rows(model)


def test_nothing_in_common_is_refused(model: Artifact) -> None:
    with pytest.raises(ConfigurationError, match="nothing in common.*before/model"):
        compare(model, nn.Sequential(nn.Linear(3, 1)))


@pytest.mark.parametrize("damage", ["gone", "another", "flipped"])
def test_a_model_that_changed_meanwhile_is_refused_on_every_rank(
    store: Store, dataset: DatasetSpec, model: Artifact, damage: str
) -> None:
    compared = compare(model, Net())
    if damage == "gone":
        store.delete(model.directory)
    elif damage == "another":
        compared = dataclasses.replace(compared, taken=dataclasses.replace(compared.taken, fingerprint="0"))
    else:
        path = next(file["path"] for file in model.tables[0]["files"] if file["path"])
        content = np.frombuffer(store.read_bytes(f"{model.directory}/tables/0/{path}"), np.uint8).copy()
        content[-1] ^= 1
        store.write_bytes(f"{model.directory}/tables/0/{path}", content.tobytes())
    with pytest.raises(CheckpointError, match="gone|another model|damaged"):
        run(store, dataset, compared, 2)


def test_models_without_names_and_counts_are_taken_over(store: Store, dataset: DatasetSpec, model: Artifact) -> None:
    """As versions saved them that had neither: collections are found by their number."""
    plain = [{key: value for key, value in known.items() if key != "name"} for known in model.tables]
    old = Artifact(store, model.directory, {**model.manifest, "tables": plain})
    assert compare(old, Net()).kept == compare(model, Net()).kept
