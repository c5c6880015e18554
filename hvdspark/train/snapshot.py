"""What one rank has to write of a checkpoint: copied at one moment, so that training goes on while it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.artifact.tables import collections_of
from hvdspark.embedding import ShardedEmbeddingCollection
from hvdspark.embedding.files.entries import FileEntry
from hvdspark.embedding.files.kept import KEEPS_NOTHING, KeptFiles
from hvdspark.embedding.files.shards import ShardFile, bytes_changed
from hvdspark.store import Store
from hvdspark.train.optimizer_state import flatten_state

# Rows beyond it are written while training waits.
COPIED_BYTES = 1 << 30


@dataclass(frozen=True)
class Dense:
    """What rank 0 alone writes: the same on every rank.

    Attributes:
        weights: the module's state dict.
        optimizer: tensors of its state, by number.
        tree: all else of that state, JSON-able; see `flatten_state`.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    tree: Any


@dataclass(frozen=True)
class RowsOf:
    """This rank's rows of one collection.

    Attributes:
        name, description: of the collection, for the manifest.
        files: that are to be written, and entries of those that are.
    """

    name: str
    description: dict[str, Any]
    files: Sequence[ShardFile | FileEntry]


def dense_of(module: nn.Module, optimizer: torch.optim.Optimizer, *, copied: bool) -> Dense:
    """The dense weights and the optimizer's state, as they are or as copies on the CPU.

    Raises:
        CheckpointError: the optimizer keeps state that cannot be stored.
    """
    weights, (tensors, tree) = module.state_dict(), flatten_state(optimizer.state_dict())
    if not copied:
        return Dense(weights, tensors, tree)
    copies: dict[tuple[Any, ...], Tensor] = {}
    return Dense(_copied(weights, copies), _copied(tensors, copies), tree)


def dense_bytes(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of a copy of `dense_of`."""
    tensors = [*module.state_dict().values(), *flatten_state(optimizer.state_dict())[0].values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rows_of(
    module: nn.Module,
    store: Store,
    place: str,
    *,
    delta: int,
    save: str,
    copied_bytes: int,
    kept: KeptFiles = KEEPS_NOTHING,
) -> list[RowsOf]:
    """This rank's rows of all collections: copies, until these have so many bytes; what is beyond is written at once.

    Args:
        place: directory of the tables, each in a folder of its number.
        delta, save: see `shard_files`.
        kept: where this host keeps copies.

    Raises:
        StoreError: a file could not be written.
    """
    room = [copied_bytes]

    def files_of(number: int, collection: ShardedEmbeddingCollection) -> Iterator[ShardFile | FileEntry]:
        for file in collection.row_files(delta=delta, save=save):
            if file.bytes <= room[0]:
                room[0] -= file.bytes
                yield file.copied()
            else:
                yield file.write(store, f"{place}/{number}", kept)

    return [
        RowsOf(collection.name, collection.description(), list(files_of(number, collection)))
        for number, collection in enumerate(collections_of(module))
    ]


def watch_rows(module: nn.Module) -> None:
    """The next changes are those from now on."""
    for collection in collections_of(module):
        for shard in collection.shards:
            shard.watch()


def changed_bytes(module: nn.Module) -> int:
    """Bytes, about, of this rank's rows that have changed."""
    return sum(bytes_changed(collection.shards) for collection in collections_of(module))


def _copied(tensors: Mapping[str, Tensor], copies: dict[tuple[Any, ...], Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU. What shares its memory shares that of the copy: a file has tied tensors once."""
    copied = {}
    for name, tensor in tensors.items():
        own = tensor.detach()
        identity = (
            own.device,
            own.data_ptr(),
            own.dtype,
            tuple(own.shape),
            own.stride(),
            name if not own.numel() else "",
        )
        if identity not in copies:
            copies[identity] = own.to("cpu", copy=True)
        copied[name] = copies[identity]
    return copied
