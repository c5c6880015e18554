"""Checkpoints of a run: one directory for each epoch, complete or not there at all.

    runs/<run_id>/checkpoints/epoch-00003/weights.safetensors
                                          optimizer.safetensors    tensors of the optimizer's state
                                          optimizer.json           everything else of it, as a tree
                                          tables/...               sharded embedding rows, written by all ranks
                                          manifest.json            last: progress, history, checksums
    runs/<run_id>/model/weights.safetensors, tables/..., manifest.json
                                                                   the best epoch's weights, when training is over

Random state is not stored: every rank seeds its generators from (seed, epoch, rank) when an epoch begins, so an epoch
that is run again sees the same numbers. Only the best and the newest epoch are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.artifact.tables import TABLES, read_tables, write_tables
from hvdspark.artifact.weights import (
    FORMAT,
    WEIGHTS,
    checksum,
    load_weights,
    read_tensors,
    unpack,
    write_tensors,
    write_weights,
)
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, raise_together, ranks_where
from hvdspark.errors import CheckpointError
from hvdspark.store import MANIFEST, Store
from hvdspark.train.history import BestEpoch

_OPTIMIZER_TENSORS = "optimizer.safetensors"
_OPTIMIZER_TREE = "optimizer.json"


@dataclass
class TrainProgress:
    """How far a run has come.

    Attributes:
        epochs: complete epochs.
        optimizer_steps: since the run began.
        history: one row for each complete epoch.
        best: state of early stopping and best-epoch selection.
        stopped: why training is over before its last epoch, or None.
        outputs: what the module returns, as plain `OutputSpec`s.
    """

    best: BestEpoch
    epochs: int = 0
    optimizer_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)


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

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainProgress) -> None:
        """Collective. Write the newest complete epoch, then drop all but it and the best.

        Raises:
            CheckpointError: rank 0 could not write (there it is the store's own error); raised on every rank.
        """
        directory = self._directory(progress.epochs - 1)
        # What a lost attempt at the same epoch left goes before any rank writes.
        self._on_rank_0("clearing a checkpoint", lambda: self._store.delete(directory))
        tables = write_tables(self._store, directory, module, self._collective, state=True)
        self._on_rank_0("checkpoint", lambda: self._write(module, optimizer, progress, tables))

    def resume(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainProgress | None, tuple[str, ...]]:
        """Collective. Load the newest undamaged epoch into module and optimizer, and say what was passed over.

        Returns:
            Its progress (None if the run has no complete epoch yet), and warnings about damaged ones.

        Raises:
            CheckpointError: there are complete epochs and all are damaged.
        """
        complete: list[int] = []

        def look() -> None:
            names = sorted(self._store.list(self._root), reverse=True)
            complete.extend(int(n[-5:]) for n in names if self._store.exists(f"{self._root}/{n}/{MANIFEST}"))

        self._on_rank_0("choosing a checkpoint", look)
        damaged: list[str] = []
        for epoch in broadcast_json(self._collective, complete, 0, "checkpoint/complete"):
            progress, error = None, None
            try:
                progress = self._load(epoch, module, optimizer)
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

    def restore_weights(self, epoch: int, module: nn.Module) -> None:
        """Collective. Load the weights of a kept epoch into the module on every rank."""
        error: Exception | None = None
        directory = self._directory(epoch)
        try:
            read_tables(self._store, directory, module, load_weights(self._store, directory, module))
        except Exception as caught:  # raised on every rank below
            error = caught
        raise_together(self._collective, error, CheckpointError, "restoring the best epoch")

    def write_model(self, module: nn.Module, manifest: dict[str, Any]) -> None:
        """Collective. Write the module's weights as the run's model; `manifest` is put beside the checksums."""
        self._on_rank_0("clearing the model", lambda: self._store.delete(self.model_path))
        tables = write_tables(self._store, self.model_path, module, self._collective, state=False)

        known = {**manifest, "run_id": self._run_id, TABLES: tables}
        self._on_rank_0("model", lambda: write_weights(self._store, self.model_path, module, known))

    def _write(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: TrainProgress,
        tables: list[dict[str, Any]],
    ) -> None:
        newest = progress.epochs - 1
        directory = self._directory(newest)
        tensors, tree = flatten_state(optimizer.state_dict())
        text = json.dumps(tree).encode()
        weights, aliases = write_tensors(self._store, f"{directory}/{WEIGHTS}", module.state_dict())
        state, shared = write_tensors(self._store, f"{directory}/{_OPTIMIZER_TENSORS}", tensors)
        self._store.write_bytes(f"{directory}/{_OPTIMIZER_TREE}", text)
        manifest = {
            "format": FORMAT,
            "run_id": self._run_id,
            "epoch": newest,
            "ranks": self._collective.size,
            "progress": asdict(progress),
            "aliases": aliases,
            "optimizer_aliases": shared,
            "files": {WEIGHTS: weights, _OPTIMIZER_TENSORS: state, _OPTIMIZER_TREE: checksum(text)},
            TABLES: tables,
        }
        self._store.commit(directory, manifest)
        keep = {f"epoch-{newest:05d}", f"epoch-{progress.best.epoch:05d}"}
        for name in set(self._store.list(self._root)) - keep:
            self._store.delete(f"{self._root}/{name}/{MANIFEST}")  # first, so that it never looks complete
            self._store.delete(f"{self._root}/{name}")

    def _load(self, epoch: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> TrainProgress:
        directory = self._directory(epoch)
        manifest = load_weights(self._store, directory, module)
        tree = json.loads(self._store.read_text(f"{directory}/{_OPTIMIZER_TREE}"))
        tensors = read_tensors(self._store, f"{directory}/{_OPTIMIZER_TENSORS}")
        tensors = unpack(tensors, manifest["optimizer_aliases"])
        try:
            state = unflatten_state(tensors, tree)
            optimizer.load_state_dict(state)
            _keep_types(optimizer, state["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                "the optimizer's state does not fit the optimizer", value=str(error), where=directory
            ) from error
        read_tables(self._store, directory, module, manifest)
        progress = manifest["progress"]
        return TrainProgress(**{**progress, "best": BestEpoch(**progress["best"])})

    def _directory(self, epoch: int) -> str:
        return f"{self._root}/epoch-{epoch:05d}"

    def _on_rank_0(self, doing: str, act: Callable[[], None]) -> None:
        error: Exception | None = None
        if self._collective.rank == 0:
            try:
                act()
            except Exception as caught:  # raised on every rank below
                error = caught
        raise_together(self._collective, error, CheckpointError, doing)


def _keep_types(optimizer: torch.optim.Optimizer, saved: dict[Any, dict[str, Any]]) -> None:
    """Give an optimizer's loaded state the types that it was saved in: torch has cast it to those of the parameters,
    which are not the types of all state (NAdam and ASGD keep some in float32)."""
    numbers = [number for group in optimizer.state_dict()["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        loaded = optimizer.state[parameter] if number in saved else {}
        for key, value in saved.get(number, {}).items():
            if isinstance(value, Tensor) and value.dtype != loaded[key].dtype:
                loaded[key] = value.to(loaded[key].device)


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples into their tensors by number, and a JSON-able tree that refers to them.

    Raises:
        CheckpointError: a leaf is neither a tensor nor a number, string, bool or None.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = str(len(tensors))
            tensors[key] = value.detach()  # no copy: this may be as large as the weights, several times
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": [[walk(key), walk(item)] for key, item in value.items()]}
        if isinstance(value, tuple | list):
            return {type(value).__name__ if type(value) in (tuple, list) else "tuple": [walk(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise CheckpointError(
            "the optimizer keeps state that cannot be stored", value=type(value).__name__, where="optimizer"
        )

    return tensors, walk(state)


def unflatten_state(tensors: dict[str, Tensor], tree: Any) -> Any:
    """What `flatten_state` took apart."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content].clone()  # not a view of a memory-mapped file
    if kind == "dict":
        return {unflatten_state(tensors, key): unflatten_state(tensors, item) for key, item in content}
    items = [unflatten_state(tensors, item) for item in content]
    return tuple(items) if kind == "tuple" else items
