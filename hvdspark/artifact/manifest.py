"""What a manifest has to be before anything is done with it, whoever wrote it.

Its names become paths, and its numbers sizes: they are held to that here, once, for everybody who opens a directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvdspark.embedding.files.entries import parse_entries
from hvdspark.errors import HvdSparkError
from hvdspark.plain import built_of_known
from hvdspark.store import Store
from hvdspark.store.spellings import checked

# Stores in which a file cannot choose the host that is asked: paths of this host, and names of buckets.
_WITHOUT_HOSTS = ("file", "dbfs", "s3a", "gs", "abfss")
# Environment variable: URIs, separated by commas, below which a model may say that its tables are.
TRUSTED_STORES = "HVDSPARK_TRUSTED_STORES"
_MAPPINGS = ("files", "aliases", "state")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _File:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class _Place:
    directory: str
    store: str | None = None  # of a checkpoint: the one that it is in itself


@dataclass(frozen=True)
class _Tables:
    description: dict[str, Any]
    files: list[dict[str, Any]]
    name: str = ""  # earlier versions saved none


def damage(manifest: Any) -> str | None:
    """Why something is no manifest of weights, in words; None where it is one."""
    try:
        _check(manifest)
    except (TypeError, ValueError, HvdSparkError) as error:
        return str(error)
    return None


def may_be_elsewhere(place: Store, own: Store, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a model in the store `own` may say that its tables are in the store `place`."""
    scheme = place.uri.partition(":")[0]
    same_host = place.uri.split("/")[:3] == own.uri.split("/")[:3]
    trusted = [uri.strip().rstrip("/") for uri in environ.get(TRUSTED_STORES, "").split(",") if uri.strip()]
    return scheme in _WITHOUT_HOSTS or same_host or any(f"{place.uri}/".startswith(f"{uri}/") for uri in trusted)


def _check(manifest: Any) -> None:
    if not isinstance(manifest, dict):
        raise TypeError(f"it is a {type(manifest).__name__}")
    for key in _MAPPINGS:
        if not isinstance(manifest.get(key, {}), dict):
            raise TypeError(f"{key} is a {type(manifest[key]).__name__}")
    for name, entry in manifest.get("files", {}).items():
        file = built_of_known(_File, entry, f"files.{name}")
        if not checked(name) or file.bytes < 0 or not _SHA256.fullmatch(file.sha256):
            raise ValueError(f"files.{name} is no file with a size and a SHA-256")
    for key in manifest:
        if key.endswith("aliases"):
            _check_aliases(key, manifest[key])
    tables = manifest.get("tables", [])
    if not isinstance(tables, list):
        raise TypeError(f"tables is a {type(tables).__name__}")
    for number, entry in enumerate(tables):
        parse_entries(built_of_known(_Tables, entry, f"tables[{number}]").files, f"tables[{number}]")
    if manifest.get("tables_at") is not None:
        checked(built_of_known(_Place, manifest["tables_at"], "tables_at").directory)


def _check_aliases(key: str, aliases: Any) -> None:
    if not isinstance(aliases, Mapping) or not all(isinstance(kept, str) for kept in aliases.values()):
        raise TypeError(f"{key} is no list of names")
