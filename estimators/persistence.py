"""Saving and loading, in Spark ML's layout: `<path>/metadata/` (Params, written by Spark) and `<path>/data/`.

`data/` holds our files and, written last, a manifest with the format version, the state and a checksum of each file:
what has no manifest is not a saved object. Nothing on disk is a pickle, except where the user set the Param
`allowPickle` to save and `spark.hvdspark.allowPickle=true` (the session's setting) to load; and no code is run because
a file names it, except of packages in the session's `spark.hvdspark.trustedPackages` (see `artifact.trust`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Protocol

import pyspark
from pyspark.ml.param import Params
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession
from torch import Tensor

from hvdspark.artifact import objects as described
from hvdspark.artifact.directory import TABLES_AT, Artifact, ArtifactWriter, verify_file
from hvdspark.artifact.model import DATA
from hvdspark.artifact.tables import table_files
from hvdspark.artifact.trust import TRUSTED_PACKAGES, Trust
from hvdspark.errors import PersistenceError
from hvdspark.estimators.metadata import DAMAGE, check_metadata, damage_named, damaged, set_params
from hvdspark.estimators.overwriting import overwrite, swap_when_overwriting
from hvdspark.estimators.paths import spark_store
from hvdspark.estimators.table_files import copy_tables, verify_tables
from hvdspark.score import MODELS_PLACE
from hvdspark.session import is_connect, session_of
from hvdspark.store import MANIFEST, Store
from hvdspark.train.pickling import pickled, unpickled

logger = logging.getLogger(__name__)

ALLOW_PICKLE = "spark.hvdspark.allowPickle"
_PICKLE = "objects.pickle"
_METADATA = "metadata"  # Spark ML's directory


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

    def _restore(self, saved: Saved, store: Store, trust: Trust) -> None: ...


class HvdSparkWriter(MLWriter):
    """Writes a `Persistent`."""

    def __init__(self, instance: Any) -> None:
        super().__init__()
        self._instance = instance

    def save(self, path: str) -> None:
        """Save. What is overwritten stays until all is written, and is then replaced."""
        # Before anything is written: the object may refuse to be saved.
        self._saved = self._instance._to_saved()
        if self.shouldOverwrite:
            overwrite(self.sparkSession, path, self.saveImpl)
            return
        store = spark_store(self.sparkSession, path)
        if store.exists(_METADATA):  # Spark itself would name a file in there, and a writer of its own
            raise PersistenceError(
                "what was saved here exists already",
                value=path,
                where="save",
                hint="write().overwrite().save(path) replaces it; or choose another path",
            )
        self.saveImpl(store.uri)

    def saveImpl(self, path: str) -> None:
        saved, store = self._saved, Store(path, "path")
        with session_of(self.sparkSession).described(f"hvdspark save {self._instance.uid}"):
            DefaultParamsWriter.saveMetadata(self._instance, store.uri, self.sparkSession)
            writer, entries = _begun(saved, store)
            source = Store(saved.tables_at[0] or path, MODELS_PLACE)
            copy_tables(self.sparkSession, source, saved.tables_at[1], store, DATA, saved.tables)
            writer.commit(entries, saved.tables)


class HvdSparkReader(MLReader[Any]):
    """Reads what `HvdSparkWriter` wrote.

    `load` raises CheckpointError for an incomplete, damaged or newer save, and PersistenceError for the save of another
    class or for a pickle or code that the session does not trust. Files of embedding tables are checked by executors.
    """

    def __init__(self, cls: type[Any]) -> None:
        super().__init__()
        self._cls = cls
        self._trusted: tuple[str, ...] = ()

    def trusting(self, packages: Sequence[str]) -> HvdSparkReader:
        """This reader, which trusts these packages beside those of the session."""
        self._trusted = tuple(packages)
        return self

    def load(self, path: str) -> Any:
        with session_of(self.sparkSession).described(f"hvdspark load {path}"):
            return self._loaded(path, spark_store(self.sparkSession, path))

    def _loaded(self, path: str, store: Store) -> Any:
        if is_connect(self.sparkSession):
            swap_when_overwriting(connect=True)
        metadata = read_metadata(self.sparkSession, store, path)
        if metadata["class"] != f"{self._cls.__module__}.{self._cls.__name__}":
            name = str(metadata["class"]).rpartition(".")[2]
            hint = f"{name}.load(path) reads it"
            raise PersistenceError("another class was saved here", value=metadata["class"], where=path, hint=hint)
        artifact = Artifact.open(store, DATA)
        artifact.verify()
        verify_tables(self.sparkSession, *artifact.tables_at, artifact.tables)
        manifest = artifact.manifest
        with damage_named(path):
            files = {name: artifact.read(name) for name in manifest["files"]}
            instance = self._cls()
            set_params(instance, metadata, str(manifest.get("written_by", "hvdspark 0.1.0")))
            place, directory = artifact.tables_at
            saved = Saved(manifest["state"], files, manifest["aliases"], artifact.tables, (place.uri, directory))
            trust = trust_of(self.sparkSession)
            instance._restore(saved, store, replace(trust, packages=(*trust.packages, *self._trusted)))
        return instance


def read_metadata(spark: SparkSession, store: Store, path: str) -> Mapping[str, Any]:
    """Spark ML's metadata of what was saved in a store. PersistenceError where nothing was.

    Args:
        path: what the user calls it.
    """
    try:
        metadata: Mapping[str, Any] = DefaultParamsReader.loadMetadata(store.uri, spark)
    except Exception as error:
        if store.exists(_METADATA) and isinstance(error, DAMAGE):
            raise damaged(error, path) from error
        if store.exists(_METADATA):
            raise
        hint = "give the path that save was given"
        if store.exists(MANIFEST):
            hint = "these are the weights of a fitted model: model.save(path) makes what load reads"
        elif not store.exists():
            hint += "; there is no such directory"
        raise PersistenceError("nothing was saved here", value=path, where="load", hint=hint) from error
    check_metadata(metadata, path)
    return metadata


def saved_of(instance: Persistent) -> Saved:
    """What is written of an object. Raises PersistenceError where it cannot be described."""
    return instance._to_saved()


def _begun(saved: Saved, store: Store) -> tuple[ArtifactWriter, dict[str, Any]]:
    """The small files written, and what the manifest will say besides them and the tables."""
    writer = ArtifactWriter(store, DATA)
    for name, content in saved.files.items():
        writer.file(name, content)
    return writer, {"state": saved.state, "aliases": saved.aliases}


def write_alone(instance: Params, saved: Saved, store: Store, *, tables: bool) -> None:
    """Write what `save` writes, by this process alone: no executor has to reach the place, no session has to be there.

    Args:
        saved: of the instance.
        tables: whether the files of sharded tables are copied; else it is said where they are.

    Raises:
        CheckpointError: a file of a table is missing or damaged.
        StoreError: a file cannot be written.
    """
    session: Any = SimpleNamespace(version=pyspark.__version__)  # of which this asks the version alone
    metadata = DefaultParamsWriter._get_metadata_to_save(instance, session)
    store.write_text(f"{_METADATA}/part-00000", f"{metadata}\n")
    writer, entries = _begun(saved, store)
    source, directory = Store(saved.tables_at[0] or store.uri, MODELS_PLACE), saved.tables_at[1]
    if tables:
        for entry in table_files(saved.tables):
            store.copy_from(source, f"{directory}/{entry['path']}", f"{DATA}/{entry['path']}")
            verify_file(store, f"{DATA}/{entry['path']}", entry)
    elif saved.tables:
        entries[TABLES_AT] = {"store": source.uri, "directory": directory}
    writer.commit(entries, saved.tables)


def pack(
    objects: Mapping[str, Any], weights: Mapping[str, Tensor], allow_pickle: bool
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Python objects as JSON state and files; as one pickle where one of them has no description and that is allowed.

    Args:
        weights: tensors of the objects that are saved elsewhere, by name.

    Raises:
        PersistenceError: an object cannot be described and pickle is not allowed, or it cannot be pickled either.
    """
    try:
        return described.pack(objects, weights)
    except PersistenceError:
        if not allow_pickle:
            raise
        return {}, {_PICKLE: _pickled(objects, weights)}


def _pickled(objects: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    try:
        return pickled(dict(objects), weights)
    except Exception as error:
        raise PersistenceError(
            "it cannot be pickled either",
            value=f"{type(error).__name__}: {error}",
            where=", ".join(objects),
            hint="let it hold no locks, generators, open files or sessions",
        ) from error


def unpack(state: Mapping[str, Any], files: Mapping[str, bytes], trust: Trust) -> dict[str, Any]:
    """The objects that `pack` packed; weights have no values yet.

    Raises:
        PersistenceError: a pickle would have to be loaded, or code to be used, that the session does not trust.
    """
    objects = described.unpack(state, files, trust)
    if _PICKLE in files:
        if not trust.everything:
            raise PersistenceError(
                "this was saved with pickle, and loading it would run code from the file",
                hint=f"if you trust where it comes from, set {ALLOW_PICKLE}=true in the Spark session",
            )
        objects.update(unpickled(files[_PICKLE]))
    return objects


def trust_of(spark: SparkSession) -> Trust:
    """What this session opted in to: packages by name, or with pickles everything."""
    packages = str(spark.conf.get(TRUSTED_PACKAGES, "") or "")
    return Trust(
        packages=tuple(name.strip() for name in packages.split(",") if name.strip()),
        everything=str(spark.conf.get(ALLOW_PICKLE, "false")).lower() == "true",
    )
