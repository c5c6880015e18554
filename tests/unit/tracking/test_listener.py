"""From events to entries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from hvdspark.events import (
    DatasetReady,
    EpochEnded,
    FitEnded,
    FitEvent,
    FitFailed,
    FitStarted,
    GenerationStarted,
    GoodputMeasured,
    PhaseStarted,
    RankLost,
    StepsDone,
    TablesPlan,
    Warned,
)
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups
from hvdspark.tracking.entries import Curve, Entry, Metric, Param, Rows, Status, Tag, Text
from hvdspark.tracking.listener import MlflowListener

COLUMNS = (ColumnSpec("x", "float32", "fixed", 3), ColumnSpec("y", "int64", "scalar"))
DATA = DatasetSpec(
    "d", COLUMNS, RowGroups.of([RowGroup("a", 0, 600)]), RowGroups.of([RowGroup("b", 0, 200)]), fingerprint="f" * 32
)
PLAN = (TablesPlan(2, (100, 300), 5000, "memory", "first"), TablesPlan(1, (10, 10), 4700, "memory", "second"))
STARTED = FitStarted("E_1", {"epochs": 2, "env": ["TOKEN"]}, ("x",), ("y",), None, 2, PLAN)
HISTORY: tuple[dict[str, Any], ...] = (
    {"epoch": 0, "train_loss": 0.7, "val_auc": 0.6, "seconds": 2.0, "loading_seconds": 0.5, "warnings": ""},
    {"epoch": 1, "train_loss": 0.5, "val_auc": math.nan, "seconds": 3.0, "loading_seconds": 0.25, "warnings": "so"},
)


class Kept:
    """In the place of a Writer."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.status: Status | None = None
        self.started = False

    def start(self) -> None:
        self.started = True

    def put(self, entries: Iterable[Entry]) -> None:
        self.entries += entries

    def finish(self, status: Status) -> None:
        assert self.status is None
        self.status = status

    def of(self, kind: type[Any]) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    @property
    def tags(self) -> dict[str, str]:
        return {tag.key: tag.value for tag in self.of(Tag)}

    def curve(self, key: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in self.of(Metric) if metric.key == key]


@pytest.fixture
def clock() -> Iterator[list[float]]:
    return [1000.0]


def told(clock: list[float], *events: FitEvent | float) -> Kept:
    """What is written of events; a number is a time that passes."""
    kept = Kept()
    listener = MlflowListener(kept, lambda: clock[0])  # type: ignore[arg-type]
    for event in (STARTED, *events):
        if isinstance(event, float):
            clock[0] += event
        else:
            listener.on_event(event)
    assert kept.started
    return kept


def test_a_fit_that_ends_well(clock: list[float]) -> None:
    phases = [PhaseStarted("materialize"), 4.0, DatasetReady(DATA), 1.0, PhaseStarted("launch"), 2.5]
    epochs = [EpochEnded(0, HISTORY[0]), 3.0, EpochEnded(1, HISTORY[1])]
    kept = told(clock, *phases, GenerationStarted(0, 2), *epochs, FitEnded("file:///m", HISTORY, 1, "patience"))
    assert kept.status == "FINISHED"
    assert kept.of(Param) == [Param("epochs", "2"), Param("env", "['TOKEN']")]
    assert kept.curve("train_loss") == [(0, 0.7), (1, 0.5)], "each epoch once, though its row comes twice"
    assert [step for step, _ in kept.curve("val_auc")] == [0, 1]
    assert kept.curve("best_epoch") == [(0, 1.0)]
    seconds = {entry.key: entry.value for entry in kept.of(Metric) if entry.key.startswith("time/")}
    assert seconds == {
        "time/materialize_seconds": 4.0,
        "time/launch_seconds": 2.5,
        "time/epochs_seconds": 5.0,
        "time/loading_seconds": 0.75,
        "time/total_seconds": 10.5,
    }
    memory = {entry.key: entry.value for entry in kept.of(Metric) if entry.key.startswith("memory/")}
    assert memory == {
        "memory/tables_mib": 420 / 2**20,
        "memory/tables_mib_of_largest_rank": 310 / 2**20,
        "memory/available_mib_of_a_rank": 5000 / 2**20,
    }
    assert kept.of(Rows) == [
        Rows("training rows", "training", "f" * 32, 600, COLUMNS),
        Rows("validation rows", "validation", "f" * 32, 200, COLUMNS),
    ]
    assert kept.of(Text) == [Text("sharding_plan.txt", "first"), Text("sharding_plan_1.txt", "second")]
    assert kept.of(Curve) == [Curve("loss_curve.png", HISTORY, 1)]
    assert kept.tags.keys() >= {"version.torch", "version.Python", "hvdspark.version", "hvdspark.estimator"}
    assert kept.tags["hvdspark.model_uri"] == "file:///m"
    assert kept.tags["hvdspark.stopped"] == "patience"
    assert {metric.key for metric in kept.of(Metric)}.isdisjoint({"epoch", "warnings"})


def test_without_reports_of_ranks_the_history_is_complete(clock: list[float]) -> None:
    later = {**HISTORY[0], "checkpoint_seconds": 0.5}  # what a row gets after its epoch was told
    kept = told(clock, EpochEnded(0, HISTORY[0]), FitEnded("m", (later, HISTORY[1]), 1, None))
    assert kept.curve("train_loss") == [(0, 0.7), (1, 0.5)]
    assert kept.curve("checkpoint_seconds") == [(0, 0.5)]


def test_an_epoch_that_is_trained_again_with_another_result_is_written_again(clock: list[float]) -> None:
    again = {**HISTORY[0], "train_loss": 0.71}
    kept = told(clock, EpochEnded(0, HISTORY[0]), EpochEnded(0, again))
    assert kept.curve("train_loss") == [(0, 0.7), (0, 0.71)]
    assert len(kept.curve("val_auc")) == 1


def test_between_epochs_points_thin_out_and_may_be_spared(clock: list[float]) -> None:
    events: list[FitEvent | float] = []
    for step in range(40_000):  # four a second, for nearly three hours
        events += [StepsDone(step // 20_000, 2, step % 20_000, 20_000, 8, 100.0, 0.5), 0.25]
    kept = told(clock, *events)
    steps = [step for step, _ in kept.curve("step/loss")]
    assert steps == sorted(steps)
    assert steps[:3] == [0, 4, 8]
    assert 20_000 < steps[-1] < 40_000, "the number of batches since the fit began"
    assert 3000 < len(steps) < 4000
    assert all(metric.spare for metric in kept.of(Metric) if metric.key.startswith("step/"))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [(ValueError("a word"), "FAILED", "ValueError: a word"), (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt: ")],
)
def test_a_fit_that_fails(clock: list[float], error: BaseException, status: str, text: str) -> None:
    lost = RankLost(0, 1, "host-3", "signal", "killed")
    kept = told(
        clock, GenerationStarted(0, 2), lost, GenerationStarted(1, 2), Warned("a"), Warned("b"), FitFailed(error)
    )
    assert kept.status == status
    assert kept.tags["hvdspark.error"] == text
    assert kept.tags["hvdspark.generations"] == "2"
    assert kept.tags["hvdspark.rank_lost"] == "generation 0: rank 1 on host-3 was lost (signal): killed"
    assert kept.tags["hvdspark.warnings"] == "a\nb"
    assert kept.curve("time/total_seconds") == [(0, 0.0)]


def test_what_a_fit_had_of_its_time(clock: list[float]) -> None:
    kept = told(clock, GoodputMeasured(0.5, 20.0, 40.0, 2, (4.0, 3.0), {1: 3}, 1.5, 0.25))
    metrics = {entry.key for entry in kept.of(Metric)}
    assert kept.curve("goodput") == [(0, 0.5)]
    assert kept.curve("restarts") == [(0, 2.0)]
    assert kept.curve("time/recovery_seconds") == [(0, 4.0), (1, 3.0)]
    assert kept.curve("straggler/rank_1") == [(0, 3.0)]
    assert kept.curve("time/input_stall_seconds") == [(0, 1.5)]
    assert kept.curve("time/checkpoint_stand_still_seconds") == [(0, 0.25)]
    assert "tables/read_bytes" not in metrics
    resized = told(clock, GoodputMeasured(0.5, 20.0, 40.0, 0, (), {}, 1.5, 0.25, 300, 100))
    assert resized.curve("tables/read_bytes") == [(0, 300.0)]
    assert resized.curve("tables/moved_bytes") == [(0, 100.0)]
    assert "straggler/rank_0" not in metrics
