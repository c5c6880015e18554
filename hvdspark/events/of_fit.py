"""What happens to a fit as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hvdspark.events.base import FitEvent, Row
from hvdspark.specs import DatasetSpec

Phase = Literal["materialize", "launch"]


@dataclass(frozen=True)
class TablesPlan:
    """What each rank will hold of the sharded embedding tables of one collection.

    Attributes:
        tables: how many there are.
        rank_bytes: by rank, expected bytes of rows, optimizer state and buffers; unbounded tables grow beyond it.
        available: bytes that a rank may use, tables of other collections subtracted; None where nobody can say.
        setting: what limits them, e.g. "spark.executor.memoryOverhead"; "" where nobody can say.
        text: the plan as a table to print.
    """

    tables: int
    rank_bytes: tuple[int, ...]
    available: int | None
    setting: str
    text: str


@dataclass(frozen=True)
class FitStarted(FitEvent):
    """A fit has passed its checks, and nothing is written or started yet.

    Attributes:
        estimator: its uid.
        params: every Param that has a value, by name; `env` by its names only.
        features, labels: columns.
        weight: column, or None.
        world_size: ranks that are asked for.
        plan: of each collection of sharded tables.
    """

    estimator: str
    params: Mapping[str, Any]
    features: tuple[str, ...]
    labels: tuple[str, ...]
    weight: str | None
    world_size: int
    plan: tuple[TablesPlan, ...] = ()


@dataclass(frozen=True)
class PhaseStarted(FitEvent):
    """What the fit does until ranks report.

    Attributes:
        phase: "materialize" (rows are written), then "launch" (ranks start).
    """

    phase: Phase


@dataclass(frozen=True)
class DatasetReady(FitEvent):
    """The rows lie in the store, written now or by an earlier fit, and their footers are read.

    Attributes:
        dataset: columns, row groups, and where they are.
    """

    dataset: DatasetSpec


@dataclass(frozen=True)
class Warned(FitEvent):
    """Something that the user should know; also logged, and in `model.summary.warnings` if it came from the fit.

    Attributes:
        message: a sentence or more.
    """

    message: str


@dataclass(frozen=True)
class GoodputMeasured(FitEvent):
    """What the fit had of its time; told once, when training has ended well.

    Attributes:
        goodput: `useful_s` / `wall_s`, from 0 to 1.
        useful_s: seconds in which rank 0 computed and exchanged for steps that are in the final weights. Steps that
            trained again after a restart count once; those of a driver before this one, with whose run it goes on,
            do not.
        wall_s: seconds from the first launch of ranks to the end, restarts included.
        restarts: how often the ranks were started again after a failure.
        recoveries_s: seconds from each failure to the next step, as far as steps are heard of. That of a rank that was
            frozen includes the time until it was noticed.
        stragglers: by rank, the number of epochs in which it was late; of ranks that were.
        input_stall_s: seconds in which rank 0 waited for batches.
        checkpoint_s: seconds for which training stood still for checkpoints.
        tables_read_bytes: of sharded tables, in all checkpoints from which a generation of ranks went on.
        tables_moved_bytes: of these, those that came from the store, and not from what the ranks' hosts had.
    """

    goodput: float
    useful_s: float
    wall_s: float
    restarts: int
    recoveries_s: tuple[float, ...]
    stragglers: Mapping[int, int]
    input_stall_s: float
    checkpoint_s: float
    tables_read_bytes: int = 0
    tables_moved_bytes: int = 0


@dataclass(frozen=True)
class FitEnded(FitEvent):
    """The model is in the store. The last event of a fit that succeeded.

    Attributes:
        model_uri: the directory of the trained model.
        history: one row for each epoch, complete.
        best_epoch: whose weights the model has.
        stopped: why training ended before the last epoch: "patience", "callback" or None.
        warnings: all of them.
    """

    model_uri: str
    history: tuple[Row, ...]
    best_epoch: int
    stopped: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitFailed(FitEvent):
    """The fit ends with this error, KeyboardInterrupt included. The last event of a fit that failed."""

    error: BaseException
