"""How training gets on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hvdspark.events.base import FitEvent, Row


@dataclass(frozen=True)
class StepsDone(FitEvent):
    """Global batches of an epoch are done; at most four times a second, so not of every batch.

    Attributes:
        epoch: from 0.
        epochs: how many there will be at most.
        step: global batches done in this epoch.
        steps: global batches of an epoch.
        rows: training rows of all ranks in this epoch so far.
        rows_per_s: over this epoch so far.
        loss: of rank 0's rows of the last batch.
        seconds: wall seconds by phase in this epoch so far, as rank 0 saw them.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    rows: int
    rows_per_s: float
    loss: float
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochEnded(FitEvent):
    """An epoch is trained and validated; its checkpoint is being written.

    Where ranks die before it is, the epoch ends a second time, with the same numbers.

    Attributes:
        epoch: from 0.
        row: its row of the history: "train_loss", "val_...", "learning_rate", "rows", "seconds", ...
    """

    epoch: int
    row: Row


@dataclass(frozen=True)
class CheckpointCommitted(FitEvent):
    """A checkpoint is complete: a later generation may start from it. Not told where ranks end in that moment.

    Attributes:
        epoch: complete epochs that are in it.
        path: directory, relative to the store.
        stalled_s: seconds in which training stood still for it: its content is copied, and then written meanwhile.
        bytes: that all ranks have written. Rows that have not changed since the checkpoint before are not among them.
        seconds: from the copy to the manifest.
    """

    epoch: int
    path: str
    stalled_s: float = 0.0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TablesRead(FitEvent):
    """The ranks of a generation have the rows of sharded tables from a checkpoint.

    Attributes:
        bytes: of the tables' files.
        moved_bytes: that the ranks have read from the store; what their hosts had kept of the ranks before is not among
            them. Hosts keep files where the number of ranks may change.
    """

    bytes: int
    moved_bytes: int
