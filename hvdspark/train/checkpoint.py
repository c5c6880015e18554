"""Checkpoints of a run: directories that are complete or not there at all.

    runs/<run_id>/checkpoints/epoch-00003/weights.safetensors
                                          optimizer.safetensors    tensors of the optimizer's state
                                          optimizer.json           everything else of it, as a tree
                                          ranks.safetensors        in the middle of an epoch: sums and random generators
                                          tables/...               sharded embedding rows, written by all ranks
                                          manifest.json            last: progress, history, checksums
    runs/<run_id>/model/weights.safetensors, tables/..., manifest.json
                                                                   the best epoch's weights, when training is over

`epoch-00003` is the end of epoch 3, `epoch-00003-step-00000120` the place behind the 120th global batch of that epoch.
Only the best epoch and the newest place are kept. At the end of an epoch no random state is stored: every rank seeds
its generators from (seed, epoch, rank) when an epoch begins. Any of them can be loaded at any number of ranks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.artifact.directory import WEIGHTS, Artifact, ArtifactWriter
from hvdspark.artifact.tables import read_tables, write_tables
from hvdspark.artifact.weights import load_weights, write_weights
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, raise_together, ranks_where
from hvdspark.errors import CheckpointError
from hvdspark.store import MANIFEST, Store
from hvdspark.train.of_rank import OfRank, gather, restored
from hvdspark.train.optimizer_state import flatten_state, load_optimizer_state
from hvdspark.train.train_progress import TrainProgress

_OPTIMIZER_TENSORS = "optimizer.safetensors"
_OPTIMIZER_TREE = "optimizer.json"
_RANKS = "ranks.safetensors"


class Checkpoints:
    """The checkpoint directories of one run. All methods are collective; rank 0 writes all but sharded tables."""

    def __init__(self, store: Store, run_id: str, collective: Collective) -> None:
        self._store, self._collective = store, collective
        self._run_id = run_id
        self._root = f"runs/{run_id}/checkpoints"
        self.model_path = f"runs/{run_id}/model"

    def clear(self) -> None:
        """Collective. Forget what an earlier run of the same id left, so that a relaunch cannot resume from it."""

        def delete() -> None:
            for path in (self.model_path, self._root):
                self._store.delete(path)

        self._on_rank_0("clearing", delete)

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: TrainProgress,
        of_rank: OfRank | None = None,
    ) -> str:
        """Collective. Write the newest place, then drop all but it and the best epoch.

        Args:
            progress: at the end of an epoch, or in the middle of one behind an optimizer step.
            of_rank: in the middle of an epoch, what this rank alone knows of it.

        Returns:
            The directory, relative to the store.

        Raises:
            CheckpointError: rank 0 could not write (there it is the store's own error); raised on every rank.
        """
        if (progress.epoch is None) != (of_rank is None):
            raise ValueError("what each rank knows of an epoch belongs to the middle of one")
        directory = self._directory(progress.place)
        # What a lost attempt at the same place left goes before any rank writes.
        self._on_rank_0("clearing a checkpoint", lambda: self._store.delete(directory))
        tables = write_tables(self._store, directory, module, self._collective, state=True)
        of_ranks = gather(of_rank, self._collective) if of_rank is not None else {}
        self._on_rank_0("checkpoint", lambda: self._write(directory, module, optimizer, progress, tables, of_ranks))
        return directory

    def resume(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainProgress | None, tuple[str, ...]]:
        """Collective. Load the newest undamaged checkpoint into module and optimizer, and say what was passed over.

        Returns:
            Its progress (None if the run has no checkpoint yet), and warnings about damaged ones.

        Raises:
            CheckpointError: there are checkpoints and all are damaged.
        """
        complete: list[tuple[int, int]] = []

        def look() -> None:
            places = filter(None, map(_place, self._store.list(self._root)))
            newest_first = sorted(places, reverse=True)
            complete.extend(p for p in newest_first if self._store.exists(f"{self._directory(p)}/{MANIFEST}"))

        self._on_rank_0("choosing a checkpoint", look)
        damaged: list[str] = []
        for place in broadcast_json(self._collective, complete, 0, "checkpoint/complete"):
            progress, error = None, None
            try:
                progress = self._load(self._directory(place), module, optimizer)
            except Exception as caught:  # on every rank below
                error = caught
            unexpected = None if isinstance(error, CheckpointError) else error
            raise_together(self._collective, unexpected, CheckpointError, "loading a checkpoint")
            failed = ranks_where(self._collective, error is not None, "checkpoint/damaged")
            if not failed:
                return progress, tuple(f"passed over a damaged checkpoint: {words}" for words in damaged)
            damaged.append(broadcast_json(self._collective, str(error), failed[0], "checkpoint/damage"))
        if damaged:
            raise CheckpointError(
                "every checkpoint of the run is damaged",
                value=damaged[0],
                where=self._store.spark_uri(self._root),
                hint="start a new run",
            )
        return None, ()

    def of_rank(self, progress: TrainProgress) -> OfRank:
        """Collective. What this rank goes on with in the epoch in whose middle `resume` has found the run."""
        error: Exception | None = None
        own = OfRank([], [])
        try:
            saved = Artifact.open(self._store, self._directory(progress.place))
            own = restored(saved.tensors(_RANKS), self._collective)
        except Exception as caught:  # raised on every rank below
            error = caught
        raise_together(self._collective, error, CheckpointError, "restoring the middle of an epoch")
        return own

    def restore_weights(self, epoch: int, module: nn.Module) -> None:
        """Collective. Load the weights of a kept epoch into the module on every rank."""
        error: Exception | None = None
        directory = self._directory((epoch + 1, 0))
        try:
            read_tables(load_weights(self._store, directory, module), module)
        except Exception as caught:  # raised on every rank below
            error = caught
        raise_together(self._collective, error, CheckpointError, "restoring the best epoch")

    def write_model(self, module: nn.Module, manifest: dict[str, Any]) -> None:
        """Collective. Write the module's weights as the run's model; `manifest` is put beside the checksums."""
        self._on_rank_0("clearing the model", lambda: self._store.delete(self.model_path))
        tables = write_tables(self._store, self.model_path, module, self._collective, state=False)

        known = {**manifest, "run_id": self._run_id}
        self._on_rank_0("model", lambda: write_weights(self._store, self.model_path, module, known, tables))

    def _write(
        self,
        directory: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: TrainProgress,
        tables: list[dict[str, Any]],
        of_ranks: dict[str, Tensor],
    ) -> None:
        tensors, tree = flatten_state(optimizer.state_dict())
        writer = ArtifactWriter(self._store, directory)
        writer.tensors(WEIGHTS, module.state_dict())
        writer.tensors(_OPTIMIZER_TENSORS, tensors)
        writer.file(_OPTIMIZER_TREE, json.dumps(tree).encode())
        if of_ranks:
            writer.tensors(_RANKS, of_ranks)
        known = {"run_id": self._run_id, "epoch": progress.epochs - 1, "ranks": self._collective.size}
        writer.commit({**known, "progress": progress.to_plain()}, tables)
        keep = (progress.place, (progress.best.epoch + 1, 0))
        for name in self._store.list(self._root):
            if _place(name) in (None, *keep):
                continue
            self._store.delete(f"{self._root}/{name}/{MANIFEST}")  # first, so that it never looks complete
            self._store.delete(f"{self._root}/{name}")

    def _load(self, directory: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> TrainProgress:
        artifact = load_weights(self._store, directory, module)
        tree = artifact.read_json(_OPTIMIZER_TREE)
        load_optimizer_state(optimizer, artifact.tensors(_OPTIMIZER_TENSORS), tree, directory)
        read_tables(artifact, module)
        return TrainProgress.from_plain(artifact.manifest.get("progress", {}), directory)

    def _directory(self, place: Sequence[int]) -> str:
        return f"{self._root}/{_name(place)}"

    def _on_rank_0(self, doing: str, act: Callable[[], None]) -> None:
        error: Exception | None = None
        if self._collective.rank == 0:
            try:
                act()
            except Exception as caught:  # raised on every rank below
                error = caught
        raise_together(self._collective, error, CheckpointError, doing)


def _name(place: Sequence[int]) -> str:
    """The directory of a place (`TrainProgress.place`) in training."""
    epochs, step = place
    return f"epoch-{epochs:05d}-step-{step:08d}" if step else f"epoch-{epochs - 1:05d}"


def _place(name: str) -> tuple[int, int] | None:
    """The place that a directory is named after; None of what is no checkpoint."""
    found = re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?", name)
    if found is None:
        return None
    return (int(found[1]), int(found[2])) if found[2] else (int(found[1]) + 1, 0)
