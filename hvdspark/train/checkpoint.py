"""Checkpoints of a run: directories that are complete or not there at all.

    runs/<run_id>/checkpoints/epoch-00003/weights.safetensors
                                          optimizer.safetensors    tensors of the optimizer's state
                                          optimizer.json           everything else of it, as a tree
                                          ranks.safetensors        in the middle of an epoch: sums and random generators
                                          manifest.json            last: progress, history, checksums
    runs/<run_id>/checkpoints/rows/tables/...                      sharded embedding rows of all of them
    runs/<run_id>/model/weights.safetensors, tables/..., manifest.json
                                                                   the best epoch's weights, when training is over

`epoch-00003` is the end of epoch 3, `epoch-00003-step-00000120` the place behind the 120th global batch of that epoch.
The two newest places and the best epoch are kept. At the end of an epoch no random state is stored: every rank seeds
its generators from (seed, epoch, rank) when an epoch begins. Any of them can be loaded at any number of ranks.

Rows of tables that have not changed since the checkpoint before are not written again: a manifest names the files that
earlier ones have written, all rows first, then what has changed since. `begin` copies what is to be written, and
training goes on; `checkpoint_write` writes it, unless a later generation has begun (`fence`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hvdspark.artifact.directory import TABLES, Artifact
from hvdspark.artifact.tables import read_tables, write_tables
from hvdspark.artifact.weights import load_weights, write_weights
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, on_rank_0, raise_together, ranks_where
from hvdspark.embedding.files.kept import KeptFiles
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store
from hvdspark.train.chain import Chain, following, next_delta
from hvdspark.train.checkpoint_read import all_damaged, complete, loaded, resume
from hvdspark.train.checkpoint_thread import Part, Writing, Written
from hvdspark.train.checkpoint_write import (
    RANKS,
    ROWS,
    Save,
    commit,
    discard,
    drop_others,
    write_part,
)
from hvdspark.train.fence import FILE, Fence, begun
from hvdspark.train.of_rank import OfRank, gather, restored
from hvdspark.train.places import Place, name_of
from hvdspark.train.snapshot import COPIED_BYTES, RowsOf, dense_bytes, dense_of, rows_of, watch_rows
from hvdspark.train.spare_memory import spare_bytes
from hvdspark.train.train_progress import TrainProgress

_FAILURES = 3  # in a row; then training ends
_LIMIT_S = 1200.0  # for which training waits for one; ten minutes of it may be waiting for other ranks
_BEHIND_S = 3600.0  # that a rank writes its part of one while training goes on, and no other is begun


class Checkpoints:
    """Those of one generation of a run. All methods are collective; rank 0 writes all but sharded tables.

    Args:
        scratch: a directory of this host that later generations find again; None: there is none.

    Attributes:
        table_bytes: of the checkpoint from which this generation goes on.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        collective: Collective,
        generation: int = 0,
        copied_bytes: int = COPIED_BYTES,
        scratch: str | None = None,
    ) -> None:
        self._store, self._collective, self._generation = store, collective, generation
        self._run_id, self._copied_bytes = run_id, copied_bytes
        self._run = f"runs/{run_id}"
        self._root, self.model_path = f"{self._run}/checkpoints", f"{self._run}/model"
        self._fence: Fence | None = None
        self._saves = self._failures = 0
        self._writing: Writing | None = None  # of the save that was begun last
        self._save: Save | None = None  # that is written
        self._is_settled = True
        self._chain: Chain | None = None  # None: the next save has all rows
        self._next: Chain | None = None  # what the save that is being written makes of it
        self._kept = KeptFiles(scratch, run_id, f"{self._root}/{ROWS}/{TABLES}")
        self.table_bytes = 0

    def clear(self) -> None:
        """Collective. Forget what an earlier run of the same id left, so that a relaunch cannot resume from it."""

        def delete() -> None:
            Fence(self._store, self._run, self._generation, "").check_not_too_late()
            for path in (f"{self._run}/{FILE}", self.model_path, self._root):
                self._store.delete(path)

        on_rank_0(self._collective, delete, CheckpointError, "clearing")

    def begin(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: TrainProgress,
        of_rank: OfRank | None = None,
    ) -> str:
        """Collective. Copy the newest place, and let a thread of each rank write it. `settle` comes before.

        When it is written all but the two newest places and the best epoch are dropped.

        Args:
            progress: at the end of an epoch, or in the middle of one behind an optimizer step.
            of_rank: in the middle of an epoch, what this rank alone knows of it.

        Returns:
            The directory, relative to the store, that will be there.
        """
        if (progress.epoch is None) != (of_rank is None):
            raise ValueError("what each rank knows of an epoch belongs to the middle of one")
        if not self._is_settled:
            raise ValueError("settle() comes before the next save")
        fence, self._saves = self._begun(), self._saves + 1
        of_ranks = gather(of_rank, self._collective) if of_rank is not None else {}
        delta = next_delta(self._chain, module, self._collective)
        place, is_first = name_of(progress.place), self._collective.rank == 0
        attempt = f"{place}.{fence.token}-{self._saves}"
        save = Save(self._root, place, attempt, self._collective.rank, self._collective.size, (), fence)
        self._save, rows = save, list[RowsOf]()
        # What there is no room to copy is written while training waits: dense weights as a whole, rows file by file.
        room, copied = spare_bytes(), True
        try:
            of_dense = dense_bytes(module, optimizer) if is_first else 0
            copied = of_dense <= room
            room = min(self._copied_bytes, room - of_dense) if copied else 0
            self._kept.begin(save.save, whole=not delta)
            at, kept = f"{self._root}/{ROWS}/{TABLES}", self._kept
            rows = rows_of(module, self._store, at, delta=delta, save=save.save, copied_bytes=room, kept=kept)
            watch_rows(module)
            if is_first:
                known = {"run_id": self._run_id, "epoch": progress.epochs - 1, "ranks": self._collective.size}
                chained = self._chain.tables if delta and self._chain is not None else []
                save = replace(
                    save,
                    earlier=[table["files"] for table in chained] or [[] for _ in rows],
                    dense=dense_of(module, optimizer, copied=copied),
                    of_ranks=of_ranks,
                    entries={**known, "progress": progress.to_plain()},
                )
            save = replace(save, rows=rows)
            write = partial(write_part, save, self._store, kept=self._kept)
        except Exception as caught:
            write = partial(_fail, caught)
        best = (progress.best.epoch + 1, 0)
        self._next = following(self._chain, delta, sum(file.bytes for part in rows for file in part.files))
        self._writing = Writing(
            write,
            partial(self._commit, save, progress.place, best),
            limit_s=_BEHIND_S,
            at_once_s=None if copied else _LIMIT_S,
        )
        self._is_settled = False
        return self._directory(progress.place)

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes its part of the save that was begun last, and is not late with it."""
        return self._writing is not None and not self._writing.is_part_over

    @property
    def written(self) -> Written | None:
        """What this rank has written of the save that was begun last; on rank 0 it is committed then."""
        return self._writing.written if self._writing is not None and self._writing.is_over else None

    def settle(self) -> str | None:
        """Collective. Wait for the save that was begun last.

        Returns:
            Where some rank could not write it, why, the same on every rank: there is no such checkpoint then, and the
            next one has all rows.

        Raises:
            CheckpointError: several in a row could not be written (on a rank that could not, the store's own error).
        """
        writing = self._writing
        if writing is None or self._is_settled:
            return None
        self._is_settled = True
        writing.wait_for_part(_LIMIT_S)
        error = writing.error
        failed = ranks_where(self._collective, error is not None, "checkpoint/part")
        if failed:
            writing.give_up()  # rank 0 waits for parts that will never come
        else:
            writing.wait(_LIMIT_S)
            error = writing.error
            failed = ranks_where(self._collective, error is not None, "checkpoint/written")
        self._kept.settle(not failed)
        if not failed:
            self._failures, self._chain = 0, self._next
            if self._chain is not None and writing.written is not None:
                self._chain.tables = writing.written.tables
            return None
        self._failures += 1
        self._chain = None  # the next save has all rows
        if self._save is not None and self._save.rank == 0 and writing.is_over:
            discard(self._save, self._store)  # else the store does not answer: what is left goes behind the next one
        if self._failures >= _FAILURES:
            raise_together(self._collective, error, CheckpointError, f"checkpoint, {_FAILURES} times in a row,")
        words = broadcast_json(self._collective, str(error), failed[0], "checkpoint/error")
        return f"a checkpoint could not be written, and training goes on without it: {words}"

    def close(self, limit_s: float = 1.0) -> None:
        """Not collective: training ends by an error. What is all but written may be finished, the rest is given up."""
        if self._writing is not None:
            self._writing.wait(limit_s)

    def resume(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainProgress | None, tuple[str, ...]]:
        """Collective. Load the newest undamaged checkpoint into module and optimizer, and say what was passed over.

        Returns:
            Its progress (None if the run has no checkpoint yet), and warnings about damaged ones.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
        """
        progress, self.table_bytes, warnings = resume(
            module, optimizer, self._store, self._root, self._collective, self._begun(), self._kept
        )
        return progress, warnings

    def moved_bytes(self) -> int:
        """Collective. Bytes of tables that all ranks have read from the store, and not from what their hosts had."""
        own = torch.tensor(float(self._kept.fetched), dtype=torch.float64)
        return int(self._collective.allreduce_sum(own, "checkpoint/moved"))

    def of_rank(self, progress: TrainProgress) -> OfRank:
        """Collective. What this rank goes on with in the epoch in whose middle `resume` has found the run."""
        error: Exception | None = None
        own = OfRank([], [])
        try:
            saved = Artifact.open(self._store, self._directory(progress.place))
            own = restored(saved.tensors(RANKS), self._collective)
        except Exception as caught:  # raised on every rank below
            error = caught
        raise_together(self._collective, error, CheckpointError, "restoring the middle of an epoch")
        return own

    def restore_weights(self, best_first: Sequence[int], module: nn.Module) -> tuple[int, str | None]:
        """Collective. Load the weights of the first of these epochs into the module; where they are missing or damaged,
        those of the next one.

        Returns:
            The epoch that was loaded, and if it is not the first, what is wrong with that.

        Raises:
            CheckpointError: of none is the checkpoint there and whole.
        """
        best, *others = best_first
        damage = self._damage_of(best, module)
        if damage is None:
            return best, None
        kept = complete(self._store, self._root, self._collective, self._begun())
        for epoch in others:
            if (epoch + 1, 0) in kept and self._damage_of(epoch, module) is None:
                return epoch, damage
        raise all_damaged(damage, self._store, self._root)

    def write_model(self, module: nn.Module, manifest: dict[str, Any]) -> None:
        """Collective. Write the module's weights as the run's model; `manifest` is put beside the checksums."""
        self._on_rank_0("clearing the model", lambda: self._store.delete(self.model_path))
        tables = write_tables(self._store, self.model_path, module, self._collective, state=False)
        known = {**manifest, "run_id": self._run_id}
        self._on_rank_0("model", lambda: write_weights(self._store, self.model_path, module, known, tables))
        self._kept.clear()

    def _damage_of(self, epoch: int, module: nn.Module) -> str | None:
        """Collective. Load the weights of the end of an epoch; where that cannot be, what is damaged."""
        directory = self._directory((epoch + 1, 0))

        def load() -> None:
            read_tables(load_weights(self._store, directory, module), module)

        return loaded(load, self._collective)[1]

    def _commit(self, save: Save, place: Place, best: Place, part: Part, given_up: threading.Event) -> Written:
        written = commit(save, self._store, part, given_up)
        if save.rank == 0 and not given_up.is_set():
            with contextlib.suppress(StoreError):  # what is in nobody's way is deleted behind the next one
                drop_others(self._store, self._root, place, best, save.fence)
        return written

    def _begun(self) -> Fence:
        """Collective. From the first call on, earlier generations write nothing more."""
        self._fence = self._fence or begun(self._store, self._run, self._generation, self._collective)
        return self._fence

    def _directory(self, place: Sequence[int]) -> str:
        return f"{self._root}/{name_of(place)}"

    def _on_rank_0(self, doing: str, act: Callable[[], None]) -> None:
        fence = self._begun()

        def act_unless_over() -> None:
            fence.check()
            act()

        on_rank_0(self._collective, act_unless_over, CheckpointError, doing)


def _fail(error: Exception, given_up: threading.Event) -> Part:
    """What could not be copied cannot be written."""
    raise error
