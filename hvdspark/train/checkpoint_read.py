"""The newest checkpoint of a run that is whole, on its way back into the ranks of a new generation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import collections_of, kept_bytes, read_tables, table_files
from hvdspark.artifact.weights import load_weights
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, gathered, on_rank_0, raise_together, ranks_where
from hvdspark.embedding.files.kept import KeptFiles
from hvdspark.embedding.plan.resharding import runs_of_ranks
from hvdspark.errors import CheckpointError
from hvdspark.store import MANIFEST, Store
from hvdspark.train.checkpoint_write import OPTIMIZER_TENSORS, OPTIMIZER_TREE
from hvdspark.train.fence import Fence
from hvdspark.train.optimizer_state import load_optimizer_state
from hvdspark.train.places import Place, name_of, place_of
from hvdspark.train.train_progress import TrainProgress

T = TypeVar("T")


def resume(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: Store,
    root: str,
    collective: Collective,
    fence: Fence,
    kept: KeptFiles,
) -> tuple[TrainProgress | None, int, tuple[str, ...]]:
    """Collective. Load the newest undamaged checkpoint into module and optimizer, and say what was passed over.

    Args:
        root: directory of the run's checkpoints.
        fence: of this generation: no earlier one writes any more.
        kept: what this host has of their tables.

    Returns:
        Its progress (None if the run has no checkpoint yet), bytes of its tables, and warnings about damaged ones.

    Raises:
        CheckpointError: there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for place in complete(store, root, collective, fence):
        directory = f"{root}/{name_of(place)}"
        size = _divide(module, collective, store, directory, kept)
        progress, damage = loaded(partial(_load, store, directory, module, optimizer, kept), collective)
        if damage is None:
            return progress, size, tuple(f"passed over a damaged checkpoint: {words}" for words in damaged)
        damaged.append(damage)
    if damaged:
        raise all_damaged(damaged[0], store, root)
    return None, 0, ()


def complete(store: Store, root: str, collective: Collective, fence: Fence) -> list[Place]:
    """Collective. Places whose checkpoints have a manifest, newest first; they may be damaged."""
    found: list[Place] = []

    def look() -> None:
        fence.check()
        newest_first = sorted(filter(None, map(place_of, store.list(root))), reverse=True)
        found.extend(place for place in newest_first if store.exists(f"{root}/{name_of(place)}/{MANIFEST}"))

    on_rank_0(collective, look, CheckpointError, "choosing a checkpoint")
    return [(epochs, step) for epochs, step in broadcast_json(collective, found, 0, "checkpoint/complete")]


def loaded(load: Callable[[], T], collective: Collective) -> tuple[T | None, str | None]:
    """Collective. Load something of a checkpoint on every rank.

    Returns:
        What was loaded, and where some rank could not, since it is damaged, the words of the first of these (the same
        on every rank).

    Raises:
        CheckpointError: some rank met an error that tells nothing of damage, and raises that.
    """
    found, error = None, None
    try:
        found = load()
    except Exception as caught:  # on every rank below
        error = caught
    unexpected = None if isinstance(error, CheckpointError) else error
    raise_together(collective, unexpected, CheckpointError, "loading a checkpoint")
    failed = ranks_where(collective, error is not None, "checkpoint/damaged")
    return found, broadcast_json(collective, str(error), failed[0], "checkpoint/damage") if failed else None


def all_damaged(damage: str, store: Store, root: str) -> CheckpointError:
    """Of a run that has checkpoints, none of which can be read; `damage` is of one of them."""
    return CheckpointError(
        "every checkpoint of the run is damaged, or cannot be read",
        value=damage,
        where=store.spark_uri(root),
        hint="start a new run; or, where it is the store that cannot be read, go on with this one by its runId later",
    )


def _divide(module: nn.Module, collective: Collective, store: Store, directory: str, kept: KeptFiles) -> int:
    """Collective where there are tables. Say which buckets each rank has, before the rows of a checkpoint are read:
    those that its host has kept, as far as can be.

    A rank that cannot read the manifest has nothing to say here: it fails where it loads the checkpoint.

    Returns:
        Bytes of the tables' files, by the manifest; 0 where this rank cannot read it.
    """
    collections, size = collections_of(module), 0
    if not collections:
        return 0
    own = torch.zeros(collective.size, dtype=torch.float64)
    with contextlib.suppress(CheckpointError):
        artifact = Artifact.open(store, directory)
        own = torch.from_numpy(kept_bytes(artifact, kept, collective.size))
        size = sum(int(file["bytes"]) for file in table_files(artifact.tables))
    runs = runs_of_ranks(gathered(collective, own, "checkpoint/kept").numpy())
    for collection in collections:
        collection.divide(runs)
    return size


def _load(
    store: Store, directory: str, module: nn.Module, optimizer: torch.optim.Optimizer, kept: KeptFiles
) -> TrainProgress:
    artifact = load_weights(store, directory, module)
    tree = artifact.read_json(OPTIMIZER_TREE)
    load_optimizer_state(optimizer, artifact.tensors(OPTIMIZER_TENSORS), tree, directory)
    read_tables(artifact, module, kept)
    return TrainProgress.from_plain(artifact.manifest.get("progress", {}), directory)
