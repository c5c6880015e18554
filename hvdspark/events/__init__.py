"""What happens in a fit, as frozen values, and who is told of it on the driver.

A fit emits events to its listeners: the progress that is shown, the log of a plan's memory, and what a user gives as
`listeners=[...]` are all `FitListener`s. Ranks and the launcher know no listeners: they report plain data, of which
`hvdspark.fan_out` makes events.

Reports of ranks are best effort: where executors cannot reach the driver (on Spark Connect, the client) there are
none. What must not be lost travels with the result: `FitEnded.history` is complete.
"""

from __future__ import annotations

from hvdspark.events.base import FitEvent
from hvdspark.events.listener import FitListener
from hvdspark.events.of_fit import (
    DatasetReady,
    FitEnded,
    FitFailed,
    FitStarted,
    GoodputMeasured,
    PhaseStarted,
    TablesPlan,
    Warned,
)
from hvdspark.events.of_ranks import GenerationStarted, RankLost, SlotsAwaited, Straggler
from hvdspark.events.of_training import CheckpointCommitted, EpochEnded, StepsDone, TablesRead

__all__ = [
    "CheckpointCommitted",
    "DatasetReady",
    "EpochEnded",
    "FitEnded",
    "FitEvent",
    "FitFailed",
    "FitListener",
    "FitStarted",
    "GenerationStarted",
    "GoodputMeasured",
    "PhaseStarted",
    "RankLost",
    "SlotsAwaited",
    "StepsDone",
    "Straggler",
    "TablesPlan",
    "TablesRead",
    "Warned",
]
