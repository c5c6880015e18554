"""Saving and loading, in Spark ML's layout: `<path>/metadata/` (Params, written by Spark) and `<path>/data/`.

`data/` holds our files and, written last, a manifest with the format version, the state and a checksum of each file:
what has no manifest is not a saved object. Nothing on disk is a pickle, except where the user set `allowPickle` (the
estimator's Param) to save and `spark.hvdspark.allowPickle=true` (the session's setting) to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import cloudpickle
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession

from hvdspark.errors import PersistenceError
from hvdspark.estimators.table_files import copy_tables, verify_tables
from hvdspark.store import Store
from hvdspark.train import architecture
from hvdspark.train.tables import TABLES
from hvdspark.train.weights import FORMAT, checksum, read_manifest, verify

ALLOW_PICKLE = "spark.hvdspark.allowPickle"
DATA = "data"
_PICKLE = "objects.pickle"


@dataclass(frozen=True)
class Saved:
    """What an object puts into `data/`.

    Attributes:
        state: JSON-able.
        files: small ones, by name.
        aliases: names of tied tensors.
        tables: what the manifest says of sharded embedding tables, whose files are copied by the executors.
        tables_at: store URI and directory where these files are.
    """

    state: dict[str, Any]
    files: dict[str, bytes]
    aliases: dict[str, str]
    tables: list[dict[str, Any]] = field(default_factory=list)
    tables_at: tuple[str, str] = ("", "")


class Persistent(Protocol):
    """What the writer and reader need from an estimator or model."""

    def _to_saved(self) -> Saved: ...

    def _restore(self, saved: Saved, store: Store, allow_pickle: bool) -> None: ...


class HvdSparkWriter(MLWriter):
    """Writes a `Persistent`."""

    def __init__(self, instance: Any) -> None:
        super().__init__()
        self._instance = instance

    def save(self, path: str) -> None:
        # Before Spark deletes what is to be overwritten: the object may refuse to be saved, or read its weights there.
        self._saved = self._instance._to_saved()
        source, directory = self._saved.tables_at
        if self._saved.tables and f"{Store(source).uri}/{directory}".startswith(f"{Store(path).uri}/"):
            if not Store(source).exists(directory):
                raise PersistenceError(
                    "the embedding tables of this model are lost: Spark deletes what a pipeline is to overwrite before "
                    "its stages can refuse, and the model was loaded from there",
                    value=path,
                    hint="save a loaded pipeline elsewhere; this one has to be fitted again, or restored from a copy",
                )
            raise PersistenceError(
                "a model with sharded tables cannot be saved over the one that it was loaded from",
                value=path,
                hint="its tables are mapped from there: save it elsewhere",
            )
        super().save(path)

    def saveImpl(self, path: str) -> None:
        saved, store = self._saved, Store(path)
        DefaultParamsWriter.saveMetadata(self._instance, store.uri, self.sparkSession)
        for name, content in saved.files.items():
            store.write_bytes(f"{DATA}/{name}", content)
        files = {name: checksum(content) for name, content in saved.files.items()}
        manifest = {"format": FORMAT, "state": saved.state, "files": files, "aliases": saved.aliases}
        copy_tables(self.sparkSession, Store(saved.tables_at[0] or path), saved.tables_at[1], store, DATA, saved.tables)
        store.commit(DATA, {**manifest, TABLES: saved.tables})


class HvdSparkReader(MLReader[Any]):
    """Reads what `HvdSparkWriter` wrote.

    `load` raises CheckpointError for an incomplete, damaged or newer save, and PersistenceError for the save of another
    class or for a pickle that the session does not allow. Files of embedding tables are checked by executors.
    """

    def __init__(self, cls: type[Any]) -> None:
        super().__init__()
        self._cls = cls

    def load(self, path: str) -> Any:
        store = Store(path)
        metadata = DefaultParamsReader.loadMetadata(store.uri, self.sparkSession)
        if metadata["class"] != f"{self._cls.__module__}.{self._cls.__name__}":
            raise PersistenceError("another class was saved here", value=metadata["class"], where=path)
        manifest = read_manifest(store, DATA)
        verify(store, DATA, manifest)
        verify_tables(self.sparkSession, store, DATA, manifest.get(TABLES, []))
        files = {name: store.read_bytes(f"{DATA}/{name}") for name in manifest["files"]}
        instance = self._cls()
        instance._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(instance, metadata)
        saved = Saved(manifest["state"], files, manifest["aliases"], manifest.get(TABLES, []), (store.uri, DATA))
        instance._restore(saved, store, pickle_allowed(self.sparkSession))
        return instance


def pack(objects: Mapping[str, Any], allow_pickle: bool) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Python objects as JSON state; those that cannot be, as one pickle if that is allowed.

    Raises:
        PersistenceError: an object cannot be described and pickle is not allowed.
    """
    state: dict[str, Any] = {}
    pickled: dict[str, Any] = {}
    for name, value in objects.items():
        try:
            state[name] = architecture.describe(value, where=name)
        except PersistenceError:
            if not allow_pickle:
                raise
            pickled[name] = value
    return state, {_PICKLE: cloudpickle.dumps(pickled)} if pickled else {}


def unpack(state: Mapping[str, Any], files: Mapping[str, bytes], allow_pickle: bool) -> dict[str, Any]:
    """The objects that `pack` packed. Raises PersistenceError when a pickle would have to be loaded and may not."""
    objects = {name: architecture.rebuild(description) for name, description in state.items()}
    if _PICKLE in files:
        if not allow_pickle:
            raise PersistenceError(
                "this was saved with pickle, and loading it would run code from the file",
                hint=f"if you trust where it comes from, set {ALLOW_PICKLE}=true in the Spark session",
            )
        objects.update(cloudpickle.loads(files[_PICKLE]))
    return objects


def pickle_allowed(spark: SparkSession) -> bool:
    """Whether this session opted in to loading pickles."""
    return str(spark.conf.get(ALLOW_PICKLE, "false")).lower() == "true"
