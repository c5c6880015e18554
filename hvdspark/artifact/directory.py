"""The one directory that weights lie in: with which training begins, of a checkpoint, of a trained and a saved model.

    <directory>/weights.safetensors    dense layers, and small tables that are replicated
                ...                    other tensors and files, such as the optimizer's state
                tables/...             sharded embedding tables (docs/checkpoint-format.md)
                manifest.json          last: what else is known, and a checksum of each file

A directory without a manifest was never finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvdspark import __version__
from hvdspark.artifact.manifest import TRUSTED_STORES, damage, may_be_elsewhere
from hvdspark.artifact.tensors import checksum, read_tensors, unpack, write_tensors
from hvdspark.embedding.files.checked import checked_chunks
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store

WEIGHTS = "weights.safetensors"
TABLES = "tables"
TABLES_AT = "tables_at"  # of a manifest: where the files of tables are that were not copied
FORMAT = 1


class ArtifactWriter:
    """A directory that is being written. It counts when `commit` has returned."""

    def __init__(self, store: Store, directory: str) -> None:
        self._store, self._directory = store, directory
        self._files: dict[str, dict[str, Any]] = {}
        self._aliases: dict[str, dict[str, str]] = {"aliases": {}}

    def tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file, tensor by tensor: none is copied that lies on the CPU in one piece."""
        written, aliases = write_tensors(self._store, f"{self._directory}/{name}", tensors)
        self._files[name], self._aliases[_aliases_of(name)] = written, aliases

    def file(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._store.write_bytes(f"{self._directory}/{name}", content)
        self._files[name] = checksum(content)

    @property
    def written(self) -> int:
        """Bytes of the files so far."""
        return sum(known["bytes"] for known in self._files.values())

    def commit(self, entries: Mapping[str, Any], tables: Sequence[Mapping[str, Any]] = ()) -> None:
        """Declare the directory complete.

        Args:
            entries: JSON-able; what the manifest says beside the files.
            tables: what `tables.write_tables` returned; their files are there.
        """
        known = {"format": FORMAT, "written_by": f"hvdspark {__version__}", "files": self._files, TABLES: list(tables)}
        self._store.commit(self._directory, {**self._aliases, **entries, **known})


@dataclass(frozen=True)
class Artifact:
    """A committed directory.

    Attributes:
        manifest: what `ArtifactWriter.commit` wrote.
    """

    store: Store
    directory: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, store: Store, directory: str, expected: str | None = None) -> Artifact:
        """Read the manifest alone.

        Args:
            expected: fingerprint of the weights that are meant.

        Raises:
            CheckpointError: there is no manifest, it cannot be read, a later version of hvdspark wrote it, or other
                weights lie here than those that are meant.
        """
        artifact = cls(store, directory, _manifest(store, directory))
        if expected is not None and artifact.fingerprint != expected:
            raise CheckpointError(
                "another model was saved here since this one was fitted or loaded",
                value=store.spark_uri(directory),
                hint="load the model again and call transform on that",
            )
        return artifact

    @property
    def fingerprint(self) -> str:
        """What tells these weights from all others: a sha256 of the files' checksums."""
        if WEIGHTS not in self.manifest.get("files", {}):
            raise CheckpointError("there are no weights here", value=self.store.spark_uri(self.directory))
        return fingerprint_of(self.manifest["files"][WEIGHTS], self.tables)

    @property
    def tables(self) -> list[dict[str, Any]]:
        """Of each embedding collection the description of its tables, and their files."""
        found: list[dict[str, Any]] = self.manifest.get(TABLES, [])
        return found

    @property
    def tables_at(self) -> tuple[Store, str]:
        """Store and directory that the files of tables are in: another one, where these were referenced, not copied.

        Raises:
            CheckpointError: the manifest names a host that nobody but itself has named.
        """
        place = self.manifest.get(TABLES_AT)
        if place is None:
            return self.store, self.directory
        if "store" not in place:  # of a checkpoint
            return self.store, place["directory"]
        store = Store(place["store"], TABLES_AT)
        if not may_be_elsewhere(store, self.store):
            raise CheckpointError(
                "the model says that its tables are on a host that is not asked because a file names it",
                value=store.uri,
                where=self.store.spark_uri(self.directory),
                hint=f"if you trust where the model comes from, set {TRUSTED_STORES}={store.uri} in the environment of "
                "the driver and of executors (spark.executorEnv)",
            )
        return store, place["directory"]

    def verify(self) -> None:
        """Read every file of the manifest once, but for those of tables, which are verified when they are read.

        Raises:
            CheckpointError: a file is missing, or is not what was written.
        """
        for name, expected in self.manifest["files"].items():
            verify_file(self.store, f"{self.directory}/{name}", expected)

    def tensors(self, name: str = WEIGHTS) -> dict[str, Tensor]:
        """The tensors of a file under all their names, on the CPU; memory-mapped in a local file system."""
        aliases = self.manifest.get(_aliases_of(name), {})
        return unpack(read_tensors(self.store, f"{self.directory}/{name}"), aliases)

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        return self.store.read_bytes(f"{self.directory}/{name}")

    def read_json(self, name: str) -> Any:
        """What a small file of JSON says. Raises CheckpointError where it is none."""
        try:
            return self.store.read_json(f"{self.directory}/{name}")
        except StoreError as error:
            raise CheckpointError("a file cannot be read", value=str(error), where=self.directory) from error


def fingerprint_of(weights: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> str:
    """See `Artifact.fingerprint`.

    Args:
        weights: `checksum` of their file.
        tables: see `Artifact.tables`.
    """
    return hashlib.sha256(json.dumps([weights, list(tables)], sort_keys=True).encode()).hexdigest()


def verify_file(store: Store, path: str, expected: Mapping[str, Any]) -> None:
    """Compare a file with its `bytes` and `sha256`. Raises CheckpointError where it is missing or another one."""
    for _ in checked_chunks(store, path, expected["bytes"], expected["sha256"], "a file of the manifest"):
        pass


def _manifest(store: Store, directory: str) -> dict[str, Any]:
    try:
        manifest = store.committed(directory)
    except StoreError as error:
        raise CheckpointError("the manifest cannot be read", value=str(error), where=directory) from error
    if manifest is None and not store.exists(directory):
        raise CheckpointError(
            "the directory of the weights is gone",
            value=store.spark_uri(directory),
            hint="a fitted model lives in the store until its run is deleted there; model.save(path) makes a copy",
        )
    if manifest is None:
        raise CheckpointError(
            "there is no complete model or checkpoint here",
            value=store.spark_uri(directory),
            hint="a directory without manifest.json was never finished",
        )
    number = manifest.get("format", FORMAT + 1) if isinstance(manifest, dict) else None
    if type(number) is int and number > FORMAT:
        writer = manifest.get("written_by", "a later version")
        raise CheckpointError(
            "written in a newer format",
            value=manifest.get("format"),
            where=store.spark_uri(directory),
            hint=f"upgrade hvdspark: {writer} wrote it, and hvdspark {__version__} reads formats up to {FORMAT}",
        )
    why = damage(manifest) or (None if type(number) is int else "format is no number")
    if why is not None:
        raise CheckpointError(
            f"the manifest is damaged ({why})",
            value=store.spark_uri(directory),
            hint="it is not what hvdspark writes: save or train again, or restore it from a copy",
        )
    return manifest


def _aliases_of(name: str) -> str:
    """Key of the manifest for the names of tied tensors, which a safetensors file does not store twice."""
    return "aliases" if name == WEIGHTS else f"{name.removesuffix('.safetensors')}_aliases"
