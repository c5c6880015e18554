"""The checkpoints of a run that is going on: when one is due, what it costs, and what is said of it."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.checkpoint import Checkpoints
from hvdspark.train.of_rank import OfRank
from hvdspark.train.pace import CheckpointPace
from hvdspark.train.places import Place
from hvdspark.train.run import Run
from hvdspark.train.train_progress import TrainProgress


class RunCheckpoints:
    """Those of one generation of a run.

    Attributes:
        files: where they are.
        pace: when the next is due.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.files = Checkpoints(run.store, run.spec.run_id, run.collective, run.generation, scratch=run.scratch)
        self.pace = CheckpointPace(run.spec)
        self._begun: tuple[int, str, float] | None = None  # complete epochs, directory, seconds that training stood
        self._saving: tuple[Place, BestEpoch] | None = None  # of the save that is not settled
        self._kept: BestEpoch | None = None  # as of the newest save: its epoch has a checkpoint

    def resume(self, optimizer: torch.optim.Optimizer) -> TrainProgress | None:
        """Collective. Go on where the newest checkpoint stands; warns of damaged ones. None where there is none.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
        """
        run, started = self._run, time.perf_counter()
        found, passed_over = self.files.resume(run.module, optimizer)
        run.progress = found or run.progress
        run.progress.warnings = [*passed_over, *run.progress.warnings]
        for text in passed_over:
            run.report.warning(text)
        if found is not None and run.tables:
            run.report.tables_read(self.files.table_bytes, self.files.moved_bytes())
        if found is not None:
            self._kept = replace(found.best)
            self.pace.cost(time.perf_counter() - started)
        return found

    def begin(self, optimizer: torch.optim.Optimizer, of_rank: OfRank | None) -> None:
        """Collective. Copy where training stands; it goes on while that is written. `settle` comes before.

        Args:
            of_rank: in the middle of an epoch, what this rank alone knows of it.
        """
        run, started = self._run, time.perf_counter()
        self._saving = run.progress.place, replace(run.progress.best)
        path = self.files.begin(run.module, optimizer, run.progress, of_rank)
        self.pace.begun()
        self._begun = run.progress.epochs, path, time.perf_counter() - started

    def settle(self) -> bool:
        """Collective. Wait for the checkpoint that is being written. One that could not be is a warning.

        Returns:
            Whether the newest is there.

        Raises:
            CheckpointError: several in a row could not be written (on a rank that could not, the store's own error).
        """
        warning = self.files.settle()
        if warning is None:
            self.tell()
        self._begun = None
        saving, self._saving = self._saving, None
        if warning is not None:
            self._warn(warning)
            if saving is not None:
                self._give_up_best(saving[0])
        elif saving is not None:
            self._kept = saving[1]
        return warning is None

    def restore_best(self) -> int:
        """Collective. Bring the best epoch's weights back into the module; its number.

        Where they can no longer be read, that is the best of the others that can, and a warning says so.

        Raises:
            CheckpointError: none can be read.
        """
        module, progress = self._run.module, self._run.progress
        best = progress.best.epoch
        if best == progress.epochs - 1:
            return best
        restored, damage = self.files.restore_weights(progress.best.best_first(progress.history), module)
        if damage is not None:
            progress.warnings_of_best = []
            instead = f"the model is epoch {restored}'s"
            self._warn(f"the weights of epoch {best}, the best, can no longer be read, and {instead}: {damage}")
        return restored

    def tell(self) -> None:
        """Not collective: report the checkpoint that was begun last, once, when it is committed."""
        written = self.files.written
        if self._begun is None or written is None:
            return
        epochs, path, stalled_s = self._begun
        self._begun = None
        self.pace.cost(stalled_s + written.busy_s)
        self._run.report.checkpoint_committed(epochs, path, stalled_s, written.bytes, written.seconds)

    def _give_up_best(self, lost: Place) -> None:
        """Where training has gone on from a place that could not be saved, and that was the end of the best epoch, the
        best is another one from now on: of those that have a checkpoint, or of those to come."""
        progress = self._run.progress
        best = progress.best
        if best.monitor is None or lost != (best.epoch + 1, 0) or lost == progress.place:
            return
        progress.best = replace(self._kept) if self._kept is not None else BestEpoch(best.monitor, best.patience)
        for row in progress.history[best.epoch + 1 :]:
            progress.best.update(row)
        progress.best.stale = best.stale
        self._warn(
            f"the weights of epoch {best.epoch}, the best so far, are lost with it: the model is another epoch's"
        )

    def _warn(self, text: str) -> None:
        self._run.progress.warnings.append(text)
        self._run.report.warning(text)
