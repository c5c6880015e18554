"""Sharded embeddings in the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import bind_tables, collections_of, load_model, write_tables
from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.embedding import Admission, Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import CheckpointError, ConfigurationError, DataError, StoreError, TrainingDivergedError
from hvdspark.specs import DatasetSpec
from hvdspark.store import Store
from hvdspark.train.callbacks import TrainState
from hvdspark.train.loop import train
from hvdspark.train.program import Program, TrainResult
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import At, SetRate, click_program, largest_difference, train_on_threads, weights_of


class ShardedNet(nn.Module):
    """`ClickNet` whose ids are looked up in an unbounded and in a bounded table."""

    def __init__(self, optimizer: str = "adagrad", bound: int = 11) -> None:
        super().__init__()
        sparse = SparseOptimizer(optimizer, 0.05, initial_accumulator=0.1)
        init = Initialization("uniform", 0.5)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.hidden = nn.Linear(11, 8)
            self.out = nn.Linear(8, 1)
        self.tables = ShardedEmbeddingCollection(
            [
                TableConfig("open", 4, optimizer=sparse, init=init),
                TableConfig("closed", 4, bound, optimizer=sparse, init=init, placement="row"),
            ],
            {"one": "open", "other": "closed"},
            seed=3,
        )

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        vectors = self.tables({"one": id, "other": id})
        return self.out(torch.tanh(self.hidden(torch.cat([dense, vectors["one"], vectors["other"]], dim=1))))


class ReplicatedNet(nn.Module):
    """`ShardedNet` with both tables as stock `nn.Embedding`s of the same initial rows."""

    def __init__(self) -> None:
        super().__init__()
        net = ShardedNet("sgd")
        self.hidden, self.out = net.hidden, net.out
        with torch.no_grad():
            rows = net.tables({"one": torch.arange(11), "other": torch.arange(11)})
            net.train()
        with torch.enable_grad():  # rows of the unbounded table exist once training asks for them
            first = net.tables({"one": torch.arange(11), "other": torch.arange(11)})["one"].detach()
        self.one = nn.Embedding(11, 4, _weight=first.clone())
        self.other = nn.Embedding(11, 4, _weight=rows["other"].clone())

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.cat([dense, self.one(id), self.other(id)], dim=1))))


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


def data(store: Store, rows: int = 70, **changes: Any) -> DatasetSpec:
    columns = {**click_columns(rows, weighted=True), **changes}
    return write_dataset(store, columns, columns, group_rows=(10, rows - 30, 20))


def rows_of(programs: list[Program]) -> dict[str, Tensor]:
    """Every stored tensor of the tables of all ranks, by table, tensor and id."""
    found: dict[str, Tensor] = {}
    for program in programs:
        (collection,) = collections_of(program.module)
        for shard in collection.shards:
            for place, table in enumerate(shard.tables):
                exported = shard.export(place)
                for row, id in enumerate(exported["ids"].tolist()):
                    for name in exported:
                        if name.startswith(("rows", "state", "counts")):
                            found[f"{table.name}/{id}/{name}"] = exported[name][row].double()
    return found


# Of a table's optimizers that have no state, one number a row, and two a value; the others differ less.
@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "rowwise_adagrad", "adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adagrad", "ftrl"))],
)
def test_any_number_of_ranks_gives_the_same_weights_and_rows(store: Store, optimizer: str) -> None:
    spec = train_spec(
        store, data(store), epochs=2, batch_size=13, schedule="linear", accumulation_steps=2, gradient_clip_norm=0.3
    )
    runs = {}
    for size in (1, 2, 3):
        programs, (result, *_) = train_on_threads(spec, lambda: click_program(module=ShardedNet(optimizer)), size)
        runs[size] = (weights_of(programs[0]), rows_of(programs), result.history[-1]["val_loss"])
    for size in (2, 3):
        for one, other in zip(runs[1][:2], runs[size][:2], strict=True):
            assert largest_difference(one, other) < 1e-5
        assert runs[size][2] == pytest.approx(runs[1][2], abs=1e-5)


def test_sharded_is_replicated_with_clipping_and_a_schedule(store: Store) -> None:
    spec = train_spec(
        store, data(store), learning_rate=0.05, schedule="cosine", gradient_clip_norm=0.05, batch_size=16, epochs=2
    )
    plain = lambda parameters, lr: torch.optim.SGD(parameters, lr)  # noqa: E731
    reference, _ = train_on_threads(spec, lambda: click_program(module=ReplicatedNet(), optimizer=plain), 1)
    sharded, _ = train_on_threads(spec, lambda: click_program(module=ShardedNet("sgd"), optimizer=plain), 2)
    expected, rows = weights_of(reference[0]), rows_of(sharded)
    for name, weight in weights_of(sharded[0]).items():
        assert torch.allclose(weight, expected[name], atol=1e-5), name
    for table, weight in (("open", expected["one.weight"]), ("closed", expected["other.weight"])):
        for id in range(11):
            assert torch.allclose(rows[f"{table}/{id}/rows"].float(), weight[id], atol=1e-5)


def test_ranks_without_rows_take_part(store: Store) -> None:
    columns = click_columns(3)
    spec = train_spec(store, write_dataset(store, columns, columns), epochs=2, batch_size=2)
    alone, _ = train_on_threads(spec, lambda: click_program(module=ShardedNet()), 1)
    crowd, _ = train_on_threads(spec, lambda: click_program(module=ShardedNet()), 4)
    assert largest_difference(weights_of(alone[0]), weights_of(crowd[0])) < 1e-5
    assert largest_difference(rows_of(alone), rows_of(crowd)) < 1e-5


def test_nan_on_one_rank_ends_training_on_all_before_anything_changes(store: Store) -> None:
    columns = click_columns(40)
    columns["dense"][39, 1] = np.nan
    spec = train_spec(store, write_dataset(store, columns), batch_size=40)
    programs: list[Program] = []

    def make() -> Program:
        programs.append(click_program(module=ShardedNet()))
        return programs[-1]

    with pytest.raises(TrainingDivergedError, match="rank 1.*dense"):
        train_on_threads(spec, make, 2)
    assert largest_difference(weights_of(programs[0]), weights_of(click_program(module=ShardedNet()))) == 0.0
    assert [program.module.tables.steps for program in programs] == [0, 0]


class Explode(torch.autograd.Function):
    """The identity, with a gradient that is infinite for the rows of one id."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        return vectors.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return torch.where((ids == 7).unsqueeze(1), torch.inf, gradient), None


class ExplodingNet(ShardedNet):
    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        vectors = self.tables({"one": id, "other": id})
        one = Explode.apply(vectors["one"], id)
        return self.out(torch.tanh(self.hidden(torch.cat([dense, one, vectors["other"]], dim=1))))


def test_a_gradient_of_the_rows_alone_that_is_not_finite_is_seen_by_all(store: Store) -> None:
    columns = click_columns(40)
    columns["id"][:] = 1
    columns["id"][39] = 7
    spec = train_spec(store, write_dataset(store, columns), batch_size=40)
    with pytest.raises(TrainingDivergedError, match="gradient became NaN or infinite"):
        train_on_threads(spec, lambda: click_program(module=ExplodingNet()), 3)


def test_a_bad_id_ends_training_on_all(store: Store) -> None:
    columns = click_columns(40)
    columns["id"][39] = 11
    spec = train_spec(store, write_dataset(store, columns), batch_size=40)
    with pytest.raises(DataError, match="it is larger .*feature 'other' of table 'closed', rank 1"):
        train_on_threads(spec, lambda: click_program(module=ShardedNet()), 2)


@pytest.mark.parametrize("resumed_size", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one_at_any_size(store: Store, resumed_size: int) -> None:
    dataset = data(store)
    # With shuffling, which rows make a global batch depends on the number of ranks.
    changes = {"epochs": 4, "shuffle": resumed_size == 2, "schedule": "cosine", "batch_size": 32}

    def program(*callbacks: Any) -> Program:
        return click_program(module=ShardedNet("adam"), callbacks=callbacks)

    whole, results = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), program, 2)

    def lose_the_executor(state: TrainState) -> None:
        raise ConnectionError("executor lost")

    cut = train_spec(store, dataset, run_id="cut", **changes)
    with pytest.raises(ConnectionError):
        train_on_threads(cut, lambda: program(At(2, 1, lose_the_executor)), 2)
    resumed, resumed_results = train_on_threads(cut, program, resumed_size, generation=1)
    # With another number of ranks, other sums of float32 are rounded otherwise.
    limit = 1e-6 if resumed_size == 2 else 1e-5
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) < limit
    assert largest_difference(rows_of(resumed), rows_of(whole)) < limit
    assert resumed_results[0].best_epoch == results[0].best_epoch


def scored(store: Store, program: Program, result: TrainResult) -> Callable[[Tensor, Tensor], Tensor]:
    fingerprint = Artifact.open(store, result.model_path).fingerprint
    return load_model(store, result.model_path, ShardedNet(), fingerprint)


def test_the_model_has_the_rows_of_the_best_epoch(store: Store) -> None:
    rates = SetRate([0.05, 0.05, 5.0])
    spec = train_spec(store, data(store), epochs=3)
    programs, (result, *_) = train_on_threads(spec, lambda: click_program(module=ShardedNet(), callbacks=[rates]), 2)
    assert result.best_epoch == 1
    dense, ids = torch.randn(30, 3), torch.arange(30) % 11
    module = scored(store, programs[0], result)
    two_epochs, (shorter, _) = train_on_threads(
        train_spec(store, spec.dataset, epochs=2, run_id="two"), lambda: click_program(module=ShardedNet()), 2
    )
    with torch.no_grad():
        assert torch.equal(module(dense, ids), scored(store, two_epochs[0], shorter)(dense, ids))


@pytest.mark.parametrize("damage", ["delete", "flip"])
def test_a_damaged_file_of_rows_is_passed_over(store: Store, damage: str) -> None:
    spec = train_spec(store, data(store), epochs=2)
    rates = SetRate([0.02, 5.0])  # epoch 0 is the best and is kept beside epoch 1
    train_on_threads(spec, lambda: click_program(module=ShardedNet(), callbacks=[rates]), 2)
    folder = store.local_path("runs/run-1/checkpoints")
    assert folder is not None
    for epoch in (1, 0):
        file = min((folder / "rows").glob(f"tables/0/epoch-{epoch:05d}.*/*/*.safetensors"))
        if damage == "delete":
            file.unlink()
        else:
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
        resume = lambda: click_program(module=ShardedNet(), callbacks=[rates])  # noqa: E731
        if epoch == 1:
            _, (result, _) = train_on_threads(spec, resume, 2, generation=1)
            assert "passed over a damaged checkpoint" in result.warnings[0]
            assert result.epochs_run == 2
        else:
            min((folder / "rows").glob("tables/0/epoch-00001.*/*/*.safetensors")).unlink()
            with pytest.raises(CheckpointError, match="every checkpoint of the run is damaged"):
                train_on_threads(spec, resume, 2, generation=2)


def test_what_rank_0_alone_cannot_do_is_an_error_on_every_rank(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_rank(collective: ThreadedCollective) -> str:
        module = ShardedNet()
        bind_tables(module, collective)
        module(torch.zeros(3, 3), torch.arange(3))
        try:
            write_tables(store, "tables", module, collective, state=True)
        except (CheckpointError, StoreError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def refuse(self: Store, path: str) -> str:
        raise StoreError("gone", value=path)

    monkeypatch.setattr(Store, "read_text", refuse)
    first, second = run_threaded(2, on_rank, timeout_s=20)
    assert first.startswith("StoreError: gone")
    assert second.startswith("CheckpointError: rank 0 failed in describing tables")


def test_sharded_rows_alone_are_not_enough_to_train(store: Store) -> None:
    class NoParameter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = ShardedEmbeddingCollection([TableConfig("x", 1)], {"x": "x"})

        def forward(self, dense: Tensor, id: Tensor) -> Tensor:
            return self.tables([id])["x"]

    with pytest.raises(ConfigurationError, match="no parameter to train.*Hint: rows of sharded tables"):
        train_on_threads(train_spec(store, data(store)), lambda: click_program(module=NoParameter()), 2)


@pytest.mark.parametrize("bound", [None, 50])
def test_rows_that_became_infinite_are_not_saved(store: Store, bound: int | None) -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(2, 1)
            calm = TableConfig("calm", 1, bound, placement="row", dtype="float16")
            optimizer = SparseOptimizer("sgd", 1e38)
            wild = TableConfig("wild", 1, bound, placement="row", dtype="float16", optimizer=optimizer)
            self.tables = ShardedEmbeddingCollection([calm, wild], {"calm": "calm", "wild": "wild"})

        def forward(self, dense: Tensor, id: Tensor) -> Tensor:
            return self.out(torch.cat(list(self.tables({"calm": id, "wild": id}).values()), dim=1))

    columns = click_columns(8)
    columns["id"] = np.arange(8)  # each is met once: no later loss would tell
    spec = train_spec(store, write_dataset(store, columns), batch_size=8)
    errors: list[str] = []

    def on_rank(collective: ThreadedCollective) -> None:
        with pytest.raises(TrainingDivergedError, match="embeddings are not finite: 'wild'") as caught:
            train(spec, click_program(module=Overflowing()), collective, "cpu", lambda event: None)
        errors.append(str(caught.value))

    run_threaded(2, on_rank, timeout_s=20)
    assert len(errors) == 2
    assert len(set(errors)) == 1
    assert not list(store.list("runs/run-1"))


def test_two_collections_need_two_names(store: Store) -> None:
    class Twins(ShardedNet):
        def __init__(self) -> None:
            super().__init__()
            self.more = ShardedEmbeddingCollection([TableConfig("x", 2)], {"x": "x"})

    spec = train_spec(store, data(store))
    with pytest.raises(ConfigurationError, match="same name"):
        train_on_threads(spec, lambda: click_program(module=Twins()), 1)


class RareNet(ShardedNet):
    """Gives a row to the ids that occur five times."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = ShardedEmbeddingCollection([TableConfig("open", 4, admission=Admission(5))], {"one": "open"})

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        vectors = self.tables({"one": id})["one"]
        return self.out(torch.tanh(self.hidden(torch.cat([dense, vectors, vectors], dim=1))))


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 500), (6, 13)])
@pytest.mark.parametrize("size", [1, 2])
def test_admission_counts_occurrences_in_the_training_rows_once(
    store: Store, epochs: int, batch_size: int, size: int
) -> None:
    ids = np.repeat([3, 4, 5, 6], [1, 4, 5, 60])
    dataset = data(store, id=ids)
    spec = train_spec(store, dataset, epochs=epochs, batch_size=batch_size)
    programs, _ = train_on_threads(spec, lambda: click_program(module=RareNet()), size)
    assert {name.split("/")[1] for name in rows_of(programs)} == {"5", "6"}


@pytest.mark.parametrize(("batch_size", "accumulation"), [(5, 1), (5, 3), (70, 1)])
def test_admission_counts_rows_of_weight_0(store: Store, batch_size: int, accumulation: int) -> None:
    ids = np.repeat([3, 5, 6], [5, 5, 60])
    weight = np.where(ids == 5, 0.0, 1.0).astype(np.float32)  # five of them are a global batch of their own
    spec = train_spec(store, data(store, id=ids, weight=weight), batch_size=batch_size, accumulation_steps=accumulation)
    programs, _ = train_on_threads(spec, lambda: click_program(module=RareNet()), 2)
    assert {name.split("/")[1] for name in rows_of(programs)} == {"3", "5", "6"}


def test_a_resumed_run_counts_no_row_again(store: Store) -> None:
    def lose_the_executor(state: TrainState) -> None:
        raise ConnectionError("executor lost")

    spec = train_spec(store, data(store, id=np.repeat([3, 4, 5, 6], [1, 4, 5, 60])), epochs=6)
    cut = At(1, 1, lose_the_executor)
    with pytest.raises(ConnectionError):
        train_on_threads(spec, lambda: click_program(module=RareNet(), callbacks=[cut]), 2)
    programs, _ = train_on_threads(spec, lambda: click_program(module=RareNet()), 2, generation=1)
    assert {name.split("/")[1] for name in rows_of(programs)} == {"5", "6"}


def test_a_compiled_module_trains_and_scores_as_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "__init__", nn.Module.__init__)  # the compiler puts another one in its place
    spec = train_spec(store, data(store), epochs=2, batch_size=24)
    plain, _ = train_on_threads(spec, lambda: click_program(module=ShardedNet()), 1)
    expected, rows = weights_of(plain[0]), rows_of(plain)
    compiled, (result,) = train_on_threads(
        spec, lambda: click_program(module=torch.compile(ShardedNet(), backend="eager")), 1
    )
    found = {name.removeprefix("_orig_mod."): value for name, value in weights_of(compiled[0]).items()}
    assert largest_difference(found, expected) == 0
    assert largest_difference(rows_of(compiled), rows) == 0
