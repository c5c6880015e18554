"""Checkpoints of a run: one directory for each epoch, complete or not there at all.

    runs/<run_id>/checkpoints/epoch-00003/weights.safetensors
                                          optimizer.safetensors    tensors of the optimizer's state
                                          optimizer.json           everything else of it, as a tree
                                          manifest.json            last: progress, history, checksums
    runs/<run_id>/model/weights.safetensors, manifest.json         the best epoch's weights, when training is over

Random state is not stored: every rank seeds its generators from (seed, epoch, rank) when an epoch begins, so an epoch
that is run again sees the same numbers. Only the best and the newest epoch are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hvdspark.collectives import Collective
from hvdspark.errors import CheckpointError
from hvdspark.store import MANIFEST, Store
from hvdspark.train.agreement import broadcast_json, raise_together
from hvdspark.train.history import BestEpoch
from hvdspark.train.weights import FORMAT, WEIGHTS, checksum, load_weights, pack, read_manifest, read_tensors, verify

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
    """The checkpoint directories of one run. All methods are collective; only rank 0 writes."""

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
        self._on_rank_0("checkpoint", lambda: self._write(module, optimizer, progress))

    def resume(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainProgress | None, tuple[str, ...]]:
        """Collective. Load the newest undamaged epoch into module and optimizer, and say what was passed over.

        Returns:
            Its progress (None if the run has no complete epoch yet), and warnings about damaged ones.

        Raises:
            CheckpointError: there are complete epochs and all are damaged, or a rank cannot read the chosen one.
        """
        chosen: tuple[int | None, list[str]] = (None, [])
        error: Exception | None = None
        if self._collective.rank == 0:
            try:
                chosen = self._newest_undamaged()
            except Exception as caught:  # raised on every rank below
                error = caught
        raise_together(self._collective, error, CheckpointError, "choosing a checkpoint")
        epoch, warnings = broadcast_json(self._collective, chosen, 0, "checkpoint/chosen")
        progress = None
        try:
            progress = self._load(epoch, module, optimizer) if epoch is not None else None
        except Exception as caught:  # raised on every rank below
            error = caught
        raise_together(self._collective, error, CheckpointError, "loading a checkpoint")
        return progress, tuple(warnings)

    def restore_weights(self, epoch: int, module: nn.Module) -> None:
        """Collective. Load the weights of a kept epoch into the module on every rank."""
        error: Exception | None = None
        try:
            load_weights(self._store, self._directory(epoch), module)
        except Exception as caught:  # raised on every rank below
            error = caught
        raise_together(self._collective, error, CheckpointError, "restoring the best epoch")

    def write_model(self, module: nn.Module, manifest: dict[str, Any]) -> None:
        """Collective. Write the module's weights as the run's model; `manifest` is put beside the checksums."""

        def write() -> None:
            data, aliases = pack(module.state_dict())
            self._store.write_bytes(f"{self.model_path}/{WEIGHTS}", data)
            files = {WEIGHTS: checksum(data)}
            known = {"format": FORMAT, "run_id": self._run_id, "files": files, "aliases": aliases}
            self._store.commit(self.model_path, {**manifest, **known})

        self._on_rank_0("model", write)

    def _write(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainProgress) -> None:
        newest = progress.epochs - 1
        directory = self._directory(newest)
        self._store.delete(directory)  # what a lost attempt at the same epoch left
        weights, aliases = pack(module.state_dict())
        tensors, tree = flatten_state(optimizer.state_dict())
        contents = {
            WEIGHTS: weights,
            _OPTIMIZER_TENSORS: safetensors.torch.save(tensors),
            _OPTIMIZER_TREE: json.dumps(tree).encode(),
        }
        for name, data in contents.items():
            self._store.write_bytes(f"{directory}/{name}", data)
        manifest = {
            "format": FORMAT,
            "run_id": self._run_id,
            "epoch": newest,
            "ranks": self._collective.size,
            "progress": asdict(progress),
            "aliases": aliases,
            "files": {name: checksum(data) for name, data in contents.items()},
        }
        self._store.commit(directory, manifest)
        keep = {f"epoch-{newest:05d}", f"epoch-{progress.best.epoch:05d}"}
        for name in set(self._store.list(self._root)) - keep:
            self._store.delete(f"{self._root}/{name}/{MANIFEST}")  # first, so that it never looks complete
            self._store.delete(f"{self._root}/{name}")

    def _newest_undamaged(self) -> tuple[int | None, list[str]]:
        damaged: list[CheckpointError] = []
        for name in sorted(self._store.list(self._root), reverse=True):
            directory = f"{self._root}/{name}"
            if not self._store.exists(f"{directory}/{MANIFEST}"):
                continue
            try:
                manifest = read_manifest(self._store, directory)
                verify(self._store, directory, manifest)
            except CheckpointError as error:
                damaged.append(error)
                continue
            return manifest["epoch"], [f"passed over a damaged checkpoint: {error}" for error in damaged]
        if damaged:
            raise CheckpointError(
                "every checkpoint of the run is damaged",
                value=str(damaged[0]),
                where=self._store.spark_uri(self._root),
                hint="start a new run",
            ) from damaged[0]
        return None, []

    def _load(self, epoch: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> TrainProgress:
        directory = self._directory(epoch)
        manifest = load_weights(self._store, directory, module)
        tree = json.loads(self._store.read_text(f"{directory}/{_OPTIMIZER_TREE}"))
        tensors = read_tensors(self._store, f"{directory}/{_OPTIMIZER_TENSORS}")
        try:
            optimizer.load_state_dict(unflatten_state(tensors, tree))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                "the optimizer's state does not fit the optimizer", value=str(error), where=directory
            ) from error
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


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dicts, lists and tuples into their tensors by number, and a JSON-able tree that refers to them.

    Raises:
        CheckpointError: a leaf is neither a tensor nor a number, string, bool or None.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            key = str(len(tensors))
            # Cloned, because optimizers may share a tensor between parameters and safetensors does not.
            tensors[key] = value.detach().cpu().contiguous().clone()
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
