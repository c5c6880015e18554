"""Paths that come through Spark ML, as Spark means them: those without a scheme are on the one of `fs.defaultFS`."""

from __future__ import annotations

import re

from pyspark.sql import SparkSession

from hvdspark.errors import StoreError
from hvdspark.session import session_of
from hvdspark.store import Store

# Mounts that exist for Spark and for Python, under these names on a driver's disk alone.
_MOUNTED = ("/dbfs/", "/Volumes/")


def spark_store(spark: SparkSession, path: str, where: str = "path") -> Store:
    """The store at a path or URI that a user gave to Spark ML.

    Args:
        where: as what; errors say it.

    Raises:
        StoreError: as `Store`; or the scheme of a path without one (that of `fs.defaultFS`) is unknown there.
    """
    return Store(qualified(spark, path), where)


def qualified(spark: SparkSession, path: str) -> str:
    """The path with the scheme and authority that Spark adds where it has none; unchanged where it has them.

    Relative paths are relative to where Spark is (on HDFS, the user's home).
    """
    if not isinstance(path, str) or not path.strip() or path.startswith((*_MOUNTED, "~")):
        return path
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?([^/]*)", path)
    if scheme is not None and (scheme[1].lower() in ("file", "dbfs", "memory") or scheme[3]):
        return path
    return session_of(spark).qualified(path)


def check_same_place(spark: SparkSession, path: str, store: Store) -> None:
    """StoreError where Spark finds something at a path and we do not: what Spark would delete there is not ours."""
    if session_of(spark).has_path(store.uri) and not store.exists():
        raise StoreError(
            "Spark finds something here that hvdspark does not find, so the two look at different file systems",
            value=store.uri,
            where=path,
            hint="nothing was deleted; give a full URI, and check the settings of fsspec and of fs.defaultFS",
        )
