"""A run that was cut in the middle of an epoch ends where it would have ended, at any number of ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.store.sealed import unsealed
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.program import Program, TrainResult
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.test_loop_tables import RareNet, ShardedNet, rows_of
from tests.unit.train.toys import ClickNet, click_program, largest_difference, train_on_threads, train_to, weights_of

Place = tuple[int, int]
BATCH, STEPS, ROWS = 13, 6, 70  # the last batch has 5 rows


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


def train_until(
    spec: TrainSpec, make: Callable[[], Program], size: int, place: Place, *, generation: int = 0
) -> list[Program]:
    """`train_to` on threads; then all is lost."""
    programs = [make() for _ in range(size)]

    def on_rank(collective: ThreadedCollective) -> None:
        train_to(place, spec, programs[collective.rank], collective, generation)

    run_threaded(size, on_rank, timeout_s=20)
    return programs


def cut(
    spec: TrainSpec, make: Callable[[], Program], cuts: Sequence[tuple[int, Place]], size: int
) -> tuple[list[Program], list[TrainResult]]:
    """Train with these numbers of ranks up to these places, and with `size` ranks to the end."""
    for generation, (ranks, place) in enumerate(cuts):
        train_until(spec, make, ranks, place, generation=generation)
    return train_on_threads(spec, make, size, generation=len(cuts))


def said(result: TrainResult) -> dict[str, Any]:
    """What does not depend on time."""
    rows = [
        {key: value for key, value in row.items() if not key.endswith(("seconds", "_per_s"))} for row in result.history
    ]
    return {"history": rows, "warnings": result.warnings, "outputs": result.outputs, "best": result.best_epoch}


def momentum(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9)


CASES: list[Any] = [
    ("adam", "adagrad", {}),
    (momentum, "adam", {"accumulation_steps": 2, "schedule": "cosine"}),
    ("adagrad", "rowwise_adagrad", {"schedule": "linear", "gradient_clip_norm": 0.3}),
    ("rmsprop", "ftrl", {"accumulation_steps": 2}),
]


# Both numbers of ranks, both orders; what is left are other pairs of the same.
@pytest.mark.parametrize(
    ("size", "shuffle"),
    [(1, False), (3, True), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, True), (3, False)))],
)
@pytest.mark.parametrize(("optimizer", "of_tables", "changes"), CASES)
def test_bit_for_bit_at_the_same_number_of_ranks(
    store: Store, size: int, shuffle: bool, optimizer: Any, of_tables: str, changes: dict[str, Any]
) -> None:
    columns = click_columns(ROWS, weighted=True)
    dataset = write_dataset(store, columns, columns if shuffle else None, group_rows=(10, 35, 25))
    changes = {"epochs": 2, "batch_size": BATCH, "shuffle": shuffle, "shuffle_rows": 32, **changes}

    def program() -> Program:
        return click_program(module=ShardedNet(of_tables), optimizer=optimizer)

    whole, expected = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), program, size)
    places = [(size, (0, 2)), (size, (0, 4)), (size, (1, 4))]
    resumed, results = cut(train_spec(store, dataset, run_id="cut", **changes), program, places, size)
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) == 0
    assert largest_difference(rows_of(resumed), rows_of(whole)) == 0
    assert [said(result) for result in results] == [said(result) for result in expected]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2, 1), (1, 2, 3), (2, 2, 3)])
def test_another_number_of_ranks_goes_on_with_the_same_global_batches(
    store: Store, shuffle: bool, sizes: tuple[int, int, int]
) -> None:
    columns = click_columns(ROWS, weighted=True)
    dataset = write_dataset(store, columns, group_rows=(10, 35, 25))
    # Which rows a shuffled epoch has side by side depends on the ranks with which it begins: one epoch, then.
    epochs = 1 if shuffle else 2
    changes = {"epochs": epochs, "batch_size": BATCH, "shuffle": shuffle, "schedule": "cosine", "accumulation_steps": 2}

    def program() -> Program:
        return click_program(module=ShardedNet("adam"))

    whole, expected = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), program, sizes[0])
    places = [(sizes[0], (0, 2)), (sizes[1], (epochs - 1, 4))]
    resumed, results = cut(train_spec(store, dataset, run_id="cut", **changes), program, places, sizes[2])
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) < 1e-5
    assert largest_difference(rows_of(resumed), rows_of(whole)) < 1e-5
    for row, expected_row in zip(results[0].history, expected[0].history, strict=True):
        assert row["train_loss"] == pytest.approx(expected_row["train_loss"], abs=1e-5)
    assert [text.split(",")[0] for text in results[0].warnings] == [text.split(",")[0] for text in expected[0].warnings]


class Rows(Callback):
    """Notes which rows each rank has trained on, by the ids in a buffer of the module."""

    def __init__(self, seen: list[list[int]]) -> None:
        self._seen = seen

    def on_batch_end(self, state: TrainState) -> None:
        self._seen.append(state.module.last.tolist())  # type: ignore[operator, union-attr]


class Noting(ClickNet):
    """Keeps the ids of the rows that it was called with."""

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        self.last = id
        return super().forward(dense, id % 11)


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_of_the_epoch_is_trained_on_once(store: Store, shuffle: bool) -> None:
    columns = click_columns(ROWS)
    columns["id"] = torch.arange(ROWS).numpy()
    spec = train_spec(store, write_dataset(store, columns, group_rows=(10, 35, 25)), batch_size=BATCH, shuffle=shuffle)
    seen: list[list[int]] = []
    cut(spec, lambda: click_program(module=Noting(), callbacks=[Rows(seen)]), [(3, (0, 2)), (2, (0, 3))], 1)
    assert sorted(itertools.chain(*seen)) == list(range(ROWS))


def test_dropout_goes_on_with_the_numbers_that_come_next(store: Store) -> None:
    columns = click_columns(ROWS)
    dataset = write_dataset(store, columns, group_rows=(10, 35, 25))
    make = lambda: click_program(module=ClickNet(dropout=0.3, batch_norm=True))  # noqa: E731
    changes = {"epochs": 2, "batch_size": BATCH}
    whole, _ = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), make, 1)
    resumed, _ = cut(train_spec(store, dataset, run_id="cut", **changes), make, [(1, (0, 1)), (1, (1, 5))], 1)
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) == 0


class Drawing(ClickNet):
    """Notes what each forward pass in training draws."""

    def __init__(self, drawn: list[float]) -> None:
        super().__init__()
        self._drawn = drawn

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        if self.training:
            self._drawn.append(torch.rand(1).item())
        return super().forward(dense, id)


def test_another_number_of_ranks_does_not_draw_the_numbers_of_the_epoch_again(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), batch_size=BATCH)
    drawn: list[float] = []
    train_on_threads(spec, lambda: click_program(module=Drawing(drawn)), 1)
    of_epoch, drawn = drawn, []
    assert len(set(of_epoch)) == STEPS
    cut(spec, lambda: click_program(module=Drawing(drawn)), [(2, (0, 2))], 1)
    assert not {*of_epoch} & {*drawn[-(STEPS - 2) :]}


def test_the_seconds_of_an_epoch_are_those_of_all_its_parts(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), batch_size=BATCH)
    train_until(spec, click_program, 1, (0, 2))
    path = "runs/run-1/checkpoints/epoch-00000-step-00000002/manifest.json"
    manifest = unsealed(store.read_json(path))
    seconds = manifest["progress"]["epoch"]["seconds"]
    assert seconds.keys() >= {"training", "loading"}
    seconds.update(training=5000.0, loading=3000.0)
    store.delete(path)
    store.write_bytes(path, json.dumps(manifest).encode())
    _, (result,) = train_on_threads(spec, click_program, 1, generation=1)
    (row,) = result.history
    assert 5000 < row["seconds"] < 5100
    assert 3000 < row["loading_seconds"] < 3100


def test_what_training_says_of_the_model_survives(store: Store) -> None:
    """Warnings come of sums over the second half of the best epoch, some of whose batches the first launch trained."""
    columns = click_columns(ROWS)
    columns["label"][:] = (torch.arange(ROWS) % 10 == 0).numpy()
    dataset = write_dataset(store, columns)
    make = lambda: click_program(optimizer="sgd")  # noqa: E731
    changes = {"batch_size": 10, "learning_rate": 1e-6, "epochs": 2, "monitor": "train_loss"}
    _, (expected,) = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), make, 1)
    _, (resumed,) = cut(train_spec(store, dataset, run_id="cut", **changes), make, [(1, (0, 5)), (1, (1, 6))], 1)
    assert any("the mean prediction is" in text for text in expected.warnings)
    assert said(resumed) == said(expected)


def test_counts_of_ids_that_wait_for_admission_survive(store: Store) -> None:
    columns = click_columns(ROWS)
    dataset = write_dataset(store, columns, group_rows=(10, 35, 25))
    make = lambda: click_program(module=RareNet())  # noqa: E731
    changes = {"epochs": 2, "batch_size": BATCH}
    whole, _ = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), make, 2)
    resumed, _ = cut(train_spec(store, dataset, run_id="cut", **changes), make, [(2, (0, 2)), (1, (0, 4))], 2)
    assert largest_difference(rows_of(resumed), rows_of(whole)) < 1e-5


def test_a_damaged_place_falls_back_to_the_epoch_before(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), epochs=3, batch_size=BATCH)
    train_until(spec, click_program, 2, (1, 2))
    assert store.list("runs/run-1/checkpoints") == ["epoch-00000", "epoch-00001-step-00000002"]
    path = store.local_path("runs/run-1/checkpoints/epoch-00001-step-00000002/ranks.safetensors")
    assert path is not None
    path.write_bytes(b"")
    _, (result, _) = train_on_threads(spec, click_program, 2, generation=1)
    assert "passed over a damaged checkpoint" in result.warnings[0]
    assert store.list("runs/run-1/checkpoints") == ["epoch-00001", "epoch-00002"]
    assert [row["epoch"] for row in result.history] == [0, 1, 2]


@pytest.mark.parametrize("place", [(0, 1), (0, 3), (0, STEPS)])
def test_between_optimizer_steps_there_is_no_checkpoint(store: Store, place: Place) -> None:
    dataset = write_dataset(store, click_columns(ROWS))
    spec = train_spec(store, dataset, batch_size=BATCH, accumulation_steps=2)
    with pytest.raises(ValueError, match=f"after batch {place[1]} of an epoch"):
        train_until(spec, click_program, 1, place)
