"""What the sharded embedding tables of a module need from a training run: their ranks, and their place in the store.

Rows of sharded tables are no Parameter: they are in no state dict, no optimizer and no broadcast. What a directory of
weights says about them is under "tables" in its manifest, one entry for each collection of the module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hvdspark.artifact.directory import TABLES, Artifact, verify_file
from hvdspark.artifact.weights import load_weights
from hvdspark.collectives import Collective, LocalCollective
from hvdspark.collectives.agreement import raise_together
from hvdspark.embedding.files.entries import parse_entries
from hvdspark.embedding.files.kept import KEEPS_NOTHING, KeptFiles
from hvdspark.embedding.lineage import dense_weights_alone
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.plan.resharding import FloatArray, bytes_by_run
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.store import Store


def collections_of(module: nn.Module) -> list[ShardedEmbeddingCollection]:
    """The collections of a module that have sharded tables, in the order of `module.modules()`."""
    found = [part for part in module.modules() if isinstance(part, ShardedEmbeddingCollection)]
    return [collection for collection in found if collection.groups]


def bind_tables(module: nn.Module, collective: Collective) -> None:
    """Let the tables live on these ranks. ConfigurationError where two collections have the same name."""
    collections = collections_of(module)
    names = [collection.name for collection in collections]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            "two embedding collections of the module have the same name",
            value=names,
            where=type(module).__name__,
            hint="give each ShardedEmbeddingCollection a name of its own: it names their exchanges",
        )
    for collection in collections:
        collection.bind(collective)


def take_over(source: nn.Module, copy: nn.Module) -> None:
    """Give a copy that was made without weights those of a module that was not trained yet, to be called here alone."""
    with torch.no_grad(), dense_weights_alone():
        copy.load_state_dict(source.state_dict())
    bind_tables(copy, LocalCollective())


def write_tables(
    store: Store, directory: str, module: nn.Module, collective: Collective, *, state: bool
) -> list[dict[str, Any]]:
    """Collective. Every rank writes its rows below `directory`; what the manifest has to say about them, on rank 0.

    Args:
        state: also optimizer state, counts and what else training needs to go on; else ids and rows alone.

    Raises:
        CheckpointError: some rank could not write (there it is the store's own error); raised on every rank.
    """
    collections = collections_of(module)
    error: Exception | None = None
    try:
        files = [
            collection.write_rows(store, f"{directory}/{TABLES}/{number}", state=state)
            for number, collection in enumerate(collections)
        ]
        if collections:
            store.write_text(_part(directory, collective.rank), json.dumps(files))
    except Exception as caught:  # raised on every rank below
        error = caught
    raise_together(collective, error, CheckpointError, "writing tables")
    tables: list[dict[str, Any]] = []
    try:
        if collective.rank == 0 and collections:
            tables = _gathered(store, directory, collections, collective.size)
    except Exception as caught:  # raised on every rank below
        error = caught
    raise_together(collective, error, CheckpointError, "describing tables")
    return tables


def read_tables(artifact: Artifact, module: nn.Module, kept: KeptFiles = KEEPS_NOTHING) -> None:
    """Replace this rank's rows by those it owns of what `write_tables` wrote, at any world size. Not collective.

    Args:
        kept: what this host has of the files.

    Raises:
        CheckpointError: files are missing or damaged, or they are not of these tables.
    """
    for store, place, collection, saved in _matched(artifact, module):
        collection.read_rows(store, place, saved["description"], saved["files"], kept=kept)


def verify_tables(artifact: Artifact) -> None:
    """Compare the files of tables with their checksums where they are mapped as they are: in a local store. Others are
    compared when they are copied to this host. Reads them once.

    Raises:
        CheckpointError: a file is missing, or is not what was written.
    """
    store, directory = artifact.tables_at
    if store.local_path() is not None:
        for entry in table_files(artifact.tables):
            verify_file(store, f"{directory}/{entry['path']}", entry)


def freeze_tables(artifact: Artifact, module: nn.Module) -> None:
    """Let the module look its rows up in the files, for scoring: nothing is read before it is asked for.

    Where the store is not a file system of this host, copies of the files are made here, under the fingerprint.

    Raises:
        CheckpointError: the files are not of these tables.
    """
    for number, (store, place, collection, saved) in enumerate(_matched(artifact, module)):
        key = f"{artifact.fingerprint}/{number}"
        collection.freeze(store, place, saved["description"], saved["files"], key)


def table_files(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of all files of a manifest's tables, with paths relative to the manifest's directory."""
    return [
        {**file, "path": f"{TABLES}/{number}/{file['path']}"}
        for number, saved in enumerate(tables)
        for file in saved["files"]
        if file["path"] is not None
    ]


def kept_bytes(artifact: Artifact, kept: KeptFiles, world_size: int) -> FloatArray:
    """Bytes of the tables' files that this host has kept, for each run of buckets: float64 [world_size].

    Raises:
        CheckpointError: the manifest is damaged.
    """
    files = [
        (f"{table_place(artifact, number)[1]}/{file.path}", file)
        for number, saved in enumerate(artifact.tables)
        for file in parse_entries(saved["files"], artifact.directory)
    ]
    there = [(file.first, file.stop, file.bytes) for path, file in files if kept.has(path, file.bytes)]
    return bytes_by_run(there, world_size)


def table_place(artifact: Artifact, number: int) -> tuple[Store, str]:
    """The store and the directory in it of one of `artifact.tables`."""
    store, directory = artifact.tables_at
    return store, f"{directory}/{TABLES}/{number}"


def _matched(
    artifact: Artifact, module: nn.Module
) -> list[tuple[Store, str, ShardedEmbeddingCollection, dict[str, Any]]]:
    """For each collection its store and directory, itself, and what the manifest says of it."""
    collections, saved = collections_of(module), artifact.tables
    if len(collections) != len(saved):
        raise CheckpointError(
            "the module has another number of embedding collections",
            value=f"{len(saved)} were saved, {len(collections)} are there",
            where=artifact.directory,
            hint="the tables are of another module",
        )
    return [
        (*table_place(artifact, number), collection, known)
        for number, (collection, known) in enumerate(zip(collections, saved, strict=True))
    ]


def _gathered(
    store: Store, directory: str, collections: Sequence[ShardedEmbeddingCollection], size: int
) -> list[dict[str, Any]]:
    """What all ranks said about their files, which no reader needs any more, as entries of the manifest."""
    parts = [json.loads(store.read_text(_part(directory, rank))) for rank in range(size)]
    for rank in range(size):
        store.delete(_part(directory, rank))
    return [
        {
            "name": collection.name,
            "description": collection.description(),
            "files": [file for part in parts for file in part[number]],
        }
        for number, collection in enumerate(collections)
    ]


def _part(directory: str, rank: int) -> str:
    return f"{directory}/{TABLES}/rank-{rank:05d}.json"


def load_model(store: Store, directory: str, module: nn.Module, fingerprint: str) -> nn.Module:
    """A trained module in evaluation mode; its sharded rows are looked up in the store's files.

    Args:
        module: without weights, to be filled.
        fingerprint: of the weights that are meant; others are refused.

    Raises:
        CheckpointError: the weights are missing, damaged, others than meant, or do not fit the module.
    """
    freeze_tables(load_weights(store, directory, module, fingerprint), module)
    return module.eval()
