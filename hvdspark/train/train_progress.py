"""Where training stands, as plain data: every checkpoint has it, and training goes on from any of it.

It is the same on every rank, and any number of ranks goes on from it. What only one rank knows of an epoch that is not
over is in `of_rank`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hvdspark.errors import CheckpointError
from hvdspark.plain import built
from hvdspark.train.best_epoch import BestEpoch

Row = dict[str, Any]


@dataclass
class EpochProgress:
    """How far an epoch has come.

    Attributes:
        streams: ranks with which the epoch began: its global batches stay those of that many (`plan_epoch`).
        step: global batches done.
        rows: training rows of all ranks in these.
        seconds: wall seconds of rank 0 by phase, and under "training" of the batches as a whole.
    """

    streams: int
    step: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainProgress:
    """How far a run has come.

    Attributes:
        best: state of early stopping and best-epoch selection.
        epochs: complete epochs; also the number of the epoch that is going on or comes next.
        optimizer_steps: since the run began; the clock of schedules.
        history: one row for each complete epoch.
        stopped: why training is over before its last epoch, or None.
        outputs: what the module returns, as plain `OutputSpec`s.
        warnings: for the user, in the order in which they came.
        warnings_of_best: about the predictions of the best epoch.
        epoch: how far the epoch is that is going on; None between epochs.
    """

    best: BestEpoch
    epochs: int = 0
    optimizer_steps: int = 0
    history: list[Row] = field(default_factory=list)
    stopped: str | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    warnings_of_best: list[str] = field(default_factory=list)
    epoch: EpochProgress | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Complete epochs, and global batches of the one that is going on: orders the checkpoints of a run."""
        return self.epochs, self.epoch.step if self.epoch is not None else 0

    def is_over(self, epochs: int) -> bool:
        """Whether nothing is left to train of a run of this many epochs."""
        return self.epochs >= epochs or self.stopped is not None

    def complete_epoch(self, stop: str | None, warnings: list[str]) -> None:
        """The epoch that was going on, whose row is the last of the history, is over.

        Args:
            stop: why training is to end here, whatever the row says; None: it is not.
            warnings: about this epoch's predictions.
        """
        patience_has_run_out = self.best.update(self.history[-1])
        self.stopped = stop or ("patience" if patience_has_run_out else None)
        if self.best.epoch == self.epochs:
            self.warnings_of_best = warnings
        self.epochs, self.epoch = self.epochs + 1, None

    def to_plain(self) -> dict[str, Any]:
        """JSON-able; `from_plain` reads it. Shares nothing with this one."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], where: str) -> TrainProgress:
        """What `to_plain` gave, in this version of hvdspark or an earlier one.

        Args:
            where: for messages.

        Raises:
            CheckpointError: a later version wrote it, or it is damaged.
        """
        try:
            return built(cls, plain, "progress")
        except TypeError as error:
            raise CheckpointError(
                "the progress in a checkpoint cannot be read",
                value=str(error),
                where=where,
                hint="another version of hvdspark wrote it: go on with that one, or start a new run",
            ) from error
