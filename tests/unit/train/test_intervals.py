"""A run writes checkpoints in the middle of its epochs by itself, and loses no more than what came after the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.embedding.config import Admission, Eviction, SparseOptimizer
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.program import Program
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.test_loop_tables import ShardedNet, rows_of
from tests.unit.train.toys import ClickNet, click_program, largest_difference, train_on_threads, weights_of

BATCH, ROWS = 13, 70  # 6 global batches, the last of 5 rows


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


class Lost(Callback):
    """The executor of a rank goes behind one global batch."""

    def __init__(self, epoch: int, step: int, rank: int) -> None:
        self._at = (epoch, step, rank)

    def on_batch_end(self, state: TrainState) -> None:
        if (state.epoch, state.step, state.rank) == self._at:
            raise ConnectionError("executor lost")


def places(events: list[dict[str, Any]]) -> list[str]:
    return [event["path"].rsplit("/", 1)[-1] for event in events if event["event"] == "checkpoint"]


@pytest.mark.parametrize(("every", "accumulation"), [(1, 1), (4, 1), (3, 2)])
def test_checkpoints_come_every_so_many_global_batches(store: Store, every: int, accumulation: int) -> None:
    spec = train_spec(
        store,
        write_dataset(store, click_columns(ROWS)),
        batch_size=BATCH,
        epochs=2,
        accumulation_steps=accumulation,
        checkpoint_interval_steps=every,
    )
    events: list[dict[str, Any]] = []
    train_on_threads(spec, click_program, 2, events=events)
    expected = {
        (1, 1): [*[(0, step) for step in range(1, 6)], (0, 0), *[(1, step) for step in range(1, 6)], (1, 0)],
        (4, 1): [(0, 4), (0, 0), (1, 2), (1, 0)],
        (3, 2): [(0, 4), (0, 0), (1, 4), (1, 0)],
    }[every, accumulation]
    assert places(events) == [
        f"epoch-{epoch:05d}-step-{step:08d}" if step else f"epoch-{epoch:05d}" for epoch, step in expected
    ]


def test_without_an_interval_short_epochs_have_only_those_at_their_ends(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), batch_size=BATCH, epochs=2)
    events: list[dict[str, Any]] = []
    train_on_threads(spec, click_program, 2, events=events)
    assert places(events) == ["epoch-00000", "epoch-00001"]


def test_seconds_are_an_interval_too(store: Store) -> None:
    dataset = write_dataset(store, click_columns(ROWS))
    spec = train_spec(store, dataset, batch_size=1, checkpoint_interval_seconds=1e-6)
    events: list[dict[str, Any]] = []
    train_on_threads(spec, click_program, 2, events=events)
    # Beside that at the end of the epoch one at least: where writing is slow, no other begins meanwhile.
    assert len(places(events)) >= 2


@pytest.mark.parametrize("sizes", [pytest.param((2, 2, 2), marks=pytest.mark.slow), (1, 3, 2)])
def test_killed_and_resumed_is_never_interrupted(store: Store, sizes: tuple[int, int, int]) -> None:
    columns = click_columns(ROWS, weighted=True)
    dataset = write_dataset(store, columns, columns, group_rows=(10, 35, 25))
    changes: dict[str, Any] = {"batch_size": BATCH, "epochs": 3, "schedule": "cosine", "patience": 5}

    def program(*callbacks: Callback) -> Program:
        return click_program(module=ShardedNet("adam"), callbacks=callbacks)

    whole, _ = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), program, sizes[0])
    spec = train_spec(store, dataset, run_id="cut", checkpoint_interval_steps=2, **changes)
    for generation, (size, lost) in enumerate(zip(sizes, [Lost(0, 5, 0), Lost(1, 4, 1)], strict=False)):
        with pytest.raises(ConnectionError):
            train_on_threads(spec, lambda lost=lost: program(lost), size, generation=generation)  # type: ignore[misc]
    events: list[dict[str, Any]] = []
    resumed, _ = train_on_threads(spec, program, sizes[2], generation=2, events=events)
    assert places(events)[0] == "epoch-00001-step-00000004"
    within = 0.0 if len({*sizes}) == 1 else 1e-5
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) <= within
    assert largest_difference(rows_of(resumed), rows_of(whole)) <= within


class Evicting(ShardedNet):
    """Ids wait for admission, and rows are evicted: in what changes, too, none may come back."""

    def __init__(self) -> None:
        super().__init__()
        rule, optimizer = Eviction(every_steps=2, max_age_steps=2), SparseOptimizer("adam", 0.05)
        table = TableConfig("open", 4, admission=Admission(2), eviction=rule, optimizer=optimizer)
        self.tables = ShardedEmbeddingCollection([table], {"one": "open"})

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        vectors = self.tables({"one": id})["one"]
        return self.out(torch.tanh(self.hidden(torch.cat([dense, vectors, vectors], dim=1))))


# Module, ranks, changes of the spec. Dropout is drawn by one rank: threads would share torch's generator.
EXACT: dict[str, tuple[Callable[[], Program], int, dict[str, Any]]] = {
    "dropout, batch norm, accumulation": (
        lambda: click_program(module=ClickNet(dropout=0.3, batch_norm=True)),
        1,
        {"accumulation_steps": 2, "schedule": "cosine"},
    ),
    "patience, clipped": (
        lambda: click_program(optimizer="rmsprop"),
        2,
        {"patience": 1, "learning_rate": 0.5, "epochs": 6, "gradient_clip_norm": 0.3},
    ),
    "eviction and admission, shuffled": (lambda: click_program(module=Evicting()), 2, {"shuffle": True}),
    "ftrl, linear": (lambda: click_program(module=ShardedNet("ftrl"), optimizer="adagrad"), 2, {"schedule": "linear"}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case.startswith("ftrl") else case for case in EXACT]
)
def test_bit_for_bit_wherever_it_is_cut(store: Store, case: str) -> None:
    make, size, changes = EXACT[case]
    columns = click_columns(ROWS)
    dataset = write_dataset(store, columns, columns if "patience" in changes else None, group_rows=(10, 35, 25))
    changes = {"batch_size": BATCH, "epochs": 2, **changes}
    whole, (expected, *_) = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), make, size)
    spec = train_spec(store, dataset, run_id="cut", checkpoint_interval_steps=1, **changes)
    for generation, lost in enumerate([Lost(0, 3, 0), Lost(0, 5, size - 1), Lost(1, 4, 0)]):

        def program(lost: Lost = lost) -> Program:
            return replace(make(), callbacks=[lost])

        with pytest.raises(ConnectionError):
            train_on_threads(spec, program, size, generation=generation)
    resumed, (result, *_) = train_on_threads(spec, make, size, generation=3)
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) == 0
    if any(isinstance(part, ShardedEmbeddingCollection) for part in whole[0].module.modules()):
        assert largest_difference(rows_of(resumed), rows_of(whole)) == 0
    assert (result.best_epoch, result.stopped) == (expected.best_epoch, expected.stopped)
    assert [row["train_loss"] for row in result.history] == [row["train_loss"] for row in expected.history]
